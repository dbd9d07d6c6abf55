"""Tries again what a register could not do for the moment, for a bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import uniform
from typing import Protocol, TypeVar

from .register import RegisterUnavailable

__all__ = ["READ_PATIENCE", "WRITE_PATIENCE", "StoreClock", "SystemClock", "patiently"]

T = TypeVar("T")

#: Seconds for which a read is tried again. A failover of a managed database takes about as long.
READ_PATIENCE = 10.0
#: Seconds for which a change is tried again. Shorter than `READ_PATIENCE`: a lease is held meanwhile.
WRITE_PATIENCE = 3.0
#: Seconds between two tries; the last one again and again.
RETRY_PAUSES = (0.05, 0.1, 0.2, 0.4)


class StoreClock(Protocol):
    """The clocks of one machine, in seconds."""

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start."""

    def wall(self) -> float:
        """Return epoch seconds. It goes on while the machine is suspended; `monotonic` may not."""

    def sleep(self, seconds: float) -> None:
        """Sleep."""


class SystemClock:
    """The clocks of this machine."""

    __slots__ = ()

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start."""
        return time.monotonic()

    def wall(self) -> float:
        """Return epoch seconds."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)


def patiently(attempt: Callable[[int], T], seconds: float, clock: StoreClock) -> T:
    """Return what `attempt(number)` returns; try again while it raises `RegisterUnavailable`.

    Raises the last `RegisterUnavailable` after so many seconds, or where another try, if it takes as long as
    the last one, would end later.
    """
    began, slept, number = clock.monotonic(), 0.0, 0
    while True:
        tried = clock.monotonic()
        try:
            return attempt(number)
        except RegisterUnavailable:
            now = clock.monotonic()
            # Pauses are counted, too: freezegun stops the clock of a user's test.
            if max(slept, now - began) + (now - tried) >= seconds:
                raise
        pause = RETRY_PAUSES[min(number, len(RETRY_PAUSES) - 1)] * uniform(0.75, 1.25)  # noqa: S311
        clock.sleep(pause)
        slept, number = slept + pause, number + 1
