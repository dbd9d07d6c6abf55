"""Tries of a register that is out of reach: how many, and for how long."""

from __future__ import annotations

import pytest

from adh_auth.store.patience import READ_PATIENCE, WRITE_PATIENCE, patiently
from adh_auth.store.register import RegisterUnavailable

from ..support.machines import MachineClock


def tries(seconds: float, each: float) -> tuple[int, float]:
    """Return how often a register is asked that takes `each` seconds to fail, and for how long in all."""
    clock, asked = MachineClock(), []

    def attempt(number: int) -> None:
        asked.append(number)
        clock.passed += each
        raise RegisterUnavailable("no answer")

    with pytest.raises(RegisterUnavailable):
        patiently(attempt, seconds, clock)
    return len(asked), clock.passed


@pytest.mark.parametrize("each", [0.0, 0.01, 1.0, 3.0, 4.0, 9.0])
def test_a_read_is_given_up_after_ten_seconds(each: float) -> None:
    """No try begins that would end much later, if it takes as long as the last one."""
    assert tries(READ_PATIENCE, each)[1] <= READ_PATIENCE + 0.5


@pytest.mark.parametrize("each", [0.0, 0.01])
def test_what_fails_at_once_is_tried_to_the_end(each: float) -> None:
    """A failover takes its time, and refuses connections meanwhile."""
    assert tries(READ_PATIENCE, each)[1] >= READ_PATIENCE - 0.1


def test_what_takes_longer_is_tried_once() -> None:
    """A change without an answer for 4 seconds is not made again: its lease runs."""
    assert tries(WRITE_PATIENCE, 4.0) == (1, 4.0)
    assert tries(0.0, 0.0)[0] == 1
