"""Many tasks of one loop that meet one expiry, on asyncio and on trio: how long the loop stands still, and who has to wait for a thread.

The transport is in memory: what blocks the loop here is the client's work and ours, no socket's.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import anyio
import anyio.to_thread
import httpx

from adh_auth import AdhHttpxAuth

from .measure import CLIENT, NOWHERE, Sizes, above, write_pair
from .table import Row

#: Milliseconds.
LIMIT = 20.0
#: Seconds that the refresh takes.
REFRESH = 0.1
#: Tasks that start in one turn of the loop; all at once would block it by themselves.
AT_ONCE = 4


class Run(NamedTuple):
    """What one load came to, in milliseconds where it is a time."""

    refreshes: int
    longest_block: float
    in_thread: float
    threads: int


def measure(sizes: Sizes, folder: Path) -> list[Row]:
    """Loads with and without an expiry, in turns."""
    rows = []
    for backend in ("asyncio", "trio"):
        pairs = [(_run(backend, sizes, folder, expired=False), _run(backend, sizes, folder, expired=True)) for _ in range(sizes.slices + 1)]
        rows += _rows(f"{sizes.tasks} tasks on {backend}", pairs[1:] or pairs)
    return rows


def _rows(what: str, pairs: list[tuple[Run, Run]]) -> list[Row]:
    calm, expired = ([pair[side] for pair in pairs] for side in (0, 1))
    more = above([run.longest_block for run in calm], [run.longest_block for run in expired])
    block = median(run.longest_block for run in expired)
    calls = {run.refreshes for run in expired}
    waited = max(run.in_thread for run in expired)
    extra = max(run.threads for run in expired) - max(run.threads for run in calm)
    return [
        Row("one loop", f"{what}: refresh calls", ", ".join(map(str, calls)), "1", calls == {1}),
        Row("one loop", f"{what}: longest block", f"{block:.1f} ms, {more:+.1f} ms over no expiry", f"≤ {LIMIT:g} ms", more <= LIMIT),
        Row(
            "one loop", f"{what}: the caller's own worker thread", f"answers within {waited:.0f} ms", "not starved", waited < REFRESH * 1000
        ),
        Row("one loop", f"{what}: threads of ours", f"{extra}", "no thread per task", extra <= 2),
    ]


class Api:
    """Answers in memory: 401 to the old token, and a new pair for the refresh token after a while."""

    def __init__(self) -> None:
        self.live = "access-0"
        self.refreshes = 0

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.headers["Authorization"] == f"Bearer {self.live}":
            return httpx.Response(200, json={})
        return httpx.Response(401, json={"code": "token_expired"})

    def refresh(self, request: httpx.Request) -> httpx.Response:
        self.refreshes += 1
        time.sleep(REFRESH)
        return httpx.Response(200, json={"access_token": self.live, "refresh_token": "refresh-1", "expires_in": 3600})


def _run(backend: str, sizes: Sizes, folder: Path, *, expired: bool) -> Run:
    path = write_pair(folder / "tokens.json")
    (folder / "tokens.json.record").unlink(missing_ok=True)
    api = Api()
    with httpx.Client(transport=httpx.MockTransport(api.refresh), trust_env=False) as carrier:
        auth = AdhHttpxAuth(path, base_url=NOWHERE, refresh_via=carrier, **CLIENT)
        auth.tokens  # noqa: B018 - read now: what is measured is the expiry
        if expired:
            api.live = "access-1"
        blocked, waited, threads = anyio.run(partial(_load, auth, api, sizes.tasks), backend=backend)
    return Run(api.refreshes, blocked * 1000, waited * 1000, threads)


async def _load(auth: AdhHttpxAuth, api: Api, tasks: int) -> tuple[float, float, int]:
    watch = _Watch()
    async with (
        httpx.AsyncClient(auth=auth, transport=httpx.MockTransport(api.answer), trust_env=False) as client,
        anyio.create_task_group() as all_of_it,
    ):
        await watch.ask_for_threads()  # a warm-up: the first thread of a pool has to be started
        watch.waited = 0.0
        all_of_it.start_soon(watch.blocks)
        all_of_it.start_soon(watch.own_threads)
        async with anyio.create_task_group() as load:
            for number in range(tasks):
                load.start_soon(_get, client)
                if number % AT_ONCE == 0:
                    await anyio.lowlevel.checkpoint()
        all_of_it.cancel_scope.cancel()
    return watch.longest, watch.waited, watch.threads


async def _get(client: httpx.AsyncClient) -> None:
    assert (await client.get(NOWHERE + "/api/auth/me")).status_code == 200


class _Watch:
    """Looks at the loop from inside while the load runs."""

    def __init__(self) -> None:
        self.longest = self.waited = 0.0
        self.threads = 0

    async def blocks(self) -> None:
        """The longest time between two turns."""
        before = time.perf_counter()
        while True:
            await anyio.sleep(0)
            now = time.perf_counter()
            self.longest = max(self.longest, now - before)
            self.threads = max(self.threads, threading.active_count())
            before = now

    async def own_threads(self) -> None:
        """How long the caller's own work waits for a worker thread."""
        while True:
            await self.ask_for_threads()
            await anyio.sleep(0.01)

    async def ask_for_threads(self) -> None:
        """anyio's worker threads, and asyncio's default executor."""
        start = time.perf_counter()
        await anyio.to_thread.run_sync(_nothing)
        await _in_default_executor(_nothing)
        self.waited = max(self.waited, time.perf_counter() - start)


async def _in_default_executor(work: Callable[[], None]) -> None:
    try:
        loop: Any = asyncio.get_running_loop()
    except RuntimeError:  # trio
        return
    await loop.run_in_executor(None, work)


def _nothing() -> None:
    pass
