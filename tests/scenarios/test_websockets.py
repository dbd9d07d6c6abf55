"""The handshake of a WebSocket is a request to the API's origin: it carries the token, and goes through an expiry."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import trustme

from adh_auth import AdhHttpxAuth, ConfigurationError
from adh_auth.testing import Sandbox

from ..support.clients import CLIENTS, Family, needs
from ..support.httpx_client import Twin
from ..support.processes import PATIENCE, assert_nothing_lost
from .test_proxies import serving

API = "https://api.agenticdeveloperhub.com"
LOOPBACK = "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("base_url", "url", "carries"),
    [
        (API, "wss://api.agenticdeveloperhub.com/api/feed", True),
        (API, "wss://api.agenticdeveloperhub.com:443/api/feed", True),
        (API, "WSS://API.agenticdeveloperhub.com/api/feed", True),
        (API, "ws://api.agenticdeveloperhub.com/api/feed", False),
        (API, "ws://api.agenticdeveloperhub.com:443/api/feed", False),
        (API, "wss://api.agenticdeveloperhub.com:8443/api/feed", False),
        (API, "wss://agenticdeveloperhub.com/api/feed", False),
        (API, "wss://api.agenticdeveloperhub.com.evil.example/api/feed", False),
        (LOOPBACK, "ws://127.0.0.1:8000/api/feed", True),
        (LOOPBACK, "wss://127.0.0.1:8000/api/feed", False),
        (LOOPBACK, "ws://127.0.0.1:8001/api/feed", False),
        (LOOPBACK, "ws://localhost:8000/api/feed", False),
    ],
)
@pytest.mark.parametrize("how", ["sync", "task"])
@pytest.mark.filterwarnings("ignore")
def test_the_token_goes_to_the_own_host_only(
    family: Family, token_file: Path, how: str, base_url: str, url: str, carries: bool
) -> None:
    """wss as https, ws as http, which is for loopback; never the one for the other."""
    seen: list[bool] = []

    def answer(request: Any) -> Any:
        seen.append("authorization" in request.headers)
        return family.module.Response(200)

    auth = family.auth(token_file, client_id="id", client_secret="secret", base_url=base_url)
    options = {"auth": auth, "transport": family.module.MockTransport(answer)}
    if how == "sync":
        with family.module.Client(**options) as client:
            client.get(url)
    else:

        async def main() -> None:
            async with family.module.AsyncClient(**options) as client:
                await client.get(url)

        anyio.run(main)
    assert seen == [carries]


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
@pytest.mark.parametrize("base_url", ["ws://127.0.0.1:8000", "wss://api.agenticdeveloperhub.com"])
def test_a_base_url_is_none_of_a_websocket(client: Any, base_url: str) -> None:
    """The refresh is no WebSocket."""
    with pytest.raises(ConfigurationError, match="base_url must be a URL like https"):
        client.auth("tokens.json", client_id="id", client_secret="secret", base_url=base_url)


def test_a_handshake_goes_through_an_expiry(sandbox: Sandbox, token_file: Path, twin: Twin) -> None:
    """In each client, over a real socket: a 401, one refresh, and the same URL again."""
    sandbox.expire()
    url = sandbox.url.replace("http://", "ws://") + "/api/auth/me"

    async def handshake(client: Any) -> Any:
        return await client.get(url)

    answer = twin.run(handshake)
    assert (answer.status_code, str(answer.request.url)) == (200, url)
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


@pytest.mark.parametrize("kind", ["sync", "asyncio", "trio"])
def test_over_tls(family: Family, kind: str, tmp_path: Path) -> None:
    """`wss`, with a certificate that is checked."""
    authority = trustme.CA()
    trusting = httpx.create_ssl_context()
    authority.configure_trust(trusting)
    with Sandbox(ssl_context=serving(authority, "127.0.0.1")) as sandbox:
        token_file = sandbox.write_token_file(tmp_path / "tokens.json")
        sandbox.expire()
        app = {"client_id": sandbox.client_id, "client_secret": sandbox.client_secret}
        with family.module.Client(verify=trusting) as carrier:
            auth = family.auth(token_file, base_url=sandbox.url, refresh_via=carrier, **app)
            url = sandbox.url.replace("https://", "wss://") + "/api/auth/me"

            async def handshake(client: Any) -> Any:
                return await client.get(url)

            assert Twin(kind, family, auth).run(handshake, verify=trusting).status_code == 200
        assert (sandbox.counts.refresh_calls, sandbox.counts.reused) == (1, 0)


@pytest.fixture
def feed(sandbox: Sandbox) -> Iterator[str]:
    """A WebSocket server that takes a live token of the sandbox, and sends one word."""
    server_of = needs("websockets.sync.server")

    def check(connection: Any, request: Any) -> Any:
        header = {"Authorization": request.headers.get("Authorization", "")}
        answer = httpx.get(sandbox.url + "/api/auth/me", headers=header)
        return None if answer.status_code == 200 else connection.respond(answer.status_code, answer.text)

    with server_of.serve(
        lambda socket: socket.send("hello"), "127.0.0.1", 0, process_request=check
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join(PATIENCE)


@pytest.mark.clients
def test_httpx_ws(sandbox: Sandbox, arguments: dict[str, Any], feed: str) -> None:
    """A client of httpx opens a real WebSocket with an expired token, and reads from it."""
    httpx_ws = needs("httpx_ws")
    sandbox.expire()

    def to_sandbox(request: httpx.Request) -> httpx.Response:
        answer = httpx.post(
            sandbox.url + request.url.path,
            content=request.content,
            headers={"Content-Type": "application/json"},
        )
        return httpx.Response(answer.status_code, content=answer.content)

    carrier = httpx.Client(transport=httpx.MockTransport(to_sandbox))
    auth = AdhHttpxAuth(**{**arguments, "base_url": f"http://{feed}"}, refresh_via=carrier)
    with httpx.Client(auth=auth, timeout=PATIENCE) as client:
        with httpx_ws.connect_ws(f"ws://{feed}/api/feed", client) as socket:
            assert socket.receive_text(timeout=PATIENCE) == "hello"
    assert (sandbox.counts.refresh_calls, sandbox.counts.reused) == (1, 0)
