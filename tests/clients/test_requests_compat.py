"""The contract of `requests_compat`: what requests and urllib3 have behind their public interface.

.ci/run also runs these tests with the oldest supported releases.
"""

from __future__ import annotations

import inspect
import io
import pickle
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import trustme
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.util.ssltransport import SSLTransport

from adh_auth.clients import requests_compat as compat

from ..support.processes import PATIENCE
from ..support.raw_server import Answer, RawServer


def prepared(**options: Any) -> requests.PreparedRequest:
    return requests.Request("POST", "http://127.0.0.1/", **options).prepare()


def test_cookie_jar() -> None:
    """A prepared request remembers the jar that its header was made from."""
    jar = compat.cookie_jar(prepared(cookies={"a": "1"}))
    assert jar is not None
    assert [cookie.name for cookie in jar] == ["a"]
    assert compat.cookie_jar(requests.PreparedRequest()) is None


def test_body_start() -> None:
    """A prepared request remembers its file's position; None for other bodies, and if `tell` has failed."""

    class Mute(io.BytesIO):
        def tell(self) -> int:
            raise OSError

    file = io.BytesIO(b"skipped, sent")
    file.seek(7)
    request = prepared(data=file)
    file.read()
    assert compat.body_start(request) == 7
    requests.utils.rewind_body(request)
    assert file.tell() == 7
    assert compat.body_start(prepared(data=b"bytes")) is None
    assert compat.body_start(prepared(data=Mute(b"x"))) is None


@pytest.fixture
def server() -> Iterator[RawServer]:
    with RawServer(lambda _: Answer(body=b"all of it", headers={"Set-Cookie": "a=1"})) as running:
        yield running


def test_loaded_and_kept_content(server: RawServer) -> None:
    """A response that is streamed has not been read; what is kept is what it is read as, in every way."""
    with requests.get(server.url, stream=True) as answer:
        assert compat.loaded_content(answer) is None
        compat.keep_content(answer, b"kept")
        # Before `content`, which would mark it as consumed by itself.
        assert b"".join(answer.iter_content(2)) == b"kept"
        assert compat.loaded_content(answer) == answer.content == b"kept"
    assert compat.loaded_content(requests.get(server.url)) == b"all of it"


def test_read_piece_of_a_file_like_body() -> None:
    """A mock's body that knows no `read1` is read all the same."""

    class Plain:
        closed = False

        def read(self, size: int = -1) -> bytes:
            return b"piece"[:size]

        def close(self) -> None:
            self.closed = True

    raw = urllib3.HTTPResponse(body=Plain(), preload_content=False)  # type: ignore[arg-type]
    assert compat.read_piece(raw, 3) == b"pie"
    assert (
        compat.read_piece(urllib3.HTTPResponse(body=io.BytesIO(b"piece"), preload_content=False), 3) == b"pie"
    )


def test_replace_body(server: RawServer) -> None:
    """The response reads the other body; its status, its headers and its cookies are as they were."""
    with requests.get(server.url, stream=True) as answer:
        compat.replace_body(answer, io.BytesIO(b"the other"))
        jar = requests.cookies.RequestsCookieJar()
        compat.extract_cookies(jar, answer)
        assert jar["a"] == "1"
        assert (answer.raw.status, answer.raw.headers["Set-Cookie"]) == (200, "a=1")
        assert answer.content == b"the other"


def test_extract_cookies(server: RawServer) -> None:
    """The cookies that a response sets are found behind it; a mock's response sets none."""
    jar = requests.cookies.RequestsCookieJar()
    compat.extract_cookies(jar, requests.get(server.url))
    assert jar.get_dict() == {"a": "1"}
    mocked = requests.Response()
    mocked.request, mocked.raw = prepared(), io.BytesIO()
    compat.extract_cookies(jar, mocked)
    assert jar.get_dict() == {"a": "1"}


def test_urllib3_response(server: RawServer) -> None:
    """A response from the network has one, streamed or not; one with another object in its place has none."""
    with requests.get(server.url, stream=True) as answer:
        assert compat.urllib3_response(answer) is answer.raw
    mocked = requests.Response()
    assert compat.urllib3_response(mocked) is None
    mocked.raw = io.BytesIO(b"in memory")
    assert compat.urllib3_response(mocked) is None


