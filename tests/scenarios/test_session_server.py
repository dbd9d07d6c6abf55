"""A session knows its server: one call with another server's settings never costs it (rule 12)."""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
import requests

from adh_auth import (
    AdhAuth,
    AdhHttpx2Auth,
    AdhHttpxAuth,
    ConfigurationError,
    ReauthorizationRequired,
    TokenFile,
    Tokens,
)
from adh_auth.testing import Sandbox

from ..support.cli import adh, one_line_of
from ..support.processes import PATIENCE, assert_nothing_lost

CLIENTS: dict[str, Callable[..., int]] = {
    "requests": lambda url, **given: requests.get(url, auth=AdhAuth(**given), timeout=60).status_code,
    "httpx": lambda url, **given: httpx.get(url, auth=AdhHttpxAuth(**given), timeout=60).status_code,
    "httpx2": lambda url, **given: int(httpx2.get(url, auth=AdhHttpx2Auth(**given), timeout=60).status_code),
}


@pytest.fixture(params=CLIENTS)
def call(request: pytest.FixtureRequest) -> Callable[..., int]:
    """A call of `/api/auth/me` through a fresh client, once for each of the three."""

    def get(server: Sandbox, token_file: Path, **given: Any) -> int:
        arguments = {**_arguments(server, token_file), **given}
        return CLIENTS[request.param](server.url + "/api/auth/me", **arguments)

    return get


@pytest.fixture
def staging() -> Iterator[Sandbox]:
    """Another server, which knows nothing of the session."""
    with Sandbox() as running:
        yield running


def _arguments(server: Sandbox, token_file: Path) -> dict[str, Any]:
    return {
        "token_file": token_file,
        "base_url": server.url,
        "client_id": server.client_id,
        "client_secret": server.client_secret,
    }


def _edited(token_file: Path, **changes: Any) -> None:
    mapping = {**json.loads(token_file.read_bytes()), **changes}
    token_file.write_text(json.dumps({name: value for name, value in mapping.items() if value is not None}))


def _kept(token_file: Path) -> dict[str, Any]:
    mapping: dict[str, Any] = json.loads(token_file.read_bytes())
    return mapping


# What the file says.


def test_a_rotation_writes_what_is_missing(
    call: Callable[..., int], sandbox: Sandbox, token_file: Path
) -> None:
    """A file without them works as before, and says after its first rotation whose session it is."""
    assert "base_url" not in _kept(token_file)
    sandbox.expire()
    assert call(sandbox, token_file) == 200
    assert _kept(token_file)["base_url"] == sandbox.url
    assert _kept(token_file)["client_id"] == sandbox.client_id
    assert call(sandbox, token_file) == 200


def test_a_reply_does_not_say_whose_session_it_is(
    call: Callable[..., int], sandbox: Sandbox, token_file: Path
) -> None:
    """A server that names a client or a URL in its reply locks nobody out."""
    sandbox.expire()
    fresh = {**sandbox.sign_in(), "base_url": "https://elsewhere.example", "client_id": "another"}
    sandbox.fail_next(status=200, body=json.dumps(fresh).encode())
    assert call(sandbox, token_file) == 200
    assert _kept(token_file)["base_url"] == sandbox.url
    assert _kept(token_file)["client_id"] == sandbox.client_id


def test_another_server_gets_nothing(
    call: Callable[..., int], sandbox: Sandbox, staging: Sandbox, token_file: Path
) -> None:
    """Neither token, nor the secret: the error names both servers."""
    _edited(token_file, base_url=sandbox.url)
    with pytest.raises(ConfigurationError) as raised:
        call(staging, token_file)
    assert sandbox.url in raised.value.message
    assert staging.url in raised.value.message
    assert str(token_file) in raised.value.message
    assert raised.value.setting == "base_url"
    assert staging.log == []
    sandbox.expire()
    assert call(sandbox, token_file) == 200
    assert_nothing_lost(sandbox, token_file)


def test_another_client_gets_nothing(call: Callable[..., int], sandbox: Sandbox, token_file: Path) -> None:
    """A refresh token belongs to the client that it was issued to (RFC 6749 section 6)."""
    _edited(token_file, client_id=sandbox.client_id)
    with pytest.raises(ConfigurationError) as raised:
        call(sandbox, token_file, client_id="another-app")
    assert sandbox.client_id in raised.value.message
    assert "another-app" in raised.value.message
    assert raised.value.setting == "client_id"
    assert sandbox.log == []


def test_servers_are_compared_as_origins(
    call: Callable[..., int], sandbox: Sandbox, token_file: Path
) -> None:
    """A trailing slash or a capital letter is no other server."""
    _edited(token_file, base_url=sandbox.url.replace("http://", "HTTP://") + "/")
    sandbox.expire()
    assert call(sandbox, token_file) == 200


