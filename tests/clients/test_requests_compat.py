"""What requests and urllib3 show behind their public interface: `requests_compat` against the installed
releases.
"""

from __future__ import annotations

import io
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
    """A prepared request remembers where its file stood; not of what has no place, or could not say it."""

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


def test_loaded_and_keep(server: RawServer) -> None:
    """A response that is streamed has not been read; what is kept is what it is read as, in every way."""
    with requests.get(server.url, stream=True) as answer:
        assert compat.loaded(answer) is None
        compat.keep(answer, b"kept")
        assert compat.loaded(answer) == answer.content == b"".join(answer.iter_content(2)) == b"kept"
    assert compat.loaded(requests.get(server.url)) == b"all of it"


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


def test_with_body_keeps_the_cookies(server: RawServer) -> None:
    """requests reads the cookies of a response from urllib3's own, which goes along."""
    with requests.get(server.url, stream=True) as answer:
        raw = compat.with_body(answer.raw, io.BytesIO(b"other"), "GET")
        jar = requests.cookies.RequestsCookieJar()
        requests.cookies.extract_cookies_to_jar(jar, answer.request, raw)  # type: ignore[no-untyped-call]
        assert jar["a"] == "1"
        assert (raw.status, raw.headers["Set-Cookie"]) == (200, "a=1")


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
            with compat.reads_end_within(answer.raw, None):
                assert compat.read_piece(answer.raw, 1000) == b"piece"
            with pytest.raises(HTTPError), compat.reads_end_within(answer.raw, 0.2):
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
        found = compat._socket_behind(answer.raw)
        assert isinstance(found, socket.socket)
        with compat.reads_end_within(answer.raw, 3):
            assert found.gettimeout() == 3
        assert found.gettimeout() == 7
        with compat.reads_end_within(answer.raw, 9):
            assert found.gettimeout() == 7
    assert compat._socket_behind(urllib3.HTTPResponse(body=io.BytesIO(), preload_content=False)) is None


def test_on_connections(server: RawServer) -> None:
    """Each new connection of a pool is shown before it is used, with its socket to come, and each request
    before it is sent.
    """
    seen: list[Any] = []

    class Adapter(HTTPAdapter):
        def get_connection_with_tls_context(self, *arguments: Any, **named: Any) -> Any:
            pool = super().get_connection_with_tls_context(*arguments, **named)
            compat.on_connections(
                pool, lambda made: seen.append(made.sock), lambda: seen.append(len(server.seen))
            )
            return pool

    adapter = Adapter()
    adapter.send(requests.Request("GET", server.url).prepare())
    adapter.close()
    assert seen == [None, 0]
    assert len(server.seen) == 1
