"""A session in a store against one in the file: a request, one expiry on many machines, many sessions.

Over PostgreSQL and Redis where they are found, and over a register in memory in any case.
"""

from __future__ import annotations

import gc
import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from adh_auth import AdhAuth, AdhHttpxAuth, Tokens, TokenStore
from adh_auth.common.secret import Secret
from adh_auth.store.factory import open_register
from adh_auth.store.postgresql import PostgresStore
from adh_auth.testing import MemoryRegister

from ..support import servers
from ..support.fleet import fleet
from ..support.fleet_member import CountingRegister
from .measure import CLIENT, NOWHERE, AtOnce, Sizes, above, microseconds, session_of, taking_turns
from .server import Remote, sandbox_elsewhere
from .table import Row

#: Seconds that the refresh endpoint takes.
REFRESH = 0.1
MACHINES = 16
#: Microseconds to build an auth object whose core is shared, and KiB of it.
BUILD_LIMIT, MEMORY_LIMIT = 20.0, 2.0
#: Microseconds by which the stores, which cost the same, differ from each other.
NOISE = 0.5
URL = NOWHERE + "/api/auth/me"
FILE, MEMORY = "the file", "a register in memory"


def measure(sizes: Sizes, folder: Path) -> list[Row]:
    """Return all rows. The servers are the same for all of them."""
    with found_servers() as urls:
        stores = {FILE: f"file://{folder}/sessions", MEMORY: MemoryRegister(), **urls}
        return [*_requests(stores, sizes), *_expiries(stores, sizes), *_sessions(stores, sizes)]


@contextmanager
def found_servers() -> Iterator[dict[str, str]]:
    """The URLs of the servers that this machine has, started."""
    urls: dict[str, str] = {}
    with ExitStack() as stack:
        if not servers.missing("postgresql"):
            urls["PostgreSQL"] = stack.enter_context(servers.postgresql()).url()
            PostgresStore.from_url(Secret(urls["PostgreSQL"])).create()
        if not servers.missing("redis"):
            urls["Redis"] = stack.enter_context(servers.redis()).url()
        yield urls


# A request.


def _requests(stores: dict[str, Any], sizes: Sizes) -> list[Row]:
    for store in stores.values():
        TokenStore(store, "request").save(Tokens("access-0", "refresh-0", expires_at=4e9))
    rows = [_trips_row(name, store, sizes) for name, store in stores.items() if name != FILE]
    for call, made in (("Session.get", _requests_get), ("httpx.Client.get", _httpx_get)):
        contenders = {name: _timed(made(store), sizes.calls) for name, store in stores.items()}
        found = taking_turns(contenders, sizes.rounds)
        rows.append(Row("stores", f"{call} over {FILE}", f"{median(found[FILE]):.1f} µs"))
        for name in [name for name in stores if name != FILE]:
            more = above(found[FILE], found[name])
            rows.append(
                Row("stores", f"{call} over {name}", f"{more:+.1f} µs", "≤ the file's", more <= NOISE)
            )
    return rows


def _trips_row(name: str, store: Any, sizes: Sizes) -> Row:
    register = CountingRegister(open_register(Secret(store)) if isinstance(store, str) else store)
    get = _requests_get(register)
    get(URL)
    register.trips.clear()
    for _ in range(sizes.tasks):
        get(URL)
    trips = sum(register.trips.values())
    return Row("stores", f"{sizes.tasks} requests over {name}: round trips", f"{trips}", "0", trips == 0)


def _requests_get(store: Any) -> Callable[[str], Any]:
    return session_of(AdhAuth(store=store, session="request", base_url=NOWHERE, **CLIENT), AtOnce()).get


def _httpx_get(store: Any) -> Callable[[str], Any]:
    auth = AdhHttpxAuth(store=store, session="request", base_url=NOWHERE, **CLIENT)
    transport = httpx.MockTransport(lambda request: httpx.Response(200))
    return httpx.Client(auth=auth, transport=transport, trust_env=False).get


def _timed(get: Callable[[str], Any], calls: int) -> Callable[[], float]:
    return lambda: microseconds(lambda: get(URL), calls)


# One expiry.


def _expiries(stores: dict[str, Any], sizes: Sizes) -> list[Row]:
    """Machines that meet one expiry: processes, or threads where the store is in memory."""
    rows: list[Row] = []
    if not hasattr(os, "fork"):
        return rows
    with sandbox_elsewhere(refresh_seconds=REFRESH) as sandbox:
        for name, store in stores.items():
            TokenStore(store, "herd").save(Tokens.from_response(sandbox.ask("sign_in")))
            arguments = {"session": "herd", "base_url": sandbox.url, **CLIENT}
            count = min(MACHINES, 2 * max(sizes.herd))
            herd = _threads if name == MEMORY else _processes
            with herd(count, store, arguments) as meet:
                rows += _herd_rows(f"{count} machines, one expiry, {name}", sandbox, meet, sizes.expiries)
    return rows