@pytest.mark.parametrize("odd", [5, "", "nonsense", ["https://a.example"], {"a": 1}, "http://[", "x" * 5000])
def test_what_is_no_server_says_nothing(
    call: Callable[..., int], sandbox: Sandbox, token_file: Path, odd: Any
) -> None:
    """A value that makes no sense is no reason to refuse a session."""
    _edited(token_file, base_url=odd, client_id=odd if not isinstance(odd, str) else 7)
    sandbox.expire()
    assert call(sandbox, token_file) == 200


@pytest.mark.parametrize("what", ["refresh", "revoke"])
def test_refresh_and_revoke_ask_no_other_server(
    sandbox: Sandbox, staging: Sandbox, token_file: Path, what: str
) -> None:
    """A revocation would remove the file, although its session lives on."""
    _edited(token_file, base_url=sandbox.url)
    with pytest.raises(ConfigurationError):
        getattr(AdhAuth(**_arguments(staging, token_file)), what)()
    assert staging.log == []
    assert token_file.exists()


def test_a_session_of_another_server_that_comes_later(
    sandbox: Sandbox, staging: Sandbox, token_file: Path
) -> None:
    """A program that runs meets it with its next request."""
    auth = AdhAuth(**_arguments(sandbox, token_file))
    url = sandbox.url + "/api/auth/me"
    assert requests.get(url, auth=auth, timeout=PATIENCE).status_code == 200
    token_file.write_text(json.dumps({**staging.sign_in(), "base_url": staging.url}))
    with pytest.raises(ConfigurationError):
        requests.get(url, auth=auth, timeout=PATIENCE)
    assert sandbox.counts.unauthorized == 0


def test_a_new_session_belongs_to_nobody_yet(sandbox: Sandbox, staging: Sandbox, token_file: Path) -> None:
    """`TokenFile.save` drops what the file said of the old one."""
    _edited(token_file, base_url=sandbox.url, client_id="old-app", signed_in_as="Ada")
    TokenFile(token_file).save(Tokens.from_response(staging.sign_in()))
    assert not {"base_url", "client_id", "signed_in_as"} & _kept(token_file).keys()
    assert requests.get(
        staging.url + "/api/auth/me", auth=AdhAuth(**_arguments(staging, token_file)), timeout=PATIENCE
    ).ok


# The refusal of another server.


def test_a_refusal_of_another_server_ends_nothing_here(
    call: Callable[..., int], sandbox: Sandbox, staging: Sandbox, token_file: Path
) -> None:
    """A file that names no server: the wrong one refuses its token, and the right one is asked all the same."""
    _edited(token_file, expires_at=1)
    sandbox.expire()
    with pytest.raises(ReauthorizationRequired):
        AdhAuth(**_arguments(staging, token_file)).refresh()
    assert "base_url" not in _kept(token_file)
    assert call(sandbox, token_file) == 200
    assert_nothing_lost(sandbox, token_file)
    assert staging.counts.refresh_calls == 1


def test_a_refusal_counts_where_it_was_said(sandbox: Sandbox, staging: Sandbox, token_file: Path) -> None:
    """A dead session costs its server one call, as before."""
    for _ in range(3):
        with pytest.raises(ReauthorizationRequired):
            AdhAuth(**_arguments(staging, token_file)).refresh()
    assert staging.counts.refresh_calls == 1
    assert sandbox.log == []


def test_a_pause_of_another_server_holds_nobody_up(
    sandbox: Sandbox, staging: Sandbox, token_file: Path
) -> None:
    """Nor does its `Retry-After`."""
    staging.fail_next(None, status=503, retry_after=50)
    with pytest.raises(Exception, match="503"):
        AdhAuth(**_arguments(staging, token_file)).refresh()
    AdhAuth(**_arguments(sandbox, token_file)).refresh()
    assert_nothing_lost(sandbox, token_file)


# The command line.


