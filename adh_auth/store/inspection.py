"""What can be seen of a token file and its lock. Nothing is made or opened for writing (rule 14)."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress

from .base import StoreFacts
from .file_checks import NONBLOCK, format_mode, problem_with_rewriting, problem_with_writing, user_name

if sys.platform != "win32":
    import fcntl

__all__ = ["facts_of", "is_locked"]


def facts_of(path: str) -> StoreFacts:
    """Return the facts of the token file at `path`, links followed."""
    target = os.path.realpath(path)
    mode: str | None = None
    owner: str | None = None
    with suppress(OSError):
        status = os.stat(target)
        if sys.platform != "win32":  # which makes a mode up from one attribute, and has no owner's number
            mode, owner = format_mode(status), user_name(status.st_uid)
    return StoreFacts(
        name=path,
        leads_to=target if os.path.islink(path) else None,
        mode=mode,
        owner=owner,
        problem=problem_with_rewriting(target) or problem_with_writing(target + ".record", ours=True),
    )


def is_locked(lock_path: str) -> bool | None:
    """Return whether a process holds the kernel's lock on that file; None where that can't be known."""
    if sys.platform == "win32":
        return None  # a byte range is locked there, which only a write access could try
    try:
        fd = os.open(lock_path, os.O_RDONLY | NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        # A shared lock is refused as long as the exclusive one is held, and two that check don't see each
        # other. It is gone in microseconds; a rotation that wants the lock in these tries again 50 ms later.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as refused:
        return True if refused.errno in (errno.EAGAIN, errno.EACCES) else None
    else:
        return False
    finally:
        os.close(fd)
