"""The window in which a kill costs the session on the client's side: from the last byte of the reply until
the new pair is durable.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import httpx

from adh_auth import AdhHttpxAuth
from adh_auth.store import disk, reservation

from .measure import CLIENT, NOWHERE, Sizes, taking_turns, write_pair
from .table import Row

REPLY = {"access_token": "a" * 40, "expires_in": 3600, "token_type": "Bearer"}


def measure(sizes: Sizes, folder: Path) -> list[Row]:
    """Return the row, against the least that is durable: write, fsync, rename, fsync of the folder."""
    path = write_pair(folder / "tokens.json")
    found = taking_turns(
        {"ours": lambda: _window(path), "least": lambda: _least(folder / "other.json")}, sizes.rounds // 5 + 1
    )
    ours, least = (median(found[name]) * 1000 for name in ("ours", "least"))
    longest = max(found["ours"]) * 1000
    value = f"{ours:.2f} ms, longest {longest:.2f} ms (the least that is durable: {least:.2f} ms)"
    return [Row("kill window", "last byte of the reply until the rename is durable", value)]


def _window(path: Path) -> float:
    moments = []

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={**REPLY, "refresh_token": f"refresh-{time.monotonic_ns()}"})

    def noted(work: Callable[..., Any]) -> Callable[..., Any]:
        def once(*arguments: Any) -> Any:
            result = work(*arguments)
            moments.append(time.perf_counter())
            return result

        return once

    with httpx.Client(transport=httpx.MockTransport(answer), trust_env=False) as carrier:
        auth = AdhHttpxAuth(path, base_url=NOWHERE, refresh_via=carrier, **CLIENT)
        post = noted(auth._post)
        with (
            patch.object(auth._core, "_find_post", lambda: post),
            patch.object(reservation, "sync_folder", noted(disk.sync_folder)),
        ):
            auth.refresh()
    reply, durable = moments
    return durable - reply


def _least(path: Path) -> float:
    fd = os.open(path.with_suffix(".new"), os.O_WRONLY | os.O_CREAT, 0o600)
    start = time.perf_counter()
    os.write(fd, b"x" * 400)
    os.fsync(fd)
    os.close(fd)
    path.with_suffix(".new").replace(path)
    disk.sync_folder(str(path))
    return time.perf_counter() - start
