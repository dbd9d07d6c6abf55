"""What a fork must not take along, descriptors of ours, or cut off, an exchange in another thread."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["OwnDescriptor", "exchange_under_way", "no_fork"]

#: Seconds that a fork waits for an exchange in another thread. Most refreshes take a tenth of that. Not for
#: ever: the thread that forks may hold what the exchange needs, a log handler's lock perhaps.
FORK_WAIT = 3.0
#: Seconds between two checks meanwhile.
FORK_POLL = 0.005


class _State:
    """The state of this process; a forked child gets a new one."""

    def __init__(self) -> None:
        # Re-entrant: a signal handler may fork while its thread is in here.
        self.guard = threading.RLock()
        self.descriptors: set[OwnDescriptor] = set()
        self.exchanging: list[int] = []


_state = _State()


class OwnDescriptor:
    """A descriptor of this process alone: a forked child closes it.

    A program may close every descriptor, and then the number may be another file's. It is used only while it
    is the same file. `number` raises `OSError` otherwise.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._identity = _identity_of(fd)
        _state.descriptors.add(self)

    def number(self) -> int:
        """Return the descriptor. Raises `OSError` where it is closed."""
        if self._fd < 0 or _identity_of(self._fd) != self._identity:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._fd

    def close(self) -> None:
        """Close it; nothing happens where it is closed."""
        with suppress(OSError):
            os.close(self.number())
        self._fd = -1
        _state.descriptors.discard(self)


def _identity_of(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


@contextmanager
def no_fork() -> Iterator[None]:
    """Hold back forks of other threads: no child gets a descriptor before it is an `OwnDescriptor`."""
    guard = _state.guard
    with guard:
        yield


@contextmanager
def exchange_under_way() -> Iterator[None]:
    """Hold back forks of other threads for `FORK_WAIT` at most.

    A program that daemonizes ends right after the fork, and its thread with a spent token would end with it.
    """
    exchanging, thread = _state.exchanging, threading.get_ident()
    exchanging.append(thread)
    try:
        yield
    finally:
        exchanging.remove(thread)


def _before_fork() -> None:
    waited = 0.0
    while waited < FORK_WAIT and set(_state.exchanging) - {threading.get_ident()}:
        time.sleep(FORK_POLL)
        waited += FORK_POLL  # counted: a test may have stopped the clock
    _state.guard.acquire()


def _after_fork_in_parent() -> None:
    _state.guard.release()


def _after_fork_in_child() -> None:
    global _state
    inherited, _state = _state, _State()
    for descriptor in inherited.descriptors:
        descriptor.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
