"""All that adh-auth reads or sets behind the public interface of requests and urllib3, one function for each.

Checked with requests 2.32.2 to 2.34 and urllib3 2.2.3 to 2.8; a function that needs other versions says so.
The contract is `tests/clients/test_requests_compat.py`, which also runs with the oldest of them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.cookiejar import CookieJar
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.cookies import extract_cookies_to_jar
from requests.hooks import dispatch_hook
from requests.models import PreparedRequest, Response
from requests.utils import rewind_body
from urllib3.response import HTTPResponse

__all__ = [
    "adapter_of",
    "body_start",
    "close_connection",
    "cookie_jar",
    "extract_cookies",
    "guard_hooks",
    "keep_content",
    "limit_read_time",
    "loaded_content",
    "mark_token_changed",
    "mock_adapter",
    "pickled_hook",
    "plain_socket",
    "read_piece",
    "replace_body",
    "rewind",
    "sessions_are_mocked",
    "socket_behind",
    "token_was_changed",
    "urllib3_response",
    "watch_connections",
]


# The request.


def cookie_jar(request: PreparedRequest) -> CookieJar | None:
    """Return the jar that its ``Cookie`` header was made from, None before it was prepared.

    `_cookies`: requests' own digest auth reads it to send a request again.
    """
    jar: CookieJar | None = vars(request).get("_cookies")
    return jar


def body_start(request: PreparedRequest) -> int | None:
    """Return the position of its body's file when it was prepared; None for a body without one.

    `_body_position`: requests records it for its redirects, as an `object()` where `tell` has raised.
    """
    position = vars(request).get("_body_position")
    return position if isinstance(position, int) else None


def rewind(request: PreparedRequest) -> bool:
    """Seek its body's file back to `body_start`. Return whether that worked.

    `rewind_body` is what requests' redirects use; it raises `ValueError` for a file closed by the caller.
    """
    try:
        rewind_body(request)
    except (requests.exceptions.UnrewindableBodyError, ValueError):
        return False
    return True


def mark_token_changed(request: PreparedRequest) -> None:
    """Note that its ``Authorization`` header was replaced after it was sent.

    requests builds a redirect from the request that it holds, so the new header has to go on that object.
    """
    vars(request)["_adh_auth_token_changed"] = True


def token_was_changed(request: PreparedRequest) -> bool:
    """Return whether `mark_token_changed` was called for it. Copies of the request start without the mark."""
    return "_adh_auth_token_changed" in vars(request)


def guard_hooks(request: PreparedRequest) -> None:
    """Let no response hook of its session raise: the reply would be dropped after the token was spent.

    `Session.prepare_request` registers the session's hooks after it called the auth, by `append` or `extend`
    on the list that the request has then.
    """
    request.hooks = {"response": _GuardedHooks()}


class _GuardedHooks(list[Any]):
    """Hooks that are called as usual, and whose errors are dropped."""

    def append(self, hook: Any) -> None:
        """Register a hook."""
        super().append(_guarded(hook))

    def extend(self, hooks: Iterable[Any]) -> None:
        """Register several hooks."""
        super().extend(_guarded(hook) for hook in hooks)


def _guarded(hook: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        with suppress(Exception, SystemExit):
            return hook(*arguments, **named)

    return call


def pickled_hook() -> tuple[Any, ...]:
    """Return what a hook of ours pickles as (for `__reduce__`): a function of requests that calls no hook.

    requests pickles a response with its request and that one's hooks. A hook of this library would make the
    pickle unreadable without it, and would hold its settings.
    """
    return partial, (dispatch_hook, "response", None)


# The response.


def adapter_of(response: Response) -> Any:
    """Return the adapter that sent the request, None where none says so.

    `connection`: set by `HTTPAdapter` and by most mocks; requests' digest auth sends again through it.
    """
    return getattr(response, "connection", None)


def mock_adapter(response: Response) -> Any:
    """Return the adapter that sent the request if it is none of requests' own, such as a mock, else None."""
    adapter = adapter_of(response)
    return None if isinstance(adapter, HTTPAdapter) else adapter


def sessions_are_mocked() -> bool:
    """Return whether requests_mock (1.x) answers for every Session.

    Its `Mocker` puts a `send` on the Session class that holds one lock while it runs. A worker thread that
    sends through a Session waits there for the caller, who waits for the worker.
    """
    return requests.Session.send.__module__.partition(".")[0] == "requests_mock"


