"""Others at the same file, and the same object in other hands: sign-outs, sign-ins, forks, pools, threads."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from adh_auth import AdhAuth, LockTimeout, TokenFile, TokenFileError
from adh_auth.testing import Sandbox

from .support import PATIENCE, Family, assert_nothing_lost, child


class InFlight:
    """A refresh in a thread, held by the server after its commit."""

    def __init__(self, sandbox: Sandbox, auth: Any) -> None:
        self.outcome: Any = None
        self._hold = sandbox.hold_next(on="refresh", at="after")
        self._auth = auth
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._hold.wait(PATIENCE)

    def _run(self) -> None:
        try:
            self.outcome = self._auth.refresh()
        except Exception as error:
            self.outcome = error

    def go_on(self) -> Any:
        self._hold.release()
        self._thread.join(PATIENCE)
        return self.outcome


def test_a_sign_in_while_a_refresh_is_in_flight_wins(sandbox: Sandbox, token_file: Path, arguments: dict[str, Any]) -> None:
    """A file that was replaced meanwhile, even careless of the lock, is what everyone goes on with; the old session does not come back."""
    flight = InFlight(sandbox, AdhAuth(**arguments))
    sandbox.write_token_file(token_file)
    content = token_file.read_bytes()
    assert flight.go_on() == TokenFile(token_file).load()
    assert token_file.read_bytes() == content
    assert_nothing_lost(sandbox, token_file)


def test_a_sign_out_while_a_refresh_is_in_flight_wins(sandbox: Sandbox, token_file: Path, arguments: dict[str, Any]) -> None:
    """A file that was removed stays removed."""
    flight = InFlight(sandbox, AdhAuth(**arguments))
    token_file.unlink()
    assert isinstance(flight.go_on(), TokenFileError)
    assert not token_file.exists()
    assert not token_file.with_name("tokens.json.new").exists()


def test_a_revoke_waits_for_the_refresh_in_flight(sandbox: Sandbox, token_file: Path, arguments: dict[str, Any], family: Family) -> None:
    """revoke() revokes the pair that the refresh has got, and then the file is gone for good."""
    flight = InFlight(sandbox, AdhAuth(**arguments))
    revoked = threading.Thread(target=family.auth(**arguments).revoke)
    revoked.start()
    flight.go_on()
    revoked.join(PATIENCE)
    assert not token_file.exists()
    assert sandbox.counts.revocations == 1
    assert sandbox.counts.reused == 0


def test_a_save_waits_for_the_refresh_in_flight(sandbox: Sandbox, token_file: Path, arguments: dict[str, Any]) -> None:
    """TokenFile.save comes after the rotation and is not overwritten by it."""
    from adh_auth import Tokens

    fresh = Tokens.from_response(sandbox.sign_in())
    flight = InFlight(sandbox, AdhAuth(**arguments))
    saving = threading.Thread(target=TokenFile(token_file).save, args=(fresh,))
    saving.start()
    flight.go_on()
    saving.join(PATIENCE)
    assert TokenFile(token_file).load() == fresh
    assert_nothing_lost(sandbox, token_file)


def test_a_lock_that_is_held_too_long(sandbox: Sandbox, token_file: Path, arguments: dict[str, Any]) -> None:
    """LockTimeout names the lock file and the seconds; nothing was sent."""
    lock = TokenFile(token_file).lock()
    assert lock.take()
    try:
        with pytest.raises(LockTimeout, match=r"tokens\.json\.lock") as caught:
            AdhAuth(**arguments, lock_timeout=0.2).refresh()
    finally:
        lock.release()
    assert caught.value.lock_file == str(token_file) + ".lock"
    assert caught.value.waited == 0.2
    assert sandbox.counts.refresh_calls == 0
    assert_nothing_lost(sandbox, token_file)


def test_the_last_look_before_a_lock_timeout(sandbox: Sandbox, token_file: Path, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair that is in the file when the patience ends is adopted, even if its arrival could not be seen."""
    from adh_auth.token_file import TokenFile as File

    monkeypatch.setattr(File, "state", lambda self: "always the same")
    auth = AdhAuth(**arguments, lock_timeout=0.5)
    auth.tokens  # noqa: B018 - read, so that it is in memory
    lock = TokenFile(token_file).lock()
    assert lock.take()
    try:
        job = auth._core.force()
        other = sandbox.sign_in()
        time.sleep(0)
        token_file.write_text(__import__("json").dumps(other))
        job.wait(PATIENCE)
    finally:
        lock.release()
    assert sandbox.counts.refresh_calls == 0