@pytest.mark.parametrize(("size", "connections"), [(5, 1), (500_000, 2)], ids=["whole", "cut"])
def test_close_connection(size: int, connections: int) -> None:
    """With content that is kept, a connection is used again only if the body was read to its end."""
    used = set()
    with RawServer(lambda _: Answer(body=b"x" * size)) as server, requests.Session() as session:
        for _ in range(2):
            with session.get(server.url, stream=True) as answer:
                used.add(compat.socket_behind(answer.raw).getsockname())  # type: ignore[union-attr]
                while size == 5 and compat.read_piece(answer.raw, 1000):
                    """Read it to its end."""
                compat.keep_content(answer, b"")
                compat.close_connection(answer)
    assert len(used) == connections


def test_adapter_of_and_mock_adapter(server: RawServer) -> None:
    """A response knows the adapter that sent its request; one that is not of requests' kind is a mock."""

    class Mock(requests.adapters.BaseAdapter):
        def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
            made = requests.Response()
            made.status_code, made.request, made.raw = 200, request, io.BytesIO()
            vars(made)["connection"] = self
            return made

        def close(self) -> None:
            """Nothing to close."""

    with requests.Session() as session:
        session.mount("mock:", mock := Mock())
        real = session.get(server.url)
        assert compat.adapter_of(real) is session.get_adapter(server.url)
        assert compat.mock_adapter(real) is None
        mocked = session.get("mock://x/")
        assert compat.adapter_of(mocked) is compat.mock_adapter(mocked) is mock
    assert compat.adapter_of(requests.Response()) is None


def test_sessions_are_mocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """requests_mock puts its own `send` on the class, which lies in a module of that package."""
    assert not compat.sessions_are_mocked()

    def send(*_: Any) -> None:
        """What `requests_mock.Mocker` puts there."""

    send.__module__ = "requests_mock.mocker"
    monkeypatch.setattr(requests.Session, "send", send)
    assert compat.sessions_are_mocked()


def test_rewind() -> None:
    """A file goes back to where the request began; for a closed one and for bytes the answer is no."""
    file = io.BytesIO(b"skipped, sent")
    file.seek(7)
    request = prepared(data=file)
    file.read()
    assert compat.rewind(request)
    assert file.tell() == 7
    file.close()
    assert not compat.rewind(request)
    assert not compat.rewind(prepared(data=b"bytes"))


def test_the_mark_of_a_changed_token() -> None:
    """It is on that very object, and not on the copies that requests makes of it."""
    request = prepared()
    assert not compat.token_was_changed(request)
    compat.mark_token_changed(request)
    assert compat.token_was_changed(request)
    assert not compat.token_was_changed(request.copy())


def raising(*_: Any, **__: Any) -> None:
    raise KeyError


@pytest.mark.parametrize("registered", [raising, [raising]], ids=["one", "several"])
def test_guard_hooks(server: RawServer, registered: Any) -> None:
    """A session registers its hooks after the auth was called; they run, and their errors are dropped."""
    ran: list[str] = []

    def guarded(request: requests.PreparedRequest) -> requests.PreparedRequest:
        compat.guard_hooks(request)
        return request

    with requests.Session() as session:
        session.hooks["response"] = registered
        with pytest.raises(KeyError):
            session.get(server.url)
        assert session.get(server.url, auth=guarded).status_code == 200
        session.hooks["response"] = lambda *_, **__: ran.append("hook")
        session.get(server.url, auth=guarded)
    assert ran == ["hook"]


def test_pickled_hook(server: RawServer) -> None:
    """A pickled response, its request and its hooks are readable with requests alone, and call nothing."""
    with requests.Session() as session:
        session.hooks["response"] = PickledAsNothing()
        pickled = pickle.dumps(session.get(server.url))
    assert b"adh_auth" not in pickled
    answer = pickle.loads(pickled)
    called: Any = requests.hooks.dispatch_hook
    assert called("response", answer.request.hooks, answer) is answer


