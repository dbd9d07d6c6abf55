"""A refresh in a process of its own over PostgreSQL and Redis: what a kill of the program costs then."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from adh_auth import AdhAuth, Tokens, TokenStore
from adh_auth.common.secret import Secret
from adh_auth.rotation import detached, helper_process
from adh_auth.store.factory import session_in
from adh_auth.store.record import Record
from adh_auth.stores import PostgresStore
from adh_auth.testing import Sandbox

from ..support import servers
from ..support.faults import ONE_CALL, wait_until
from ..support.fleet import Backend, PostgresBackend, RedisBackend, fleet
from ..support.interpreters import changed_interpreter
from ..support.processes import PATIENCE, child
from ..support.server_fixtures import need

pytestmark = [
    pytest.mark.servers,
    pytest.mark.timeout(240),
    pytest.mark.skipif(sys.platform == "win32", reason="needs descriptors that a child inherits"),
]

#: Programs that are killed at moments spread over a refresh.
KILLS = 20

#: A program that waits for a word, and then makes a call, or refreshes.
PROGRAM = (
    ONE_CALL.replace("AdhAuth()", "auth")
    + """
auth = AdhAuth(detached=True)
auth.get_token()
print("ready", flush=True)
os.read(0, 1)
"""
)
CALLS, REFRESHES = PROGRAM + "call()\n", PROGRAM + "auth.refresh()\n"

#: The same, with a refresh in the background, and an end without one of the interpreter's.
AHEAD = """
import os, requests
from adh_auth import AdhAuth
auth = AdhAuth(refresh_ahead=60)
print(requests.get(os.environ["ADH_BASE_URL"] + "/api/auth/me", auth=auth, timeout=60).status_code, flush=True)
os.read(0, 1)
os._exit(0)
"""


def environment_of(backend: Backend, sandbox: Sandbox, session: str) -> dict[str, str]:
    """Return the environment of a program that uses the session."""
    return {
        "ADH_STORE": backend.url(),
        "ADH_SESSION": session,
        "ADH_BASE_URL": sandbox.url,
        "ADH_CLIENT_ID": sandbox.client_id,
        "ADH_CLIENT_SECRET": sandbox.client_secret,
    }


def auth_in(store: Any, sandbox: Sandbox, session: str, **more: Any) -> AdhAuth:
    """Return an auth object for the session, in this process."""
    return AdhAuth(
        store=store,
        session=session,
        client_id=sandbox.client_id,
        client_secret=sandbox.client_secret,
        base_url=sandbox.url,
        **more,
    )


def get(sandbox: Sandbox, auth: AdhAuth) -> int:
    """Make a call, and return its status."""
    return requests.get(sandbox.url + "/api/auth/me", auth=auth, timeout=60).status_code


def record_of(backend: Backend, session: str) -> Record:
    """Return what the store says of the last attempt."""
    return session_in(Secret(backend.url()), session).look().record


@contextmanager
def program(code: str, environment: dict[str, str]) -> Iterator[Any]:
    """A program that has said its first word; `go_on` lets it do the rest."""
    with child(code, environment) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said in ("ready\n", "200\n"), said + process.communicate(timeout=PATIENCE)[1]
        yield process


def go_on(process: Any) -> None:
    """Let it do the rest."""
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize("key", ["", "encrypted"])
def test_a_program_that_is_killed_after_the_commit(
    backend: Backend, sandbox: Sandbox, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The helper writes the pair, by its own lease, and nothing secret is in its arguments or environment."""
    if key:
        from cryptography.fernet import Fernet

        monkeypatch.setenv("ADH_STORE_KEY", Fernet.generate_key().decode())
    session = backend.sign_in(sandbox)
    spent = backend.pair(session)
    with (
        program(CALLS, environment_of(backend, sandbox, session)) as killed,
        sandbox.hold_next(at="after") as hold,
    ):
        sandbox.expire()
        go_on(killed)
        hold.wait(PATIENCE)
        helper = record_of(backend, session).pid
        assert helper not in (killed.pid, os.getpid())
        shown = _shown(helper)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait(PATIENCE)
    assert not any(secret in shown for secret in _secrets(backend, sandbox, spent))
    wait_until(lambda: backend.pair(session) != spent)
    assert record_of(backend, session).rotated_by == helper
    assert get(sandbox, auth_in(backend.url(), sandbox, session)) == 200
    assert sandbox.counts.refresh_calls == 1
    assert sandbox.counts.reused == 0


