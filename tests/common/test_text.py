"""Texts for people: times in their own zone."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from adh_auth.common.text import format_clock, format_time, format_time_relative

#: 2026-11-29 12:30:05 UTC, and half a year before.
WINTER, SUMMER = 1795955405.0, 1795955405.0 - 180 * 86400


@pytest.fixture(params=["UTC0", "CET-1CEST,M3.5.0,M10.5.0/3", "IST-5:30"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A system's own time zone."""
    if not hasattr(time, "tzset"):
        pytest.skip("needs time.tzset: run it on a POSIX system")
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield str(request.param)[:3]
    os.environ.pop("TZ")
    monkeypatch.undo()
    time.tzset()


def test_a_time_is_local_and_names_its_zone(zone: str) -> None:
    """As the zone was at that moment, summer time included."""
    shown = {
        "UTC": ("2026-11-29 12:30:05+00:00", "2026-06-02 12:30:05+00:00"),
        "CET": ("2026-11-29 13:30:05+01:00", "2026-06-02 14:30:05+02:00"),
        "IST": ("2026-11-29 18:00:05+05:30", "2026-06-02 18:00:05+05:30"),
    }[zone]
    assert (format_time(WINTER), format_time(SUMMER)) == shown
    assert format_time_relative(WINTER, WINTER - 90) == f"{shown[0]} (in 1 min)"


def test_a_time_of_day_names_its_zone(zone: str) -> None:
    """Whoever reads a log of a server elsewhere knows whose noon it was."""
    assert (
        format_clock(WINTER)
        == {"UTC": "12:30:05+00:00", "CET": "13:30:05+01:00", "IST": "18:00:05+05:30"}[zone]
    )


@pytest.mark.parametrize("epoch", [1e12, float("inf"), float("nan"), -1e12])
def test_what_is_no_time_is_shown_as_a_number(epoch: float) -> None:
    """A file may hold anything."""
    assert format_clock(epoch) == format_time(epoch) == f"{epoch:g}"
