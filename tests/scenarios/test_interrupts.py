"""Rule 5: the job outlives its caller. Ctrl-C, a cancelled task, a closed loop, the end of the program."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import anyio
import anyio.to_thread
import pytest

from adh_auth.testing import Hold, Sandbox

from ..support.clients import Family
from ..support.faults import wait_until
from ..support.processes import PATIENCE, assert_nothing_lost, child

#: What a script does with each client, given `call`.
CLIENTS = {
    "requests": (
        "import requests\nfrom adh_auth import AdhAuth\n"
        "session = requests.Session()\nsession.auth = AdhAuth()\n"
    ),
    "httpx": "import httpx\nfrom adh_auth import AdhHttpxAuth\nsession = httpx.Client(auth=AdhHttpxAuth())\n",
    "httpx2": (
        "import httpx2\nfrom adh_auth import AdhHttpx2Auth\nsession = httpx2.Client(auth=AdhHttpx2Auth())\n"
    ),
}
CALL = (
    "import os\n"
    "def call(): return session.get(os.environ['ADH_BASE_URL'] + '/api/auth/me', timeout=30).status_code\n"
)
INTERRUPTED = "try: call()\nexcept KeyboardInterrupt: print('interrupted', flush=True); "

each_client = pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)


@each_client
def test_ctrl_c_in_a_script(sandbox: Sandbox, token_file: Path, client: str) -> None:
    """A script that is interrupted during a refresh ends with KeyboardInterrupt, once the pair is on disk."""
    sandbox.expire()
    with (
        sandbox.hold_next() as hold,
        child(client + CALL + INTERRUPTED + "raise", sandbox.environment(token_file)) as script,
    ):
        _interrupt(script, hold)
        with pytest.raises(subprocess.TimeoutExpired):
            script.wait(0.3)  # alive, for the reply has not come yet
        hold.release()
        errors = script.communicate(timeout=PATIENCE)[1]
    assert script.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors
    assert sandbox.counts.rotations == 1
    assert_nothing_lost(sandbox, token_file)
    assert sandbox.counts.rotations == 1


def test_ctrl_c_again_and_again(sandbox: Sandbox, token_file: Path) -> None:
    """No number of Ctrl-C ends the process before the pair is on disk. It says what it is waiting for."""
    sandbox.expire()
    code = CLIENTS["requests"] + CALL + LAST_WAIT + INTERRUPTED + "raise"
    with sandbox.hold_next() as hold, child(code, sandbox.environment(token_file)) as script:
        _interrupt(script, hold)
        assert script.stdout is not None
        assert script.stderr is not None
        # A signal any sooner would be lost in the traceback of the first.
        _read_until("the interpreter waits", script.stdout)
        # A signal that comes while the interpreter flushes its streams is swallowed there.
        with _again_and_again(script):
            _read_until("the last wait", script.stdout)
        for _ in range(3):
            script.send_signal(signal.SIGINT)
            _read_until("a token refresh is being finished", script.stderr)
        hold.release()
        script.wait(PATIENCE)
    assert_nothing_lost(sandbox, token_file)
    assert sandbox.counts.rotations == 1


#: A handler of the program's, for a signal that comes over and over.
RAISING = {
    "terminated": (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit())\n"
        "def press():\n"
        "    while True: os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.1)\n"
        "start = threading.Thread(target=press, daemon=True).start\n"
    ),
    "timer": (
        "def ring(*_): raise TimeoutError\n"
        "signal.signal(signal.SIGALRM, ring)\n"
        "start = lambda: signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)\n"
    ),
}


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals that a program can handle")
@pytest.mark.parametrize("handler", RAISING.values(), ids=RAISING)
def test_a_handler_that_raises_again_and_again(sandbox: Sandbox, token_file: Path, handler: str) -> None:
    """Whatever a handler raises, and however often: the pair is on disk before the process ends."""
    sandbox.expire()
    code = CLIENTS["requests"] + CALL + LAST_WAIT + "import signal, sys\n" + handler + STARTED_BY_A_LINE
    with sandbox.hold_next() as hold, child(code, sandbox.environment(token_file)) as script:
        hold.wait(PATIENCE)
        assert script.stdin is not None
        assert script.stdout is not None
        script.stdin.write("\n")
        script.stdin.flush()
        _read_until("the last wait", script.stdout)
        with pytest.raises(subprocess.TimeoutExpired):
            script.wait(0.7)  # alive, for the reply has not come yet
        hold.release()
        script.communicate(timeout=PATIENCE)
    assert_nothing_lost(sandbox, token_file)
    assert sandbox.counts.rotations == 1


#: The signals begin when a line comes in, while the main thread waits for a refresh.
STARTED_BY_A_LINE = """
def begin(): sys.stdin.readline(); start()
threading.Thread(target=begin, daemon=True).start()
call()
"""


@contextmanager
def _again_and_again(script: subprocess.Popen[str]) -> Iterator[None]:
    enough = threading.Event()

    def press() -> None:
        while not enough.is_set():
            script.send_signal(signal.SIGINT)
            enough.wait(0.3)

    presser = threading.Thread(target=press)
    presser.start()
    try:
        yield
    finally:
        enough.set()
        presser.join()


#: Prints when the interpreter's own wait for the thread begins, and when that was cut short and ours begins.
LAST_WAIT = """
import threading, time
from adh_auth.rotation.job import Job
def watch():
    while threading.main_thread().is_alive(): time.sleep(0.005)
    print("the interpreter waits", flush=True)
