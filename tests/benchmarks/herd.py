"""Processes that meet one expiry at the same instant: refresh calls, and when the last has its answer."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from .measure import Sizes
from .server import Remote, sandbox_elsewhere
from .table import Row
from .workers import Done, Workers, start_workers

LIMIT = 1.5
#: Seconds that the refresh endpoint takes.
REFRESH = 0.1


def measure(sizes: Sizes, folder: Path) -> list[Row]:
    """Return the rows. Each round measures the ideal's three parts and the expiry, one after the other."""
    rows = []
    path = folder / "tokens.json"
    with sandbox_elsewhere(refresh_seconds=REFRESH) as sandbox:
        sandbox.ask("write_token_file", path)
        with start_workers(max(sizes.herd), sandbox.url, path) as workers:
            for count in sizes.herd:
                rows += _rows(workers, sandbox, count, sizes.expiries)
        rows += _cold_rows(sandbox, path, max(sizes.herd), sizes.cold)
    return rows


def _rows(workers: Workers, sandbox: Remote, count: int, expiries: int) -> list[Row]:
    expire(workers, sandbox, count)  # a warm-up: connections
    ideals, herds, calls, cpu = [], [], [], []
    for _ in range(expiries):
        ideals.append(_ideal(workers, sandbox, count))
        refreshes, done = expire(workers, sandbox, count)
        herds.append(last(done))
        calls.append(refreshes)
        cpu.append(median(one.cpu for one in done))
    ratio = median(herds) / median(ideals)
    what = f"{count} processes, one expiry, endpoint takes {REFRESH * 1000:g} ms"
    value = (
        f"{ratio:.2f} ({median(herds) * 1000:.0f} ms, ideal {median(ideals) * 1000:.0f} ms, "
        f"{median(cpu) * 1000:.0f} ms CPU each)"
    )
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
    """Return the rows for the first request of each process; the ideal is that of new processes, too."""
    ideals, herds, calls = [], [], []
    for _ in range(rounds):
        with start_workers(count, sandbox.url, path) as workers:
            ideals.append(_ideal(workers, sandbox, count))
        with start_workers(count, sandbox.url, path) as workers:
            refreshes, done = expire(workers, sandbox, count, cold=True)
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


def _ideal(workers: Workers, sandbox: Remote, count: int) -> float:
    """Return the seconds of the last 401, of a refresh without waiters, and of the last answer, added up."""
    pair = sandbox.ask("sign_in")
    refused = workers.together(count, "get with", "expired")
    refresh = workers.together(1, "refresh", pair["refresh_token"])
    answered = workers.together(count, "get with", pair["access_token"])
    return last(refused) + last(refresh) + last(answered)


def expire(workers: Workers, sandbox: Remote, count: int, *, cold: bool = False) -> tuple[int, list[Done]]:
    """Let all meet one expiry, and return the number of refreshes and what each has done.

    `cold`: with the first request of each process.
    """
    if not cold:
        workers.prepare(count, "get")
    sandbox.ask("expire")
    before = sandbox.counts
    done = workers.together(count, "get")
    after = sandbox.counts
    assert {one.outcome for one in done} == {"200"}, done
    assert after.reused == 0
    return after.refresh_calls - before.refresh_calls, done


def last(done: list[Done]) -> float:
    """Return the seconds until the last one had its answer."""
    return max(one.seconds for one in done)