def _shown(pid: int) -> str:
    if sys.platform != "linux":
        return ""
    return "".join(Path(f"/proc/{pid}/{name}").read_bytes().decode() for name in ("cmdline", "environ"))


def _secrets(backend: Backend, sandbox: Sandbox, pair: Tokens) -> list[str]:
    key = os.environ.get("ADH_STORE_KEY")
    return [
        backend.url(),
        sandbox.client_secret,
        pair.access_token,
        pair.refresh_token,
        *([key] if key else []),
    ]


def test_a_program_that_ends_while_a_background_refresh_is_in_flight(
    backend: Backend, sandbox: Sandbox
) -> None:
    """`os._exit`, as Airflow's and RQ's tasks end, right after the call that began it."""
    session = backend.sign_in(sandbox)
    spent = backend.pair(session)
    TokenStore(backend.url(), session).save(replace(spent, expires_at=time.time() + 30))
    with (
        sandbox.hold_next(at="after") as hold,
        program(AHEAD, environment_of(backend, sandbox, session)) as worker,
    ):
        hold.wait(PATIENCE)
        go_on(worker)
        assert worker.wait(PATIENCE) == 0
    wait_until(lambda: backend.pair(session).refresh_token != spent.refresh_token)
    assert get(sandbox, auth_in(backend.url(), sandbox, session)) == 200
    assert sandbox.counts.refresh_calls == 1


def test_kills_at_many_moments(own_backend: Backend, sandbox: Sandbox) -> None:
    """SIGKILL, from the call's begin to after its end: each session goes on, and no token is sent twice."""
    latest = 1.5 * _seconds_of_a_refresh(own_backend, sandbox)
    rotations = sandbox.counts.rotations
    sessions = [own_backend.sign_in(sandbox) for _ in range(KILLS)]
    for number, session in enumerate(sessions):
        with program(REFRESHES, environment_of(own_backend, sandbox, session)) as one:
            go_on(one)
            threading.Event().wait(latest * number / KILLS)
            one.kill()
    with ThreadPoolExecutor(KILLS) as threads:
        # One that was killed with the lease in its hands is waited for.
        list(threads.map(lambda session: auth_in(own_backend.url(), sandbox, session).refresh(), sessions))
    assert sandbox.counts.reused == sandbox.counts.refused == 0
    assert sandbox.counts.rotations - rotations > KILLS, "no kill fell on a refresh under way"


def _seconds_of_a_refresh(backend: Backend, sandbox: Sandbox) -> float:
    auth = auth_in(backend.url(), sandbox, backend.sign_in(sandbox), detached=True)
    auth.refresh()
    began = time.monotonic()
    auth.refresh()
    return time.monotonic() - began


def test_machines_meet_one_expiry(backend: Backend, sandbox: Sandbox) -> None:
    """One helper, one refresh, an answer for each."""
    session = backend.sign_in(sandbox)
    arguments = environment_of(backend, sandbox, session)
    with fleet(6) as members:
        for machine in members:
            machine.do(
                "use",
                backend.url(),
                session=session,
                base_url=sandbox.url,
                client_id=arguments["ADH_CLIENT_ID"],
                client_secret=arguments["ADH_CLIENT_SECRET"],
                detached=True,
            )
            assert machine.do("get") == "200"
        sandbox.expire()
        for machine in members:
            machine.begin("get")
        assert {machine.result(60) for machine in members} == {"200"}
        pids = {machine.pid for machine in members}
    assert record_of(backend, session).rotated_by not in pids
    assert sandbox.counts.refresh_calls == 1
    assert sandbox.counts.reused == 0


#: A helper that ends when it opens the store.
ENDS_EARLY = """import os, sys
sys.path.insert(0, {root!r})
from adh_auth.store import factory
factory.open_registry = lambda *_, **__: os._exit(1)
"""


