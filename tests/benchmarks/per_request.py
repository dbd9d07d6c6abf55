"""What each request costs: whole client calls on a transport that answers at once, against a static bearer
header and the peers.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import httpx2
import requests

from adh_auth import AdhAuth, AdhHttpx2Auth, AdhHttpxAuth

from . import peers
from .measure import CLIENT, NOWHERE, AtOnce, Sizes, above, microseconds, session_of, taking_turns, write_pair
from .table import Row

#: Microseconds above a static header; httpx has no way to set a header that costs less than 2.
LIMITS = {AdhAuth.__name__: 4.0, AdhHttpxAuth.__name__: 5.0, AdhHttpx2Auth.__name__: 5.0}
STATIC = "a static header among the client's headers"
SET = "an auth object that sets a static header"
STAT = "the same, and a bare os.stat of the token file"
BEARER = {"Authorization": "Bearer access-0"}
URL = NOWHERE + "/api/auth/me"


def measure(sizes: Sizes, folder: Path) -> list[Row]:
    """Return the microseconds of a call, and those above the static header."""
    path = write_pair(folder / "tokens.json", expires_at=4e9)
    rows = _rows("Session.get", AdhAuth.__name__, _of_requests(path, sizes.calls), sizes)
    for module, auth in ((httpx, AdhHttpxAuth), (httpx2, AdhHttpx2Auth)):
        rows += _rows(
            f"{module.__name__}.Client.get", auth.__name__, _of_client(module, auth, path, sizes.calls), sizes
        )
        loop = asyncio.new_event_loop()
        try:
            contenders = _of_async_client(loop, module, auth, path, sizes.calls)
            rows += _rows(f"{module.__name__}.AsyncClient.get", auth.__name__, contenders, sizes)
        finally:
            loop.close()
    return rows


def _rows(call: str, ours: str, contenders: dict[str, Callable[[], float]], sizes: Sizes) -> list[Row]:
    found = taking_turns(contenders, sizes.rounds)
    rows = [Row("per request", f"{call}, {STATIC}", f"{median(found[STATIC]):.1f} µs")]
    for name, values in found.items():
        if name != STATIC:
            more = above(found[STATIC], values)
            goal = (f"≤ +{LIMITS[ours]:g} µs", more <= LIMITS[ours]) if name == ours else ("", None)
            rows.append(Row("per request", f"{call}, {name}", f"{more:+.1f} µs", *goal))
    return rows


def _of_requests(path: Path, calls: int) -> dict[str, Callable[[], float]]:
    plain = session_of(adapter=AtOnce())
    plain.headers.update(BEARER)
    sessions = {
        STATIC: plain,
        SET: session_of(_Bearer(), AtOnce()),
        STAT: session_of(_Bearer(path), AtOnce()),
        AdhAuth.__name__: session_of(AdhAuth(path, base_url=NOWHERE, **CLIENT), AtOnce()),
    }
    for name, session in peers.sessions(NOWHERE, path):
        sessions[name] = session_of(adapter=AtOnce(), session=session)
    return {name: _timed(session.get, calls) for name, session in sessions.items()}


def _of_client(module: Any, auth: Any, path: Path, calls: int) -> dict[str, Callable[[], float]]:
    clients = dict(_clients(module, "Client", auth, path))
    return {name: _timed(client.get, calls) for name, client in clients.items()}


def _of_async_client(
    loop: asyncio.AbstractEventLoop, module: Any, auth: Any, path: Path, calls: int
) -> dict[str, Callable[[], float]]:
    async def some(get: Callable[[str], Any]) -> None:
        for _ in range(calls):
            await get(URL)

    def timed(get: Callable[[str], Any]) -> Callable[[], float]:
        return lambda: microseconds(lambda: loop.run_until_complete(some(get)), 1) / calls

    return {name: timed(client.get) for name, client in _clients(module, "AsyncClient", auth, path)}


def _clients(module: Any, kind: str, auth: Any, path: Path) -> Iterator[tuple[str, Any]]:
    options = {"transport": _at_once(module), "trust_env": False}
    client = getattr(module, kind)
    yield STATIC, client(headers=BEARER, **options)
    yield SET, client(auth=_bearer_of(module), **options)
    yield STAT, client(auth=_bearer_of(module, path), **options)
    yield auth.__name__, client(auth=auth(path, base_url=NOWHERE, **CLIENT), **options)
    yield from peers.clients(module, kind, path, options)


def _timed(get: Callable[[str], Any], calls: int) -> Callable[[], float]:
    return lambda: microseconds(lambda: get(URL), calls)


def _at_once(module: Any) -> Any:
    return module.MockTransport(lambda request: module.Response(200))


class _Bearer(requests.auth.AuthBase):
    """Sets a static header, after a stat of `path` if there is one: the usual way to notice a rotation."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = None if path is None else os.fsencode(path)

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._path is not None:
            os.stat(self._path)
        r.headers["Authorization"] = BEARER["Authorization"]
        return r


def _bearer_of(module: Any, token_file: Path | None = None) -> Any:
    """Return the same for httpx or httpx2."""
    path = None if token_file is None else os.fsencode(token_file)

    class Bearer(module.Auth):  # type: ignore[misc]
        def auth_flow(self, request: Any) -> Iterator[Any]:
            if path is not None:
                os.stat(path)
            request.headers["Authorization"] = BEARER["Authorization"]
            yield request

    return Bearer()
