"""Tests of users who mock: an expiry goes through every usual mock, and nothing reaches the network or waits
for ever.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from adh_auth import AdhAuth, RefreshFailed, TokenFile
from adh_auth.testing import Sandbox

from ..support.clients import Family, needs
from ..support.processes import PATIENCE, ROOT

pytestmark = pytest.mark.clients

BASE = "https://api.example"
ME, REFRESH = BASE + "/api/auth/me", BASE + "/api/auth/refresh"
EXPIRED = {"code": "token_expired", "message": "The access token has expired."}
FRESH = {"access_token": "adh_new", "refresh_token": "adh_rt_new", "expires_in": 3600, "token_type": "Bearer"}
USER = {"id": "usr_1", "name": "Mocked"}


@pytest.fixture(params=[None, True], ids=["default", "detached"])
def arguments(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The arguments of an auth object whose API exists in mocks only, and whose token the mock takes for
    expired. A refresh in a process of its own would go round the mock.
    """
    path = tmp_path / "tokens.json"
    path.write_text(json.dumps({"access_token": "adh_old", "refresh_token": "adh_rt_old"}))
    path.chmod(0o600)
    return {
        "token_file": str(path),
        "client_id": "id",
        "client_secret": "s3cret",
        "base_url": BASE,
        "detached": request.param,
    }


def assert_rotated(arguments: dict[str, Any], answer: Any) -> None:
    """The caller got the user, and the file the new pair."""
    assert answer.status_code == 200
    assert answer.json() == USER
    assert TokenFile(arguments["token_file"]).load().refresh_token == "adh_rt_new"


def api(answer: Callable[[int, Any], Any], authorization: str | None, path: str) -> Any:
    """The mocked API; `answer` makes a response of the mock's kind from a status and what becomes JSON."""
    if path == "/api/auth/refresh":
        return answer(200, FRESH)
    return answer(200, USER) if authorization == "Bearer adh_new" else answer(401, EXPIRED)


def test_responses(arguments: dict[str, Any]) -> None:
    """`responses` catches the refresh as it catches every call of requests."""
    responses = needs("responses")
    with responses.RequestsMock() as mock:
        mock.get(ME, status=401, json=EXPIRED)
        mock.post(
            REFRESH,
            json=FRESH,
            match=[
                responses.matchers.json_params_matcher({"refresh_token": "adh_rt_old"}, strict_match=False)
            ],
        )
        mock.get(
            ME, json=USER, match=[responses.matchers.header_matcher({"Authorization": "Bearer adh_new"})]
        )
        assert_rotated(arguments, requests.get(ME, auth=AdhAuth(**arguments), timeout=5))


def expecting(mock: Any) -> Any:
    """The same API in requests-mock, whichever its form."""
    mock.get(ME, status_code=401, json=EXPIRED)
    mock.post(REFRESH, json=FRESH)
    mock.get(ME, json=USER, request_headers={"Authorization": "Bearer adh_new"})
    return mock


@pytest.mark.timeout(5)
@pytest.mark.parametrize("with_session", [False, True], ids=["alone", "with refresh_via"])
def test_requests_mock(arguments: dict[str, Any], with_session: bool) -> None:
    """The Mocker holds a lock of every Session while a call is under way: the refresh goes past it, through
    the mock itself.
    """
    requests_mock = needs("requests_mock")
    auth = AdhAuth(**arguments, refresh_via=requests.Session() if with_session else None)
    with expecting(requests_mock.Mocker()) as mock:
        assert_rotated(arguments, requests.get(ME, auth=auth, timeout=5))
        assert [call.path for call in mock.request_history] == [
            "/api/auth/me",
            "/api/auth/refresh",
            "/api/auth/me",
        ]
        auth.refresh()  # without a call before it
        assert mock.call_count == 4


