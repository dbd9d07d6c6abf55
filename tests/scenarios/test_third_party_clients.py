"""The users' clients: an expiry in the middle goes through each, on httpx or httpx2, whichever its
installed release needs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import ssl
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx
import pytest
import requests
import trustme
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from adh_auth import AdhAuth, AdhHttpxAuth, TokenFile, Tokens
from adh_auth.testing import Sandbox

from ..support.clients import FAMILY, Family, needs
from ..support.processes import PATIENCE, assert_nothing_lost, child
from ..support.raw_server import Answer, RawServer, Seen, as_json

pytestmark = pytest.mark.clients


def family_of(client: type) -> Family:
    """Return httpx or httpx2, whichever a package's client is built on."""
    return next(
        family for family in FAMILY if issubclass(client, (family.module.Client, family.module.AsyncClient))
    )


Endpoint = Callable[[Seen], Answer]


@pytest.fixture
def served(
    sandbox: Sandbox, arguments: dict[str, Any]
) -> Iterator[Callable[[dict[str, Endpoint]], dict[str, Any]]]:
    """Serves endpoints that take a live token of the sandbox; gives an auth object's arguments for them."""
    with contextlib.ExitStack() as stack, requests.Session() as session:
        session.trust_env = False

        def serve(endpoints: dict[str, Endpoint]) -> dict[str, Any]:
            running = stack.enter_context(RawServer(lambda seen: guarded(seen, endpoints)))
            return {**arguments, "base_url": running.url}

        def guarded(seen: Seen, endpoints: dict[str, Endpoint]) -> Answer:
            path = urlsplit(seen.path).path
            if path.startswith("/api/auth/"):
                return forwarded(session, sandbox, seen)
            checked = forwarded(session, sandbox, Seen("GET", "/api/auth/me", seen.headers, b""))
            return endpoints[path](seen) if checked.status == 200 else checked

        yield serve


def forwarded(session: requests.Session, sandbox: Sandbox, seen: Seen) -> Answer:
    """Return the sandbox's answer to a request."""
    headers = {
        name: value for name, value in seen.headers.items() if name in ("authorization", "content-type")
    }
    url = sandbox.url + urlsplit(seen.path).path
    answer = session.request(seen.method, url, data=seen.body, headers=headers, timeout=PATIENCE)
    return Answer(
        answer.status_code, {"Content-Type": answer.headers.get("Content-Type", "")}, answer.content
    )


# requests.


def encoder(toolbelt: Any) -> Any:
    """Four megabytes in a form, streamed. The boundary is fixed, so that two of them are the same body."""
    return toolbelt.MultipartEncoder(
        {"name": "value", "file": ("blob", b"0123456789abcdef" * 262_144)}, boundary="fixed"
    )


def test_requests_toolbelt(sandbox: Sandbox, arguments: dict[str, Any], token_file: Path) -> None:
    """A streamed form is sent whole, and never with a token that is known to be expired: that is rotated
    first.
    """
    toolbelt = needs("requests_toolbelt")
    sandbox.expire()
    pair = TokenFile(token_file).load()
    TokenFile(token_file).save(Tokens(pair.access_token, pair.refresh_token, expires_at=1.0))
    body = encoder(toolbelt)
    answer = requests.post(
        sandbox.url + "/api/upload",
        data=body,
        headers={"Content-Type": body.content_type},
        auth=AdhAuth(**arguments),
        timeout=PATIENCE,
    )
    assert answer.json()["sha256"] == hashlib.sha256(encoder(toolbelt).to_string()).hexdigest()
    assert answer.history == []
    assert sandbox.counts.unauthorized == 0


def test_requests_toolbelt_with_an_unexpected_expiry(
    sandbox: Sandbox, arguments: dict[str, Any], token_file: Path
) -> None:
    """A `MultipartEncoder` can't be rewound: the caller gets the 401, at once, and the same call made anew
    goes through.
    """
    toolbelt = needs("requests_toolbelt")
    sandbox.expire()
    auth, url = AdhAuth(**arguments), sandbox.url + "/api/upload"
    statuses = []
    for _ in range(2):
        body = encoder(toolbelt)
        answer = requests.post(
            url, data=body, headers={"Content-Type": body.content_type}, auth=auth, timeout=PATIENCE
        )
        statuses.append(answer.status_code)
    assert statuses == [401, 200]
    assert answer.json()["length"] == body.len
    assert_nothing_lost(sandbox, token_file)


