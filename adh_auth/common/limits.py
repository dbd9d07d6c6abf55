"""Sizes and times that several layers share."""

from __future__ import annotations

import sys

if sys.platform != "win32":
    pass


__all__ = ["LOCK_TIMEOUT", "REFRESH_DEADLINE"]

#: Bytes. A token file is about one kilobyte; nobody's has a megabyte.
MAX_READ_BYTES = 1024 * 1024


#: Bytes of a 401's body that are looked at. The error object of the API is about a hundred.
BODY_LIMIT = 8 * 1024
#: Seconds that the reading of these may take; a body that trickles longer has told no code.
PEEK_SECONDS = 5.0
#: Bytes of a token reply. Two tokens and a few keys are under 4 KiB; the room reserved on disk holds this
#: much.
REPLY_LIMIT = 64 * 1024


#: Seconds for one refresh with all its tries. The read time-out of a try is all that is left of it: a reply
#: that is given up on is a session lost. Shorter than `LOCK_TIMEOUT`, or waiters would give up on a holder
#: that is still at work.
REFRESH_DEADLINE = 30.0
#: Seconds to wait for another process's refresh.
LOCK_TIMEOUT = 45.0
