"""The auth objects of one session in a store share a core: one read, one rotation, one of them posts."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import requests

from adh_auth import AdhAuth, AdhHttpxAuth, TokenFile, Tokens, TokenStore
from adh_auth.clients import shared_cores
from adh_auth.testing import Sandbox

from ..support.faults import near_its_end
from ..support.processes import PATIENCE
from ..support.remote_store import RemoteStore


@pytest.fixture(autouse=True)
def _no_recent_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_cores, "_recent", {})


@pytest.fixture
def app(sandbox: Sandbox) -> dict[str, Any]:
    """The arguments of an application."""
    return {
        "client_id": sandbox.client_id,
        "client_secret": sandbox.client_secret,
        "base_url": sandbox.url,
    }


def status(sandbox: Sandbox, auth: AdhAuth) -> int:
    """Return the status of a call."""
    return requests.get(sandbox.url + "/api/auth/me", auth=auth, timeout=PATIENCE).status_code


def test_an_object_for_each_request_reads_the_store_once(
    sandbox: Sandbox, token_file: Path, app: dict[str, Any]
) -> None:
    """As a web application does it; also across an expiry."""
    store = RemoteStore(token_file)
    for _ in range(3):
        assert status(sandbox, AdhAuth(store=store, **app)) == 200
        gc.collect()
    assert store.looks == 1
    sandbox.expire()
    assert status(sandbox, AdhAuth(store=store, **app)) == 200
    assert sandbox.counts.refresh_calls == 1


def test_the_first_object_may_go(sandbox: Sandbox, token_file: Path, app: dict[str, Any]) -> None:
    """Another one that lives carries the refresh; in what order they were made does not matter."""
    store = RemoteStore(token_file)
    first, kept, last = (AdhAuth(store=store, **app) for _ in range(3))
    assert first._core is kept._core is last._core
    del first, last
    gc.collect()
    sandbox.expire()
    assert status(sandbox, kept) == 200
    kept.refresh()
    assert sandbox.counts.refresh_calls == 2


def test_a_background_refresh_finds_who_carries_it(
    sandbox: Sandbox, token_file: Path, app: dict[str, Any]
) -> None:
    """It begins in a request, whose object lives."""
    store = RemoteStore(token_file)
    AdhAuth(store=store, refresh_ahead=60, **app)
    near_its_end(token_file)
    auth = AdhAuth(store=store, refresh_ahead=60, detached=None, **app)
    hold = sandbox.hold_next(on="refresh")
    assert status(sandbox, auth) == 200
    hold.wait(PATIENCE)
    hold.release()
    job = auth._core._job
    assert job is not None
    job.wait(PATIENCE)
    assert TokenFile(token_file).load() == AdhAuth(store=store, refresh_ahead=60, **app).tokens
    assert sandbox.counts.unauthorized == 0


@pytest.mark.parametrize(
    "other",
    [
        {"client_id": "another"},
        {"client_secret": "another"},
        {"base_url": "http://127.0.0.1:1"},
        {"refresh_ahead": 60},
        {"lock_timeout": 60},
        {"detached": False},
        {"session": "another"},
        {"refresh_via": requests.Session()},
    ],
    ids=lambda other: next(iter(other)),
)
def test_whatever_differs_is_not_shared(tmp_path: Path, app: dict[str, Any], other: dict[str, Any]) -> None:
    """Each of these would carry or decide differently."""
    url = tmp_path.as_uri()
    auth = AdhAuth(store=url, session="one", **app)
    assert AdhAuth(store=url, session="one", **app)._core is auth._core
    assert AdhAuth(**{"store": url, "session": "one", **app, **other})._core is not auth._core


def test_clients_and_files_share_nothing(tmp_path: Path, app: dict[str, Any]) -> None:
    """A refresh goes through the client's own library; a token file's core is its object's alone."""
    url = tmp_path.as_uri()
    auths: tuple[Any, ...] = (
        AdhAuth(store=url, **app),
        AdhHttpxAuth(store=url, **app),
        AdhAuth(tmp_path / "tokens.json", **app),
        AdhAuth(tmp_path / "tokens.json", **app),
    )
    assert len({id(auth._core) for auth in auths}) == 4


def test_only_so_many_sessions_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, app: dict[str, Any]
) -> None:
    """The one that was used longest ago goes first; one that an object has stays."""
    monkeypatch.setattr(shared_cores, "KEPT", 2)
    url = tmp_path.as_uri()
    held = AdhAuth(store=url, session="0", **app)
    cores = [weakref.ref(AdhAuth(store=url, session=str(number), **app)._core) for number in (1, 2)]
    again = AdhAuth(store=url, session="1", **app)._core
    cores.append(weakref.ref(AdhAuth(store=url, session="3", **app)._core))
    gc.collect()
    assert [core() is None for core in cores] == [False, True, False]
    assert again is AdhAuth(store=url, session="1", **app)._core
    assert AdhAuth(store=url, session="0", **app)._core is held._core


def test_sessions_do_not_mix(sandbox: Sandbox, tmp_path: Path, app: dict[str, Any]) -> None:
    """Each user's requests carry that user's token."""
    url = tmp_path.as_uri()
    tokens = {}
    for user in ("a", "b"):
        TokenStore(url, user).save(Tokens.from_response(sandbox.sign_in()))
        tokens[user] = TokenStore(url, user).load()
    for user in ("a", "b", "a"):
        assert AdhAuth(store=url, session=user, **app).tokens == tokens[user]