#: Lets all meet an expiry, and returns the round trips of each.
Meet = Callable[[], list[int]]


def _herd_rows(what: str, sandbox: Remote, meet: Meet, expiries: int) -> list[Row]:
    meet()  # a warm-up
    refreshes, seconds, trips = [], [], []
    for _ in range(expiries):
        sandbox.ask("expire")
        before, began = sandbox.counts.refresh_calls, time.perf_counter()
        trips += meet()
        seconds.append(time.perf_counter() - began)
        refreshes.append(sandbox.counts.refresh_calls - before)
    assert sandbox.counts.reused == 0
    value = f"{max(refreshes)}; last answer {median(seconds) * 1000:.0f} ms"
    rows = [Row("stores", f"{what}: refresh calls", value, "1", set(refreshes) == {1})]
    if any(trips):
        value = f"{median(trips):g} (at most {max(trips)})"
        rows.append(Row("stores", f"{what}: statements of a machine", value))
    return rows


@contextmanager
def _processes(count: int, store: str, arguments: dict[str, Any]) -> Iterator[Meet]:
    with fleet(count) as machines:
        for machine in machines:
            machine.do("use", store, counted=not store.startswith("file:"), **arguments)

        def meet() -> list[int]:
            for machine in machines:
                machine.begin("get")
            assert {machine.result(60) for machine in machines} == {"200"}
            return [sum(machine.do("trips").values()) for machine in machines]

        yield meet


@contextmanager
def _threads(count: int, store: MemoryRegister, arguments: dict[str, Any]) -> Iterator[Meet]:
    registers = [CountingRegister(store.for_another_machine()) for _ in range(count)]
    sessions = [session_of(AdhAuth(store=register, **arguments)) for register in registers]
    url = arguments["base_url"] + "/api/auth/me"
    with ThreadPoolExecutor(count) as pool:

        def meet() -> list[int]:
            for register in registers:
                register.trips.clear()
            answers = list(pool.map(lambda session: session.get(url, timeout=60), sessions))
            assert {answer.status_code for answer in answers} == {200}
            return [sum(register.trips.values()) for register in registers]

        yield meet


# Many sessions.


def _sessions(stores: dict[str, Any], sizes: Sizes) -> list[Row]:
    """A web application: one session per user, one auth object per request."""
    rows = []
    for name in [name for name in stores if name != FILE]:
        store = stores[name]
        for number in range(sizes.tasks):
            TokenStore(store, f"user/{number}").save(Tokens(f"access-{number}", "refresh", expires_at=4e9))
        rows += _session_rows(store, name, sizes)
    return rows


def _session_rows(store: Any, name: str, sizes: Sizes) -> list[Row]:
    users = [f"user/{number}" for number in range(sizes.tasks)]

    def build() -> list[AdhAuth]:
        return [AdhAuth(store=store, session=user, base_url=NOWHERE, **CLIENT) for user in users]

    def used() -> list[AdhAuth]:
        made = build()
        for auth in made:
            session_of(auth, AtOnce()).get(URL)
        return made

    AdhAuth(store=store, session="request", base_url=NOWHERE, **CLIENT)  # what all of them share
    session, first = _kib_of(used)
    shared, second = _kib_of(build)
    count = len(users)
    once = min(microseconds(build, 1) for _ in range(min(5, sizes.rounds))) / count
    del first, second
    what = f"{count} sessions in one process, {name}"
    return [
        Row("stores", f"{what}: memory of a session and its auth object", f"{session / count:.1f} KiB"),
        Row(
            "stores",
            f"{what}: memory of one more auth object",
            f"{shared / count:.2f} KiB",
            f"≤ {MEMORY_LIMIT:g} KiB",
            shared / count <= MEMORY_LIMIT,
        ),
        Row(
            "stores",
            f"{what}: AdhAuth(store=…, session=…)",
            f"{once:.1f} µs",
            f"≤ {BUILD_LIMIT:g} µs",
            once <= BUILD_LIMIT,
        ),
    ]


def _kib_of(make: Callable[[], Any]) -> tuple[float, Any]:
    """Return how many KiB what it makes takes, and what it has made."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    made = make()
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (after - before) / 1024, made