class PickledAsNothing:
    def __call__(self, response: requests.Response, **_: Any) -> requests.Response:
        return response

    def __reduce__(self) -> tuple[Any, ...]:
        return compat.pickled_hook()


def test_plain_socket() -> None:
    """A connection has its socket as `sock`, and TLS inside a proxy's TLS has one as `socket`."""
    here, there = socket.socketpair()
    with here, there:
        connection = urllib3.connection.HTTPConnection("127.0.0.1")
        assert compat.plain_socket(connection) is None
        connection.sock = here
        assert compat.plain_socket(connection) is here
        connection.sock = SSLTransport.__new__(SSLTransport)
        connection.sock.socket = here
        assert compat.plain_socket(connection) is here
    assert "socket" in inspect.signature(SSLTransport).parameters


FRAMINGS = {
    "length": b"Content-Length: 100\r\n\r\npiece",
    "chunked": b"Transfer-Encoding: chunked\r\n\r\n5\r\npiece\r\n",
    "closed": b"Connection: close\r\n\r\npiece",
}


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("tls", [False, True])
def test_a_read_gives_what_has_arrived_and_ends_in_time(framing: str, tls: bool) -> None:
    """`read_piece` does not wait for as much as was asked for, and the next one waits no longer than it is
    let, on every connection.
    """

    def write(wire: Any, closing: threading.Event) -> None:
        wire.write(b"HTTP/1.1 200 OK\r\n" + FRAMINGS[framing])
        wire.flush()
        closing.wait(PATIENCE)

    with contexts(tls) as (context, options), RawServer(lambda _: Answer(stream=write), context) as stalling:
        with requests.get(stalling.url, stream=True, **options) as answer:
            with compat.limit_read_time(answer.raw, None):
                assert compat.read_piece(answer.raw, 1000) == b"piece"
            with pytest.raises(HTTPError), compat.limit_read_time(answer.raw, 0.2):
                compat.read_piece(answer.raw, 1000)


class contexts:  # noqa: N801 - a context manager that reads as a function
    """A server's TLS context and what makes requests trust it, or neither."""

    def __init__(self, tls: bool) -> None:
        self._authority = trustme.CA() if tls else None

    def __enter__(self) -> tuple[ssl.SSLContext | None, dict[str, Any]]:
        if self._authority is None:
            return None, {}
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert("127.0.0.1").configure_cert(context)
        self._file = self._authority.cert_pem.tempfile()
        return context, {"verify": self._file.__enter__()}

    def __exit__(self, *error: Any) -> None:
        if self._authority is not None:
            self._file.__exit__(*error)


def test_the_callers_timeout_is_put_back(server: RawServer) -> None:
    """The time-out of the socket is the caller's again, and it is never made longer than that."""
    with requests.get(server.url, stream=True, timeout=7) as answer:
        found = compat.socket_behind(answer.raw)
        assert isinstance(found, socket.socket)
        with compat.limit_read_time(answer.raw, 3):
            assert found.gettimeout() == 3
        assert found.gettimeout() == 7
        with compat.limit_read_time(answer.raw, 9):
            assert found.gettimeout() == 7
    assert compat.socket_behind(urllib3.HTTPResponse(body=io.BytesIO(), preload_content=False)) is None


def test_watch_connections(server: RawServer) -> None:
    """Each new connection of a pool is shown before it is used, with its socket to come, and each request
    before it is sent.
    """
    seen: list[Any] = []

    class Adapter(HTTPAdapter):
        def get_connection_with_tls_context(self, *arguments: Any, **named: Any) -> Any:
            pool: Any = super().get_connection_with_tls_context(*arguments, **named)
            compat.watch_connections(
                pool, lambda made: seen.append(made.sock), lambda: seen.append(len(server.seen))
            )
            assert issubclass(pool.ConnectionCls, urllib3.connection.HTTPConnection)
            return pool

    adapter = Adapter()
    adapter.send(requests.Request("GET", server.url).prepare())
    adapter.close()
    assert seen == [None, 0]
    assert len(server.seen) == 1
