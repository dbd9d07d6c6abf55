"""Clients over a store behind a network: no event loop waits for it, and a 401 asks it at once."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import anyio
import httpx
import httpx2
import pytest
import requests

from adh_auth import AdhAuth, AdhHttpxAuth, StoreError, TokenFile
from adh_auth.rotation import detached
from adh_auth.testing import Sandbox

from ..support.clients import CLIENTS, EveryClient
from ..support.faults import wait_until
from ..support.processes import PATIENCE
from ..support.remote_store import RemoteStore

each_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)


def auth_over(client: EveryClient, sandbox: Sandbox, store: RemoteStore, **more: Any) -> Any:
    """Return an auth object over that store."""
    return client.auth(
        store=store,
        client_id=sandbox.client_id,
        client_secret=sandbox.client_secret,
        base_url=sandbox.url,
        **more,
    )


def rotated_elsewhere(sandbox: Sandbox, token_file: Path) -> None:
    """Another machine refreshes."""
    AdhAuth(
        token_file,
        client_id=sandbox.client_id,
        client_secret=sandbox.client_secret,
        base_url=sandbox.url,
    ).refresh()


@each_client
def test_requests_are_sent_with_what_memory_has(
    sandbox: Sandbox, token_file: Path, client: EveryClient
) -> None:
    """The store is read once, in no event loop's thread; then no request waits for it."""
    store = RemoteStore(token_file)
    auth = auth_over(client, sandbox, store)
    for _ in range(3):
        assert client.get(auth, sandbox.url + "/api/auth/me").status_code == 200
    assert store.looks == 1


@each_client
def test_an_expiry_is_met_by_one_refresh(sandbox: Sandbox, token_file: Path, client: EveryClient) -> None:
    """The rotation reads, decides and writes in its job."""
    store = RemoteStore(token_file)
    auth = auth_over(client, sandbox, store)
    assert client.get(auth, sandbox.url + "/api/auth/me").status_code == 200
    sandbox.expire()
    assert client.get(auth, sandbox.url + "/api/auth/me").status_code == 200
    assert sandbox.counts.refresh_calls == 1
    assert client.get(auth, sandbox.url + "/api/auth/me").status_code == 200


@each_client
def test_a_401_of_any_code_asks_the_store(sandbox: Sandbox, token_file: Path, client: EveryClient) -> None:
    """Another machine has rotated, and the server has ended the access token in memory (rule 9)."""
    sandbox.kills_old_access = True
    store = RemoteStore(token_file)
    auth = auth_over(client, sandbox, store)
    assert client.get(auth, sandbox.url + "/api/auth/me").status_code == 200
    rotated_elsewhere(sandbox, token_file)
    assert client.get(auth, sandbox.url + "/api/auth/me").status_code == 200
    assert store.looks == 2
    assert sandbox.counts.refresh_calls == 1


@each_client
def test_a_401_without_the_store_is_the_callers(
    sandbox: Sandbox, token_file: Path, client: EveryClient
) -> None:
    """A store that can't be reached then changes nothing about the answer."""
    sandbox.kills_old_access = True
    store = RemoteStore(token_file)
    auth = auth_over(client, sandbox, store)
    assert client.get(auth, sandbox.url + "/api/auth/me").status_code == 200
    rotated_elsewhere(sandbox, token_file)
    store.down = True
    assert client.get(auth, sandbox.url + "/api/auth/me").status_code == 401


@each_client
def test_a_store_that_is_down_from_the_start(sandbox: Sandbox, token_file: Path, client: EveryClient) -> None:
    """The error is the store's and the client's, and the next request tries again."""
    store = RemoteStore(token_file)
    auth = auth_over(client, sandbox, store)
    store.down = True
    with pytest.raises(StoreError, match="can't be reached") as caught:
        client.get(auth, sandbox.url + "/api/auth/me")
    assert isinstance(caught.value, (requests.RequestException, httpx.HTTPError, httpx2.HTTPError))
    assert (caught.value.store, caught.value.session) == ("remote://store", "default")
    assert caught.value.token_file is None
    store.down = False
    assert client.get(auth, sandbox.url + "/api/auth/me").status_code == 200


def test_tasks_that_begin_together_share_one_read(sandbox: Sandbox, token_file: Path) -> None:
    """Single flight, for the first load as for a rotation."""
    store = RemoteStore(token_file)
    begun = threading.Event()
    store.when_looked = lambda: _wait(begun)
    auth = AdhHttpxAuth(
        store=store,
        client_id=sandbox.client_id,
        client_secret=sandbox.client_secret,
        base_url=sandbox.url,
    )

    async def get(client: httpx.AsyncClient) -> None:
        assert (await client.get(sandbox.url + "/api/auth/me")).status_code == 200

    async def main() -> None:
        async with (
            httpx.AsyncClient(auth=auth, timeout=PATIENCE) as client,
            anyio.create_task_group() as group,
        ):
            for _ in range(20):
                group.start_soon(get, client)
            await anyio.wait_all_tasks_blocked()
            begun.set()

    anyio.run(main)
    assert store.looks == 1


def _wait(event: threading.Event) -> None:
    assert event.wait(PATIENCE)


def test_a_look_that_began_before_the_401_does_not_count(sandbox: Sandbox, token_file: Path) -> None:
    """It may have read before the other machine wrote: the request waits for it, and looks again."""
    store = RemoteStore(token_file)
    auth = auth_over(CLIENTS[0], sandbox, store)
    go_on = threading.Event()
    store.when_looked = lambda: _wait(go_on)
    first, begins = auth._core.look()
    assert begins
    assert auth._core.look() == (first, False)
    request = threading.Thread(target=auth._try_to_look, args=(None,))
    request.start()
    wait_until(lambda: len(first._waiters) == 1)
    go_on.set()
    request.join(PATIENCE)
    assert store.looks == 2


def test_arefresh_reads_in_no_event_loop(sandbox: Sandbox, token_file: Path) -> None:
    """Also where it is the first use of the object."""
    store = RemoteStore(token_file)
    auth = auth_over(CLIENTS[1], sandbox, store)
    tokens = anyio.run(auth.arefresh)
    assert tokens == TokenFile(token_file).load()
    assert sandbox.counts.refresh_calls == 1


def test_no_helper_process_is_started_for_a_store(
    sandbox: Sandbox, token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No other process can open the program's own object. That is found before a job begins, and said once."""
    caplog.set_level("DEBUG", logger="adh_auth")
    detached._explained.clear()
    auth = auth_over(CLIENTS[0], sandbox, RemoteStore(token_file), detached=True)
    auth.refresh()
    assert auth._core._helper_for(None, in_background=False) is None
    said = [record.getMessage() for record in caplog.records if "one of its own" in record.getMessage()]
    assert len(said) == 1
    assert said[0].endswith("the store is an object of the program's, which no other process can open")


def test_a_repr_waits_for_no_network(sandbox: Sandbox, token_file: Path) -> None:
    """It shows what this process knows, and no path."""
    store = RemoteStore(token_file)
    store.down = True
    auth = auth_over(CLIENTS[0], sandbox, store)
    assert repr(auth) == f"AdhAuth('remote://store#default', base_url={sandbox.url!r}, state='not read yet')"
    card = auth._repr_html_()
    assert "not read yet" in card
    assert "session store" in card
    assert auth.token_file is None
