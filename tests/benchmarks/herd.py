"""Processes that meet one expiry at the same instant: how many refreshes, and when the last one has its
answer.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

from .crew import Crew, Done, crew_of
from .measure import Sizes
from .server import Remote, sandbox_elsewhere
from .table import Row

LIMIT = 1.5
#: Seconds that the refresh endpoint takes.
REFRESH = 0.1


def measure(sizes: Sizes, folder: Path) -> list[Row]:
    """One crew for all sizes; each round measures the ideal's three parts and the expiry after one another."""
    rows = []
    path = folder / "tokens.json"
    with sandbox_elsewhere(refresh_seconds=REFRESH) as sandbox:
        sandbox.ask("write_token_file", path)
        with crew_of(max(sizes.herd), sandbox.url, path) as crew:
            for count in sizes.herd:
                rows += _rows(crew, sandbox, count, sizes.expiries)
        rows += _cold_rows(sandbox, path, max(sizes.herd), sizes.cold)
    return rows


def _rows(crew: Crew, sandbox: Remote, count: int, expiries: int) -> list[Row]:
    expire(crew, sandbox, count)  # a warm-up: connections
    ideals, herds, calls, cpu = [], [], [], []
    for _ in range(expiries):
        ideals.append(_ideal(crew, sandbox, count))
        refreshes, done = expire(crew, sandbox, count)
        herds.append(last(done))
        calls.append(refreshes)
        cpu.append(median(one.cpu for one in done))
    ratio = median(herds) / median(ideals)
    what = f"{count} processes, one expiry, endpoint takes {REFRESH * 1000:g} ms"
    value = f"{ratio:.2f} ({median(herds) * 1000:.0f} ms, ideal {median(ideals) * 1000:.0f} ms, {median(cpu) * 1000:.0f} ms CPU each)"
    return [
        Row("herd", f"{what}: refresh calls", f"{max(calls)}", "1", max(calls) == min(calls) == 1),
        Row(
            "herd",
            f"{what}: last answer / ideal",
            value,
            f"≤ {LIMIT:g}" if count == 32 else "",
            ratio <= LIMIT if count == 32 else None,
        ),
    ]


def _cold_rows(sandbox: Remote, path: Path, count: int, rounds: int) -> list[Row]:
    """The first request of each process, right after its start.

    The ideal is that of processes that have just started, too.
    """
    ideals, herds, calls = [], [], []
    for _ in range(rounds):
        with crew_of(count, sandbox.url, path) as crew:
            ideals.append(_ideal(crew, sandbox, count))
        with crew_of(count, sandbox.url, path) as crew:
            refreshes, done = expire(crew, sandbox, count, cold=True)
            herds.append(last(done))
            calls.append(refreshes)
    ratio = median(herds) / median(ideals)
    what = f"{count} processes right after their start, one expiry"
    value = f"{ratio:.2f} ({median(herds) * 1000:.0f} ms, ideal {median(ideals) * 1000:.0f} ms)"
    return [
        Row("herd", f"{what}: refresh calls", f"{max(calls)}", "1", max(calls) == min(calls) == 1),
        Row(
            "herd",
            f"{what}: last answer / ideal",
            value,
            f"≤ {LIMIT:g}" if count == 32 else "",
            ratio <= LIMIT if count == 32 else None,
        ),
    ]


def _ideal(crew: Crew, sandbox: Remote, count: int) -> float:
    """The last one's 401, a refresh that nobody else waits for, the last one's answer."""
    pair = sandbox.ask("sign_in")
    refused = crew.together(count, "get with", "expired")
    refresh = crew.together(1, "refresh", pair["refresh_token"])
    answered = crew.together(count, "get with", pair["access_token"])
    return last(refused) + last(refresh) + last(answered)


def expire(crew: Crew, sandbox: Remote, count: int, *, cold: bool = False) -> tuple[int, list[Done]]:
    """All of them meet one expiry; how many refreshes that took, and what each has done.

    `cold`: with the first request of their life.
    """
    if not cold:
        crew.prepare(count, "get")
    sandbox.ask("expire")
    before = sandbox.counts
    done = crew.together(count, "get")
    after = sandbox.counts
    assert {one.outcome for one in done} == {"200"}, done
    assert after.reused == 0
    return after.refresh_calls - before.refresh_calls, done


def last(done: list[Done]) -> float:
    """Seconds until the last one had its answer."""
    return max(one.seconds for one in done)
