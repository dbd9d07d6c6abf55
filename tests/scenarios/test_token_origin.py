"""The token goes to the API's origin and nowhere else, on every hop, and the refresh goes out
separately.
"""

from __future__ import annotations

import io
import json
import pickle
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import httpx2
import pytest
import requests
import trustme
from requests.adapters import HTTPAdapter
from urllib3.util import Retry, parse_url

from adh_auth import AdhAuth, AdhHttpx2Auth, ConfigurationError, RefreshFailed
from adh_auth.testing import Sandbox

from ..support.clients import CLIENTS, EveryClient, Family
from ..support.processes import PATIENCE
from ..support.raw_server import NEW, OLD, Answer, RawServer, Seen, as_json, rotating

API = "https://api.agenticdeveloperhub.com"
EXPIRED = as_json({"code": "token_expired"}, 401)

each_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adh_auth.rotation.attempt.PAUSES", (0.01, 0.01))


@pytest.fixture
def other_origin() -> Iterator[RawServer]:
    """Another origin, whose answers make a careless client send more."""
    with RawServer(lambda _: EXPIRED) as running:
        yield running


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    """A token file with the pair that a `rotating` server takes for expired."""
    path = tmp_path / "old.json"
    path.write_text(json.dumps(OLD))
    path.chmod(0o600)
    return path


def auth_of(client: EveryClient, path: Path | str, base_url: str) -> Any:
    return client.auth(path, client_id="id", client_secret="s3cret-value", base_url=base_url)


# Other hosts, and redirects.


@each_client
@pytest.mark.parametrize("headers", [None, {"Authorization": "Basic b3duOm93bg=="}], ids=["none", "own"])
def test_another_host_gets_what_the_caller_set(
    client: EveryClient, headers: Any, sandbox: Sandbox, other_origin: RawServer, arguments: Any
) -> None:
    """A request of the same session to another host passes untouched, and its 401 is the caller's."""
    answer = client.get(client.auth(**arguments), other_origin.url + "/", headers=headers)
    assert answer.status_code == 401
    assert [seen.headers.get("authorization") for seen in other_origin.seen] == [
        headers and headers["Authorization"]
    ]
    assert sandbox.counts.refresh_calls == 0


@each_client
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("expired", [False, True], ids=["live", "after-a-resend"])
def test_a_redirect_to_another_host_carries_no_token(
    client: EveryClient, status: int, expired: bool, sandbox: Sandbox, other_origin: RawServer, arguments: Any
) -> None:
    """Neither the hop nor its 401 brings a token there, and that 401 spends no refresh."""
    if expired:
        sandbox.expire()
    answer = client.get(
        client.auth(**arguments), f"{sandbox.url}/api/redirect?status={status}&to={other_origin.url}/"
    )
    assert answer.status_code == 401
    assert [seen.headers.get("authorization") for seen in other_origin.seen] == [None]
    assert sandbox.counts.refresh_calls == int(expired)


def test_a_session_that_keeps_the_header_on_every_hop(
    sandbox: Sandbox, other_origin: RawServer, arguments: Any
) -> None:
    """A Session that overrides `should_strip_auth` sends the old token; another origin's 401 still spends
    no refresh and gets no new one.
    """

    class Careless(requests.Session):
        def should_strip_auth(self, old_url: str, new_url: str) -> bool:
            return False

    with Careless() as session:
        session.auth = AdhAuth(**arguments)
        assert (
            session.get(f"{sandbox.url}/api/redirect?to={other_origin.url}/", timeout=PATIENCE).status_code
            == 401
        )
    assert len(other_origin.seen) == 1
    assert sandbox.counts.refresh_calls == 0


