"""Many tasks of one loop that meet one expiry, on asyncio and on trio: how long the loop is blocked, and
whether worker threads stay free.

The refresh begins to take its time once all of them wait for it. The same load without an expiry waits as
long, for the API's answers. The transport is in memory: what blocks the loop is the client's work, ours, and
Python's garbage collector, which goes over all that so many tasks hold. Each load has a process of its own,
and what was imported is kept from the collector (`gc.freeze`).
"""

from __future__ import annotations

import asyncio
import gc
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

from .measure import CLIENT, NOWHERE, Sizes, write_pair
from .server import SPAWN
from .table import Row

#: Milliseconds.
LIMIT = 20.0
#: Seconds that the refresh takes, once all wait.
REFRESH = 0.2
#: Seconds that each request of the load without an expiry takes.
ANSWER = 0.5
#: Tasks that start in one turn of the loop; all at once would block it by themselves.
AT_ONCE = 4
#: Turns of the loop after which the last task waits.
TURNS = 50


class Run(NamedTuple):
    """The result of one load; times are in milliseconds."""

    refreshes: int
    longest_block: float
    #: by the caller's own worker threads, while all tasks waited
    answers: int
    slowest_answer: float
    threads: int


def measure(sizes: Sizes, folder: Path) -> list[Row]:
    """Return the rows of loads with and without an expiry, in turns."""
    rows = []
    for backend in ("asyncio", "trio"):
        with SPAWN.Pool(1, maxtasksperchild=1) as processes:
            loads = [
                processes.apply(_run, (backend, sizes.tasks, folder, expired))
                for _ in range(sizes.slices)
                for expired in (False, True)
            ]
        rows += _rows(f"{sizes.tasks} tasks on {backend}", loads[::2], loads[1::2])
    return rows


def _rows(what: str, calm: list[Run], expired: list[Run]) -> list[Row]:
    block, usual = (median(run.longest_block for run in runs) for runs in (expired, calm))
    calls = {run.refreshes for run in expired}
    answers, slowest = min(run.answers for run in expired), max(run.slowest_answer for run in expired)
    extra = max(run.threads for run in expired) - max(run.threads for run in calm)
    return [
        Row("one loop", f"{what}: refresh calls", ", ".join(map(str, calls)), "1", calls == {1}),
        Row(
            "one loop",
            f"{what}: longest block",
            f"{block:.1f} ms ({usual:.1f} without an expiry)",
            f"≤ {LIMIT:g} ms",
            block <= LIMIT,
        ),
        Row(
            "one loop",
            f"{what}: the caller's own worker threads, while all wait",
            f"{answers} answers, each within {slowest:.1f} ms",
            "not starved",
            answers > 0,
        ),
        Row("one loop", f"{what}: threads of ours", f"{extra}", "no thread per task", extra <= 5),
    ]


class Api:
    """Answers in memory: 401 to the old token, and a new pair for the refresh token, a while after the last
    task has begun to wait.
    """

    def __init__(self, *, expired: bool) -> None:
        self._live = "access-1" if expired else "access-0"
        self._all_wait = threading.Event()
        self._refreshed = threading.Event()
        self.refreshes = 0

    async def answer(self, request: httpx.Request) -> httpx.Response:
        if request.headers["Authorization"] == f"Bearer {self._live}":
            if not self.refreshes:
                await anyio.sleep(ANSWER)
            return httpx.Response(200, json={})
        return httpx.Response(401, json={"code": "token_expired"})

    def refresh(self, request: httpx.Request) -> httpx.Response:
        self.refreshes += 1
        assert self._all_wait.wait(60)
        time.sleep(REFRESH)
        self._refreshed.set()
        return httpx.Response(
            200, json={"access_token": self._live, "refresh_token": "refresh-1", "expires_in": 3600}
        )

    def go_on(self) -> None:
        """Let the answers go out: all tasks wait now."""
        self._all_wait.set()

    @property
    def all_wait(self) -> bool:
        """Whether all tasks wait for the refresh, and for nothing else."""
        return self._all_wait.is_set() and not self._refreshed.is_set()


def _run(backend: str, tasks: int, folder: Path, expired: bool) -> Run:
    gc.collect()
    gc.freeze()
    path = write_pair(folder / "tokens.json")
    (folder / "tokens.json.record").unlink(missing_ok=True)
    api = Api(expired=expired)
    with httpx.Client(transport=httpx.MockTransport(api.refresh), trust_env=False) as carrier:
        auth = AdhHttpxAuth(path, base_url=NOWHERE, refresh_via=carrier, **CLIENT)
        auth.tokens  # noqa: B018 - read now: what is measured is the expiry
        watch: _Watch = anyio.run(partial(_load, auth, api, tasks), backend=backend)
    return Run(
        api.refreshes,
        watch.longest * 1000,
        len(watch.answers),
        max(watch.answers, default=0.0) * 1000,
        watch.threads,
    )


async def _load(auth: AdhHttpxAuth, api: Api, tasks: int) -> _Watch:
    watch = _Watch(api)
    async with (
        httpx.AsyncClient(auth=auth, transport=httpx.MockTransport(api.answer), trust_env=False) as client,
        anyio.create_task_group() as all_of_it,
    ):
        await watch.ask_for_threads()  # a warm-up: the first thread of a pool has to be started
        all_of_it.start_soon(watch.blocks)
        all_of_it.start_soon(watch.own_threads)
        async with anyio.create_task_group() as load:
            for number in range(tasks):
                load.start_soon(_get, client)
                if number % AT_ONCE == 0:
                    await anyio.lowlevel.checkpoint()
            for _ in range(TURNS):
                await anyio.lowlevel.checkpoint()
            api.go_on()
        all_of_it.cancel_scope.cancel()
    return watch


async def _get(client: httpx.AsyncClient) -> None:
    assert (await client.get(NOWHERE + "/api/auth/me")).status_code == 200


class _Watch:
    """Measures the loop from inside while the load runs."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.longest = 0.0
        self.threads = 0
        self.answers: list[float] = []

    async def blocks(self) -> None:
        """Record the longest time between two turns."""
        before = time.perf_counter()
        while True:
            await anyio.sleep(0)
            now = time.perf_counter()
            self.longest = max(self.longest, now - before)
            self.threads = max(self.threads, threading.active_count())
            before = now

    async def own_threads(self) -> None:
        """Record how long the caller's own work waits for a worker thread."""
        while True:
            await self.ask_for_threads()
            await anyio.sleep(0.01)

    async def ask_for_threads(self) -> None:
        """Use anyio's worker threads, and asyncio's default executor."""
        while_all_wait = self._api.all_wait
        start = time.perf_counter()
        await anyio.to_thread.run_sync(_nothing)
        await _in_default_executor(_nothing)
        if while_all_wait and self._api.all_wait:
            self.answers.append(time.perf_counter() - start)


async def _in_default_executor(work: Callable[[], None]) -> None:
    try:
        loop: Any = asyncio.get_running_loop()
    except RuntimeError:  # trio
        return
    await loop.run_in_executor(None, work)


def _nothing() -> None:
    pass
