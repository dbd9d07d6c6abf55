"""A session per user of a web application in a store, as the README's one line says: `session=` everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from adh_auth import AdhAuth, SignIn, TokenStoreError
from adh_auth.cli.main import main
from adh_auth.testing import MemoryRegister, Sandbox

from ..support.processes import PATIENCE

CALLBACK = "http://localhost:8765/callback"
KINDS = ("folder", "register", pytest.param("postgresql", marks=pytest.mark.servers))


@pytest.fixture(params=KINDS)
def place(
    request: pytest.FixtureRequest, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """What is passed beside `session`: nothing, where the environment names the store."""
    sandbox.redirect_uris = [CALLBACK]
    for name, value in sandbox.environment(tmp_path / "none.json").items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ADH_TOKEN_FILE")
    if request.param == "register":
        yield {"store": MemoryRegister()}
        return
    url = (tmp_path / "adh").as_uri()
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_server").url()
    monkeypatch.setenv("ADH_STORE", url)
    assert main(["store", "init"]) == 0
    yield {}


def _sign_in(user: int, place: dict[str, Any]) -> None:
    sign_in = SignIn(redirect_uri=CALLBACK)
    started = sign_in.start()
    answer = requests.get(started.url, timeout=PATIENCE, allow_redirects=False).headers["Location"]
    sign_in.finish(answer, started.state, session=f"user/{user}", **place)


def _get(sandbox: Sandbox, user: int, place: dict[str, Any]) -> int:
    """As a request of the application does: an object for this call alone."""
    auth = AdhAuth(session=f"user/{user}", **place)
    return requests.get(f"{sandbox.url}/api/auth/me", auth=auth, timeout=PATIENCE).status_code


def test_a_session_for_each_user(sandbox: Sandbox, place: dict[str, Any]) -> None:
    """Two users sign in, live through an expiry, and sign out one by one."""
    for user in (1, 2):
        _sign_in(user, place)
        assert _get(sandbox, user, place) == 200
    sandbox.expire()
    assert [_get(sandbox, user, place) for user in (1, 2, 1, 2)] == [200] * 4
    assert (sandbox.counts.rotations, sandbox.counts.reused) == (2, 0)
    AdhAuth(session="user/1", **place).revoke()
    with pytest.raises(TokenStoreError):
        _get(sandbox, 1, place)
    assert _get(sandbox, 2, place) == 200
