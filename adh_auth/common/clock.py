"""The clock of one job. A test that freezes or moves the system's clock can neither stop nor end it."""

from __future__ import annotations

import time

__all__ = ["JobClock"]

#: Seconds. After a longer step between two readings the clock was moved: no call and no pause takes as long.
LONGEST_STEP = 60.0


class JobClock:
    """Seconds since it was made, and the time of day by them.

    freezegun and time-machine replace `time.time` and `time.monotonic`, also while a job runs. A deadline on
    a frozen clock never comes. One on a moved clock is over at once, or in fifty years. So a sleep counts at
    least as long as it was asked for. A step back, or of more than `LONGEST_STEP`, counts as nothing.
    """

    def __init__(self) -> None:
        self._passed = 0.0
        self._last = time.monotonic()
        # Once, in the caller's thread: freezegun shows the real time to calls that come from `threading`.
        self._began = time.time()

    def now(self) -> float:
        """Return the time in epoch seconds."""
        return self._began + self.monotonic()

    def monotonic(self) -> float:
        """Return the seconds since this clock was made."""
        now = time.monotonic()
        step, self._last = now - self._last, now
        if 0 < step < LONGEST_STEP:
            self._passed += step
        return self._passed

    def sleep(self, seconds: float) -> None:
        """Sleep for so many seconds, and count at least as many."""
        before = self.monotonic()
        # Not imported by name: eventlet may replace it long after this module was imported.
        time.sleep(seconds)
        missing = before + seconds - self.monotonic()
        self._passed += max(0.0, missing)
