"""From one process to many on one token file: refresh calls, time, processor and memory."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from .herd import REFRESH, expire, last
from .measure import Sizes
from .server import sandbox_elsewhere
from .table import Row
from .workers import start_workers


def measure(sizes: Sizes, folder: Path) -> list[Row]:
    """Return one row for each number of processes."""
    path = folder / "tokens.json"
    rows = []
    with sandbox_elsewhere(refresh_seconds=REFRESH) as sandbox:
        sandbox.ask("write_token_file", path)
        with start_workers(max(sizes.growth), sandbox.url, path) as workers:
            for count in sizes.growth:
                expire(workers, sandbox, count)
                rounds = [expire(workers, sandbox, count) for _ in range(max(1, sizes.expiries // 2))]
                calls = max(refreshes for refreshes, _ in rounds)
                time = median(last(done) for _, done in rounds) * 1000
                cpu = median(one.cpu for _, done in rounds for one in done) * 1000
                memory = median(one.memory for _, done in rounds for one in done)
                value = f"{calls} refresh, last answer {time:.0f} ms; each {cpu:.1f} ms CPU, {memory:.0f} MiB"
                rows.append(Row("growth", f"{count} processes, one expiry", value, "1 refresh", calls == 1))
    return rows
