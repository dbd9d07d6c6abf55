"""Unusual programs: threads that outlive main, exit handlers, sub-interpreters, no threads, moved clocks.

Rule 5: what was sent is written. Rule 18: a program whose threads work on is not ending.
"""

from __future__ import annotations

import errno
import gc
import json
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import anyio
import pytest

from adh_auth import RefreshFailed, TokenFile
from adh_auth.common.clock import LONGEST_STEP, JobClock
from adh_auth.rotation.job import Job
from adh_auth.store import reservation
from adh_auth.testing import Sandbox

from ..support.clients import CLIENTS, EveryClient, Family
from ..support.faults import auth_for, get, wait_until
from ..support.processes import PATIENCE, assert_nothing_lost, child

#: How each client's `call()` is written in a script.
CALLS = {
    "requests": "import requests as client\nfrom adh_auth import AdhAuth as Auth\n",
    "httpx": "import httpx as client\nfrom adh_auth import AdhHttpxAuth as Auth\n",
    "httpx2": "import httpx2 as client\nfrom adh_auth import AdhHttpx2Auth as Auth\n",
}
CALL = """
import os, sys, threading, time
URL = os.environ["ADH_BASE_URL"] + "/api/auth/me"
def call(auth=None):
    try:
        outcome = client.get(URL, auth=auth or Auth(), timeout=60).status_code
    except Exception as error:
        outcome = f"{type(error).__name__} {error}"
    sys.stdout.write(f"{outcome}\\n")  # in one piece, for threads
    sys.stdout.flush()
"""

each_client = pytest.mark.parametrize("client", CALLS.values(), ids=CALLS)


def _lines_printed_by(code: str, sandbox: Sandbox, token_file: Path) -> list[str]:
    """Return the lines that a program with a session prints until it ends."""
    with child(code, sandbox.environment(token_file)) as process:
        printed, errors = process.communicate(timeout=2 * PATIENCE)
    assert process.returncode == 0, errors
    assert printed, errors
    return printed.splitlines()


# Threads that outlive the main thread.

FOUR_THREADS = "for _ in range(4): threading.Thread(target=call).start()\n"


@each_client
def test_threads_that_outlive_main_share_a_refresh(sandbox: Sandbox, token_file: Path, client: str) -> None:
    """A script that starts threads and returns is not ending: waiters for another's refresh get its pair."""
    sandbox.expire()
    with (
        sandbox.hold_next() as hold,
        child(client + CALL + FOUR_THREADS, sandbox.environment(token_file)) as process,
    ):
        hold.wait(PATIENCE)
        wait_until(lambda: sandbox.counts.unauthorized == 4)
        hold.release()
        printed = process.communicate(timeout=PATIENCE)[0]
    assert printed.split() == ["200"] * 4
    assert sandbox.counts.refresh_calls == 1


@each_client
def test_threads_that_outlive_main_ride_out_an_outage(
    sandbox: Sandbox, token_file: Path, client: str
) -> None:
    """A short outage is ridden out there as anywhere."""
    sandbox.expire()
    sandbox.fail_next(status=503)
    assert _lines_printed_by(
        client + CALL + "threading.Thread(target=call).start()", sandbox, token_file
    ) == ["200"]
    assert sandbox.counts.refresh_calls == 2


def test_threads_that_outlive_main_keep_a_pair_until_it_is_written(
    sandbox: Sandbox, token_file: Path
) -> None:
    """A disk that fails for a moment after the spend costs nothing while a thread works on."""
    code = f"""
from adh_auth.store import reservation
fill, failures = reservation.ReservedFile.fill, []
def failing(self, data):
    failures.append(1)
    if len(failures) < 4: raise OSError({errno.EIO}, "Input/output error")
    fill(self, data); written.set()
reservation.ReservedFile.fill = failing
written = threading.Event()
def work():
    auth = Auth()
    call(auth)
    # Python 3.12 starts no thread once main has returned: there, the requests that follow write the pair.
    while not written.wait(0.1): client.get(URL, auth=auth, timeout=60)
threading.Thread(target=work).start()
"""
    sandbox.expire()
    assert _lines_printed_by(CALLS["requests"] + CALL + code, sandbox, token_file) == ["200"]
    assert_nothing_lost(sandbox, token_file)


