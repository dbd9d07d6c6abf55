"""What is read behind the public interface of httpx, httpx2, httpcore and anyio, and which versions will do.

One function for each look, with the reason and the versions it was checked with: httpx 0.27 to 0.28 and
httpx2 2. `tests/clients/test_httpx_compat.py` has a contract test for each. Imports neither client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from types import ModuleType
from typing import Any

from .failure_reason import exception_chain

__all__ = [
    "callers_timeout",
    "has_connections",
    "has_content",
    "has_origin",
    "load_transport",
    "load_waiting",
    "loaded_content",
    "mark_as_read",
    "multipart_files",
    "on_connections",
    "read_timeout",
    "require_parts",
    "response_behind",
    "source_of",
    "stream_elapsed",
    "without_response_hooks",
]

#: Names of the public interface of both clients that the modules httpx_* use.
PARTS = (
    "AsyncByteStream",
    "AsyncClient",
    "Auth",
    "Client",
    "ConnectError",
    "ConnectTimeout",
    "Cookies",
    "HTTPError",
    "HTTPTransport",
    "InvalidURL",
    "PoolTimeout",
    "ProxyError",
    "Response",
    "SyncByteStream",
    "Timeout",
    "UnsupportedProtocol",
)

#: Seconds. What each of a request's four time-outs is where the caller has set none (httpx and httpx2,
#: "Timeout Configuration").
CLIENTS_OWN_TIMEOUT = 5.0


def require_parts(client: ModuleType, versions: str, needed_by: str) -> None:
    """Raise `ImportError` where a client lacks one of `PARTS`, with its version and those that will do."""
    missing = [part for part in PARTS if not hasattr(client, part)]
    if missing:
        name, version = client.__name__, getattr(client, "__version__", "of an unknown version")
        wanted = f'pip install "{name}{versions}"'
        # Python turns an AttributeError here into "cannot import name" of our own package.
        raise ImportError(
            f"{needed_by} needs {name}{versions}, and {name} {version} has no {missing[0]}: {wanted}",
            name=name,
        )


def load_transport(client: ModuleType) -> None:
    """Import what a client of our own imports only when it is built, and when it connects (rule 17).

    Both clients, all versions, import certifi and httpcore or httpcore2 then. A caller's client with another
    transport has not done so. The thread of a rotation would do it too late: by then the program may have
    changed its root, or may be forking.
    """
    with suppress(ImportError):  # httpx2 does without certifi
        import certifi  # noqa: F401
    with suppress(ImportError):  # the refresh itself reports what is missing
        client.HTTPTransport(verify=False).close()


def load_waiting() -> None:
    """Import what a task waits with on this event loop (rule 17).

    anyio 4 imports its backend for the loop when it is first used.
    """
    with suppress(ImportError):
        import anyio
        import anyio.lowlevel
        import anyio.to_thread

        anyio.Event()
        anyio.lowlevel.current_token()
        anyio.CancelScope()


def has_origin(url: Any, scheme: str, host: str, port: int | None) -> bool:
    """Return whether a URL, as the client has normalised it, has this origin.

    `port`: None for the scheme's own. Both clients, all versions, keep the three parts in `_uri_reference`.
    The public properties cost more than all the rest of a request; they do for a URL without that object.
    """
    parts = getattr(url, "_uri_reference", url)
    same: bool = parts.host == host and parts.port == port and parts.scheme == scheme
    return same


def has_content(request: Any) -> bool:
    """Return whether the body of a request is in memory.

    Both clients, all versions: `request.content` raises `RequestNotRead` otherwise.
    """
    return hasattr(request, "_content")


def loaded_content(response: Any) -> bytes | None:
    """Return the decoded body of a response that was read to its end, None before.

    Both clients, all versions: `response.content` raises `ResponseNotRead` before, and no public attribute
    says which it is. `is_closed` is true of both.
    """
    content: bytes | None = vars(response).get("_content")
    return content


def mark_as_read(response: Any) -> None:
    """Give a response whose stream a hook has consumed an empty body.

    Both clients, all versions, read each response before they send the next request of a flow, and raise
    `StreamConsumed` for such a one.
    """
    response._content = b""  # noqa: SLF001


def source_of(stream: Any) -> Any:
    """Return what a stream of the client's own reads a body from; None for any other class of stream.

    Both clients, all versions: `ByteStream`, `IteratorByteStream` and `AsyncIteratorByteStream` keep it as
    `_stream`. What a subclass made elsewhere does with that attribute is unknown.
    """
    return (
        getattr(stream, "_stream", None) if _package(type(stream).__module__) in ("httpx", "httpx2") else None
    )


def multipart_files(stream: Any) -> list[Any] | None:
    """Return the open files of a multipart body, None for a body of another kind.

    Both clients, all versions: `MultipartStream` keeps its parts as `fields`. A part with content has it as
    `file`; a plain field of the form has none.
    """
    fields = getattr(stream, "fields", None)
    if fields is None:
        return None
    contents = [field.file for field in fields if hasattr(field, "file")]
    return [content for content in contents if not isinstance(content, (str, bytes))]


def stream_elapsed(stream: Any) -> Any:
    """Return the time that a response took, None where the client does not keep it in the stream.

    Newer httpx2: `Response.elapsed` reads `elapsed` of the response's stream. httpx and httpx2 2.0.0 set
    it on the response itself.
    """
    return getattr(stream, "elapsed", None)


def callers_timeout(request: Any) -> float | None:
    """Return the seconds that the caller waits for an answer.

    None where the caller has set no limit, or where the client's own default is in force. Both clients, all
    versions, put the four time-outs into the request's "timeout" extension.
    """
    timeouts = request.extensions.get("timeout")
    if not isinstance(timeouts, dict) or all(
        timeouts.get(name) == CLIENTS_OWN_TIMEOUT for name in ("connect", "read", "write", "pool")
    ):
        return None
    read = timeouts.get("read")
    return float(read) if isinstance(read, (int, float)) else None


@contextmanager
def read_timeout(response: Any, seconds: float) -> Iterator[None]:
    """Bound each read of a response's body to `seconds`, or to the caller's read time-out if that is less.

    httpcore and httpcore2, all versions: the transport reads the request's "timeout" extension when the body
    is first read. Without the bound, a body that stalls holds a caller without a time-out for ever.
    """
    timeouts = response.request.extensions.get("timeout")
    if not isinstance(timeouts, dict):
        yield
        return
    before = dict(timeouts)
    read = timeouts.get("read")
    timeouts["read"] = seconds if read is None else min(read, seconds)
    try:
        yield
    finally:
        timeouts.clear()
        timeouts.update(before)


def response_behind(error: BaseException | None, client: Any) -> Any:
    """Return the last response that the client had when `error` was raised below the auth flow, or None.

    Both clients, all versions, run a response hook below the flow. What it raises may not name the response.
    But it has passed the client's function that called the hook, whose local `response` is in the traceback.
    Where a transport has raised, an error such as `HTTPStatusError` may carry the response. A request hook
    has none in either place.
    """
    if not isinstance(error, Exception):  # a cancelled task, an interrupt
        return None
    found, in_transport = None, False
    for frame in _frames(error):
        if _package(frame.f_globals.get("__name__", "")) == client.__name__:
            response = frame.f_locals.get("response")
            found = response if isinstance(response, client.Response) else found
            in_transport = in_transport or frame.f_code.co_name == "_send_single_request"
    if in_transport:
        carried = (getattr(item, "response", None) for item in exception_chain(error))
        found = next((response for response in carried if isinstance(response, client.Response)), found)
    return found


def without_response_hooks(client: Any, *, request_hooks: bool) -> Any:
    """Return a client with the same connections that runs no response hook.

    A response hook that raises would hide the answer of an auth endpoint. A shallow copy, and `event_hooks`
    set on it: both clients, all versions, keep the hooks in a mapping that the setter replaces.
    """
    import copy

    hooks = client.event_hooks
    if not hooks["response"] and (request_hooks or not hooks["request"]):
        return client
    quiet = copy.copy(client)
    quiet.event_hooks = {"request": hooks["request"] if request_hooks else [], "response": []}
    return quiet


def has_connections(client: Any, url: str) -> bool:
    """Return whether an asynchronous client has connections open where it would send a request for `url`.

    Both clients, all versions: `_transport_for_url` chooses the transport, its `_pool` is httpcore's, whose
    `connections` are public. A connection belongs to the event loop that opened it. On another loop a request
    goes out on it, and the reply is lost.
    """
    transport = client._transport_for_url(client.build_request("POST", url).url)  # noqa: SLF001
    return bool(getattr(getattr(transport, "_pool", None), "connections", None))


def on_connections(
    sent: Callable[[bool], None], opened: Callable[[Callable[[], Any]], None]
) -> Callable[[str, Mapping[str, Any]], None]:
    """Return a "trace" extension that reports what becomes of a request's connections.

    httpcore and httpcore2, all versions, call it with the names of their events. `sent`: called with False
    when a connection is begun and for a proxy's CONNECT, with True before the head of the request itself.
    `opened`: called with a function that returns the socket, and again once TLS was wrapped round it.
    """

    def trace(event: str, info: Mapping[str, Any]) -> None:
        if event.endswith("connect_tcp.started"):
            sent(False)
        elif event.endswith("send_request_headers.started"):
            sent(info["request"].method != b"CONNECT")
        find = getattr(info.get("return_value"), "get_extra_info", None)
        if find is not None:
            opened(partial(find, "socket"))

    return trace


def _frames(error: BaseException) -> Iterator[Any]:
    step = error.__traceback__
    while step is not None:
        yield step.tb_frame
        step = step.tb_next


def _package(module: str) -> str:
    return module.partition(".")[0]