def test_a_client_that_keeps_the_header_on_every_hop(
    sandbox: Sandbox, other_origin: RawServer, family: Family, arguments: Any
) -> None:
    """The same for one of the httpx family, whose redirects happen below the auth."""

    class Careless(family.module.Client):  # type: ignore[misc, name-defined]
        def _redirect_headers(self, request: Any, url: Any, method: str) -> Any:
            return request.headers

    with Careless(auth=family.auth(**arguments), follow_redirects=True) as client:
        assert client.get(f"{sandbox.url}/api/redirect?to={other_origin.url}/").status_code == 401
    assert len(other_origin.seen) == 1
    assert sandbox.counts.refresh_calls == 0


@each_client
def test_the_same_server_by_another_name_is_another_origin(
    client: EveryClient, sandbox: Sandbox, arguments: Any
) -> None:
    """The host's name counts, not its address."""
    other = sandbox.url.replace("127.0.0.1", "localhost")
    answer = client.get(client.auth(**arguments), f"{sandbox.url}/api/redirect?to={other}/api/auth/me")
    assert answer.status_code == 401
    assert sandbox.counts.refresh_calls == 0
    assert client.get(client.auth(**arguments), f"{other}/api/auth/me").status_code == 401


@each_client
def test_a_way_back_from_another_host_carries_no_token(
    client: EveryClient, sandbox: Sandbox, other_origin: RawServer, arguments: Any
) -> None:
    """A hop to the API that another origin has asked for is not ours: no token, no refresh."""
    other_origin.answer = lambda _: Answer(302, {"Location": f"{sandbox.url}/api/auth/me"})
    answer = client.get(client.auth(**arguments), f"{sandbox.url}/api/redirect?to={other_origin.url}/")
    assert answer.status_code == 401
    assert sandbox.counts.refresh_calls == 0


@each_client
def test_a_redirect_within_the_api_keeps_the_token(
    client: EveryClient, sandbox: Sandbox, arguments: Any
) -> None:
    """The next hop is signed in, too."""
    answer = client.get(client.auth(**arguments), f"{sandbox.url}/api/redirect?to=/api/auth/me")
    assert answer.status_code == 200
    assert sandbox.counts.unauthorized == 0


@each_client
def test_an_expiry_between_two_hops_is_not_noticed(
    client: EveryClient, sandbox: Sandbox, arguments: Any
) -> None:
    """The 401 of the second hop is answered with a rotation."""
    sandbox.fail_next(on="me", status=401, body=EXPIRED.body)
    answer = client.get(client.auth(**arguments), f"{sandbox.url}/api/redirect?to=/api/auth/me")
    assert answer.status_code == 200
    assert sandbox.counts.rotations == 1


@each_client
def test_a_redirect_after_a_resend_carries_the_new_token(
    client: EveryClient, sandbox: Sandbox, arguments: Any
) -> None:
    """The hop goes on with the pair that the first answer brought, not with the dead one."""
    sandbox.expire()
    answer = client.get(client.auth(**arguments), f"{sandbox.url}/api/redirect?to=/api/auth/me")
    assert answer.status_code == 200
    assert (sandbox.counts.rotations, sandbox.counts.unauthorized) == (1, 1)


# Lookalikes.

LOOKALIKES = [
    API + ".evil.test/",
    API + "@evil.test/",
    API + ":443@evil.test/",
    API + "%2eevil.test/",
    API + "\\@evil.test/",
    API + "\\.evil.test/",
    API + ":444/",
    API + ":8443/",
    API + ":80/",
    API.replace("https:", "http:") + "/",
    API.replace("https:", "http:") + ":443/",
    API.replace("api.", "evil.api.") + "/",
    API.replace("https://api.", "https://") + "/",
    API.replace("https://api.", "https://xapi.") + "/",
    API.replace("https://a", "https://\u0430") + "/",  # CYRILLIC SMALL LETTER A
    API[:-1] + "/",
    API + "..evil.test/",
    "https://evil.test/" + API,
    "https://evil.test/#" + API,
    "https://evil.test/?" + API,
    "https://evil.test#@api.agenticdeveloperhub.com/",
    "https://evil.test?@api.agenticdeveloperhub.com/",
    "https://evil.test\\@api.agenticdeveloperhub.com.evil.test/",
    "https://evil.test:443\\@evil.test/@api.agenticdeveloperhub.com/",
]