def test_a_helper_that_ends_before_it_sends(
    backend: Backend, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program takes its lease back, and refreshes without a wait for the lease's end."""
    monkeypatch.setattr("adh_auth.store.lease.TAKE_SECONDS", 600.0)
    session = backend.sign_in(sandbox)
    auth = auth_in(backend.url(), sandbox, session, detached=True)
    with monkeypatch.context() as patch:
        root = Path(__file__).resolve().parents[2]
        patch.setattr(sys, "executable", changed_interpreter(tmp_path, ENDS_EARLY.format(root=str(root))))
        auth.refresh()
    assert record_of(backend, session).rotated_by == os.getpid()
    assert sandbox.counts.refresh_calls == 1


@pytest.mark.filterwarnings("ignore:.*could (not )?be written:UserWarning")
@pytest.mark.parametrize("end", ["lives", "killed"])
def test_a_store_that_is_gone_when_the_pair_has_come(
    own_backend: Backend, sandbox: Sandbox, end: str
) -> None:
    """The program goes on with the pair; the helper writes it once the store is back, also without the program."""
    session = own_backend.sign_in(sandbox)
    spent = own_backend.pair(session)
    with program(CALLS, environment_of(own_backend, sandbox, session)) as one:
        with sandbox.hold_next(at="after") as hold:
            sandbox.expire()
            go_on(one)
            hold.wait(PATIENCE)
            own_backend.crash()
        assert one.stdout.readline() == "200\n"
        if end == "killed":
            one.kill()
            one.wait(PATIENCE)
        own_backend.start()
        wait_until(lambda: own_backend.pair(session) != spent)
    assert get(sandbox, auth_in(own_backend.url(), sandbox, session)) == 200
    assert sandbox.counts.refresh_calls == 1
    assert sandbox.counts.reused == 0


@pytest.mark.filterwarnings("ignore:.*could (not )?be written:UserWarning")
def test_a_helper_that_is_killed_with_a_pair_that_it_could_not_write(
    own_backend: Backend, sandbox: Sandbox
) -> None:
    """The program has the pair, and writes it once the store is back, long before the helper's lease is over."""
    session = own_backend.sign_in(sandbox)
    spent = own_backend.pair(session)
    auth = auth_in(own_backend.url(), sandbox, session, detached=True)
    with ThreadPoolExecutor(1) as threads, sandbox.hold_next(at="after") as hold:
        sandbox.expire()
        answer = threads.submit(get, sandbox, auth)
        hold.wait(PATIENCE)
        helper = record_of(own_backend, session).pid
        own_backend.crash()
        hold.release()
        assert answer.result(PATIENCE) == 200
    os.kill(helper, signal.SIGKILL)
    own_backend.start()
    assert get(sandbox, auth) == 200
    wait_until(lambda: own_backend.pair(session) != spent)
    assert record_of(own_backend, session).state == "done"
    assert sandbox.counts.refresh_calls == 1


@pytest.mark.filterwarnings("ignore:.*could (not )?be written:UserWarning")
def test_a_program_that_ends_with_the_pair_of_a_helper_that_was_killed(
    own_backend: Backend, sandbox: Sandbox
) -> None:
    """It does not wait for the helper's lease either: the store is back, and the pair is written."""
    session = own_backend.sign_in(sandbox)
    spent = own_backend.pair(session)
    code = CALLS + "os.read(0, 1)\n"
    with program(code, environment_of(own_backend, sandbox, session)) as one:
        with sandbox.hold_next(at="after") as hold:
            sandbox.expire()
            go_on(one)
            hold.wait(PATIENCE)
            helper = record_of(own_backend, session).pid
            own_backend.crash()
        assert one.stdout.readline() == "200\n"
        os.kill(helper, signal.SIGKILL)
        own_backend.start()
        go_on(one)
        assert one.wait(PATIENCE) == 0
    assert own_backend.pair(session) != spent
    assert get(sandbox, auth_in(own_backend.url(), sandbox, session)) == 200
    assert sandbox.counts.refresh_calls == 1


def test_what_a_helper_warns_of(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program says it: the helper has no stream that anybody reads."""
    need("redis")
    monkeypatch.setattr(helper_process, "_noticed", set())
    with servers.redis() as server:
        server.execute("CONFIG", "SET", "appendonly", "no")
        backend = RedisBackend(server)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            session = backend.sign_in(sandbox)
        auth = auth_in(backend.url(), sandbox, session, detached=True)
        with pytest.warns(UserWarning, match="keeps no append-only file") as caught:
            auth.refresh()
        assert len(caught) == 1
        auth.refresh()
    assert sandbox.counts.rotations == 2


def test_no_helper_for_an_object(
    postgres: PostgresBackend,
    sandbox: Sandbox,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No other process can call the program's own function that connects."""
    import psycopg

    monkeypatch.setattr(detached, "_explained", set())
    caplog.set_level("DEBUG", logger="adh_auth")
    session, url = postgres.sign_in(sandbox), postgres.url()
    auth = auth_in(PostgresStore(lambda: psycopg.connect(url)), sandbox, session, detached=True)
    auth.refresh()
    assert record_of(postgres, session).rotated_by == os.getpid()
    assert [text for text in caplog.messages if "which no other process can open" in text]
