"""One process of the demo: calls the API in a loop as a user's program would, and writes lines of JSON about
it to stdout.

It says that it is ready, waits for a line on stdin, and works until stdin ends: the end of whoever started it
is its own end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ...errors import AdhAuthError
from ...tokens import fingerprint

__all__ = ["THREADS", "WORKERS", "command_line", "main"]

#: Threads or tasks of one process.
THREADS = 3
#: Seconds between two requests of one of them: as many as a laptop answers without getting loud.
PAUSE = 0.05
#: Seconds between two reports.
REPORT_EVERY = 0.2
#: Seconds that one request may take. Longer than a whole refresh with its retries.
TIMEOUT = 60.0
#: Characters of a failure that are told.
TROUBLE_LIMIT = 500

STDIN, STDOUT = 0, 1


class Tally:
    """What this process has done so far; shared by its threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._facts: dict[str, Any] = {
            "requests": 0,
            "failures": 0,
            "expiries": 0,
            "token": None,
            "trouble": None,
        }

    def answered(self, response: Any) -> None:
        """Count an answer, and the 401s that came before it and that the caller never saw."""
        expiries = sum(earlier.status_code == 401 for earlier in response.history)
        trouble = None if response.status_code == 200 else f"HTTP {response.status_code}"
        self._count(expiries, trouble)

    def broke(self, error: Exception) -> None:
        """Count a request that ended in an exception."""
        self._count(0, f"{type(error).__name__}: {error}"[:TROUBLE_LIMIT])

    def holds(self, access_token: str) -> None:
        """Note the token that is in use."""
        with self._guard:
            self._facts["token"] = fingerprint(access_token)

    def report(self) -> dict[str, Any]:
        """The counts so far, and the first trouble."""
        with self._guard:
            return dict(self._facts)

    def _count(self, expiries: int, trouble: str | None) -> None:
        with self._guard:
            self._facts["requests"] += 1
            self._facts["expiries"] += expiries
            if trouble is not None:
                self._facts["failures"] += 1
                self._facts["trouble"] = self._facts["trouble"] or trouble


Work = Callable[[], None]


def _requests_work(url: str, tally: Tally, stop: threading.Event) -> tuple[Any, Work]:
    import requests

    from ...for_requests import AdhAuth

    auth = AdhAuth()

    def work() -> None:
        with requests.Session() as session:
            session.auth = auth
            while not stop.is_set():
                _try(lambda: session.get(url, timeout=TIMEOUT), tally)
                stop.wait(PAUSE)

    return auth, lambda: _in_threads(work)


def _httpx_work(url: str, tally: Tally, stop: threading.Event) -> tuple[Any, Work]:
    import httpx

    from ...for_httpx import AdhHttpxAuth

    return _client_work(httpx, AdhHttpxAuth(), url, tally, stop)


def _httpx2_work(url: str, tally: Tally, stop: threading.Event) -> tuple[Any, Work]:
    import httpx2

    from ...for_httpx2 import AdhHttpx2Auth

    return _client_work(httpx2, AdhHttpx2Auth(), url, tally, stop)


def _client_work(module: Any, auth: Any, url: str, tally: Tally, stop: threading.Event) -> tuple[Any, Work]:
    client = module.Client(auth=auth, timeout=TIMEOUT)

    def work() -> None:
        while not stop.is_set():
            _try(lambda: client.get(url), tally)
            stop.wait(PAUSE)

    def work_and_close() -> None:
        with client:
            _in_threads(work)

    return auth, work_and_close


def _asyncio_work(url: str, tally: Tally, stop: threading.Event) -> tuple[Any, Work]:
    import asyncio

    import httpx

    from ...for_httpx import AdhHttpxAuth

    auth = AdhHttpxAuth()

    async def work(client: httpx.AsyncClient) -> None:
        while not stop.is_set():
            try:
                tally.answered(await client.get(url))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a request that failed
                tally.broke(error)
            await asyncio.sleep(PAUSE)

    async def everyone() -> None:
        async with httpx.AsyncClient(auth=auth, timeout=TIMEOUT) as client:
            await asyncio.gather(*(work(client) for _ in range(THREADS)))

    return auth, lambda: asyncio.run(everyone())


#: How each kind of process works.
WORKERS = {"requests": _requests_work, "httpx": _httpx_work, "asyncio": _asyncio_work, "httpx2": _httpx2_work}


def main(kind: str) -> None:
    """Get ready, work until stdin ends, and say what came of it."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for whoever started this process, who then closes stdin
    tally, stop = Tally(), threading.Event()
    auth, work = WORKERS[kind](os.environ["ADH_BASE_URL"] + f"/api/demo/{kind}", tally, stop)
    _write({"ready": True}, stop)
    if not os.read(STDIN, 1):
        return
    threading.Thread(target=_wait_for_the_end, args=(stop,), daemon=True).start()
    threading.Thread(target=_report_on, args=(auth, tally, stop), daemon=True).start()
    work()
    _write({**tally.report(), "last": True}, stop)


def _try(send: Callable[[], Any], tally: Tally) -> None:
    try:
        tally.answered(send())
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a request that failed
        tally.broke(error)


def _in_threads(work: Work) -> None:
    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _wait_for_the_end(stop: threading.Event) -> None:
    # Not sys.stdin: a thread that waits in its buffer is a fatal error of the interpreter on its way out.
    while os.read(STDIN, 1024):
        pass
    stop.set()


def _report_on(auth: Any, tally: Tally, stop: threading.Event) -> None:
    while not stop.is_set():
        with suppress(AdhAuthError):  # the folder is gone already, where the end came abruptly
            tally.holds(auth.tokens.access_token)
        _write(tally.report(), stop)
        time.sleep(REPORT_EVERY)


def _write(report: dict[str, Any], stop: threading.Event) -> None:
    # One write for each line, and shorter than PIPE_BUF: reports of two threads never mix.
    line = json.dumps(report).encode("ascii") + b"\n"
    try:
        os.write(STDOUT, line)
    except OSError:  # nobody reads any more
        stop.set()


def command_line(kind: str) -> list[str]:
    """How to start such a process with the import path of this one, whatever folder is current and whatever
    lies in it.
    """
    if getattr(
        sys, "frozen", False
    ):  # PyInstaller, cx_Freeze: the executable is this program, which takes no `-c`
        return [sys.executable, "demo", "--worker", kind]
    return [sys.executable, "-c", _START, "\n".join(os.path.abspath(entry) for entry in sys.path), kind]


_START = "import sys; sys.path[:] = sys.argv[1].split(chr(10)); from adh_auth.cli.demo.worker import main; main(sys.argv[2])"
