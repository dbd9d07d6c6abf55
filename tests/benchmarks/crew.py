"""Processes that do one thing each at the same instant."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from .server import SPAWN

#: Seconds from the order to the instant: until then every process has read its order and sleeps.
NOTICE = 0.15


class Done(NamedTuple):
    """What one process has done: a status or an error's name, seconds, seconds of processor, MiB of memory."""

    outcome: str
    seconds: float
    cpu: float
    memory: float


class Crew:
    """The processes, ready."""

    def __init__(self, pipes: Sequence[Connection]) -> None:
        self._pipes = pipes

    def together(self, count: int, kind: str, detail: str = "") -> list[Done]:
        """The first `count` of them do `kind` at the same instant."""
        at = time.monotonic() + NOTICE
        for pipe in self._pipes[:count]:
            pipe.send((kind, detail, at))
        return [pipe.recv() for pipe in self._pipes[:count]]

    def prepare(self, count: int, kind: str) -> None:
        """The same one after the other, for what nobody measures: connections, imports."""
        for pipe in self._pipes[:count]:
            pipe.send((kind, "", 0.0))
            pipe.recv()


@contextmanager
def crew_of(count: int, url: str, path: Path, client: str = "") -> Iterator[Crew]:
    """So many new processes on one token file, reaped at the end. `client`: a peer instead of ours."""
    pairs = [SPAWN.Pipe() for _ in range(count)]
    processes = [
        SPAWN.Process(target=_work, args=(there, url, str(path), client), daemon=True) for _, there in pairs
    ]
    try:
        for process in processes:
            process.start()
        for here, _ in pairs:
            here.recv()
        yield Crew([here for here, _ in pairs])
    finally:
        for here, _ in pairs:
            with suppress(OSError):
                here.send(None)
        for process in processes:
            process.join(10)
            process.kill()
            process.join()


def _work(pipe: Connection, url: str, path: str, client: str) -> None:
    import requests

    from . import peers
    from .measure import session_of

    def signed_in() -> requests.Session:
        return peers.session(client, url, Path(path))

    def start(_: str) -> requests.Response:
        sessions["signed in"] = signed_in()
        return requests.Response()

    sessions = {"plain": session_of()}
    if not client:
        start("")
    works: dict[str, Callable[[str], requests.Response]] = {
        # A peer reads the file when it is built: each herd is one of processes that have just started.
        "start": start,
        "get": lambda detail: sessions["signed in"].get(url + "/api/auth/me", timeout=60),
        "get with": lambda token: sessions["plain"].get(
            url + "/api/auth/me", headers={"Authorization": f"Bearer {token}"}, timeout=60
        ),
        "refresh": lambda token: sessions["plain"].post(
            url + "/api/auth/refresh", json=peers.refresh_payload(token), timeout=60
        ),
    }
    pipe.send(None)
    while (order := pipe.recv()) is not None:
        kind, detail, at = order
        pipe.send(_done(works[kind], detail, at))


def _done(work: Callable[[str], Any], detail: str, at: float) -> Done:
    time.sleep(max(0.0, at - time.monotonic()))
    start, cpu = max(at, 0.0) or time.monotonic(), time.process_time()
    try:
        outcome = str(work(detail).status_code)
    except Exception as error:
        outcome = type(error).__name__
    return Done(outcome, time.monotonic() - start, time.process_time() - cpu, _memory())


def _memory() -> float:
    if sys.platform != "linux":
        return 0.0
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
