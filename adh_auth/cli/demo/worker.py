"""One process of the demo: calls the API in a loop, as a user's program would, and reports in lines of JSON.

It reports on stdout that it is ready, waits for a byte on stdin, and works until stdin ends: that happens at
the latest when the process that started it ends.
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
#: Seconds between two calls of one of them: a load that a laptop carries with ease.
PAUSE = 0.05
#: Seconds between two reports.
REPORT_EVERY = 0.2
#: Seconds that one call may take. Longer than a whole refresh with its retries.
TIMEOUT = 60.0
#: Characters of a problem that are reported. A report has to fit in PIPE_BUF: 4096 on Linux.
MAX_PROBLEM = 500

STDIN, STDOUT = 0, 1


class Tally:
    """What this process has done so far. Its threads share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._facts: dict[str, Any] = {
            "calls": 0,
            "failures": 0,
            "expiries": 0,
            "token": None,
            "problem": None,
        }

    def answered(self, response: Any) -> None:
        """Count a call with its response, and the 401s before it, which the caller never saw."""
        expiries = sum(earlier.status_code == 401 for earlier in response.history)
        problem = None if response.status_code == 200 else f"HTTP {response.status_code}"
        self._count(expiries, problem)

    def failed(self, error: Exception) -> None:
        """Count a call that ended in an exception."""
        self._count(0, f"{type(error).__name__}: {error}"[:MAX_PROBLEM])

    def set_token(self, access_token: str) -> None:
        """Note the token in use, as a fingerprint."""
        with self._lock:
            self._facts["token"] = fingerprint(access_token)

    def report(self) -> dict[str, Any]:
        """Return the counts so far, and the first problem."""
        with self._lock:
            return dict(self._facts)

    def _count(self, expiries: int, problem: str | None) -> None:
        with self._lock:
            self._facts["calls"] += 1
            self._facts["expiries"] += expiries
            if problem is not None:
                self._facts["failures"] += 1
                self._facts["problem"] = self._facts["problem"] or problem


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
            except Exception as error:  # noqa: BLE001 - whatever it is, the call failed
                tally.failed(error)
            await asyncio.sleep(PAUSE)

    async def work_in_tasks() -> None:
        async with httpx.AsyncClient(auth=auth, timeout=TIMEOUT) as client:
            await asyncio.gather(*(work(client) for _ in range(THREADS)))

    return auth, lambda: asyncio.run(work_in_tasks())


#: By kind of process: returns the auth object, and the function that works until `stop` is set.
WORKERS = {"requests": _requests_work, "httpx": _httpx_work, "asyncio": _asyncio_work, "httpx2": _httpx2_work}


def main(kind: str) -> None:
    """Get ready, work until stdin ends, and report."""
    # Ctrl-C is for the process that started this one and that closes stdin then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tally, stop = Tally(), threading.Event()
    auth, work = WORKERS[kind](os.environ["ADH_BASE_URL"] + f"/api/demo/{kind}", tally, stop)
    _write({"ready": True}, stop)
    if not os.read(STDIN, 1):
        return
    threading.Thread(target=_stop_with_stdin, args=(stop,), daemon=True).start()
    threading.Thread(target=_report_until, args=(auth, tally, stop), daemon=True).start()
    work()
    _write({**tally.report(), "last": True}, stop)


def _try(send: Callable[[], Any], tally: Tally) -> None:
    try:
        tally.answered(send())
    except Exception as error:  # noqa: BLE001 - whatever it is, the call failed
        tally.failed(error)


def _in_threads(work: Work) -> None:
    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _stop_with_stdin(stop: threading.Event) -> None:
    # Not sys.stdin: a daemon thread that holds the lock of its buffer is a fatal error at interpreter exit.
    while os.read(STDIN, 1024):
        pass
    stop.set()


def _report_until(auth: Any, tally: Tally, stop: threading.Event) -> None:
    while not stop.is_set():
        with suppress(AdhAuthError):  # the folder is removed already if the demo was killed
            tally.set_token(auth.tokens.access_token)
        _write(tally.report(), stop)
        time.sleep(REPORT_EVERY)


def _write(report: dict[str, Any], stop: threading.Event) -> None:
    # One write per line, shorter than PIPE_BUF: the lines of two threads never mix.
    line = json.dumps(report).encode("ascii") + b"\n"
    try:
        os.write(STDOUT, line)
    except OSError:  # the reader has gone
        stop.set()


def command_line(kind: str) -> list[str]:
    """Return how to start such a process, with the import path of this one and not of the current folder."""
    if getattr(sys, "frozen", False):
        # PyInstaller, cx_Freeze: the executable is this program, which takes no `-c`.
        return [sys.executable, "demo", "--worker", kind]
    return [sys.executable, "-c", _START, "\n".join(os.path.abspath(entry) for entry in sys.path), kind]


_START = (
    "import sys; sys.path[:] = sys.argv[1].split(chr(10)); "
    "from adh_auth.cli.demo.worker import main; main(sys.argv[2])"
)