def test_requests_cache_session(sandbox: Sandbox, arguments: dict[str, Any], tmp_path: Path) -> None:
    """A cached session goes through an expiry, and what it cached is served without a call."""
    requests_cache = needs("requests_cache")
    sandbox.expire()
    with requests_cache.CachedSession(tmp_path / "cache", backend="sqlite") as session:
        session.auth = AdhAuth(**arguments)
        assert session.get(sandbox.url + "/api/auth/me").status_code == 200
        assert session.get(sandbox.url + "/api/auth/me").from_cache
    assert sandbox.counts.rotations == 1


def test_requests_cache_everywhere(
    sandbox: Sandbox, arguments: dict[str, Any], token_file: Path, tmp_path: Path
) -> None:
    """`install_cache` patches every Session; the refresh keeps out of it, and the cache file holds neither
    its reply nor the secret.
    """
    requests_cache = needs("requests_cache")
    sandbox.expire()
    secrets = [sandbox.client_secret, TokenFile(token_file).load().refresh_token]
    with requests_cache.enabled(str(tmp_path / "cache"), backend="sqlite", allowable_methods=("GET", "POST")):
        assert (
            requests.get(
                sandbox.url + "/api/auth/me", auth=AdhAuth(**arguments), timeout=PATIENCE
            ).status_code
            == 200
        )
    secrets += [TokenFile(token_file).load().refresh_token]
    cached = (tmp_path / "cache.sqlite").read_bytes()
    assert not [secret for secret in secrets if secret.encode() in cached]
    assert b"/api/auth/me" in cached


def test_retry_adapters(sandbox: Sandbox, arguments: dict[str, Any]) -> None:
    """urllib3's `Retry` tries the user's call again, before and after an expiry, and leaves the refresh
    alone.
    """
    sandbox.expire()
    sandbox.fail_next(2, on="me", status=503)
    with requests.Session() as session:
        session.mount(
            "http://",
            HTTPAdapter(
                max_retries=Retry(total=4, status_forcelist=[503], allowed_methods=None, backoff_factor=0)
            ),
        )
        session.auth = AdhAuth(**arguments)
        assert session.get(sandbox.url + "/api/auth/me").status_code == 200
    assert sandbox.counts.refresh_calls == 1


# GraphQL.


def graph(seen: Seen) -> Answer:
    """A GraphQL endpoint with one field."""
    assert "hello" in json.loads(seen.body)["query"]
    return as_json({"data": {"hello": "world"}})


@pytest.mark.parametrize("transport", ["requests", "httpx", "httpx async"])
def test_gql(sandbox: Sandbox, served: Any, transport: str) -> None:
    """gql's transports take the auth object as they take their client's own."""
    gql = needs("gql")
    arguments = served({"/api/graphql": graph})
    url, query = arguments["base_url"] + "/api/graphql", gql.gql("{ hello }")
    sandbox.expire()
    if transport == "requests":
        transport_class = needs("gql.transport.requests").RequestsHTTPTransport
        assert gql.Client(transport=transport_class(url, auth=AdhAuth(**arguments))).execute(query) == {
            "hello": "world"
        }
    else:
        module = needs("gql.transport.httpx")
        auth = family_of(module.httpx.Client).auth(**arguments)
        if transport == "httpx":
            assert gql.Client(transport=module.HTTPXTransport(url, auth=auth)).execute(query) == {
                "hello": "world"
            }
        else:
            client = gql.Client(transport=module.HTTPXAsyncTransport(url, auth=auth))
            assert anyio.run(client.execute_async, query) == {"hello": "world"}
    assert sandbox.counts.rotations == 1


# The httpx family.


def models(_: Seen) -> Answer:
    """OpenAI's list of models."""
    return as_json(
        {"object": "list", "data": [{"id": "small", "object": "model", "created": 0, "owned_by": "me"}]}
    )


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_openai(sandbox: Sandbox, served: Any, kind: str) -> None:
    """`http_client=` of the OpenAI package: our token takes the place of its API key."""
    openai = needs("openai")
    family = family_of(openai.DefaultHttpxClient)
    arguments = served({"/api/v1/models": models})
    options = {"base_url": arguments["base_url"] + "/api/v1", "api_key": "unused", "max_retries": 0}
    auth = family.auth(**arguments)
    sandbox.expire()

    async def listed() -> Any:
        async with family.module.AsyncClient(auth=auth) as client:
            return await openai.AsyncOpenAI(http_client=client, **options).models.list()

    if kind == "async":
        found = anyio.run(listed)
    else:
        with family.module.Client(auth=auth) as client:
            found = openai.OpenAI(http_client=client, **options).models.list()
    assert [model.id for model in found.data] == ["small"]
    assert sandbox.counts.rotations == 1