def test_a_daemon_that_waits_keeps_no_program_alive(sandbox: Sandbox, token_file: Path) -> None:
    """Where only daemons are left, the program ends, and no further try is begun for them."""
    code = """
threading.Thread(target=call, daemon=True).start()
sys.stdin.readline()
"""
    sandbox.expire()
    sandbox.fail_next(None, status=503)
    with child(CALLS["requests"] + CALL + code, sandbox.environment(token_file)) as process:
        wait_until(lambda: sandbox.counts.refresh_calls >= 1)
        before = sandbox.counts.refresh_calls
        process.communicate("\n", timeout=PATIENCE)
    assert sandbox.counts.refresh_calls <= before + 1


@each_client
@pytest.mark.parametrize("condition", ["none", "503", "beside"])
def test_a_request_in_an_exit_handler(
    sandbox: Sandbox, token_file: Path, client: str, condition: str
) -> None:
    """It refreshes, rides out an outage and waits for another process as any other request does."""
    code = client + CALL + "import atexit\nAuth()\natexit.register(call)\n"
    sandbox.expire()
    if condition == "503":
        sandbox.fail_next(status=503)
    if condition != "beside":
        assert _lines_printed_by(code, sandbox, token_file) == ["200"]
        return
    with (
        sandbox.hold_next() as hold,
        child(client + CALL + "call()", sandbox.environment(token_file)) as other,
    ):
        hold.wait(PATIENCE)
        with child(code, sandbox.environment(token_file)) as process:
            wait_until(lambda: sandbox.counts.unauthorized == 2)
            hold.release()
            assert process.communicate(timeout=PATIENCE)[0] == "200\n"
        assert other.communicate(timeout=PATIENCE)[0] == "200\n"
    assert sandbox.counts.refresh_calls == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("where", ["exit handler", "thread that outlives main"])
@pytest.mark.parametrize("client", [CALLS["httpx"], CALLS["httpx2"]], ids=["httpx", "httpx2"])
def test_a_task_at_the_end_of_the_program(
    sandbox: Sandbox, token_file: Path, client: str, where: str, backend: str
) -> None:
    """A loop that runs on, or begins, once main has returned refreshes, too.

    Python 3.12 starts no thread for it then.
    """
    code = f"""
import atexit, anyio
async def work():
    async with client.AsyncClient(auth=Auth(), timeout=60) as session:
        return (await session.get(URL)).status_code
def run():
    try: print(anyio.run(work, backend={backend!r}), flush=True)
    except Exception as error: print(type(error).__name__, error, flush=True)
def last():
    threading.main_thread().join()
    run()
atexit.register(run) if {where!r} == "exit handler" else threading.Thread(target=last).start()
"""
    sandbox.expire()
    assert _lines_printed_by(client + CALL + code, sandbox, token_file) == ["200"]
    assert_nothing_lost(sandbox, token_file)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_an_exit_handlers_refresh(sandbox: Sandbox, token_file: Path, number: int) -> None:
    """Ctrl-C does not lose the pair where the exit handler itself does the refresh.

    Python 3.12 starts no threads then.
    """
    code = (
        CALL
        + "import atexit, signal\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n"
        + "Auth()\natexit.register(call)\n"
    )
    sandbox.expire()
    with (
        sandbox.hold_next() as hold,
        child(CALLS["requests"] + code, sandbox.environment(token_file)) as process,
    ):
        hold.wait(PATIENCE)
        process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)  # alive, for the reply has not come yet
        hold.release()
        process.communicate(timeout=PATIENCE)
    assert_nothing_lost(sandbox, token_file)
    assert sandbox.counts.rotations == 1


