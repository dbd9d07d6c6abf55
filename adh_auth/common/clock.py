"""The time of one job, which a test that freezes or moves the clock can't stop or end."""

from __future__ import annotations

import time

__all__ = ["JobClock"]

#: Seconds. A longer step between two readings is a clock that was moved: no call and no pause of ours takes
#: as long.
LONGEST_STEP = 60.0


class JobClock:
    """Seconds since its making, and what time it is by them.

    freezegun and time-machine replace `time.time` and `time.monotonic`, in the midst of a job, too. A
    deadline that is compared with a frozen clock never comes, and one that was set by a moved clock is over
    at once, or in fifty years. So what was slept counts at least as long as it was asked for, and a step
    back, or of more than `LONGEST_STEP`, counts as nothing.
    """

    def __init__(self) -> None:
        self._passed = 0.0
        self._last = time.monotonic()
        # Once, in the caller's thread: freezegun shows the real time to calls that come from `threading`.
        self._began = time.time()

    def now(self) -> float:
        """The time in epoch seconds."""
        return self._began + self.monotonic()

    def monotonic(self) -> float:
        """Seconds since this clock was made."""
        now = time.monotonic()
        step, self._last = now - self._last, now
        if 0 < step < LONGEST_STEP:
            self._passed += step
        return self._passed

    def sleep(self, seconds: float) -> None:
        """Sleep."""
        before = self.monotonic()
        # Found at each call: eventlet may replace it long after this module was imported.
        time.sleep(seconds)
        missing = before + seconds - self.monotonic()
        self._passed += max(0.0, missing)
