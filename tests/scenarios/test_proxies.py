"""A corporate network: the API's name is known to a CONNECT proxy alone, and its certificate is signed by the
company's own CA.
"""

from __future__ import annotations

import gc
import json
import select
import socket
import socketserver
import ssl
import threading
import traceback
import warnings
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
import trustme

from adh_auth import AdhAuth, RefreshFailed
from adh_auth.clients.deadline import Deadline
from adh_auth.testing import Sandbox

from ..support.clients import CLIENTS, EveryClient, modules
from ..support.processes import PATIENCE
from ..support.raw_server import RawServer

#: RFC 6761: no resolver knows a name under .test.
NAME = "api.corp.test"
API = f"https://{NAME}"
ME = f"{API}/api/auth/me"
#: The password has to be quoted in a URL.
CREDENTIALS = ("jo", "pass@word/1")

each_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
#: A task's refresh is carried by the same client as that of plain code.
each_carrier = pytest.mark.parametrize("client", CLIENTS[:3], ids=lambda client: client.name)


class ConnectProxy(socketserver.ThreadingTCPServer):
    """An HTTP proxy that knows CONNECT only: each tunnel leads to the sandbox, whatever name it was asked
    for.

    From the second tunnel on, it answers `later`: a status, "leads nowhere" for one that swallows all, or
    "trickles" for a head that never ends. `later_port` leads those tunnels elsewhere.
    """

    def __init__(self, sandbox: Sandbox, credentials: tuple[str, str] | None) -> None:
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.port = self.later_port = int(sandbox.url.rpartition(":")[2])
        self.later: int | str = 200
        self.closing = threading.Event()
        #: what was asked for, and the headers that came with it
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        login = ":".join(quote(part, safe="") for part in credentials) + "@" if credentials else ""
        self.url = f"http://{login}127.0.0.1:{self.server_address[1]}"
        self.expected = basic(credentials) if credentials else None
        self._connections: list[socket.socket] = []

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._connections.append(connection)
        return connection, address

    def __enter__(self) -> ConnectProxy:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


