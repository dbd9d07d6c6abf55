"""A cheap check whether a file changed: fstat on its open descriptor, for every request.

A write sets the ctime of the open file, and so does a rename over it, which takes away its last link.
"""

from __future__ import annotations

import math
import os
import sys
from contextlib import suppress
from time import monotonic, time_ns
from typing import ClassVar, Generic, TypeVar

__all__ = ["StatCache", "state_of"]

T = TypeVar("T")

#: Seconds for which the descriptor is trusted before the path is checked again. The descriptor shows nothing
#: of a folder above that was renamed or mounted over, nor of a file that an overlay file system has put in
#: front of it (docs.kernel.org, overlayfs, "Non-standard behavior").
TRUST_SECONDS = 0.5
NEVER = -math.inf
#: Nanoseconds after a change within which another one may leave the same ctime. The clock of most file
#: systems ticks every few milliseconds, that of some every second or two. Git calls a file that young "racily
#: clean", and checks it again, too.
TICK, COARSE_TICK = 20_000_000, 3_000_000_000
#: Descriptors of one process. The program may need the others for sockets.
MAX_DESCRIPTORS = 16


def state_of(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes when a file does.

    All four are needed: inode numbers are used again at once, and a clock tick lasts milliseconds.
    """
    return status.st_mtime_ns, status.st_ino, status.st_ctime_ns, status.st_size


class StatCache(Generic[T]):
    """What was made of a file in one state, for as long as the file is in that state."""

    #: instances of this process that hold a descriptor
    count: ClassVar[int] = 0

    __slots__ = ("_descriptor", "_file", "_known", "_made", "_since", "state")

    def __init__(self, path: bytes = b"", state: object = None, made: T | None = None) -> None:
        self.state: object = state
        self._made = made
        self._since = NEVER
        self._descriptor = -1
        self._file: object = None
        self._known: object = None
        # A symlink may be turned elsewhere while the open file stays as it is. Windows replaces no open file.
        if (
            path
            and sys.platform != "win32"
            and StatCache.count < MAX_DESCRIPTORS
            and os.path.realpath(path) == path
        ):
            with suppress(OSError):
                self._open(path)

    def _open(self, path: bytes) -> None:
        # In one statement: an interrupt between two would leave the descriptor open for ever.
        self._descriptor, StatCache.count = (
            os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW),
            StatCache.count + 1,
        )
        self._file = _identity(self._descriptor)

    def revalidate(self) -> None:
        """Trust the descriptor anew: a check of the path has just found the file in this state."""
        self._since = NEVER
        if self._descriptor < 0:
            return
        with suppress(OSError):
            known = self._seen()
            # In this order: a change between the two shows in the second. A file without links was replaced
            # before it was opened, within one tick.
            status = os.fstat(self._descriptor)
            if state_of(status) == self.state and status.st_nlink and _is_settled(status.st_ctime_ns):
                self._known, self._since = known, monotonic()

    def _seen(self) -> object:
        status = os.fstat(self._descriptor)
        return status.st_ctime_ns, status.st_nlink, status.st_size

    def value_if_unchanged(self) -> T | None:
        """Return what was made of the file, None where it may have changed. Every request calls this."""
        # Below 0: time-machine moves the clock of a user's test back.
        if not 0 <= monotonic() - self._since < TRUST_SECONDS:
            return None
        try:
            return self._made if self._seen() == self._known else None
        except OSError:  # a daemon closes every descriptor as it starts
            return None

    def __del__(self) -> None:
        # Not closed earlier: another thread may be in `value_if_unchanged`, and would ask another file that
        # got the same number.
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        StatCache.count -= 1
        with suppress(OSError):
            # A program that closed every descriptor may have opened a file under this number, even this file.
            if _identity(descriptor) == self._file:
                os.close(descriptor)


def _identity(descriptor: int) -> object:
    """Return what distinguishes our open file from one that the program opened under the same number.

    Inode numbers are used again at once, but a program rarely opens a file with O_NONBLOCK.
    """
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, os.get_blocking(descriptor)


def _is_settled(changed: int) -> bool:
    """Return whether the next change will leave another ctime than `changed`, in nanoseconds."""
    return time_ns() - changed > (TICK if changed % 1_000_000_000 else COARSE_TICK)
