"""Concurrent changes: of the token file while a refresh is in flight, on the lock, on the process itself
(fork, pools), on one object.
"""

from __future__ import annotations

import copy
import fcntl
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adh_auth import LockTimeout, TokenFile, TokenFileError, Tokens
from adh_auth.store import reservation
from adh_auth.testing import Hold, Sandbox

from ..support.faults import ONE_CALL, auth_for, get, wait_until
from ..support.processes import PATIENCE, ROOT, assert_nothing_lost, child


@contextmanager
def refresh_in_flight(sandbox: Sandbox) -> Iterator[tuple[Hold, Future[int]]]:
    """A call whose refresh the server has committed and not answered yet."""
    sandbox.expire()
    with ThreadPoolExecutor(1) as threads, sandbox.hold_next() as hold:
        answer = threads.submit(get, sandbox, auth_for(sandbox))
        hold.wait(PATIENCE)
        yield hold, answer


# The file, while a refresh is in flight.


def test_file_replaced_in_flight(sandbox: Sandbox, token_file: Path) -> None:
    """A sign-in that lands during a refresh wins: the pair of the old session is not written over it, and the
    call goes on with it.
    """
    with refresh_in_flight(sandbox) as (hold, answer):
        sandbox.write_token_file(token_file)
        newer = token_file.read_bytes()
        hold.release()
        assert answer.result(PATIENCE) == 200
    assert token_file.read_bytes() == newer
    assert not Path(f"{token_file}.new").exists()
    assert_nothing_lost(sandbox, token_file)


def test_file_saved_in_flight(sandbox: Sandbox, token_file: Path) -> None:
    """A sign-in through `TokenFile.save` waits for the refresh in flight, and is what stands in the file in
    the end.
    """
    with refresh_in_flight(sandbox) as (hold, answer), ThreadPoolExecutor(1) as threads:
        newer = Tokens.from_response(sandbox.sign_in())
        saved = threads.submit(TokenFile(token_file).save, newer)
        hold.release()
        assert answer.result(PATIENCE) == 200
        saved.result(PATIENCE)
    assert TokenFile(token_file).load() == newer
    assert_nothing_lost(sandbox, token_file)


def test_file_deleted_in_flight(sandbox: Sandbox, token_file: Path) -> None:
    """A file that is removed during a refresh stays removed: no session comes back to life, and the caller is
    told.
    """
    with refresh_in_flight(sandbox) as (hold, answer):
        token_file.unlink()
        hold.release()
        with pytest.raises(TokenFileError, match="is missing"):
            answer.result(PATIENCE)
    assert not token_file.exists()
    assert not Path(f"{token_file}.new").exists()


def test_sign_out_in_flight(sandbox: Sandbox, token_file: Path) -> None:
    """A sign-out through `TokenFile.delete` waits for the refresh in flight, and then nothing of the session
    is left on disk.
    """
    with refresh_in_flight(sandbox) as (hold, answer), ThreadPoolExecutor(1) as threads:
        deleted = threads.submit(TokenFile(token_file).delete)
        hold.release()
        answer.exception(PATIENCE)
        deleted.result(PATIENCE)
    assert [path.name for path in token_file.parent.glob("tokens.json*")] == ["tokens.json.lock"]


def test_revoked_in_flight(sandbox: Sandbox, token_file: Path) -> None:
    """A revocation waits for the refresh in flight and revokes the token that came of it, not the one that it
    replaced.
    """
    with refresh_in_flight(sandbox) as (hold, answer), ThreadPoolExecutor(1) as threads:
        revoked = threads.submit(auth_for(sandbox).revoke)
        hold.release()
        answer.exception(PATIENCE)
        revoked.result(PATIENCE)
    assert not token_file.exists()
    assert (sandbox.counts.revocations, sandbox.counts.rotations, sandbox.counts.reused) == (1, 1, 0)


def test_file_destroyed_in_flight(sandbox: Sandbox, token_file: Path) -> None:
    """A file that another program has filled with something else during a refresh is not overwritten."""
    with refresh_in_flight(sandbox) as (hold, answer):
        token_file.write_bytes(b"my notes")
        hold.release()
        with pytest.raises(TokenFileError, match="not JSON"):
            answer.result(PATIENCE)
    assert token_file.read_bytes() == b"my notes"


# The lock.