def test_revoke_at_the_end_of_the_program(sandbox: Sandbox, token_file: Path) -> None:
    """A revocation without a waiter does not keep the program alive while another process refreshes."""
    code = (
        CALLS["requests"]
        + CALL
        + "auth = Auth()\nthreading.Thread(target=auth.revoke, daemon=True).start()\nsys.stdin.readline()\n"
    )
    with TokenFile(token_file).locked(PATIENCE), child(code, sandbox.environment(token_file)) as process:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(PATIENCE / 2) == 0
    assert_nothing_lost(sandbox, token_file)


# Sub-interpreters.

SUBINTERPRETER = """
import sys
try: import _interpreters as interpreters
except ImportError: import _xxsubinterpreters as interpreters
code = {code!r}
try: made = interpreters.create("legacy")
except (TypeError, ValueError): made = interpreters.create(isolated=False)
except RuntimeError: made = interpreters.create()
sys.stdout.flush()
for part in code.split("# then\\n"):
    failed = interpreters.run_string(made, part)
    if failed is not None: print(failed)
"""


@pytest.mark.parametrize("condition", ["none", "503"])
@each_client
def test_a_sub_interpreter_refreshes(sandbox: Sandbox, token_file: Path, client: str, condition: str) -> None:
    """It has threads of its own, no daemons (3.12 and later), and a main thread that may be gone."""
    sandbox.expire()
    if condition == "503":
        sandbox.fail_next(status=503)
    paths = f"import sys\nsys.path[:0] = {sys.path!r}\n"
    code = SUBINTERPRETER.format(code=paths + "import threading\n# then\n" + client + CALL + "call()\n")
    assert "200" in _lines_printed_by(code, sandbox, token_file)
    assert_nothing_lost(sandbox, token_file)


# No thread can be started.


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """No job gets a thread, as where a container's limit on processes is reached."""
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name.startswith("adh-auth"):
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)


@pytest.mark.usefixtures("no_threads")
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_without_a_thread(
    sandbox: Sandbox, arguments: dict[str, Any], token_file: Path, client: EveryClient
) -> None:
    """The refresh is done by its caller, or by a thread that the event loop has already."""
    sandbox.expire()
    assert client.get(client.auth(**arguments), sandbox.url + "/api/auth/me").status_code == 200
    assert_nothing_lost(sandbox, token_file)


@pytest.mark.usefixtures("no_threads")
def test_without_a_thread_no_loop_is_blocked(
    sandbox: Sandbox, arguments: dict[str, Any], family: Family, anyio_backend: str
) -> None:
    """Other tasks run while the refresh is in flight."""

    async def main() -> int:
        async with family.module.AsyncClient(auth=family.auth(**arguments), timeout=PATIENCE) as client:
            answers: list[int] = []

            async def ask() -> None:
                answers.append((await client.get(sandbox.url + "/api/auth/me")).status_code)

            async with anyio.create_task_group() as tasks:
                with sandbox.hold_next() as hold:
                    tasks.start_soon(ask)
                    with anyio.fail_after(PATIENCE):
                        while sandbox.counts.refresh_calls + sandbox.counts.unauthorized < 1:
                            await anyio.sleep(0.01)
                        await anyio.to_thread.run_sync(hold.wait, PATIENCE)
                    hold.release()  # from the loop, which could not run if it were blocked
            return answers[0]

    sandbox.expire()
    assert anyio.run(main, backend=anyio_backend) == 200