threading.Thread(target=watch, daemon=True).start()
join = Job.join
def noted(job):
    print("the last wait", flush=True)
    join(job)
Job.join = noted
"""


def _read_until(text: str, stream: IO[str]) -> None:
    while text not in (line := stream.readline()):
        assert line, f"it ended before it printed {text!r}"


@each_client
def test_ctrl_c_in_a_process_that_lives_on(sandbox: Sandbox, token_file: Path, client: str) -> None:
    """After an interrupt in a notebook the next call works, and no second refresh is made for it."""
    sandbox.expire()
    code = client + CALL + INTERRUPTED + "print(call(), flush=True)"
    with sandbox.hold_next() as hold, child(code, sandbox.environment(token_file)) as kernel:
        _interrupt(kernel, hold)
        hold.release()
        assert kernel.communicate(timeout=PATIENCE)[0].strip() == "200"
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


def _interrupt(script: subprocess.Popen[str], hold: Hold) -> None:
    hold.wait(PATIENCE)
    script.send_signal(signal.SIGINT)
    assert script.stdout is not None
    assert script.stdout.readline().strip() == "interrupted"


def test_end_of_the_program_finishes_the_exchange_in_flight(sandbox: Sandbox, token_file: Path) -> None:
    """A program whose main thread ends while a refresh is in flight writes the pair before it is gone."""
    sandbox.expire()
    with (
        sandbox.hold_next() as hold,
        child(CLIENTS["requests"] + CALL + ENDING, sandbox.environment(token_file)) as program,
    ):
        _end_main(program, hold)
        hold.release()
        program.wait(PATIENCE)
    assert sandbox.counts.rotations == 1
    assert_nothing_lost(sandbox, token_file)


def test_end_of_the_program_begins_no_further_try(sandbox: Sandbox, token_file: Path) -> None:
    """A program that is ending does not wait for an endpoint that is down: the try in flight is the last."""
    sandbox.expire()
    sandbox.fail_next(None, status=503)
    with (
        sandbox.hold_next() as hold,
        child(CLIENTS["requests"] + CALL + ENDING, sandbox.environment(token_file)) as program,
    ):
        _end_main(program, hold)
        hold.release()
        program.wait(10)
    assert sandbox.counts.refresh_calls == 1
    sandbox.heal()
    assert_nothing_lost(sandbox, token_file)


def test_end_of_the_program_cuts_a_pause_short(sandbox: Sandbox, token_file: Path) -> None:
    """A program that ends while a refresh pauses between two tries ends at once, not after the pause."""
    sandbox.expire()
    sandbox.fail_next(None, status=503, retry_after=25)
    with child(CLIENTS["requests"] + CALL + ENDING, sandbox.environment(token_file)) as program:
        wait_until(lambda: any(call.path == "/api/auth/refresh" for call in sandbox.log))
        _end_main(program, None)
        program.wait(10)
    assert sandbox.counts.refresh_calls == 1


#: The main thread ends when a line comes in, and another thread prints that it has ended.
ENDING = """
import threading, time, sys
def watch():
    while threading.main_thread().is_alive(): time.sleep(0.005)
    print("ended", flush=True)