def test_waiting_processes_see_the_new_pair(sandbox: Sandbox, token_file: Path, arguments: dict[str, Any]) -> None:
    """Another process's rotation is adopted by one that waits for the lock, and noticed by one that does not."""
    idle = AdhAuth(**arguments)
    before = idle.tokens
    flight = InFlight(sandbox, AdhAuth(**arguments))
    waiting = AdhAuth(**arguments)
    job = waiting._core.force()
    assert not job.settled
    fresh = flight.go_on()
    job.wait(PATIENCE)
    assert waiting.tokens == idle.tokens == fresh != before
    assert sandbox.counts.refresh_calls == 1


FORK_IN_FLIGHT = """
import os, sys, threading
from adh_auth import AdhAuth
import requests
auth = AdhAuth()
url = sys.argv[1] if len(sys.argv) > 1 else URL
threading.Thread(target=auth.refresh).start()
print("started", flush=True)
sys.stdin.readline()
pid = os.fork()
if pid == 0:
    print("child", flush=True)
    status = requests.get(url, auth=auth, timeout=30).status_code
    print("child got", status, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
print("parent got", requests.get(url, auth=auth, timeout=30).status_code, flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_while_a_rotation_is_in_flight(sandbox: Sandbox, token_file: Path) -> None:
    """The child works, and does not wait for a thread that it does not have."""
    hold = sandbox.hold_next(on="refresh", at="after")
    code = f"URL = {sandbox.url + '/api/auth/me'!r}\n" + FORK_IN_FLIGHT
    with child(code, sandbox.environment(token_file)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        hold.wait(PATIENCE)
        process.stdin.write("fork\n")
        process.stdin.flush()
        assert [process.stdout.readline() for _ in range(2)] == ["started\n", "child\n"]
        # The child's own request needs no rotation: the old access token lives on.
        assert process.stdout.readline() == "child got 200\n"
        hold.release()
        output, errors = process.communicate(timeout=PATIENCE)
        assert output == "parent got 200\n", errors
    assert sandbox.counts.rotations == 1
    assert_nothing_lost(sandbox, token_file)


FORK_AND_ROTATE = """
import os, sys, threading
from adh_auth import AdhAuth
auth = AdhAuth()
thread = threading.Thread(target=auth.refresh)
thread.start()
sys.stdin.readline()
pid = os.fork()
if pid == 0:
    print("child", flush=True)
    auth.refresh()
    print("child refreshed", flush=True)
    os._exit(0)
print("forked", flush=True)
thread.join()
os.waitpid(pid, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_rotates_while_its_parent_does(sandbox: Sandbox, token_file: Path) -> None:
    """The child waits for the parent's lock as any process does, and adopts what the parent got: one refresh in all."""
    hold = sandbox.hold_next(on="refresh", at="after")
    with child(FORK_AND_ROTATE, sandbox.environment(token_file)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        hold.wait(PATIENCE)
        process.stdin.write("fork\n")
        process.stdin.flush()
        assert {process.stdout.readline() for _ in range(2)} == {"child\n", "forked\n"}
        hold.release()
        output, errors = process.communicate(timeout=PATIENCE)
        assert output == "child refreshed\n", errors
    assert sandbox.counts.reused == 0
    assert_nothing_lost(sandbox, token_file)


def fetch(auth: AdhAuth, url: str) -> int:
    return requests.get(url, auth=auth, timeout=PATIENCE).status_code


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_with_an_inherited_auth_object(method: str, sandbox: Sandbox, token_file: Path, arguments: dict[str, Any]) -> None:
    """One object in the parent and in the workers of a pool: an expiry costs one refresh."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    auth = AdhAuth(**arguments)
    url = sandbox.url + "/api/auth/me"
    assert fetch(auth, url) == 200
    sandbox.expire()
    with multiprocessing.get_context(method).Pool(3) as pool:
        assert pool.starmap(fetch, [(auth, url)] * 12) == [200] * 12
        assert fetch(auth, url) == 200
        pool.close()
        pool.join()
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


def test_threads_by_the_dozen(sandbox: Sandbox, token_file: Path, arguments: dict[str, Any], family: Family) -> None:
    """48 threads on one object and one client, three expiries: one refresh each, no failure."""
    auth = family.auth(**arguments)
    statuses: list[int] = []
    with family.module.Client(auth=auth, timeout=PATIENCE) as client:
        for _ in range(3):
            sandbox.expire()
            threads = [threading.Thread(target=lambda: statuses.append(client.get(sandbox.url + "/api/auth/me").status_code)) for _ in range(48)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert statuses == [200] * 144
    assert sandbox.counts.refresh_calls == 3
    assert_nothing_lost(sandbox, token_file)
