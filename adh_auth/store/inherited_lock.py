"""The lock of a rotation in the hands of a helper process, which inherited its descriptor."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

if sys.platform != "win32":
    import fcntl

__all__ = ["InheritedLock"]


class InheritedLock:
    """A kernel lock that came with a descriptor. Its holder needs no filelock."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd

    def take(self) -> bool:
        """Return whether it is held still."""
        return self._fd >= 0

    def release(self) -> None:
        """Release it; nothing happens where it is not held."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if sys.platform != "win32":
            # A child that another process forked at the wrong moment may have a copy of the descriptor.
            # Closing this one would leave the lock to that copy.
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)
