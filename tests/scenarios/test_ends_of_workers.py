"""A worker makes one request, a refresh begins in the background, and the worker is ended meanwhile, in each of
the ways in which frameworks do it. The pair that the server gave is written all the same.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adh_auth import TokenFile
from adh_auth.testing import Sandbox

from ..support.faults import ONE_CALL, near_its_end, wait_until
from ..support.processes import PATIENCE, ROOT, assert_nothing_lost, child, reaped

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs descriptors that a child inherits")

#: A worker's job, and a wait until the test says that the server has committed.
JOB = """
import multiprocessing, os, signal, sys, time, requests
from adh_auth import AdhAuth
def job(*_):
    return requests.get(os.environ["ADH_BASE_URL"] + "/api/auth/me", auth=AdhAuth(refresh_ahead=60), timeout=60).status_code
def go_on():
    return sys.stdin.readline()
fork = multiprocessing.get_context("fork")
"""

#: How a worker ends while its refresh is under way.
ENDS = {
    "the end of a Pool's block": """
with fork.Pool(1) as pool:
    assert pool.apply(job) == 200
    go_on()
""",
    "os._exit": "assert job() == 200\ngo_on()\nos._exit(0)",
    "os._exit of a forked task": """
if (pid := os.fork()) == 0:
    status = job()
    go_on()
    os._exit(0 if status == 200 else 1)
assert os.waitpid(pid, 0)[1] == 0
""",
    "SIGTERM": "assert job() == 200\ngo_on()\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(60)",
    "SIGKILL": "assert job() == 200\ngo_on()\nos.kill(os.getpid(), signal.SIGKILL)",
    "a killed process group": "assert job() == 200\ngo_on()\nos.killpg(0, signal.SIGKILL)",
    "a terminated process group": """
signal.signal(signal.SIGTERM, signal.SIG_DFL)
assert job() == 200
go_on()
os.killpg(0, signal.SIGTERM)
time.sleep(60)
""",
    "a fork that daemonizes": """
assert job() == 200
go_on()
if os.fork(): os._exit(0)
os.setsid()
os.closerange(0, 256)
time.sleep(0.2)
os._exit(0)
""",
    "a daemonic child of multiprocessing": """
def run(pipe):
    pipe.send(job())
    time.sleep(60)
mine, its = fork.Pipe()
fork.Process(target=run, args=(its,), daemon=True).start()
assert mine.recv() == 200
go_on()
""",
    "SIGCHLD ignored": """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
assert job() == 200
go_on()
os._exit(0)
""",
    "every descriptor closed, then os._exit": "assert job() == 200\ngo_on()\nos.closerange(0, 256)\nos._exit(0)",
    "the alarm ignored and blocked": """
