"""What is read behind the public interface of httpx and httpx2 is still there: the contract of
`adh_auth.clients.httpx_compat`.
"""

from __future__ import annotations

import io
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import suppress
from typing import Any

import pytest

from adh_auth.clients import httpx_compat
from adh_auth.testing import Sandbox

from ..support.clients import Family
from ..support.processes import PATIENCE, ROOT
from ..support.raw_server import RawServer

URL = "https://api.example/x"


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://API.example:8443/x", ("https", "api.example", 8443)),
        ("https://api.example:443/x", ("https", "api.example", None)),
        ("http://[::1]:8000/x", ("http", "::1", 8000)),
    ],
)
def test_the_origin_of_a_url(family: Family, url: str, origin: tuple[str, str, int | None]) -> None:
    """It is that of the URL's properties, read without a call for each."""
    made = family.module.URL(url)
    scheme, host, port = origin
    assert (made.scheme, made.host, made.port) == origin
    assert made._uri_reference is not made
    assert httpx_compat.has_origin(made, scheme, host, port)
    for other in (("ftp", host, port), (scheme, "other.example", port), (scheme, host, 1)):
        assert not httpx_compat.has_origin(made, *other)


def test_whether_a_request_holds_its_body(family: Family) -> None:
    """Bytes are in memory, a generator is not."""
    assert httpx_compat.has_content(family.module.Request("POST", URL, content=b"x"))
    assert not httpx_compat.has_content(family.module.Request("POST", URL, content=iter([b"x"])))


def test_whether_a_response_is_loaded(family: Family) -> None:
    """Only what has been read to its end is; a response that is marked has an empty body, and is read without
    an error.
    """
    response = family.module.Response(200, content=iter([b"x"]), request=family.module.Request("GET", URL))
    assert httpx_compat.loaded_content(response) is None
    list(response.iter_raw())
    assert httpx_compat.loaded_content(response) is None
    httpx_compat.mark_as_read(response)
    assert (response.read(), httpx_compat.loaded_content(response)) == (b"", b"")


async def pieces() -> Any:
    yield b"x"


def test_what_a_stream_reads_from(family: Family) -> None:
    """The client's own streams show their source; another's shows nothing."""
    for source in (iter([b"x"]), pieces(), [b"x"]):
        assert httpx_compat.source_of(family.module.Request("POST", URL, content=source).stream) is source
    assert httpx_compat.source_of(family.module.ByteStream(b"x")) == b"x"
    assert (
        httpx_compat.source_of(type("Own", (family.module.ByteStream,), {"__module__": "own"})(b"x")) is None
    )


def test_the_files_of_a_multipart_body(family: Family) -> None:
    """Each open file of a form is found in its stream; fields, bytes and bodies of another kind are none."""
    file = io.BytesIO(b"x")
    form = family.module.Request("POST", URL, files={"f": file, "g": b"x"}, data={"k": "v"})
    assert httpx_compat.multipart_files(form.stream) == [file]
    assert httpx_compat.multipart_files(family.module.Request("POST", URL, content=b"x").stream) is None


def test_a_multipart_file_is_sent_from_its_start(family: Family) -> None:
    """The client itself goes back to the beginning of each file."""
    file = io.BytesIO(b"whole")
    file.seek(3)
    stream = family.module.Request("POST", URL, files={"f": file}).stream
    assert b"whole" in b"".join(stream)
    assert b"whole" in b"".join(stream)


def test_the_time_that_a_response_took(family: Family) -> None:
    """A stream in the place of the client's own must show what `Response.elapsed` reads from it."""
    transport = family.module.MockTransport(lambda _: family.module.Response(200, content=iter([b"x"])))
    with family.module.Client(transport=transport) as client, client.stream("GET", URL) as response:
        response.read()
        kept = httpx_compat.stream_elapsed(response.stream)
        # What the client has set on the response itself: httpx, and httpx2 in its first releases.
        on_itself = getattr(response, "_elapsed", None)
    assert (kept is None) != (on_itself is None)
    assert response.elapsed == (kept or on_itself)


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [
        (2, 2.0),
        (5.0, None),
        (None, None),
        ((5.0, 6.0, 5.0, 5.0), 6.0),
        ((1.0, None, 1.0, 1.0), None),
        (0.0, 0.0),
    ],
)
def test_the_callers_time_out(family: Family, timeout: Any, seconds: float | None) -> None:
    """It is the read time-out, unless all four are the client's own default; no limit is none."""
    with family.module.Client() as client:
        request = client.build_request("GET", URL, timeout=timeout)
        assert httpx_compat.callers_timeout(request) == seconds
        assert client.timeout == family.module.Timeout(httpx_compat.CLIENTS_OWN_TIMEOUT)
    assert httpx_compat.callers_timeout(family.module.Request("GET", URL)) is None


@pytest.mark.parametrize("before", [None, 60.0, 0.1])
def test_a_read_time_out_for_a_while(family: Family, before: float | None) -> None:
    """It is never longer than the caller's, and the caller's own comes back."""
    request = family.module.Request("GET", URL, extensions={"timeout": {"read": before, "pool": 9.0}})
    response = family.module.Response(401, request=request)
    with httpx_compat.read_timeout(response, 1.0):
        assert request.extensions["timeout"] == {"read": 0.1 if before == 0.1 else 1.0, "pool": 9.0}
    assert request.extensions["timeout"] == {"read": before, "pool": 9.0}


