"""A cheap look at a file that is looked at again and again: its open descriptor tells that it was replaced or
written to.
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

#: Seconds for which the descriptor is believed before the path is looked at again. It can't tell that a
#: folder above was renamed or mounted over, or that an overlay file system has put another file in front of
#: it (docs.kernel.org, overlayfs, "Non-standard behavior").
TRUST_SECONDS = 0.5
NEVER = -math.inf
#: Nanoseconds after a change within which another one may leave the same ctime: file systems set it by a
#: clock that ticks every few milliseconds, some of them every second or two. Git calls a file that young
#: "racily clean", and looks at it again, too.
TICK, COARSE_TICK = 20_000_000, 3_000_000_000
#: Watches of one process. Descriptors are the program's, which may need them for sockets.
LIMIT = 16


def state_of(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file does.

    Inode numbers are used again at once, and a clock tick is milliseconds: only together do they tell.
    """
    return status.st_mtime_ns, status.st_ino, status.st_ctime_ns, status.st_size


class StatCache(Generic[T]):
    """What was made of a file in one state, for as long as the file is in it."""

    #: those that hold a descriptor
    count: ClassVar[int] = 0

    __slots__ = ("_descriptor", "_file", "_known", "_made", "_since", "state")

    def __init__(self, path: bytes = b"", state: object = None, made: T | None = None) -> None:
        self.state = state
        self._made = made
        self._since = NEVER
        self._descriptor = -1
        self._file: object = None
        self._known: object = None
        # A symlink may lead elsewhere while the file stays as it is; and an open file can't be replaced on
        # Windows.
        if path and sys.platform != "win32" and StatCache.count < LIMIT and os.path.realpath(path) == path:
            with suppress(OSError):
                self._watch(path)

    def _watch(self, path: bytes) -> None:
        # As close together as can be: an interrupt in between leaves the descriptor open for ever.
        self._descriptor, StatCache.count = (
            os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW),
            StatCache.count + 1,
        )
        self._file = _identity(self._descriptor)

    def revalidate(self) -> None:
        """Believe the descriptor: a look at the path has just found the file in this state."""
        self._since = NEVER
        if self._descriptor < 0:
            return
        with suppress(OSError):
            known = self._look()
            # After that look: what changes in between is no longer in this state. No links: replaced before
            # it was opened, within one tick.
            status = os.fstat(self._descriptor)
            if state_of(status) == self.state and status.st_nlink and _is_settled(status.st_ctime_ns):
                self._known, self._since = known, monotonic()

    def _look(self) -> object:
        status = os.fstat(self._descriptor)
        # Whatever replaces a file or writes to it sets its ctime.
        return status.st_ctime_ns, status.st_nlink, status.st_size

    def value_if_unchanged(self) -> T | None:
        """What was made of the file, None where it may have changed. This is on the way of every request."""
        if (
            not 0 <= monotonic() - self._since < TRUST_SECONDS
        ):  # a clock that a test has moved may be far behind
            return None
        try:
            return self._made if self._look() == self._known else None
        except OSError:  # somebody has closed all descriptors, as daemons do
            return None

    def __del__(self) -> None:
        # Here, and not where it is dropped: another thread may be in `value_if_unchanged`, and the number may belong
        # to another file by then.
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        StatCache.count -= 1
        with suppress(OSError):
            # Whoever closed all descriptors may have opened another file under this number, or this one.
            if _identity(descriptor) == self._file:
                os.close(descriptor)


def _identity(descriptor: int) -> object:
    """What tells our open file from the program's: inode numbers are used again at once, but who opens a file
    without blocking?
    """
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, os.get_blocking(descriptor)


def _is_settled(changed: int) -> bool:
    """Whether the next change will be told from the one at this time, in nanoseconds."""
    return time_ns() - changed > (TICK if changed % 1_000_000_000 else COARSE_TICK)