class Recorder(HTTPAdapter):
    """An adapter that keeps what requests would have sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[requests.PreparedRequest] = []

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        self.sent.append(request)
        response = requests.Response()
        response.status_code, response.raw = 200, io.BytesIO(b"{}")
        response.request, response.url = request, str(request.url)
        return response


@pytest.mark.parametrize("url", LOOKALIKES)
def test_requests_sends_nothing_to_a_lookalike(url: str, old_file: Path) -> None:
    """A URL that merely resembles the API gets no token; one that requests itself refuses gets nothing."""
    recorder = Recorder()
    with requests.Session() as session:
        session.mount("http://", recorder)
        session.mount("https://", recorder)
        session.auth = auth_of(CLIENTS[0], old_file, API)
        try:
            session.get(url)
        except requests.RequestException:
            assert recorder.sent == []
    # requests takes a backslash for the end of the host, as browsers do: then it is the API that gets a
    # strange path, and the token.
    assert all(
        "Authorization" not in request.headers or _goes_to_the_api(str(request.url))
        for request in recorder.sent
    )


def _goes_to_the_api(url: str) -> bool:
    """As urllib3, which opens the connection, reads it."""
    read = parse_url(url)
    return (read.scheme, read.auth, read.host, read.port) == (
        "https",
        None,
        "api.agenticdeveloperhub.com",
        None,
    )


@pytest.mark.parametrize("url", LOOKALIKES)
def test_httpx_sends_nothing_to_a_lookalike(url: str, family: Family, old_file: Path) -> None:
    """The same for both of the httpx family."""
    sent: list[Any] = []

    def take(request: Any) -> Any:
        sent.append(request)
        return family.module.Response(200)

    auth = family.auth(old_file, client_id="id", client_secret="s3cret-value", base_url=API)
    with family.module.Client(auth=auth, transport=family.module.MockTransport(take)) as client:
        try:
            client.get(url)
        except (family.module.HTTPError, family.module.InvalidURL):
            assert sent == []
    assert all("Authorization" not in request.headers for request in sent)


SPELLINGS = [
    (API, "HTTPS://API.AgenticDeveloperHub.COM/x"),
    (API, "https://api.agenticdeveloperhub.com./x"),
    (API, "https://api.agenticdeveloperhub.com:443/x"),
    (API + "./", "https://api.agenticdeveloperhub.com:443/x"),
    ("https://b\u00fccher.example", "https://xn--bcher-kva.example/x"),
    ("https://xn--bcher-kva.example", "https://B\u00fccher.example/x"),
    ("https://[2001:db8::1]", "https://[2001:0db8:0:0:0:0:0:1]:443/x"),
    ("https://[2001:0DB8:0::1]:8443", "https://[2001:db8::1]:8443/x"),
    ("http://127.0.0.1:80", "http://127.0.0.1/x"),
]


@pytest.mark.parametrize(("base_url", "url"), SPELLINGS)
def test_one_origin_in_every_spelling(base_url: str, url: str, family: Family, old_file: Path) -> None:
    """Case, a trailing dot, IDNA, the forms of IPv6 and the default port are still the API."""
    sent: list[str | None] = []
    recorder = Recorder()
    with requests.Session() as session:
        session.mount("http://", recorder)
        session.mount("https://", recorder)
        session.auth = auth_of(CLIENTS[0], old_file, base_url)
        session.get(url)
        sent += [str(request.headers["Authorization"]) for request in recorder.sent]

    def take(request: Any) -> Any:
        sent.append(request.headers.get("Authorization"))
        return family.module.Response(200)

    auth = family.auth(old_file, client_id="id", client_secret="s3cret-value", base_url=base_url)
    with family.module.Client(auth=auth, transport=family.module.MockTransport(take)) as client:
        client.get(url)
    assert sent == ["Bearer " + OLD["access_token"]] * 2


@pytest.mark.parametrize("url", [*LOOKALIKES, *(url for _, url in SPELLINGS)])
def test_the_client_agrees_about_the_host(url: str) -> None:
    """Where we see the API in a URL, the library that opens the connection goes to the API."""
    from adh_auth.oauth.origin import origin_of

    if origin_of(url) == origin_of(API):
        assert str(parse_url(url).host).rstrip(".") == urlsplit(API).hostname
        assert httpx.URL(url).host.rstrip(".") == urlsplit(API).hostname


@each_client
@pytest.mark.parametrize(
    "url",
    [
        "http://api.agenticdeveloperhub.com",
        "http://10.0.0.1",
        "http://127.0.0.1.evil.test",
        "http://localhost.evil.test",
        "http://evil.test/127.0.0.1",
        "http://127.0.0.1@evil.test",
        "http://[2001:db8::1]",
        "ftp://127.0.0.1",
        "api.agenticdeveloperhub.com",
        "https://",
        "https://user:pa55word@api.agenticdeveloperhub.com",
        "https://api.agenticdeveloperhub.com/?x=1",
        "https://api.agenticdeveloperhub.com\\.evil.test",
        "https://api.agenticdeveloperhub.com:port",
    ],
)
def test_a_base_url_that_anyone_could_listen_to_is_refused(
    client: EveryClient, url: str, old_file: Path
) -> None:
    """Neither https nor loopback: a ConfigurationError when the object is built, which does not repeat a
    password.
    """
    with pytest.raises(ConfigurationError) as caught:
        auth_of(client, old_file, url)
    assert caught.value.setting == "base_url"
    assert "pa55word" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080",
        "http://localhost",
        "http://[::1]:8080",
        "http://127.9.9.9",
        "https://10.0.0.1",
    ],
)
def test_loopback_may_be_plain(url: str, old_file: Path) -> None:
    """A sandbox needs no certificate."""
    assert url.rpartition("/")[2] in repr(auth_of(CLIENTS[0], old_file, url))


# What carries the refresh.


@each_client
def test_the_refresh_follows_no_redirect(
    client: EveryClient, sandbox: Sandbox, other_origin: RawServer, arguments: Any
) -> None:
    """307 asks to send the same body elsewhere: with the refresh token and the client secret in it, never."""
    sandbox.fail_next(on="refresh", status=307, headers={"Location": other_origin.url + "/"})
    sandbox.fail_next(on="revoke", status=308, headers={"Location": other_origin.url + "/"})
    auth = client.auth(**arguments)
    with pytest.raises(RefreshFailed, match="redirects are not followed"):
        auth.refresh()
    with pytest.raises(RefreshFailed):
        auth.revoke()
    assert other_origin.seen == []


@each_client
def test_a_carrier_of_the_callers_follows_no_redirect(
    client: EveryClient, sandbox: Sandbox, other_origin: RawServer, arguments: Any
) -> None:
    """Not even one that would, by its own settings."""
    sandbox.fail_next(on="refresh", status=307, headers={"Location": other_origin.url + "/"})
    with _carrier(client) as carrier, pytest.raises(RefreshFailed):
        client.auth(**arguments, refresh_via=carrier).refresh()
    assert other_origin.seen == []


def _carrier(client: EveryClient) -> Any:
    if client.auth is AdhAuth:
        return requests.Session()
    return (httpx2 if client.auth is AdhHttpx2Auth else httpx).Client(follow_redirects=True)


@each_client
@pytest.mark.parametrize("own", [True, False], ids=["direct", "refresh_via"])
def test_the_refresh_brings_nothing_of_the_users(
    client: EveryClient, own: bool, old_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No `.netrc` password, no cookie and no header of the session joins the refresh call."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password pa55word\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with RawServer() as api, _carrier(client) as carrier:
        auth = client.auth(
            old_file,
            client_id="id",
            client_secret="s3cret-value",
            base_url=api.url,
            refresh_via=None if own else carrier,
        )
        answer = client.get(auth, api.url + "/api/x", headers={"X-Of-The-Caller": "1", "Cookie": "a=b"})
    assert answer.status_code == 200
    (refresh,) = api.to("/api/auth/refresh")
    assert not {"authorization", "cookie", "x-of-the-caller"} & refresh.headers.keys()
    assert json.loads(refresh.body)["refresh_token"] == OLD["refresh_token"]


def test_the_refresh_ends_in_no_cache(
    sandbox: Sandbox, arguments: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`requests_cache.install_cache` puts a caching class in place of every Session; the refresh passes
    through none.
    """
    cached: list[str] = []

    class CachedSession(requests.Session):
        def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
            cached.append(str(request.url))
            return super().send(request, **options)

    monkeypatch.setattr(requests, "Session", CachedSession)
    monkeypatch.setattr(requests.sessions, "Session", CachedSession)
    sandbox.expire()
    assert (
        requests.get(sandbox.url + "/api/auth/me", auth=AdhAuth(**arguments), timeout=PATIENCE).status_code
        == 200
    )
    AdhAuth(**arguments).revoke()
    assert cached == [sandbox.url + "/api/auth/me"]
    assert (sandbox.counts.rotations, sandbox.counts.revocations) == (1, 1)