def _adh(server: Sandbox, token_file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return adh(*arguments, env=server.environment(token_file))


@pytest.mark.parametrize("command", ["token", "me", "refresh", "revoke"])
def test_a_shell_with_another_base_url(
    sandbox: Sandbox, staging: Sandbox, token_file: Path, command: str
) -> None:
    """One line names both servers, and nothing is sent."""
    _edited(token_file, base_url=sandbox.url, expires_at=1)
    said = _adh(staging, token_file, command)
    assert said.returncode == 1
    assert sandbox.url in one_line_of(said)
    assert staging.url in said.stderr
    assert staging.log == sandbox.log == []


def test_status_says_which_server_and_client(sandbox: Sandbox, token_file: Path) -> None:
    """So that production and a sandbox don't look alike."""
    _edited(token_file, base_url=sandbox.url, client_id="reports-app", signed_in_as="Ada")
    lines = _adh(sandbox, token_file, "status").stdout
    assert sandbox.url in lines
    assert "reports-app" in lines
    assert "Ada" in lines
    facts = json.loads(_adh(sandbox, token_file, "status", "--json").stdout)
    assert (facts["base_url"], facts["client_id"], facts["signed_in_as"]) == (
        sandbox.url,
        "reports-app",
        "Ada",
    )


def test_status_tells_a_shell_that_names_another(
    sandbox: Sandbox, staging: Sandbox, token_file: Path
) -> None:
    """What such a shell asks for is refused; "signed in" alone would be half of it."""
    _edited(token_file, base_url=sandbox.url.upper(), client_id=sandbox.client_id)
    assert "refused" not in _adh(sandbox, token_file, "status").stdout
    said = _adh(staging, token_file, "status")
    assert f"ADH_BASE_URL is {staging.url}, so requests from here are refused" in said.stdout
    _edited(token_file, base_url=staging.url, client_id="reports-app")
    said = _adh(staging, token_file, "status")
    assert (
        f"reports-app; ADH_CLIENT_ID is {staging.client_id}, so requests from here are refused" in said.stdout
    )


def test_status_shows_no_password_of_a_url(sandbox: Sandbox, token_file: Path) -> None:
    """A file that was edited by hand may name its server with one."""
    _edited(token_file, base_url=sandbox.url.replace("//", "//ada:hunter2@"))
    for arguments in (("status",), ("status", "--json")):
        said = _adh(sandbox, token_file, *arguments).stdout
        assert sandbox.url in said
        assert "hunter2" not in said


def test_status_of_a_file_that_does_not_say(sandbox: Sandbox, token_file: Path) -> None:
    """An exchange reply saved as it came."""
    facts = json.loads(_adh(sandbox, token_file, "status", "--json").stdout)
    assert (facts["base_url"], facts["client_id"], facts["signed_in_as"]) == (None, None, None)


def test_save_notes_the_server_of_the_shell(sandbox: Sandbox, tmp_path: Path) -> None:
    """`adh-auth save` writes what the environment names."""
    path = tmp_path / "saved.json"
    said = adh("save", input=json.dumps(sandbox.sign_in()), env=sandbox.environment(path))
    assert said.returncode == 0, said.stderr
    assert _kept(path)["base_url"] == sandbox.url
    assert _kept(path)["client_id"] == sandbox.client_id


def test_save_guesses_no_server(sandbox: Sandbox, tmp_path: Path) -> None:
    """Where the environment names none, the first rotation writes it."""
    path = tmp_path / "saved.json"
    said = adh("save", "--token-file", str(path), input=json.dumps(sandbox.sign_in()))
    assert said.returncode == 0, said.stderr
    assert not {"base_url", "client_id"} & _kept(path).keys()


# A base_url with a path.


@pytest.mark.parametrize("path", ["/api", "/api/", "/api/auth", "/api/auth/refresh"])
def test_a_base_url_that_ends_in_the_apis_own_path(sandbox: Sandbox, token_file: Path, path: str) -> None:
    """The message says what would be called, and what to write instead."""
    with pytest.raises(ConfigurationError) as raised:
        AdhAuth(**{**_arguments(sandbox, token_file), "base_url": sandbox.url + path})
    assert "/api/api/" in raised.value.message or path.strip("/") in raised.value.message
    assert sandbox.url in raised.value.message
    assert raised.value.setting == "base_url"


# The API's twin.


@pytest.mark.parametrize(
    ("base_url", "twin"),
    [
        ("http://127.0.0.1:8123", "http://localhost:8123"),
        ("http://localhost:8123", "http://127.0.0.1:8123"),
        ("http://localhost:8123", "http://[::1]:8123"),
        ("https://api.example.com", "https://www.api.example.com"),
        ("https://www.example.com", "https://example.com"),
        ("https://api.example.com", "https://api.example.com:8443"),
        ("https://api.example.com", "http://api.example.com"),
    ],
)
def test_a_request_to_the_apis_twin(
    base_url: str, twin: str, token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexplained 401 otherwise: one WARNING for an origin and a process."""
    auth = AdhAuth(token_file, client_id="i", client_secret="s", base_url=base_url)
    with caplog.at_level(logging.WARNING, "adh_auth"):
        for path in ("/api/a", "/api/b"):
            request = requests.Request("GET", twin + path, auth=auth).prepare()
            assert "Authorization" not in request.headers
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    assert twin.split("//")[1] in said[0]
    assert base_url in said[0]


@pytest.mark.parametrize("other", ["https://example.org", "https://cdn.example.com", "http://10.0.0.1:8123"])
def test_a_request_to_any_other_host(other: str, token_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Is none of our business."""
    auth = AdhAuth(token_file, client_id="i", client_secret="s", base_url="https://api.example.com")
    with caplog.at_level(logging.WARNING, "adh_auth"):
        requests.Request("GET", other + "/x", auth=auth).prepare()
    assert caplog.records == []
