"""Machines that share a session, with real clients and a strict server, over a register in memory."""

from __future__ import annotations

import asyncio
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import requests

from adh_auth import AdhAuth, AdhHttpxAuth
from adh_auth.errors import StoreError
from adh_auth.store import session_view
from adh_auth.store.registry import RegistryStore
from adh_auth.testing import MemoryRegister, Sandbox
from adh_auth.tokens import Tokens


@pytest.fixture
def register(sandbox: Sandbox) -> MemoryRegister:
    """A register with one session of the sandbox."""
    register = MemoryRegister()
    reply = sandbox.sign_in()
    RegistryStore(register, "reports").save_mapping(reply, Tokens.from_response(reply))
    return register


def _arguments(sandbox: Sandbox, register: MemoryRegister) -> dict[str, Any]:
    return {
        "store": register.for_another_machine(),
        "session": "reports",
        "base_url": sandbox.url,
        "client_id": sandbox.client_id,
        "client_secret": sandbox.client_secret,
    }


def _machine(sandbox: Sandbox, register: MemoryRegister) -> AdhAuth:
    return AdhAuth(**_arguments(sandbox, register))


def _get(sandbox: Sandbox, auth: AdhAuth) -> int:
    return requests.get(f"{sandbox.url}/api/auth/me", auth=auth, timeout=60).status_code


def test_machines_meet_one_expiry(sandbox: Sandbox, register: MemoryRegister) -> None:
    """Eight machines with two threads each: one refresh, and an answer for each."""
    machines = [_machine(sandbox, register) for _ in range(8)]
    assert {_get(sandbox, auth) for auth in machines} == {200}
    sandbox.expire()
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda auth: _get(sandbox, auth), machines * 2)) == {200}
    assert sandbox.counts.rotations == 1
    assert sandbox.counts.reused == 0


def test_machines_right_after_their_start(sandbox: Sandbox, register: MemoryRegister) -> None:
    """The same for machines that have read nothing yet."""
    sandbox.expire()
    machines = [_machine(sandbox, register) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda auth: _get(sandbox, auth), machines)) == {200}
    assert sandbox.counts.rotations == 1
    assert sandbox.counts.reused == 0


def test_store_that_is_down_with_a_good_token(sandbox: Sandbox, register: MemoryRegister) -> None:
    """Requests go on."""
    auth = _machine(sandbox, register)
    assert _get(sandbox, auth) == 200
    register.stop()
    assert _get(sandbox, auth) == 200


def test_store_that_is_down_with_a_dead_token(
    sandbox: Sandbox, register: MemoryRegister, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is spent, and the error says that the session is as it was; afterwards all is well."""
    monkeypatch.setattr(session_view, "READ_PATIENCE", 0.3)
    auth = _machine(sandbox, register)
    assert _get(sandbox, auth) == 200
    sandbox.expire()
    register.stop()
    with pytest.raises(StoreError, match=r"can't be read: connection refused\. The session is as it was"):
        _get(sandbox, auth)
    assert sandbox.counts.rotations == 0
    register.start()
    assert _get(sandbox, auth) == 200


def test_store_that_goes_down_before_the_write(
    sandbox: Sandbox, register: MemoryRegister, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pair is kept, the request is answered, and once the store is back another machine adopts it."""
    monkeypatch.setattr("adh_auth.store.registry.WRITE_PATIENCE", 0.1)
    first, second = _machine(sandbox, register), _machine(sandbox, register)
    assert _get(sandbox, first) == _get(sandbox, second) == 200
    sandbox.expire()
    hold = sandbox.hold_next(at="after")
    with ThreadPoolExecutor(1) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answer = pool.submit(_get, sandbox, first)
        hold.wait()
        register.stop()
        hold.release()
        assert answer.result(60) == 200
        register.start()
        assert _get(sandbox, second) == 200
    assert sandbox.counts.rotations == 1
    assert sandbox.counts.reused == 0


def test_store_that_goes_back(sandbox: Sandbox, register: MemoryRegister) -> None:
    """A failover has lost the newest pair: a machine that has it puts it back, and all go on."""
    first, second = _machine(sandbox, register), _machine(sandbox, register)
    assert _get(sandbox, first) == 200
    snapshot = register.snapshot()
    sandbox.expire()
    assert _get(sandbox, first) == 200
    register.go_back(snapshot)
    sandbox.expire()
    with pytest.warns(UserWarning, match="had lost its newest pair"):
        assert _get(sandbox, first) == 200
    assert _get(sandbox, second) == 200
    assert sandbox.counts.reused == 0


def test_sign_out_on_another_machine(sandbox: Sandbox, register: MemoryRegister) -> None:
    """It counts at the next 401 at the latest."""
    first, second = _machine(sandbox, register), _machine(sandbox, register)
    assert _get(sandbox, first) == _get(sandbox, second) == 200
    first.revoke()
    with pytest.raises(StoreError, match="holds no session"):
        _get(sandbox, second)


def test_no_store_is_read_in_an_event_loop(sandbox: Sandbox, register: MemoryRegister) -> None:
    """The first load, the read after a 401 and the rotation all happen in other threads."""
    threads: set[str] = set()

    async def use() -> None:
        arguments = _arguments(sandbox, register)
        store = arguments["store"]
        require_reach = store._require_reach

        def watched(name: str) -> None:
            threads.add(threading.current_thread().name)
            require_reach(name)

        store._require_reach = watched
        async with httpx.AsyncClient(auth=AdhHttpxAuth(**arguments)) as client:
            for _ in range(2):
                answers = await asyncio.gather(*(client.get(f"{sandbox.url}/api/auth/me") for _ in range(20)))
                assert {answer.status_code for answer in answers} == {200}
                sandbox.expire()

    asyncio.run(use())
    assert threads
    assert "MainThread" not in threads
    assert sandbox.counts.reused == 0