class _Counting(HTTPAdapter):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sent: list[str] = []

    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        self.sent.append(str(request.path_url))
        return super().send(request, *arguments, **options)


def _retrying() -> _Counting:
    return _Counting(
        max_retries=Retry(total=3, status_forcelist=[503], allowed_methods=None, backoff_factor=0)
    )


def test_the_refresh_goes_through_no_retry_layer_of_the_callers(sandbox: Sandbox, arguments: Any) -> None:
    """A mounted `Retry(allowed_methods=None)` would send the single-use token three times more."""
    adapter = _retrying()
    sandbox.expire()
    sandbox.fail_next(None, on="refresh", status=503)
    with requests.Session() as session, pytest.raises(RefreshFailed):
        session.mount("http://", adapter)
        session.auth = AdhAuth(**arguments)
        session.get(sandbox.url + "/api/auth/me", timeout=PATIENCE)
    assert adapter.sent == ["/api/auth/me"]
    assert sandbox.counts.refresh_calls == 3  # our own tries, as the pauses above make them


def test_unless_refresh_via_says_so(sandbox: Sandbox, arguments: Any) -> None:
    """A session that is named to carry the refresh does so with all that it has."""
    adapter = _retrying()
    with requests.Session() as carrier:
        carrier.mount("http://", adapter)
        sandbox.fail_next(2, on="refresh", status=503)
        AdhAuth(**arguments, refresh_via=carrier).refresh()
    assert adapter.sent == ["/api/auth/refresh"]
    assert sandbox.counts.refresh_calls == 3


