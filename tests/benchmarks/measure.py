"""How it is measured: sizes, rounds in turns, medians, a pair on disk, transports that answer at once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import requests
from requests.adapters import BaseAdapter

__all__ = ["FULL", "SMOKE", "AtOnce", "Sizes", "above", "taking_turns", "write_pair"]

#: An API that is never called: the transport answers in its place.
NOWHERE = "http://127.0.0.1:9"
CLIENT: dict[str, Any] = {"client_id": "sandbox-client", "client_secret": "sandbox-secret"}


class Sizes(NamedTuple):
    """How many calls, rounds, processes, threads and tasks."""

    rounds: int
    calls: int
    starts: int
    herd: tuple[int, ...]
    growth: tuple[int, ...]
    expiries: int
    cold: int
    slices: int
    slice_seconds: float
    tasks: int
    threads: int


FULL = Sizes(61, 200, 15, (2, 8, 32), (1, 2, 4, 8, 16, 32, 64), 7, 5, 7, 3.0, 1000, 64)
SMOKE = Sizes(2, 2, 1, (2,), (1, 2), 1, 1, 1, 0.2, 20, 4)


def taking_turns(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return what each contender measured in each round.

    All take part in every round, so that a busy moment hits all; the first is a warm-up.

    Every other round goes the other way round: what one leaves in the processor's caches helps or hurts the
    next.
    """
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name in list(contenders)[:: 1 if number % 2 else -1]:
            value = contenders[name]()
            if number:
                found[name].append(value)
    return found


def above(base: list[float], values: list[float]) -> float:
    """Return the median of what `values` are above `base`, round by round."""
    return median(value - low for low, value in zip(base, values, strict=True))


def microseconds(call: Callable[[], Any], calls: int) -> float:
    """Return the microseconds of one call, as the mean of some."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls * 1e6


def write_pair(path: Path, access: str = "access-0", refresh: str = "refresh-0", **more: Any) -> Path:
    """Write a token file without a server behind it, and return its path."""
    path.write_text(
        json.dumps({"access_token": access, "refresh_token": refresh, "token_type": "Bearer", **more})
    )
    path.chmod(0o600)
    return path


class AtOnce(BaseAdapter):
    """Answers every request of a `requests.Session` at once with 200."""

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        response = requests.Response()
        response.status_code, response.request, response.url = 200, request, request.url or ""
        vars(response).update(_content=b"{}", _content_consumed=True, connection=self)
        return response

    def close(self) -> None:
        """There is nothing to close."""


def session_of(
    auth: Any = None, adapter: BaseAdapter | None = None, session: requests.Session | None = None
) -> requests.Session:
    """Return a session without proxies and .netrc, whose search costs more than all that is measured here."""
    made = requests.Session() if session is None else session
    made.trust_env = False
    if auth is not None:
        made.auth = auth
    if adapter is not None:
        made.mount("http://", adapter)
    return made
