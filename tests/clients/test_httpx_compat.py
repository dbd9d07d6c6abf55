"""What is read behind the public interface of httpx and httpx2 is still there: the contract of
`adh_auth.clients.httpx_compat`.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import suppress
from typing import Any

import pytest

from adh_auth.clients import httpx_compat

from ..support.clients import Family

URL = "https://api.example/x"


def test_the_parts_of_a_url(family: Family) -> None:
    """They are those of its properties, without a call for each."""
    url = family.module.URL("https://API.example:8443/x")
    parts = httpx_compat.url_parts(url)
    assert parts is not url
    assert (parts.scheme, parts.host, parts.port) == (url.scheme, url.host, url.port)


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


def test_the_fields_of_a_multipart_body(family: Family) -> None:
    """Each file of a form is found in its stream."""
    stream = family.module.Request("POST", URL, files={"f": b"x"}, data={"k": "v"}).stream
    assert [getattr(field, "file", None) for field in stream.fields] == [None, b"x"]


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