def tools(seen: Seen) -> Answer:
    """An MCP server over streamable HTTP with one tool."""
    if seen.method != "POST":
        return Answer(405)
    message = json.loads(seen.body)
    results: dict[str, Any] = {
        "initialize": {
            "protocolVersion": "2025-06-18",
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "test", "version": "1"},
        },
        "tools/list": {"tools": [{"name": "add", "inputSchema": {"type": "object"}}]},
        "tools/call": {"content": [{"type": "text", "text": "3"}]},
    }
    if "id" not in message:
        return Answer(202)
    return as_json({"jsonrpc": "2.0", "id": message["id"], "result": results[message["method"]]})


def test_mcp(sandbox: Sandbox, served: Any) -> None:
    """The MCP SDK's streamable HTTP client: the session goes on after an expiry between two messages."""
    mcp, streamable = needs("mcp"), needs("mcp.client.streamable_http")
    family = family_of(type(needs("mcp.shared._httpx_utils").create_mcp_http_client()))
    arguments = served({"/api/mcp": tools})

    async def main() -> Any:
        async with (
            family.module.AsyncClient(auth=family.auth(**arguments)) as client,
            streamable.streamable_http_client(
                arguments["base_url"] + "/api/mcp", http_client=client
            ) as streams,
            mcp.ClientSession(streams[0], streams[1]) as session,
        ):
            await session.initialize()
            sandbox.expire()
            return await session.call_tool("add", {"a": 1, "b": 2})

    assert anyio.run(main).content[0].text == "3"
    assert sandbox.counts.rotations == 1


def events(_: Seen) -> Answer:
    """A stream of two events that ends."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    return Answer(stream=lambda wire, _: wire.write(head + b"data: one\n\ndata: two\n\n"))


def test_httpx_sse(sandbox: Sandbox, served: Any) -> None:
    """Server-sent events: the stream that is opened with an expired token is opened again, and stays a
    stream.
    """
    sse = needs("httpx_sse")
    arguments = served({"/api/events": events})
    url = arguments["base_url"] + "/api/events"
    sandbox.expire()

    async def main() -> list[str]:
        async with (
            httpx.AsyncClient(auth=AdhHttpxAuth(**arguments)) as client,
            sse.aconnect_sse(client, "GET", url) as source,
        ):
            return [event.data async for event in source.aiter_sse()]

    assert anyio.run(main) == ["one", "two"]
    with (
        httpx.Client(auth=AdhHttpxAuth(**arguments)) as client,
        sse.connect_sse(client, "GET", url) as source,
    ):
        assert [event.data for event in source.iter_sse()] == ["one", "two"]
    assert sandbox.counts.rotations == 1


# Corporate networks. These need no package but the clients themselves.

#: An API that only the proxy knows the way to.
BEHIND = "http://127.0.0.1:9"


@pytest.fixture
def proxy(sandbox: Sandbox) -> Iterator[RawServer]:
    """A proxy in front of the sandbox; it keeps the addresses that it was asked for."""
    with requests.Session() as session:
        session.trust_env = False
        with RawServer(lambda seen: forwarded(session, sandbox, seen)) as running:
            yield running


def assert_all_went_through(proxy: RawServer) -> None:
    assert [seen.path for seen in proxy.seen] == [
        BEHIND + path for path in ("/api/auth/me", "/api/auth/refresh", "/api/auth/me")
    ]


def test_a_proxy_by_environment(
    sandbox: Sandbox,
    arguments: dict[str, Any],
    proxy: RawServer,
    monkeypatch: pytest.MonkeyPatch,
    family: Family,
) -> None:
    """With `HTTP_PROXY`, the refresh of each client goes by the proxy as its calls do."""
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("http_proxy", proxy.url)
    arguments["base_url"] = BEHIND
    sandbox.expire()
    with family.module.Client(auth=family.auth(**arguments)) as client:
        assert client.get(BEHIND + "/api/auth/me").status_code == 200
    assert_all_went_through(proxy)
    proxy.seen.clear()
    sandbox.expire()
    assert (
        requests.get(BEHIND + "/api/auth/me", auth=AdhAuth(**arguments), timeout=PATIENCE).status_code == 200
    )
    assert_all_went_through(proxy)


def test_a_proxy_by_refresh_via(
    sandbox: Sandbox, arguments: dict[str, Any], proxy: RawServer, family: Family
) -> None:
    """A proxy that only the client knows is shown to the refresh by `refresh_via`."""
    arguments["base_url"] = BEHIND
    sandbox.expire()
    with family.module.Client(proxy=proxy.url, trust_env=False) as carrier:
        auth = family.auth(**arguments, refresh_via=carrier)
        with family.module.Client(proxy=proxy.url, trust_env=False, auth=auth) as client:
            assert client.get(BEHIND + "/api/auth/me").status_code == 200
    assert_all_went_through(proxy)


def test_a_proxy_of_the_session(sandbox: Sandbox, arguments: dict[str, Any], proxy: RawServer) -> None:
    """`session.proxies` counts for the refresh as well, and so does a Session passed as `refresh_via`."""
    arguments["base_url"] = BEHIND
    for carried in (False, True):
        proxy.seen.clear()
        sandbox.expire()
        with requests.Session() as session:
            session.trust_env = False
            session.proxies = {"http": proxy.url}
            auth = AdhAuth(**arguments, refresh_via=session if carried else None)
            assert session.get(BEHIND + "/api/auth/me", auth=auth).status_code == 200
        assert_all_went_through(proxy)


@pytest.fixture
def authority() -> trustme.CA:
    """A CA that no system knows."""
    return trustme.CA()


@pytest.fixture
def private(authority: trustme.CA) -> Iterator[Sandbox]:
    """A sandbox with a certificate of that CA."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with Sandbox(ssl_context=context) as running:
        yield running