def test_the_refresh_goes_by_the_proxy_of_the_call(old_file: Path) -> None:
    """In requests the refresh takes over the proxies of the call that it answers, so that a script behind one
    needs nothing.
    """
    paths: list[str] = []

    def proxy(seen: Seen) -> Answer:
        paths.append(seen.path)
        return rotating(Seen(seen.method, urlsplit(seen.path).path, seen.headers, seen.body))

    with RawServer(proxy) as running, requests.Session() as session:
        session.trust_env = False
        session.proxies = {"http": running.url}
        session.auth = auth_of(CLIENTS[0], old_file, "http://127.0.0.1:9")
        assert session.get("http://127.0.0.1:9/api/x", timeout=PATIENCE).status_code == 200
    assert paths == [f"http://127.0.0.1:9{path}" for path in ("/api/x", "/api/auth/refresh", "/api/x")]


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A throwaway CA."""
    return trustme.CA()


def _served_with(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


@pytest.fixture
def bundle(authority: trustme.CA, tmp_path: Path) -> str:
    """The CA's certificate as a file."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def _tls_arguments(sandbox: Sandbox, tmp_path: Path) -> dict[str, Any]:
    path = sandbox.write_token_file(tmp_path / "tls.json")
    return {
        "token_file": path,
        "client_id": sandbox.client_id,
        "client_secret": sandbox.client_secret,
        "base_url": sandbox.url,
    }


