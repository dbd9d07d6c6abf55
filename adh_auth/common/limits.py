"""Sizes and times that several layers share."""

from __future__ import annotations

__all__ = ["LOCK_TIMEOUT", "REFRESH_DEADLINE"]

#: Bytes. A larger file is refused as no token file: one is about a kilobyte.
MAX_READ_BYTES = 1024 * 1024
#: Bytes. A rotation writes no larger file: what a reply adds beyond that is dropped. Half of
#: `MAX_READ_BYTES`, so that every file that a rotation writes can be read again.
MAX_FILE_BYTES = MAX_READ_BYTES // 2
#: Bytes of the reply of an auth endpoint. Two tokens and a few keys are under 4 KiB. As much is reserved on
#: disk before a refresh.
REPLY_LIMIT = 64 * 1024
#: Bytes. A larger session is not saved, so that what the next reply adds fits under `MAX_READ_BYTES`: JSON
#: escapes make three bytes at most of one byte of UTF-8.
SAVE_LIMIT = MAX_READ_BYTES - 3 * REPLY_LIMIT

#: Bytes of a 401's body that are read. The API's error object has about a hundred.
BODY_LIMIT = 8 * 1024
#: Seconds that reading `BODY_LIMIT` bytes may take. A body that takes longer counts as one without a code.
PEEK_SECONDS = 5.0

#: Seconds for one refresh with all its tries. A try may read for all that is left of them: a reply that is
#: given up on is a session lost. Shorter than `LOCK_TIMEOUT`, or waiters would give up on a holder that is
#: still at work.
REFRESH_DEADLINE = 30.0
#: Seconds to wait for another process's refresh.
LOCK_TIMEOUT = 45.0