@pytest.fixture
def private_arguments(private: Sandbox, tmp_path: Path) -> dict[str, Any]:
    path = private.write_token_file(tmp_path / "private.json")
    return {
        "token_file": path,
        "client_id": private.client_id,
        "client_secret": private.client_secret,
        "base_url": private.url,
    }


@pytest.mark.parametrize("how", ["session.verify", "verify=", "trust_env off"])
def test_a_private_ca_in_requests(
    private: Sandbox,
    private_arguments: dict[str, Any],
    authority: trustme.CA,
    tmp_path: Path,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The refresh trusts what the call that it answers trusts; an environment that the session ignores does
    not count.
    """
    bundle = str(tmp_path / "ca.pem")
    authority.cert_pem.write_to_path(bundle)
    private.expire()
    with requests.Session() as session:
        session.auth = AdhAuth(**private_arguments)
        if how == "trust_env off":
            session.trust_env = False
            trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "other.pem"))
            monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
        if how != "verify=":
            session.verify = bundle
        options: dict[str, Any] = {"verify": bundle} if how == "verify=" else {}
        assert session.get(private.url + "/api/auth/me", **options).status_code == 200
    assert private.counts.rotations == 1


def test_a_private_ca_by_refresh_via(
    private: Sandbox, private_arguments: dict[str, Any], authority: trustme.CA, family: Family
) -> None:
    """A CA that only the client knows is shown to the refresh by `refresh_via`."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    private.expire()
    with family.module.Client(verify=context) as carrier:
        auth = family.auth(**private_arguments, refresh_via=carrier)
        with family.module.Client(verify=context, auth=auth) as client:
            assert client.get(private.url + "/api/auth/me").status_code == 200
    assert private.counts.rotations == 1


# What watches each call of a client, and lets it through.

WATCHERS = {
    "sentry_sdk": "import sentry_sdk\nsentry_sdk.init('http://key@127.0.0.1:9/1', traces_sample_rate=1.0, shutdown_timeout=0)",
    "opentelemetry.instrumentation": """
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.instrumentation.urllib3 import URLLib3Instrumentor
for watcher in (HTTPXClientInstrumentor, RequestsInstrumentor, URLLib3Instrumentor): watcher().instrument()
""",
}
DETACHED_CALLS = """
import os, httpx, requests
from adh_auth import AdhAuth, AdhHttpxAuth, TokenFile
for get, auth in ((requests.get, AdhAuth(detached=True)), (httpx.get, AdhHttpxAuth(detached=True))):
    auth.refresh()
    assert TokenFile().record().rotated_by != os.getpid(), auth
    assert get(os.environ["ADH_BASE_URL"] + "/api/auth/me", auth=auth).status_code == 200
os._exit(0)
"""
# Not by the interpreter's own end: where sentry_sdk has found eventlet, and a program has had threads, CPython 3.11
# now and then never comes out of its last garbage collection, without adh_auth too.


@pytest.mark.skipif(sys.platform == "win32", reason="needs descriptors that a child inherits")
@pytest.mark.parametrize("watcher", WATCHERS)
def test_a_watched_client_refreshes_in_a_process_of_its_own(
    watcher: str, sandbox: Sandbox, token_file: Path
) -> None:
    """Sentry and OpenTelemetry wrap the clients' methods. That is no other network: a helper may refresh."""
    needs(watcher)
    with child(WATCHERS[watcher] + DETACHED_CALLS, sandbox.environment(token_file)) as program:
        _, said = program.communicate(timeout=PATIENCE)
        assert program.returncode == 0, said
    assert sandbox.counts.rotations == 2
    assert_nothing_lost(sandbox, token_file)