threading.Thread(target=watch).start()
threading.Thread(target=call, daemon=True).start()
sys.stdin.readline()
"""


def _end_main(program: subprocess.Popen[str], hold: Hold | None) -> None:
    if hold is not None:
        hold.wait(PATIENCE)
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write("\n")
    program.stdin.flush()
    assert program.stdout.readline().strip() == "ended"


# Tasks.


@pytest.mark.anyio
async def test_a_task_that_times_out(
    family: Family, sandbox: Sandbox, token_file: Path, arguments: dict[str, Any]
) -> None:
    """A timeout (asyncio's, a trio cancel scope's) ends the caller and not the refresh; the next call has its
    pair.
    """
    sandbox.expire()
    async with family.module.AsyncClient(auth=family.auth(**arguments)) as client:
        with sandbox.hold_next() as hold:
            await _cancelled_in_flight(
                lambda: client.get(sandbox.url + "/api/auth/me", timeout=PATIENCE), hold
            )
        answer = await client.get(sandbox.url + "/api/auth/me", timeout=PATIENCE)
    assert answer.status_code == 200
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


@pytest.mark.anyio
async def test_one_waiter_cancelled_while_others_wait(
    family: Family, sandbox: Sandbox, token_file: Path, arguments: dict[str, Any]
) -> None:
    """One task that gives up takes nothing from the others that wait for the same refresh."""
    sandbox.expire()
    statuses: list[int] = []
    async with family.module.AsyncClient(auth=family.auth(**arguments)) as client:

        async def call() -> None:
            statuses.append((await client.get(sandbox.url + "/api/auth/me", timeout=PATIENCE)).status_code)

        with sandbox.hold_next() as hold:
            async with anyio.create_task_group() as others:
                for _ in range(4):
                    others.start_soon(call)
                await anyio.to_thread.run_sync(hold.wait, PATIENCE)
                await _cancelled_in_flight(call, hold)
                hold.release()
    assert statuses == [200] * 4
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


async def _cancelled_in_flight(call: Callable[[], Awaitable[Any]], hold: Hold) -> None:
    """Begin `call`, and let its time run out while the refresh is held after the server's commit."""
    scope = anyio.CancelScope()

    async def watch() -> None:
        await anyio.to_thread.run_sync(hold.wait, PATIENCE)
        await anyio.wait_all_tasks_blocked()
        scope.deadline = anyio.current_time()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        with scope:
            await call()
    assert scope.cancelled_caught


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_loop_that_closes_right_after_the_cancel(
    family: Family, sandbox: Sandbox, token_file: Path, arguments: dict[str, Any], backend: str
) -> None:
    """A loop that is closed while the refresh is in flight loses nothing, and a later loop finds the pair
    with the same object.
    """
    sandbox.expire()
    auth = family.auth(**arguments)

    async def cancelled(hold: Hold) -> None:
        async with family.module.AsyncClient(auth=auth) as client:
            await _cancelled_in_flight(
                lambda: client.get(sandbox.url + "/api/auth/me", timeout=PATIENCE), hold
            )

    async def again() -> int:
        async with family.module.AsyncClient(auth=auth) as client:
            status: int = (await client.get(sandbox.url + "/api/auth/me", timeout=PATIENCE)).status_code
            return status

    with sandbox.hold_next() as hold:
        anyio.run(cancelled, hold, backend=backend)
    assert anyio.run(again, backend=backend) == 200
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


def test_script_that_ends_right_after_the_cancel(sandbox: Sandbox, token_file: Path) -> None:
    """A script whose `asyncio.run` returns right after a cancel, and which then ends, has the pair on disk
    before it is gone.
    """
    sandbox.expire()
    with sandbox.hold_next() as hold, child(CANCELLING, sandbox.environment(token_file)) as script:
        hold.wait(PATIENCE)
        assert script.stdin is not None
        assert script.stdout is not None
        script.stdin.write("\n")
        script.stdin.flush()
        assert script.stdout.readline().strip() == "returned"
        hold.release()
        assert script.wait(PATIENCE) == 0
    assert sandbox.counts.rotations == 1
    assert_nothing_lost(sandbox, token_file)


CANCELLING = """
import asyncio, os, sys, httpx
from adh_auth import AdhHttpxAuth
async def main():
    async with httpx.AsyncClient(auth=AdhHttpxAuth(), timeout=30) as client:
        task = asyncio.create_task(client.get(os.environ["ADH_BASE_URL"] + "/api/auth/me"))
        await asyncio.to_thread(sys.stdin.readline)
        task.cancel()
        await asyncio.wait([task])
asyncio.run(main())
print("returned", flush=True)
"""


def test_two_loops_one_after_the_other(
    family: Family, sandbox: Sandbox, token_file: Path, arguments: dict[str, Any]
) -> None:
    """One auth object serves one `asyncio.run` after the other, each with a refresh of its own."""
    auth = family.auth(**arguments)
    for turn in (1, 2):
        sandbox.expire()
        assert asyncio.run(_several(family, auth, sandbox)) == [200] * 5
        assert sandbox.counts.refresh_calls == turn
    assert_nothing_lost(sandbox, token_file)


def test_two_loops_in_two_threads(
    family: Family, sandbox: Sandbox, token_file: Path, arguments: dict[str, Any]
) -> None:
    """One auth object serves two loops in two threads at the same time, with one refresh for both."""
    auth = family.auth(**arguments)
    sandbox.expire()
    with sandbox.hold_next() as hold, ThreadPoolExecutor(2) as threads:
        running = [threads.submit(asyncio.run, _several(family, auth, sandbox)) for _ in range(2)]
        hold.wait(PATIENCE)
        # All wait: after a 401, or before their request, because the token was known to be expired by then.
        wait_until(lambda: auth._core._job is not None and len(auth._core._job._waiters) == 10)
        hold.release()
        assert [future.result(PATIENCE) for future in running] == [[200] * 5] * 2
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


async def _several(family: Family, auth: Any, sandbox: Sandbox) -> list[int]:
    async with family.module.AsyncClient(auth=auth, timeout=PATIENCE) as client:
        answers = await asyncio.gather(*(client.get(sandbox.url + "/api/auth/me") for _ in range(5)))
    return [answer.status_code for answer in answers]
