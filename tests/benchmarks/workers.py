"""Worker processes that do one thing each at the same instant."""

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

#: Seconds from the order to the instant: enough for every process to read its order.
NOTICE = 0.15


class Done(NamedTuple):
    """What one process has done: a status or an error's name, seconds, CPU seconds, MiB of memory."""

    outcome: str
    seconds: float
    cpu: float
    memory: float


class Workers:
    """The processes, started and waiting for orders."""

    def __init__(self, pipes: Sequence[Connection]) -> None:
        self._pipes = pipes

    def together(self, count: int, kind: str, detail: str = "") -> list[Done]:
        """Let the first `count` of them do `kind` at the same instant, and return what each has done."""
        at = time.monotonic() + NOTICE
        for pipe in self._pipes[:count]:
            pipe.send((kind, detail, at))
        return [pipe.recv() for pipe in self._pipes[:count]]

    def prepare(self, count: int, kind: str) -> None:
        """Let them do it one after the other, for what is not measured: connections, imports."""
        for pipe in self._pipes[:count]:
            pipe.send((kind, "", 0.0))
            pipe.recv()


@contextmanager
def start_workers(count: int, url: str, path: Path, client: str = "") -> Iterator[Workers]:
    """Start `count` processes on one token file; reap them at the end. `client`: a peer instead of ours."""
    pairs = [SPAWN.Pipe() for _ in range(count)]
    processes = [
        SPAWN.Process(target=_work, args=(there, url, str(path), client), daemon=True) for _, there in pairs
    ]
    try:
        for process in processes:
            process.start()
        for here, _ in pairs:
            here.recv()
        yield Workers([here for here, _ in pairs])
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
        # A peer reads the file when it is built: each herd needs new sessions.
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
