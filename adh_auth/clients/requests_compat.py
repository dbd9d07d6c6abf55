"""All that adh-auth reads or sets behind the public interface of requests and urllib3: one function for each,
with its reason.

`tests/test_requests_compat.py` holds each against the installed releases.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.cookiejar import CookieJar
from typing import Any

from requests.models import PreparedRequest, Response
from urllib3.response import HTTPResponse

__all__ = [
    "body_start",
    "cookie_jar",
    "keep",
    "loaded",
    "on_connections",
    "read_piece",
    "reads_end_within",
    "with_body",
]


def cookie_jar(request: PreparedRequest) -> CookieJar | None:
    """The jar that its ``Cookie`` header was made from; requests' own digest auth reads it, too."""
    jar: CookieJar | None = vars(request).get("_cookies")
    return jar


def body_start(request: PreparedRequest) -> int | None:
    """Where its body stood when it was prepared: requests records that for its own redirects, and
    `rewind_body` goes back there.
    """
    position = vars(request).get("_body_position")
    return (
        position if isinstance(position, int) else None
    )  # requests puts an `object()` where `tell` has failed


def loaded(response: Response) -> bytes | None:
    """The body as far as requests has read it; None before. `response.content` would read it."""
    content = vars(response).get("_content", False)
    return content if isinstance(content, bytes) else None


def keep(response: Response, content: bytes) -> None:
    """Let `content` be what it is read as from now on: its connection is needed, and the rest of its body is
    not.
    """
    vars(response).update(_content=content, _content_consumed=True)


def read_piece(raw: HTTPResponse, size: int) -> bytes:
    """What has arrived, at most `size` bytes as they came.

    Mocks put bodies in that know no `read1`; they are in memory.
    """
    at_once = hasattr(getattr(raw, "_fp", None), "read1")
    return (raw.read1 if at_once else raw.read)(size, decode_content=False)


@contextmanager
def reads_end_within(raw: HTTPResponse, seconds: float | None) -> Iterator[None]:
    """Reads of `raw` time out after so many seconds, or after those of the caller if they are fewer."""
    found = None if seconds is None else _socket_behind(raw)
    if found is None or seconds is None:
        yield
        return
    before = found.gettimeout()
    found.settimeout(seconds if before is None else min(seconds, before))
    try:
        yield
    finally:
        # Read to its end, the connection is back in the pool and may be another thread's, which has set its
        # own time-out.
        if not raw.isclosed():
            with suppress(OSError):
                found.settimeout(before)


def _socket_behind(raw: HTTPResponse) -> socket.socket | None:
    # `raw.connection.sock` is None already where the server closes the connection after this response.
    reader = getattr(getattr(getattr(raw, "_fp", None), "fp", None), "raw", None)
    found = getattr(reader, "_sock", None)
    return found if isinstance(found, socket.socket) else None


def with_body(raw: HTTPResponse, body: Any, method: str | None) -> HTTPResponse:
    """The same response with another body. `original_response` is where requests finds its cookies."""
    return HTTPResponse(
        body=body,
        headers=raw.headers,
        status=raw.status,
        reason=raw.reason,
        version=raw.version,
        preload_content=False,
        original_response=getattr(raw, "_original_response", None),
        request_method=method,
    )


def on_connections(pool: Any, made: Callable[[Any], None], sending: Callable[[], None]) -> None:
    """Call `made` with each new connection of a pool, and `sending` before each request on one."""
    kind: Any = pool.ConnectionCls

    class Watched(kind):  # type: ignore[misc]  # a class: vcrpy asks whether a connection is an instance of it
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            made(self)

        def request(self, *arguments: Any, **named: Any) -> Any:
            sending()
            return super().request(*arguments, **named)

    pool.ConnectionCls = Watched