class _Tunnel(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ConnectProxy

    def do_CONNECT(self) -> None:
        proxy, self.close_connection = self.server, True
        proxy.asked.append(self.path)
        proxy.headers.append({name.lower(): value for name, value in self.headers.items()})
        first = len(proxy.asked) == 1
        answer = 200 if first else proxy.later
        if proxy.headers[-1].get("proxy-authorization") != proxy.expected:
            answer = 407
        with suppress(OSError):
            if answer == "trickles":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                while not proxy.closing.wait(0.02):
                    self.wfile.write(b"a")
            elif answer == "leads nowhere":
                self._say(200)
                while self.connection.recv(65_536):
                    pass
            elif answer == 200:
                self._lead_to(proxy.port if first else proxy.later_port)
            else:
                self._say(
                    int(answer),
                    ("Proxy-Authenticate", 'Basic realm="corp"'),
                    ("Content-Length", "0"),
                    ("Connection", "close"),
                )

    def _say(self, status: int, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def _lead_to(self, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as there:
            self._say(200)
            ways = {self.connection: there, there: self.connection}
            while True:
                for source in select.select(ways, (), ())[0]:
                    data = source.recv(65_536)
                    if not data:
                        return
                    ways[source].sendall(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Print nothing."""


@dataclass(frozen=True)
class Network:
    """The API, the way to it, the CA's file, and an auth object's arguments, with a session that has to be
    refreshed.
    """

    sandbox: Sandbox
    proxy: ConnectProxy
    bundle: str
    arguments: dict[str, Any]

    def options(self, client: EveryClient, proxy: ConnectProxy | None = None) -> dict[str, Any]:
        """A client's own settings for the network."""
        url = (proxy or self.proxy).url
        if client.name == "requests":
            return {"proxies": {"https": url}, "verify": self.bundle}
        return {"proxy": url, "verify": ssl.create_default_context(cafile=self.bundle)}


@pytest.fixture(autouse=True)
def _only_the_proxy_knows_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    known = socket.getaddrinfo

    def lookup(host: Any, *rest: Any, **named: Any) -> Any:
        if host in (NAME, NAME.encode()):
            raise socket.gaierror(socket.EAI_NONAME, "only the proxy knows it")
        return known(host, *rest, **named)

    monkeypatch.setattr("socket.getaddrinfo", lookup)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """The company's CA."""
    return trustme.CA()


@pytest.fixture
def network(authority: trustme.CA, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Network]:
    """No client knows of it yet. The proxy asks for a password unless a test says otherwise."""
    authority.cert_pem.write_to_path(bundle := str(tmp_path / "ca.pem"))
    with Sandbox(ssl_context=serving(authority, NAME, "127.0.0.1")) as sandbox:
        path = sandbox.write_token_file(tmp_path / "tokens.json")
        sandbox.expire()
        arguments = {
            "token_file": path,
            "client_id": sandbox.client_id,
            "client_secret": sandbox.client_secret,
            "base_url": API,
        }
        with ConnectProxy(sandbox, getattr(request, "param", CREDENTIALS)) as proxy:
            yield Network(sandbox, proxy, bundle, arguments)


@pytest.fixture
def environment(network: Network, monkeypatch: pytest.MonkeyPatch) -> Network:
    """The same, named by the environment."""
    for name, value in {
        "HTTPS_PROXY": network.proxy.url,
        "REQUESTS_CA_BUNDLE": network.bundle,
        "SSL_CERT_FILE": network.bundle,
    }.items():
        monkeypatch.setenv(name, value)
    return network


def serving(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def basic(credentials: tuple[str, str]) -> str:
    return "Basic " + b64encode(":".join(credentials).encode()).decode()


def module_of(client: EveryClient) -> Any:
    return next(module for module in modules() if module.__name__ == client.name.removesuffix("-task"))


@contextmanager
def carrier(client: EveryClient, options: dict[str, Any]) -> Iterator[Any]:
    """A client for `refresh_via`."""
    is_requests = client.name == "requests"
    with requests.Session() if is_requests else module_of(client).Client(**options) as made:
        for name, value in options.items() if is_requests else ():
            setattr(made, name, value)
        yield made


def assert_one_refresh(sandbox: Sandbox) -> None:
    """A call that met the 401, one refresh, a call that went well."""
    counts = sandbox.counts
    assert (counts.requests, counts.unauthorized, counts.refresh_calls, counts.rotations) == (2, 1, 1, 1)


def assert_tunnels(proxy: ConnectProxy, count: int) -> None:
    """`count` were opened, all to the API, each with the proxy's password and with nothing of the API's."""
    assert proxy.asked == [f"{NAME}:443"] * count
    assert [headers.get("proxy-authorization") for headers in proxy.headers] == [proxy.expected] * count
    assert not any({"authorization", "cookie"} & set(headers) for headers in proxy.headers)


# Both ways lead through the proxy.


@each_client
def test_the_environment_leads_the_refresh_through_the_proxy(
    client: EveryClient, environment: Network
) -> None:
    """`HTTPS_PROXY` and the CA of the environment count for the call and for its refresh, each in a tunnel of
    its own.
    """
    assert client.get(client.auth(**environment.arguments), ME).status_code == 200
    assert_one_refresh(environment.sandbox)
    assert_tunnels(environment.proxy, 2)


@each_carrier
def test_a_refresh_before_the_first_call_goes_through_the_proxy(
    client: EveryClient, environment: Network
) -> None:
    """There is no call whose proxy could be taken over yet: the environment counts."""
    client.auth(**environment.arguments).refresh()
    assert environment.sandbox.counts.rotations == 1
    assert_tunnels(environment.proxy, 1)


@pytest.mark.parametrize("network", [None, CREDENTIALS], ids=["open", "password"], indirect=True)
@pytest.mark.parametrize("how", ["session", "call", "trust_env off"])
def test_the_refresh_takes_over_proxy_and_ca_of_the_session(
    network: Network, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In requests, the options of the session or of the call are enough; an environment that the session
    ignores is ignored by the refresh, too.
    """
    options = network.options(CLIENTS[0])
    if how == "trust_env off":
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", network.bundle + ".none")
    with requests.Session() as session:
        session.auth = AdhAuth(**network.arguments)
        session.trust_env = how != "trust_env off"
        if how != "call":
            session.proxies, session.verify = options["proxies"], options["verify"]
        assert session.get(ME, timeout=PATIENCE, **(options if how == "call" else {})).status_code == 200
    assert_one_refresh(network.sandbox)
    assert_tunnels(network.proxy, 2)


@each_client
def test_refresh_via_brings_a_proxy_of_its_own(client: EveryClient, network: Network) -> None:
    """The call goes by the client's proxy, and the refresh by that of `refresh_via`."""
    with ConnectProxy(network.sandbox, ("other", "secret")) as other:
        with carrier(client, network.options(client, other)) as via:
            answer = client.get(
                client.auth(**network.arguments, refresh_via=via), ME, **network.options(client)
            )
    assert answer.status_code == 200
    assert_one_refresh(network.sandbox)
    assert_tunnels(network.proxy, 1)
    assert_tunnels(other, 1)


@each_client
def test_no_proxy_counts_for_the_refresh(
    client: EveryClient, environment: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An API in `NO_PROXY` is called directly, and so is a refresh, after a call and before the first."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    sandbox = environment.sandbox
    arguments = {**environment.arguments, "base_url": sandbox.url}
    assert client.get(client.auth(**arguments), sandbox.url + "/api/auth/me").status_code == 200
    assert_one_refresh(sandbox)
    client.auth(**arguments).refresh()
    assert sandbox.counts.rotations == 2
    assert environment.proxy.asked == []


# The proxy let the call through, and has no way for the refresh.


@contextmanager
def refresh_failed(client: EveryClient, network: Network) -> Iterator[pytest.ExceptionInfo[RefreshFailed]]:
    """The block raises `RefreshFailed` in the client's own terms and with no secret in it; file and session
    are what they were.
    """
    path: Path = network.arguments["token_file"]
    before = path.read_bytes()
    with pytest.raises(RefreshFailed, match="The session is still good") as caught:
        yield caught
    error, module = caught.value, module_of(client)
    assert isinstance(error, requests.RequestException if module is requests else module.HTTPError)
    assert path.read_bytes() == before
    assert network.sandbox.counts.refresh_calls == 0
    shown = "".join([str(error), repr(error), repr(vars(error)), *traceback.format_exception(error)])
    tokens = json.loads(before)
    password = CREDENTIALS[1]
    secrets = (
        password,
        quote(password, safe=""),
        basic(CREDENTIALS)[6:],
        tokens["access_token"],
        tokens["refresh_token"],
    )
    assert not any(secret in shown for secret in (*secrets, network.sandbox.client_secret))


@each_client
@pytest.mark.parametrize("status", [403, 407])
def test_a_refused_tunnel_spends_nothing(
    client: EveryClient, environment: Network, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try asks the proxy anew; once it lets tunnels through again, the next call refreshes as if nothing
    had been.
    """
    monkeypatch.setattr("adh_auth.rotation.attempt.PAUSES", (0.01, 0.01))
    environment.proxy.later = status
    auth = client.auth(**environment.arguments)
    with refresh_failed(client, environment) as caught:
        client.get(auth, ME)
    assert f"HTTP {status}" in str(caught.value)
    assert (caught.value.status, caught.value.reply_lost_at) == (None, None)
    assert_tunnels(environment.proxy, 1 + 3)
    environment.proxy.later = 200
    assert client.get(auth, ME).status_code == 200
    assert_one_refresh(environment.sandbox)


def give_up_soon(client: EveryClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """One try, with the limits in tenths of a second that are seconds otherwise."""
    monkeypatch.setattr("adh_auth.rotation.attempt.PAUSES", ())
    home = "requests_transport" if client.name == "requests" else "httpx_transport"
    monkeypatch.setattr(f"adh_auth.clients.{home}.CONNECT_TIMEOUT", 0.2)
    monkeypatch.setattr(f"adh_auth.clients.{home}.Deadline", lambda _: Deadline(0.3))


@contextmanager
def no_warning_of_cpythons_leak() -> Iterator[None]:
    """CPython 3.10 and later leave an SSLSocket open that they made of a socket which was reset meanwhile
    (`SSLSocket._create` raises what its `recv` says). The deadline shuts a tunnel's socket down, and the next
    byte of the proxy resets it: a moment before that, or a moment after.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "unclosed <ssl.SSLSocket", ResourceWarning)
        yield
        gc.collect()


@each_carrier
@pytest.mark.parametrize("later", ["leads nowhere", "trickles"])
def test_a_stuck_tunnel_is_given_up(
    client: EveryClient, environment: Network, later: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tunnel in which nothing comes back, and a proxy whose answer never ends, hold the refresh no longer
    than its deadline.
    """
    give_up_soon(client, monkeypatch)
    environment.proxy.later = later
    auth = client.auth(**environment.arguments)
    with no_warning_of_cpythons_leak(), refresh_failed(client, environment):
        client.get(auth, ME)
    assert_tunnels(environment.proxy, 2)
    environment.proxy.later = 200
    assert client.get(auth, ME).status_code == 200
    assert_one_refresh(environment.sandbox)


@each_carrier
def test_a_stuck_tunnel_has_lost_no_reply(
    client: EveryClient, environment: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refresh has not left yet, so that no later refusal may be put down to it."""
    give_up_soon(client, monkeypatch)
    environment.proxy.later = "trickles"
    with no_warning_of_cpythons_leak(), refresh_failed(client, environment) as caught:
        client.get(client.auth(**environment.arguments), ME)
    assert caught.value.reply_lost_at is None


@each_carrier
def test_a_proxy_that_opens_the_tls_gets_no_refresh_token(
    client: EveryClient, environment: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a tunnel that ends at another CA's certificate for the API's name, nothing is sent."""
    monkeypatch.setattr("adh_auth.rotation.attempt.PAUSES", ())
    with RawServer(ssl_context=serving(trustme.CA(), NAME)) as interceptor:
        environment.proxy.later_port = interceptor.port
        with refresh_failed(client, environment) as caught:
            client.get(client.auth(**environment.arguments), ME)
    assert interceptor.seen == []
    assert "certificate verify failed" in str(caught.value)
    assert caught.value.reply_lost_at is None
    assert_tunnels(environment.proxy, 2)