@pytest.mark.usefixtures("no_threads")
def test_without_a_thread_others_are_not_kept_waiting(sandbox: Sandbox, token_file: Path) -> None:
    """The caller that refreshes holds no lock that other requests of the same object need."""
    auth = auth_for(sandbox)
    sandbox.expire()
    found: list[int] = []
    with sandbox.hold_next() as hold:
        worker = threading.Thread(target=lambda: found.append(get(sandbox, auth)))
        worker.start()
        hold.wait(PATIENCE)
        TokenFile(token_file).load()
        fresh = sandbox.sign_in()
        token_file.write_text(json.dumps(fresh))
        assert get(sandbox, auth) == 200
        assert worker.is_alive()
        hold.release()
        worker.join(PATIENCE)
    assert found == [200]


@pytest.mark.usefixtures("no_threads")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_without_a_thread_an_unsaved_pair_is_written_later(
    sandbox: Sandbox, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller gets its answer while the disk fails, and a later request writes the pair."""
    fill = reservation.ReservedFile.fill
    bad = [True]

    def failing(self: reservation.ReservedFile, data: bytes) -> None:
        if bad[0]:
            raise OSError(errno.EIO, "Input/output error")
        fill(self, data)

    monkeypatch.setattr(reservation.ReservedFile, "fill", failing)
    auth = auth_for(sandbox)
    sandbox.expire()
    assert get(sandbox, auth) == 200
    assert auth._core._job is not None
    assert auth._core._job.paused
    bad[0] = False

    def is_written() -> bool:
        assert get(sandbox, auth) == 200
        return TokenFile(token_file).load() == auth.tokens

    wait_until(is_written)
    assert_nothing_lost(sandbox, token_file)
    assert sandbox.counts.rotations == 1


@pytest.mark.usefixtures("no_threads")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_without_a_thread_an_unsaved_pair_is_the_one_in_force(
    sandbox: Sandbox, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`refresh()` returns it meanwhile, and raises no error about this very process."""

    def failing(self: reservation.ReservedFile, data: bytes) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as bad:
        bad.setattr(reservation.ReservedFile, "fill", failing)
        auth = auth_for(sandbox)
        sandbox.expire()
        assert get(sandbox, auth) == 200
        pair = auth.tokens
        assert auth.refresh() == pair
    wait_until(lambda: get(sandbox, auth) == 200 and TokenFile(token_file).load() == pair)
    assert sandbox.counts.rotations == 1


def test_without_a_thread_an_unsaved_pair_is_written_at_the_end(sandbox: Sandbox, token_file: Path) -> None:
    """The pair is written when the program ends."""
    code = f"""
from adh_auth.store import reservation
start, fill, bad = threading.Thread.start, reservation.ReservedFile.fill, [True]
def refuse(self):
    if self.name.startswith("adh-auth"): raise RuntimeError("can't start new thread")
    start(self)
threading.Thread.start = refuse
def failing(self, data):
    if bad[0]: raise OSError({errno.EIO}, "Input/output error")
    fill(self, data)
reservation.ReservedFile.fill = failing
call()
bad[0] = False
"""
    sandbox.expire()
    assert _lines_printed_by(CALLS["requests"] + CALL + code, sandbox, token_file) == ["200"]
    assert_nothing_lost(sandbox, token_file)
    assert sandbox.counts.rotations == 1


# Clocks.


def test_a_frozen_clock_does_not_stop_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that was slept counts, whatever the clock says."""
    frozen = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: frozen)
    clock = JobClock()
    clock.sleep(0.01)
    clock.sleep(0.02)
    assert clock.monotonic() == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("step", "counted"),
    [
        (-5.0, 0.0),
        (5.0, 5.0),
        (LONGEST_STEP - 0.001, LONGEST_STEP - 0.001),
        (LONGEST_STEP, 0.0),
        (1.7e9, 0.0),
    ],
)
def test_a_moved_clock_does_not_end_a_job(
    monkeypatch: pytest.MonkeyPatch, step: float, counted: float
) -> None:
    """A step longer than any call of ours takes counts as a moved clock."""
    readings = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: readings[-1])
    clock = JobClock()
    readings.append(1000.0 + step)
    assert clock.monotonic() == pytest.approx(counted)
    readings.append(1000.0 + step + 1)
    assert clock.monotonic() == pytest.approx(counted + 1)


TOOLS = {
    "freezegun": "from freezegun import freeze_time\nmoved = freeze_time(later)\n",
    "freezegun, ticking": "from freezegun import freeze_time\nmoved = freeze_time(later, tick=True)\n",
    "time-machine": "import time_machine\nmoved = time_machine.travel(later, tick=False)\n",
    "time-machine, ticking": "import time_machine\nmoved = time_machine.travel(later, tick=True)\n",
}
LATER = (
    "import datetime\nlater = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=2)\n"
)


#: Each tool in requests, before and after the import of the library; in the others one of each.
MOVES = [
    *(("requests", tool, late) for tool in TOOLS for late in (False, True)),
    *(
        (client, tool, late)
        for client in ("httpx", "httpx2")
        for tool, late in (("freezegun", False), ("time-machine, ticking", True))
    ),
]


@pytest.mark.parametrize(
    ("client", "tool", "late"), MOVES, ids=lambda value: {False: "before", True: "after"}.get(value, value)
)
def test_a_test_that_moves_the_clock(
    sandbox: Sandbox, token_file: Path, client: str, tool: str, late: bool
) -> None:
    """Past the expiry, ten requests cost one refresh. Back in real time the program works on, and ends."""
    if tool.startswith("time-machine"):
        pytest.importorskip("time_machine", reason="needs time-machine: pip install time-machine")
    code = """
auth = Auth(refresh_ahead=60)
auth.refresh()
with moved:
    for _ in range(10): call(auth)
call(auth)
auth.refresh()
call(auth)
"""
    parts = [CALLS[client], CALL, LATER + TOOLS[tool]]
    printed = _lines_printed_by("".join(parts if late else reversed(parts)) + code, sandbox, token_file)
    assert printed == ["200"] * 12
    assert sandbox.counts.refresh_calls == 3
    assert_nothing_lost(sandbox, token_file)


@each_client
def test_a_clock_that_ticks_with_each_question(sandbox: Sandbox, token_file: Path, client: str) -> None:
    """freezegun's `auto_tick_seconds` lets every bound pass at once: a 401 is read all the same."""
    code = (
        "from freezegun import freeze_time\n"
        "with freeze_time(later, auto_tick_seconds=15):\n    for _ in range(3): call()\n"
    )
    sandbox.expire()
    printed = _lines_printed_by(
        client + CALL.replace("timeout=60", "timeout=None") + LATER.replace("hours=2", "seconds=1") + code,
        sandbox,
        token_file,
    )
    assert printed == ["200"] * 3
    assert_nothing_lost(sandbox, token_file)


def test_an_outage_under_a_frozen_clock(sandbox: Sandbox, token_file: Path) -> None:
    """A job that waits for a frozen clock would hold the lock for ever: what was slept counts."""
    code = (
        TOOLS["freezegun"]
        + "from adh_auth.rotation import attempt\nattempt.PAUSES = (0.01, 0.02)\nwith moved: call()\n"
    )
    sandbox.expire()
    sandbox.fail_next(None, status=503)
    (printed,) = _lines_printed_by(CALLS["requests"] + CALL + LATER + code, sandbox, token_file)
    assert printed.startswith("RefreshFailed")
    assert sandbox.counts.refresh_calls == 3


def test_a_lock_that_is_held_under_a_frozen_clock(sandbox: Sandbox, token_file: Path) -> None:
    """The wait for the lock counts what was slept, too; so does that of a save."""
    code = TOOLS["freezegun"] + "with moved: call(Auth(lock_timeout=0.3))\n"
    sandbox.expire()
    with TokenFile(token_file).locked(PATIENCE):
        (printed,) = _lines_printed_by(CALLS["requests"] + CALL + LATER + code, sandbox, token_file)
    assert printed.startswith("LockTimeout")


# Interrupts and garbage.


@pytest.mark.parametrize("what", ["wait", "start"])
def test_an_interrupt_in_the_first_microseconds(what: str) -> None:
    """A signal handler that raises while a job is started, or waited for, leaves no thread that hangs."""
    if what == "start" and sys.version_info[:2] == (3, 14):
        # There an interrupt between a `with` and its body leaves threading's own lock taken.
        pytest.skip("needs a Python whose own threads survive an interrupted start: run it on 3.13 or 3.15")
    code = f"""
import random, signal, threading, time
from adh_auth.rotation.job import Job
from adh_auth.common.threads import make_start_interruptible
class Strike(Exception): pass
def strike(*_): raise Strike
signal.signal(signal.SIGALRM, strike)
strikes = stuck = 0
end = time.monotonic() + 2
while time.monotonic() < end:
    job = Job()
    thread = threading.Thread(target=job.settle, args=(None,), daemon=True)
    make_start_interruptible(thread)
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(5e-6, 1e-4))
        if {what!r} == "wait": job.wait(0.0002)
        else: thread.start()
        while True: pass
    except Strike: strikes += 1
    except Exception: pass
    finally:
        try: signal.setitimer(signal.ITIMER_REAL, 0)
        except Strike: strikes += 1
    if {what!r} == "wait": thread.start()
    tries = 0
    # It may have been interrupted before there was a thread.
    while not thread._started.is_set() and tries < 20: tries += 1; time.sleep(0.001)
    thread.join(5) if thread._started.is_set() else None
    stuck += thread.is_alive()
    if stuck: break
print(strikes > 100, stuck)
"""
    with child(code) as process:
        printed, errors = process.communicate(timeout=PATIENCE)
    assert printed == "True 0\n", errors


def test_a_wait_on_its_edge() -> None:
    """A settled job is not waited for; the error of a wait for another says that the job goes on."""
    job = Job()
    with pytest.raises(RefreshFailed, match="goes on"):
        job.wait(0)
    assert not job._waiters
    job.settle(None)
    job.wait(0)


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_an_object_is_freed_without_the_collector(
    sandbox: Sandbox, arguments: dict[str, Any], client: EveryClient
) -> None:
    """An auth object for each request leaves no reference cycle, not even after a rotation."""
    gc.collect()
    gc.disable()
    try:
        auth = client.auth(**arguments)
        alive = weakref.ref(auth)
        sandbox.expire()
        assert client.get(auth, sandbox.url + "/api/auth/me").status_code == 200
        assert auth._core._job is not None
        auth._core._job.join()
        del auth
        if client.name.endswith("task"):
            gc.collect(0)  # the event loop's own reference cycles held the task
        assert alive() is None
    finally:
        gc.enable()


#: Whatever the library syncs or writes, another thread prints in that moment.
PRINTING = """
import os
from adh_auth import AdhAuth
auth = AdhAuth()
for number in (0, 1, 2): os.close(number)
def noisy(work):
    def wrapper(*arguments):
        try: return work(*arguments)
        finally:
            for number in (1, 2):
                try: os_write(number, b"still at work\\n")
                except OSError: pass
    return wrapper
os_write = os.write
os.fsync, os.write = noisy(os.fsync), noisy(os.write)
try: auth.refresh()
except BaseException: os._exit(1)
os._exit(0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs to close standard streams under Python")
def test_what_a_program_prints_lands_in_no_file_of_ours(sandbox: Sandbox, token_file: Path) -> None:
    """A program has closed its standard streams, and prints while a refresh writes its files."""
    with child(PRINTING, sandbox.environment(token_file)) as program:
        assert program.wait(PATIENCE) == 0
    for path in (token_file, Path(f"{token_file}.record")):
        assert b"still at work" not in path.read_bytes()
    assert_nothing_lost(sandbox, token_file)