@pytest.mark.anyio
async def test_the_response_behind_what_a_hook_has_raised(family: Family) -> None:
    """It is found when the client closes the flow, sync and async, on every Python."""
    found: list[Any] = []
    client_module = family.module

    class Flow(client_module.Auth):  # type: ignore[misc, name-defined]
        def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:
            with suppress(GeneratorExit):
                yield request
            found.append(httpx_compat.response_behind(sys.exc_info()[1], client_module))

        async def async_auth_flow(self, request: Any) -> Any:
            with suppress(GeneratorExit):
                yield request
            found.append(httpx_compat.response_behind(sys.exc_info()[1], client_module))

    def hook(_: Any) -> None:
        raise KeyError from None

    async def async_hook(_: Any) -> None:
        raise KeyError from None

    transport = client_module.MockTransport(lambda _: client_module.Response(401))
    for where, expected in (("response", 401), ("request", None)):
        with client_module.Client(auth=Flow(), transport=transport, event_hooks={where: [hook]}) as client:
            with pytest.raises(KeyError):
                client.get(URL)
        async with client_module.AsyncClient(
            auth=Flow(), transport=transport, event_hooks={where: [async_hook]}
        ) as tasks:
            with pytest.raises(KeyError):
                await tasks.get(URL)
        assert [getattr(response, "status_code", None) for response in found[-2:]] == [expected] * 2


def test_a_client_without_its_response_hooks(family: Family) -> None:
    """The caller's client keeps its hooks, and the copy its connections."""

    def hook(_: Any) -> None:
        raise AssertionError

    with family.module.Client(event_hooks={"request": [hook], "response": [hook]}) as client:
        quiet = httpx_compat.without_response_hooks(client, request_hooks=True)
        assert quiet.event_hooks == {"request": [hook], "response": []}
        assert httpx_compat.without_response_hooks(client, request_hooks=False).event_hooks == {
            "request": [],
            "response": [],
        }
        assert client.event_hooks == {"request": [hook], "response": [hook]}
        assert quiet._transport is client._transport
    with family.module.Client() as plain:
        assert httpx_compat.without_response_hooks(plain, request_hooks=False) is plain


@pytest.mark.anyio
async def test_whether_a_client_has_connections(sandbox: Sandbox, family: Family) -> None:
    """It has one after a call, and none before, nor on a transport without a pool."""
    async with family.module.AsyncClient(timeout=PATIENCE) as client:
        assert not httpx_compat.has_connections(client, sandbox.url)
        await client.get(sandbox.url + "/api/x")
        assert httpx_compat.has_connections(client, sandbox.url)
    mock = family.module.MockTransport(lambda _: family.module.Response(200))
    async with family.module.AsyncClient(transport=mock) as mocked:
        await mocked.get(URL)
        assert not httpx_compat.has_connections(mocked, URL)


def test_what_becomes_of_a_connection(sandbox: Sandbox, family: Family) -> None:
    """A new connection is reported before it is opened, its socket then, the request before it is sent."""
    seen: list[Any] = []
    trace = httpx_compat.on_connections(seen.append, lambda find: seen.append(find()))
    with family.module.Client(timeout=PATIENCE) as client:
        client.get(sandbox.url + "/api/x", extensions={"trace": trace})
        first, seen[:] = list(seen), []
        client.get(sandbox.url + "/api/x", extensions={"trace": trace})
    assert (first[0], first[-1]) == (False, True)
    assert all(isinstance(item, socket.socket) for item in first[1:-1])
    assert len(first) >= 3
    assert seen == [True]


def test_a_proxys_connect_is_not_the_request(family: Family) -> None:
    """Nothing of the call has left while a tunnel is asked for."""
    seen: list[bool] = []
    trace = httpx_compat.on_connections(seen.append, lambda find: None)
    with RawServer() as proxy:  # it answers CONNECT with 501
        with family.module.Client(proxy=proxy.url, timeout=PATIENCE, trust_env=False) as client:
            with pytest.raises(family.module.ProxyError):
                client.get("https://api.example/x", extensions={"trace": trace})
    assert seen
    assert not any(seen)


def test_nothing_is_left_to_import_for_a_client_of_our_own(family: Family) -> None:
    """After `load_transport`, building a client and connecting with it imports no module."""
    name = family.module.__name__
    code = f"""
import sys, {name} as client
import encodings.idna
from adh_auth.clients.httpx_compat import load_transport
load_transport(client)
before = set(sys.modules)
with client.Client(verify=False) as made:
    try:
        made.get("http://127.0.0.1:9")
    except client.ConnectError:
        pass
print(sorted(set(sys.modules) - before))
"""
    assert _printed_by(code) == "[]"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_nothing_is_left_to_import_for_a_task_that_waits(backend: str) -> None:
    """After `load_waiting`, waiting for an event with a bound and for a thread imports no module."""
    code = f"""
import sys
from adh_auth.clients.httpx_compat import load_waiting
import anyio

async def main():
    load_waiting()
    before = set(sys.modules)
    event = anyio.Event()
    with anyio.move_on_after(0.001):
        await event.wait()
    await anyio.to_thread.run_sync(event.set)
    print(sorted(set(sys.modules) - before))

anyio.run(main, backend={backend!r})
"""
    assert _printed_by(code) == "[]"


def test_every_part_is_there(family: Family) -> None:
    """The installed client has all the names of its public interface that the flow uses."""
    httpx_compat.require_parts(family.module, ">=0", "this test")


def _printed_by(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.strip()