@pytest.mark.timeout(20)
def test_requests_mock_without_the_endpoint(arguments: dict[str, Any]) -> None:
    """A refresh without a mock fails; it neither goes to the network nor waits for ever."""
    requests_mock = needs("requests_mock")
    with requests_mock.Mocker() as mock:
        mock.get(ME, status_code=401, json=EXPIRED)
        with pytest.raises(RefreshFailed, match="NoMockAddress"):
            requests.get(ME, auth=AdhAuth(**arguments), timeout=5)


def test_requests_mock_mounted(arguments: dict[str, Any]) -> None:
    """A mock that is mounted on the session gets the refresh, too."""
    requests_mock = needs("requests_mock")
    adapter = requests_mock.Adapter()
    for method, url, options in (
        ("GET", ME, {"status_code": 401, "json": EXPIRED}),
        ("POST", REFRESH, {"json": FRESH}),
        ("GET", ME, {"json": USER, "request_headers": {"Authorization": "Bearer adh_new"}}),
    ):
        adapter.register_uri(method, url, **options)
    with requests.Session() as session:
        session.mount(BASE, adapter)
        session.auth = AdhAuth(**arguments)
        assert_rotated(arguments, session.get(ME))
    assert [call.method for call in adapter.request_history] == ["GET", "POST", "GET"]


def test_respx(arguments: dict[str, Any]) -> None:
    """respx replaces httpx's transports, under the client that carries the refresh as well."""
    respx, httpx = needs("respx"), needs("httpx")
    from adh_auth import AdhHttpxAuth

    def answer(request: Any) -> Any:
        return api(
            lambda status, data: httpx.Response(status, json=data),
            request.headers.get("authorization"),
            request.url.path,
        )

    with respx.mock:
        respx.route(host="api.example").mock(side_effect=answer)
        with httpx.Client(auth=AdhHttpxAuth(**arguments)) as client:
            assert_rotated(arguments, client.get(ME))