signal.signal(signal.SIGALRM, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
assert job() == 200
go_on()
os._exit(0)
""",
    "a death signal for children": """
import ctypes
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
assert job() == 200
go_on()
os._exit(0)
""",
    "a folder that is gone, and an umask": """
folder = os.environ["GONE"]
os.mkdir(folder)
os.chdir(folder)
os.rmdir(folder)
os.umask(0o777)
assert job() == 200
go_on()
os._exit(0)
""",
}


@pytest.mark.parametrize("end", [*ENDS])
def test_a_worker_that_is_ended_in_mid_refresh(
    end: str, sandbox: Sandbox, token_file: Path, tmp_path: Path
) -> None:
    """Whoever ends it, and however: the helper writes the pair, and the token is sent once."""
    near_its_end(token_file)
    # PYTHONSAFEPATH: without it, Python 3.13.0 fails in a folder that is gone, at any name that a module lacks.
    environment = {**sandbox.environment(token_file), "GONE": str(tmp_path / "gone"), "PYTHONSAFEPATH": "1"}
    with sandbox.hold_next() as hold, child(JOB + ENDS[end], environment, start_new_session=True) as worker:
        _end(worker, hold)
    _assert_written(sandbox, token_file)


#: A job that gives up on a refresh in the foreground, and the end of its pool.
GIVING_UP = (
    JOB
    + """
def give_up(_):
    try:
        requests.get(os.environ["ADH_BASE_URL"] + "/api/auth/me", auth=AdhAuth(), timeout=0.5)
    except Exception as error:
        return type(error).__name__
with fork.Pool(1) as pool:
    print(pool.map(give_up, [0]), flush=True)
"""
)


def test_a_pool_whose_job_has_given_up_on_a_refresh(sandbox: Sandbox, token_file: Path) -> None:
    """The job has returned after its timeout, the block of the pool ends, and the helper writes the pair."""
    sandbox.expire()
    with sandbox.hold_next() as hold, child(GIVING_UP, sandbox.environment(token_file)) as program:
        out, error = program.communicate(timeout=PATIENCE)
        assert out == "['RefreshFailed']\n", error
        hold.release()
    _assert_written(sandbox, token_file)


def _end(worker: subprocess.Popen[str], hold: Any) -> None:
    """Let the worker end while the server holds the reply, and let the reply go afterwards."""
    hold.wait(PATIENCE)
    assert worker.stdin is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    worker.wait(PATIENCE)
    hold.release()


def _assert_written(sandbox: Sandbox, token_file: Path) -> None:
    wait_until(lambda: TokenFile(token_file).record().state == "done")
    assert sandbox.counts.rotations == 1
    assert sandbox.counts.refresh_calls == 1
    assert token_file.stat().st_mode & 0o777 == 0o600
    assert_nothing_lost(sandbox, token_file)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_program_without_standard_streams(
    closed: tuple[int, ...], sandbox: Sandbox, token_file: Path
) -> None:
    """The lock may have the number of a stream that is closed; the helper's streams are elsewhere."""
    near_its_end(token_file)
    code = JOB + f"[os.close(fd) for fd in {closed}]\njob()\ntime.sleep(60)"
    with sandbox.hold_next() as hold, child(code, sandbox.environment(token_file)) as worker:
        hold.wait(PATIENCE)
        worker.kill()
        worker.wait(PATIENCE)
        hold.release()
    _assert_written(sandbox, token_file)


def test_a_program_that_closes_every_descriptor(sandbox: Sandbox, token_file: Path) -> None:
    """The pipe to the helper is gone, and the program lives on: it waits for the lock, and sends nothing."""
    sandbox.expire()
    code = (
        ONE_CALL
        + """
import threading
auth = AdhAuth(detached=True)
def refresh(): said.append(auth.refresh().expires_at is not None)
said = []
thread = threading.Thread(target=refresh); thread.start()
os.read(0, 1)
os.closerange(3, 256)
os.write(1, b"closed\\n")
thread.join()
print(said)
"""
    )
    with sandbox.hold_next() as hold, child(code, sandbox.environment(token_file)) as program:
        hold.wait(PATIENCE)
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write("\n")
        program.stdin.flush()
        assert program.stdout.readline() == "closed\n"
        hold.release()
        out, error = program.communicate(timeout=PATIENCE)
        assert out == "[True]\n", error
    _assert_written(sandbox, token_file)


def test_sys_path_by_hand(sandbox: Sandbox, token_file: Path, tmp_path: Path) -> None:
    """A package that only the program's own `sys.path` leads to is found by the helper, too."""
    (tmp_path / "plug:ins").mkdir()  # no PYTHONPATH can name this folder
    (tmp_path / "plug:ins" / "adh_auth").symlink_to(ROOT / "adh_auth")
    code = f"import sys\nsys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}]\nsys.path.insert(0, {str(tmp_path / 'plug:ins')!r})\n"
    _in_a_process_of_its_own([sys.executable, "-I", "-c", code + JOB + ENDS["SIGKILL"]], sandbox, token_file)


def test_a_zipapp(sandbox: Sandbox, token_file: Path, tmp_path: Path) -> None:
    """A program in one file, with this library inside of it."""
    app = tmp_path / "app.pyz"
    with zipfile.ZipFile(app, "w") as archive:
        for path in (ROOT / "adh_auth").rglob("*.py"):
            archive.write(path, path.relative_to(ROOT))
        check = "import adh_auth\nassert 'app.pyz' in adh_auth.__file__, adh_auth.__file__\n"
        archive.writestr("__main__.py", check + JOB + ENDS["SIGKILL"])
    _in_a_process_of_its_own([sys.executable, str(app)], sandbox, token_file)


def _in_a_process_of_its_own(command: list[str], sandbox: Sandbox, token_file: Path) -> None:
    near_its_end(token_file)
    with sandbox.hold_next() as hold:
        program = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **sandbox.environment(token_file)},
            cwd="/",
        )
        with reaped(program):
            _end(program, hold)
    _assert_written(sandbox, token_file)