@pytest.fixture
def lock_held(token_file: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the lock."""
    code = (
        "import sys\nfrom filelock import FileLock\n"
        f"with FileLock({str(token_file) + '.lock'!r}): print(flush=True); sys.stdin.readline()"
    )
    with child(code) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process


def test_lock_held_too_long(sandbox: Sandbox, token_file: Path, lock_held: subprocess.Popen[str]) -> None:
    """A lock that is not given back in `lock_timeout` seconds is an error that names the lock file; nobody is
    called.
    """
    sandbox.expire()
    with pytest.raises(LockTimeout, match=r"tokens\.json\.lock") as caught:
        get(sandbox, auth_for(sandbox, lock_timeout=0.5))
    assert caught.value.lock_file == f"{token_file}.lock"
    assert caught.value.waited == 0.5
    assert sandbox.counts.refresh_calls == 0
    lock_held.communicate("\n", timeout=PATIENCE)
    assert_nothing_lost(sandbox, token_file)


@pytest.mark.parametrize("how", ["removed", "replaced", "moved away"])
@pytest.mark.parametrize("stage", ["before", "after"])
def test_lock_file_removed_in_flight(
    sandbox: Sandbox, token_file: Path, monkeypatch: pytest.MonkeyPatch, stage: str, how: str
) -> None:
    """A cleaner of old files takes it while its holder waits for the server: a second process still waits,
    and the token is sent once.
    """
    lock, refused = Path(f"{token_file}.lock"), threading.Event()

    def is_held(path: str, real: Callable[[str], bool] = reservation.is_held) -> bool:
        held = real(path)
        if held:
            refused.set()
        return held

    monkeypatch.setattr(reservation, "is_held", is_held)
    sandbox.expire()
    with (
        sandbox.hold_next(at=stage) as hold,
        child(ONE_CALL + "call()", sandbox.environment(token_file)) as holder,
    ):
        hold.wait(PATIENCE)
        if how == "moved away":
            lock.rename(f"{lock}~")
        else:
            lock.unlink()
        if how == "replaced":
            lock.touch(0o600)
        with (
            child(ONE_CALL + "call()", sandbox.environment(token_file)) as second,
            ThreadPoolExecutor(1) as threads,
        ):
            third = threads.submit(get, sandbox, auth_for(sandbox))
            wait_until(lambda: sandbox.counts.unauthorized == 3)
            assert refused.wait(PATIENCE)
            hold.release()
            assert [process.communicate(timeout=PATIENCE)[0].strip() for process in (holder, second)] == [
                "200",
                "200",
            ]
            assert third.result(PATIENCE) == 200
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


def test_lock_file_removed_and_its_holder_killed(sandbox: Sandbox, token_file: Path) -> None:
    """What the second process waits for is freed by a kill like any lock."""
    sandbox.expire()
    sandbox.fail_next(drop="before")  # or the killed process's token would be spent
    with sandbox.hold_next(at="before") as hold, ThreadPoolExecutor(1) as threads:
        with child(ONE_CALL + "call()", sandbox.environment(token_file)) as holder:
            hold.wait(PATIENCE)
            Path(f"{token_file}.lock").unlink()
            second = threads.submit(get, sandbox, auth_for(sandbox))
            wait_until(lambda: sandbox.counts.unauthorized == 2)
            holder.kill()
        assert second.result(PATIENCE) == 200
    assert_nothing_lost(sandbox, token_file)


@pytest.mark.parametrize("planted", [0o600, 0o666])
def test_a_planted_locked_file_stops_no_refresh(sandbox: Sandbox, token_file: Path, planted: int) -> None:
    """Another user's file there is no rotation under way, whatever locks he has on it."""
    if os.geteuid() != 0:
        pytest.skip("needs a file of another user's: run as root")
    reserved = Path(f"{token_file}.new")
    reserved.touch(planted)
    with reserved.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        os.chown(reserved, 12345, -1)
        sandbox.expire()
        assert get(sandbox, auth_for(sandbox, lock_timeout=5.0)) == 200
    assert_nothing_lost(sandbox, token_file)


def test_one_last_look(
    sandbox: Sandbox, token_file: Path, lock_held: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a waiter gives up it reads the file, even where the file's times show no change."""
    monkeypatch.setattr(TokenFile, "state", lambda self: "as before")
    newer = Tokens.from_response(sandbox.sign_in())
    auth = auth_for(sandbox, lock_timeout=0.5)
    job = auth._core.refresh_now()
    _replace(token_file, newer)
    job.wait(PATIENCE)
    assert job.outcome == newer
    assert sandbox.counts.refresh_calls == 0


def test_file_that_changes_while_the_lock_is_held(
    sandbox: Sandbox, token_file: Path, lock_held: subprocess.Popen[str]
) -> None:
    """A waiter goes on as soon as there is a newer pair; it does not wait for the lock as well."""
    sandbox.expire()
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(get, sandbox, auth_for(sandbox))
        wait_until(lambda: sandbox.counts.unauthorized == 1)
        sandbox.write_token_file(token_file)
        assert answer.result(PATIENCE) == 200
    assert lock_held.poll() is None
    assert sandbox.counts.refresh_calls == 0


def _replace(path: Path, tokens: Tokens) -> None:
    aside = path.with_name("aside")
    TokenFile(aside).save(tokens)
    os.replace(aside, path)


# Fork.

#: A process that forks while its thread waits for a refresh; the child calls with the object that it
#: inherited.
FORKING = (
    ONE_CALL
    + """
import sys, threading
auth = AdhAuth()
def get(): return requests.get(os.environ["ADH_BASE_URL"] + "/api/auth/me", auth=auth, timeout=60).status_code
threading.Thread(target=get).start()
sys.stdin.readline()
if (pid := os.fork()) == 0:
    print("child", os.getpid(), flush=True)
    try: print(get(), flush=True)
    finally: os._exit(0)
os.waitpid(pid, 0)
"""
)


def test_fork_in_flight(sandbox: Sandbox, token_file: Path) -> None:
    """A child that is forked during a refresh works: it waits for its parent's pair, not for a thread that it
    does not have.
    """
    sandbox.expire()
    with sandbox.hold_next() as hold, child(FORKING, sandbox.environment(token_file)) as parent:
        _fork(parent, hold)
        hold.release()
        assert parent.communicate(timeout=PATIENCE)[0].split() == ["200"]
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


def test_parent_killed_after_the_fork(sandbox: Sandbox, token_file: Path) -> None:
    """A forked child keeps no hold on the lock of its parent: when that one is killed, the child goes on at
    once.
    """
    sandbox.expire()
    sandbox.fail_next(drop="before")  # or the killed parent's token would be spent, which no client can help
    with sandbox.hold_next(at="before") as hold, child(FORKING, sandbox.environment(token_file)) as parent:
        _fork(parent, hold)
        parent.send_signal(signal.SIGKILL)
        started = time.monotonic()
        assert parent.communicate(timeout=PATIENCE)[0].split() == ["200"]
        assert time.monotonic() - started < 10
    assert_nothing_lost(sandbox, token_file)


def _fork(parent: subprocess.Popen[str], hold: Hold) -> None:
    hold.wait(PATIENCE)
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.write("\n")
    parent.stdin.flush()
    assert parent.stdout.readline().startswith("child")


POOL = """
import multiprocessing, os, requests, sys
from adh_auth import AdhAuth
def get(auth):
    return requests.get(os.environ["ADH_BASE_URL"] + "/api/auth/me", auth=auth, timeout=60).status_code
def inherited(_): return get(AUTH)
AUTH = AdhAuth()
if __name__ == "__main__":
    print(get(AUTH), flush=True)
    sys.stdin.readline()
    with multiprocessing.get_context(sys.argv[1]).Pool(4) as pool:
        print(*pool.map(get, [AUTH] * 8, chunksize=1), *pool.map(inherited, range(8), chunksize=1))
        pool.close()
        pool.join()
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pool(sandbox: Sandbox, token_file: Path, tmp_path: Path, method: str) -> None:
    """A `multiprocessing` pool shares one session, whether its auth object was inherited, pickled or made
    anew.
    """
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **sandbox.environment(token_file)}
    process = subprocess.Popen(
        [sys.executable, str(script), method],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "200"
        sandbox.expire()
        assert process.communicate("\n", timeout=PATIENCE)[0].split() == ["200"] * 16
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


# One object used by many threads.


def test_threads_by_the_dozen(sandbox: Sandbox, token_file: Path) -> None:
    """48 threads on one object meet one expiry with one refresh, three times over."""
    auth = auth_for(sandbox)
    for turn in (1, 2, 3):
        sandbox.expire()
        assert _at_once(lambda: get(sandbox, auth), 48) == [200] * 48
        assert sandbox.counts.refresh_calls == turn
    assert_nothing_lost(sandbox, token_file)


def test_objects_by_the_dozen(sandbox: Sandbox, token_file: Path) -> None:
    """As many objects on one file in one process share the refresh like processes do."""
    auths = iter([auth_for(sandbox) for _ in range(24)])
    sandbox.expire()
    assert _at_once(lambda: get(sandbox, next(auths)), 24) == [200] * 24
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda auth: pickle.loads(pickle.dumps(auth))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copy_made_in_flight(sandbox: Sandbox, token_file: Path, copied: Callable[[Any], Any]) -> None:
    """A copy made while its original waits for a refresh works, and shares that refresh."""
    auth = auth_for(sandbox)
    sandbox.expire()
    with sandbox.hold_next() as hold, ThreadPoolExecutor(2) as threads:
        first = threads.submit(get, sandbox, auth)
        hold.wait(PATIENCE)
        second = threads.submit(get, sandbox, copied(auth))
        wait_until(lambda: sandbox.counts.unauthorized == 2)
        hold.release()
        assert [first.result(PATIENCE), second.result(PATIENCE)] == [200, 200]
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


def _at_once(call: Callable[[], int], count: int) -> list[int]:
    start = threading.Barrier(count)

    def one(_: int) -> int:
        start.wait(PATIENCE)
        return call()

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(one, range(count)))


# A clock that stands still, as tests have it (freezegun and time-machine patch both of these, before our
# import or after it).

FROZEN = "import time\ntime.monotonic = lambda: 5.0\ntime.time = lambda: 1_700_000_000.0\n" + ONE_CALL


@pytest.mark.parametrize(
    "call",
    [
        "AdhAuth(lock_timeout=0.3).refresh()",
        "AdhAuth(lock_timeout=0.3).revoke()",
        "token_file.TokenFile().save(pair)",
    ],
)
def test_a_wait_for_the_lock_ends_on_a_clock_that_stands_still(
    sandbox: Sandbox, token_file: Path, lock_held: subprocess.Popen[str], call: str
) -> None:
    """What was slept counts."""
    code = f"""{FROZEN}
from adh_auth import LockTimeout
from adh_auth.store import token_file
token_file.SAVE_TIMEOUT = 0.3
pair = token_file.TokenFile().load()
try: {call}
except LockTimeout as error: print(error.waited)
"""
    with child(code, sandbox.environment(token_file)) as process:
        assert process.communicate(timeout=PATIENCE)[0] == "0.3\n"
    assert sandbox.counts.refresh_calls == 0


def test_a_lock_is_taken_on_a_clock_that_stands_still(
    sandbox: Sandbox, token_file: Path, lock_held: subprocess.Popen[str]
) -> None:
    """A waiter tries again and again, and not once."""
    sandbox.expire()
    with child(FROZEN + "call()", sandbox.environment(token_file)) as process:
        wait_until(lambda: sandbox.counts.unauthorized == 1)
        lock_held.communicate("\n", timeout=PATIENCE)
        assert process.communicate(timeout=PATIENCE)[0] == "200\n"


def test_an_outage_is_ridden_out_on_a_clock_that_stands_still(sandbox: Sandbox, token_file: Path) -> None:
    """The pause between two tries ends."""
    sandbox.expire()
    sandbox.fail_next(status=503)
    with child(FROZEN + "call()", sandbox.environment(token_file)) as process:
        assert process.communicate(timeout=PATIENCE)[0] == "200\n"
    assert sandbox.counts.refresh_calls == 2


def test_a_pair_is_written_on_a_clock_that_stands_still(sandbox: Sandbox, token_file: Path) -> None:
    """A job that holds the only copy of a pair does not spin while it holds the lock."""
    sandbox.expire()
    code = f"""{FROZEN}
from adh_auth.store import reservation
fill, refusals = reservation.ReservedFile.fill, [1, 2, 3]
def failing(*arguments):
    if refusals and refusals.pop(): raise OSError(5, "EIO")
    fill(*arguments)
reservation.ReservedFile.fill = failing
auth = AdhAuth()
auth.refresh()
auth._core._job.join()
"""
    with child(code, sandbox.environment(token_file)) as process:
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)