def urllib3_response(response: Response) -> HTTPResponse | None:
    """Return urllib3's response, None for the body of a mock or of an application in this process.

    `raw`: vcrpy and adapters for WSGI or ASGI put other objects there; their body is in memory.
    """
    return response.raw if isinstance(response.raw, HTTPResponse) else None


def loaded_content(response: Response) -> bytes | None:
    """Return the body if requests has read it, else None.

    `_content`: the property `content` would read it, and `False` stands there before.
    """
    content = vars(response).get("_content", False)
    return content if isinstance(content, bytes) else None


def keep_content(response: Response, content: bytes) -> None:
    """Make `content` the body that every way of reading returns; nothing more is read from the connection.

    `_content_consumed`: without it, `iter_content` would read the connection, which was given back.
    """
    vars(response).update(_content=content, _content_consumed=True)


def replace_body(response: Response, body: Any) -> None:
    """Let urllib3's response read from the file-like `body`, with status, headers and cookies as they were.

    `_original_response` is where requests finds the cookies of a response.
    """
    raw = response.raw
    response.raw = HTTPResponse(
        body=body,
        headers=raw.headers,
        status=raw.status,
        reason=raw.reason,
        version=raw.version,
        preload_content=False,
        original_response=getattr(raw, "_original_response", None),
        request_method=response.request.method,
    )


def close_connection(response: Response) -> None:
    """Close the connection unless the body was read to its end; then it is back in the pool.

    `Response.close` alone does not close a connection whose content was set by `keep_content`.
    """
    response.raw.close()


def extract_cookies(jar: CookieJar, response: Response) -> None:
    """Add the cookies that `response` sets to `jar`, as requests does for each response (from its `raw`)."""
    extract_cookies_to_jar(jar, response.request, response.raw)  # type: ignore[no-untyped-call]


# urllib3's response, and connections.


def read_piece(raw: HTTPResponse, size: int) -> bytes:
    """Return what has arrived of a body, at most `size` bytes, undecoded; empty at its end.

    `_fp`: `read1` fails on the bodies that mocks put there without a `read1`; these are in memory.
    """
    at_once = hasattr(getattr(raw, "_fp", None), "read1")
    return (raw.read1 if at_once else raw.read)(size, decode_content=False)


@contextmanager
def limit_read_time(raw: HTTPResponse, seconds: float | None) -> Iterator[None]:
    """Let reads of `raw` time out after `seconds`, or the caller's own if fewer. None changes nothing.

    urllib3 sets a time-out on the socket before the head and has no way to change it afterwards.
    """
    found = None if seconds is None else socket_behind(raw)
    if found is None or seconds is None:
        yield
        return
    before = found.gettimeout()
    found.settimeout(seconds if before is None else min(seconds, before))
    try:
        yield
    finally:
        # Read to its end, the connection is back in the pool: another thread may have set its own time-out.
        if not raw.isclosed():
            with suppress(OSError):
                found.settimeout(before)


def socket_behind(raw: HTTPResponse) -> socket.socket | None:
    """Return the socket that `raw` is read from, None where there is none.

    `_fp.fp.raw._sock` of http.client: `raw.connection.sock` is None already if the server said that it
    closes the connection after this response.
    """
    reader = getattr(getattr(getattr(raw, "_fp", None), "fp", None), "raw", None)
    found = getattr(reader, "_sock", None)
    return found if isinstance(found, socket.socket) else None


def plain_socket(connection: Any) -> Any:
    """Return the socket of a connection, None before it has one.

    `SSLTransport` (TLS inside a proxy's TLS) and urllib3's pyOpenSSL socket are no sockets, but hold one as
    `socket`.
    """
    found = connection.sock
    return getattr(found, "socket", found)


def watch_connections(pool: Any, made: Callable[[Any], None], sending: Callable[[], None]) -> None:
    """Call `made` with each new connection of a pool, and `sending` before each request on one.

    `ConnectionCls` has to stay a class: vcrpy asks whether a connection is an instance of it. What a mock has
    put there stays the base.
    """
    pool.ConnectionCls = type(
        "WatchedConnection",
        (_WatchedConnection, pool.ConnectionCls),
        {"_when_made": staticmethod(made), "_when_sending": staticmethod(sending)},
    )


class _WatchedConnection:
    """Mixed into the connection class of one pool."""

    _when_made: Callable[[Any], None]
    _when_sending: Callable[[], None]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._when_made(self)

    def request(self, *arguments: Any, **named: Any) -> Any:
        self._when_sending()
        return super().request(*arguments, **named)  # type: ignore[misc]  # of urllib3's class