def test_pytest_httpx(tmp_path: Path, arguments: dict[str, Any]) -> None:
    """The fixture of pytest-httpx mocks a whole expiry, sync and async; each request was asked for."""
    needs("pytest_httpx")
    (tmp_path / "test_theirs.py").write_text(
        f"ARGUMENTS = {arguments!r}\nME, REFRESH = {ME!r}, {REFRESH!r}\n" + THEIR_TEST
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    run = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "2 passed" in run.stdout, run.stdout


THEIR_TEST = """
import anyio, httpx, pytest
from adh_auth import AdhHttpxAuth

@pytest.fixture(autouse=True)
def session(httpx_mock):
    with open(ARGUMENTS["token_file"], "w") as file:
        file.write('{"access_token": "adh_old", "refresh_token": "adh_rt_old"}')
    httpx_mock.add_response(url=ME, status_code=401, json={"code": "token_expired"})
    fresh = {"access_token": "adh_new", "refresh_token": "adh_rt_new"}
    httpx_mock.add_response(url=REFRESH, method="POST", json=fresh)
    httpx_mock.add_response(url=ME, match_headers={"Authorization": "Bearer adh_new"}, json={})

def test_sync():
    with httpx.Client(auth=AdhHttpxAuth(**ARGUMENTS)) as client:
        assert client.get(ME).status_code == 200

def test_async():
    async def main():
        async with httpx.AsyncClient(auth=AdhHttpxAuth(**ARGUMENTS)) as client:
            return await client.get(ME)
    assert anyio.run(main).status_code == 200
"""


@pytest.mark.parametrize("client", ["requests", "httpx"])
def test_vcrpy(sandbox: Sandbox, tmp_path: Path, client: str) -> None:
    """A recorded expiry plays again without a server; with the filters of the README no secret is in the
    cassette.
    """
    vcr = needs("vcr")
    cassette = str(tmp_path / "cassette.yaml")
    recorder = vcr.VCR(
        filter_headers=["authorization"],
        filter_post_data_parameters=["refresh_token", "client_secret"],
        before_record_response=_without_tokens,
    )
    path = sandbox.write_token_file(tmp_path / "tokens.json")
    secrets = [sandbox.client_secret, *_tokens(path)]
    arguments = {
        "client_id": sandbox.client_id,
        "client_secret": sandbox.client_secret,
        "base_url": sandbox.url,
    }
    sandbox.expire()
    with recorder.use_cassette(cassette, record_mode="once"):
        assert _ask(client, {**arguments, "token_file": str(path)}, sandbox.url) == 200
    secrets += _tokens(path)
    sandbox.stop()
    sandbox.token_file = path
    path.write_text(json.dumps({"access_token": "adh_old", "refresh_token": "adh_rt_old"}))
    with recorder.use_cassette(cassette, record_mode="none") as played:
        assert _ask(client, {**arguments, "token_file": str(path)}, sandbox.url) == 200
        assert played.all_played
    text = Path(cassette).read_text()
    assert not [secret for secret in secrets if secret in text]


def _tokens(path: Path) -> list[str]:
    pair = TokenFile(path).load()
    return [pair.access_token, pair.refresh_token]


def _without_tokens(response: dict[str, Any]) -> dict[str, Any]:
    body = response["body"]["string"]
    if b"refresh_token" not in body:
        return response
    scrubbed = json.dumps(
        {**json.loads(body), "access_token": "adh_recorded", "refresh_token": "adh_rt_recorded"}
    ).encode()
    headers = {**response["headers"], "Content-Length": [str(len(scrubbed))]}
    return {**response, "headers": headers, "body": {"string": scrubbed}}


def _ask(client: str, arguments: dict[str, Any], url: str) -> int:
    if client == "requests":
        return requests.get(url + "/api/auth/me", auth=AdhAuth(**arguments), timeout=5).status_code
    import httpx

    from adh_auth import AdhHttpxAuth

    return int(httpx.get(url + "/api/auth/me", auth=AdhHttpxAuth(**arguments)).status_code)


def test_mock_transport(family: Family, arguments: dict[str, Any]) -> None:
    """A `MockTransport` is shown to the refresh by `refresh_via`."""
    httpx = family.module
    transport = httpx.MockTransport(
        lambda request: api(
            lambda status, data: httpx.Response(status, json=data),
            request.headers.get("authorization"),
            request.url.path,
        )
    )
    auth = family.auth(**arguments, refresh_via=httpx.Client(transport=transport))
    with httpx.Client(transport=transport, auth=auth) as client:
        assert_rotated(arguments, client.get(ME))


async def app(scope: Any, receive: Any, send: Any) -> None:
    """The API as an ASGI app."""
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    status, data = api(lambda *answer: answer, headers.get("authorization"), scope["path"])
    await send(
        {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]}
    )
    await send({"type": "http.response.body", "body": json.dumps(data).encode()})


@pytest.mark.anyio
async def test_asgi_transport(family: Family, arguments: dict[str, Any]) -> None:
    """An app in this process answers an asynchronous client only: `refresh_via` takes one, and runs it in the
    refresh's own thread.
    """
    httpx = family.module
    carrier = httpx.AsyncClient(transport=httpx.ASGITransport(app=app))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), auth=family.auth(**arguments, refresh_via=carrier)
    ) as client:
        assert_rotated(arguments, await client.get(ME))


def test_an_asynchronous_client_over_sockets(sandbox: Sandbox, family: Family, tmp_path: Path) -> None:
    """Each refresh has an event loop of its own, and leaves no connection behind that is bound to it."""
    path = sandbox.write_token_file(tmp_path / "sandbox.json")
    client = {"client_id": sandbox.client_id, "client_secret": sandbox.client_secret, "base_url": sandbox.url}
    auth = family.auth(path, **client, refresh_via=family.module.AsyncClient())
    for _ in range(3):
        auth.refresh()
    assert sandbox.counts.rotations == 3
    assert sandbox.counts.refresh_calls == 3