def test_one_helper_for_ten_processes(
    sandbox: Sandbox, token_file: Path, tmp_path: Path, counted_starts: Callable[[], int]
) -> None:
    """Ten processes find at the same moment that a refresh is due: one of them starts one helper."""
    near_its_end(token_file)
    code = JOB + "go_on()\nassert job() == 200\nprint('asked', flush=True)\ngo_on()\nos._exit(0)"
    code = f"import sys\nsys.executable = {str(tmp_path / 'python3')!r}\n" + code
    with sandbox.hold_next() as hold:
        workers = [child(code, sandbox.environment(token_file)) for _ in range(10)]
        processes = [worker.__enter__() for worker in workers]
        try:
            _tell(processes)
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "asked\n"
            hold.wait(PATIENCE)
            _tell(processes)
            for process in processes:
                process.wait(PATIENCE)
            hold.release()
        finally:
            for worker in workers:
                worker.__exit__(None, None, None)
    _assert_written(sandbox, token_file)
    assert counted_starts() == 1


def _tell(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


@pytest.fixture
def counted_starts(tmp_path: Path) -> Callable[[], int]:
    """An interpreter that counts how often it is started."""
    starts = tmp_path / "starts"
    starts.touch()
    interpreter = tmp_path / "python3"
    interpreter.write_text(f'#!/bin/sh\necho >> "{starts}"\nexec "{sys.executable}" "$@"\n')
    interpreter.chmod(0o700)
    return lambda: len(starts.read_text().splitlines())


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_helper_goes_on_through_signals(
    signal_number: signal.Signals, sandbox: Sandbox, token_file: Path
) -> None:
    """systemd sends SIGTERM to the whole control group, long before SIGKILL."""
    near_its_end(token_file)
    with sandbox.hold_next() as hold, child(JOB + ENDS["SIGKILL"], sandbox.environment(token_file)) as worker:
        hold.wait(PATIENCE)
        helper = TokenFile(token_file).record().pid
        assert helper > 1, "a signal to 0 would reach this very test run"
        assert helper != os.getpid()
        os.kill(helper, signal_number)
        _end(worker, hold)
    _assert_written(sandbox, token_file)


def test_a_daemonic_child_without_a_helper_begins_none(sandbox: Sandbox, token_file: Path) -> None:
    """Where no helper can be started, a thread would be cut off with its parent: the request that meets the
    expiry refreshes.
    """
    near_its_end(token_file)
    code = (
        JOB
        + """
sys.executable = "/bin/true"
def run(pipe):
    pipe.send(job())
    pipe.send(job())
mine, its = fork.Pipe()
process = fork.Process(target=run, args=(its,), daemon=True)
process.start()
print(mine.recv(), mine.recv())
process.join()
"""
    )
    with child(code, sandbox.environment(token_file)) as program:
        out, error = program.communicate(timeout=PATIENCE)
        assert out == "200 200\n", error
    assert sandbox.counts.refresh_calls == 0


def test_a_fork_that_daemonizes_during_an_exchange_in_a_thread(sandbox: Sandbox, token_file: Path) -> None:
    """The fork waits for the thread's exchange, so that the parent may end right afterwards."""
    sandbox.expire()
    sandbox.refresh_seconds = 0.5
    code = (
        ONE_CALL
        + """
import threading
auth = AdhAuth(detached=False)
def get(): return requests.get(os.environ["ADH_BASE_URL"] + "/api/auth/me", auth=auth, timeout=60).status_code
threading.Thread(target=get).start()
os.read(0, 1)
if os.fork(): os._exit(0)
print(get(), flush=True)
os._exit(0)
"""
    )
    with child(code, sandbox.environment(token_file)) as program:
        wait_until(lambda: TokenFile(token_file).record().state == "sending")
        out, error = program.communicate("\n", timeout=PATIENCE)
        assert out == "200\n", error
    _assert_written(sandbox, token_file)