@each_client
def test_an_unknown_certificate_gets_no_secret(
    client: EveryClient, authority: trustme.CA, tmp_path: Path
) -> None:
    """Neither the token nor the refresh is sent to a server that cannot prove who it is, and the error says
    why.
    """
    with Sandbox(ssl_context=_served_with(authority, "127.0.0.1")) as sandbox:
        auth = client.auth(**_tls_arguments(sandbox, tmp_path))
        with pytest.raises(RefreshFailed, match="certificate verify failed") as caught:
            auth.refresh()
        with pytest.raises((requests.exceptions.SSLError, httpx.ConnectError, httpx2.ConnectError)):
            client.get(auth, sandbox.url + "/api/auth/me")
        with pytest.raises(RefreshFailed, match="certificate verify failed"):
            auth.revoke()
        assert sandbox.log == []
    assert caught.value.reply_lost_at is None


@each_client
def test_a_certificate_of_another_host_gets_no_secret(
    client: EveryClient, authority: trustme.CA, bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trusted CA is not enough: the name has to be the API's."""
    monkeypatch.setenv("SSL_CERT_FILE", bundle)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
    with Sandbox(ssl_context=_served_with(authority, "other.test")) as sandbox:
        with pytest.raises(RefreshFailed, match="certificate verify failed"):
            client.auth(**_tls_arguments(sandbox, tmp_path)).refresh()
        assert sandbox.log == []


@each_client
def test_a_private_ca_of_the_environment_works(
    client: EveryClient, authority: trustme.CA, bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refresh trusts what the client's environment trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", bundle)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
    with Sandbox(ssl_context=_served_with(authority, "127.0.0.1")) as sandbox:
        auth = client.auth(**_tls_arguments(sandbox, tmp_path))
        sandbox.expire()
        assert client.get(auth, sandbox.url + "/api/auth/me").status_code == 200
        auth.refresh()
        assert sandbox.counts.rotations == 2


def test_a_private_ca_of_the_session_works(authority: trustme.CA, bundle: str, tmp_path: Path) -> None:
    """In requests the refresh takes over `verify` of the call that it answers, and later ones that of the
    last call seen.
    """
    with Sandbox(ssl_context=_served_with(authority, "127.0.0.1")) as sandbox, requests.Session() as session:
        session.auth = auth = AdhAuth(**_tls_arguments(sandbox, tmp_path))
        session.verify = bundle
        sandbox.expire()
        assert session.get(sandbox.url + "/api/auth/me", timeout=PATIENCE).status_code == 200
        auth.refresh()
        assert sandbox.counts.rotations == 2
        # A fresh object has seen no call, and knows no CA but the system's.
        with pytest.raises(RefreshFailed, match="certificate verify failed"):
            pickle.loads(pickle.dumps(auth)).refresh()


def test_the_new_pair_is_not_sent_to_the_other_origin_either(old_file: Path, other_origin: RawServer) -> None:
    """After a rotation on the first hop, the second, to another origin, carries no token of either pair."""

    def api(seen: Seen) -> Answer:
        first = rotating(seen)
        return (
            Answer(302, {"Location": other_origin.url + "/"})
            if first.status == 200 and seen.method == "GET"
            else first
        )

    for client in CLIENTS:
        old_file.write_text(json.dumps(OLD))
        other_origin.seen.clear()
        with RawServer(api) as running:
            client.get(auth_of(client, old_file, running.url), running.url + "/api/x")
        (seen,) = other_origin.seen
        assert not any(str(token) in str(seen) for token in (*OLD.values(), *NEW.values()))
