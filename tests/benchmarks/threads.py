"""Many threads on one session: throughput against a static header, and one expiry that all of them meet."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import requests
from requests.adapters import HTTPAdapter

from adh_auth import AdhAuth

from .measure import CLIENT, Sizes, session_of, taking_turns
from .server import sandbox_elsewhere
from .table import Row

LIMIT = 0.93
#: Requests of one thread in one round.
EACH = 8


def measure(sizes: Sizes, folder: Path) -> list[Row]:
    """Return the rows: requests per second over real sockets, in rounds that take turns."""
    path = folder / "tokens.json"
    with sandbox_elsewhere(refresh_seconds=0.1) as sandbox, ThreadPoolExecutor(sizes.threads) as threads:
        sandbox.ask("write_token_file", path)
        auth = AdhAuth(path, base_url=sandbox.url, **CLIENT)
        url = sandbox.url + "/api/auth/me"
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=sizes.threads)
        token = auth.tokens.access_token
        plain = session_of(lambda request: _with_header(request, token), adapter)
        ours = session_of(auth, adapter)
        rounds = {
            name: _round(threads, session, url, sizes.threads)
            for name, session in (("static", plain), ("ours", ours))
        }
        found = taking_turns(rounds, sizes.slices * 6)
        sandbox.ask("expire")
        before = sandbox.counts.refresh_calls
        rounds["ours"]()
        calls = sandbox.counts.refresh_calls - before
    ratio = median(ours / plain for plain, ours in zip(found["static"], found["ours"], strict=True))
    value = f"{ratio:.3f} ({median(found['ours']):.0f} of {median(found['static']):.0f} requests/s)"
    what = f"{sizes.threads} threads on one session"
    return [
        Row("threads", f"{what}: throughput / static header", value, f"≥ {LIMIT:g}", ratio >= LIMIT),
        Row("threads", f"{what}: refresh calls of one expiry", f"{calls}", "1", calls == 1),
    ]


def _round(
    threads: ThreadPoolExecutor, session: requests.Session, url: str, count: int
) -> Callable[[], float]:
    def some(_: int) -> None:
        for _ in range(EACH):
            assert session.get(url, timeout=60).status_code == 200

    def once() -> float:
        start = time.perf_counter()
        list(threads.map(some, range(count)))
        return count * EACH / (time.perf_counter() - start)

    return once


def _with_header(request: requests.PreparedRequest, token: str) -> requests.PreparedRequest:
    request.headers["Authorization"] = f"Bearer {token}"
    return request
