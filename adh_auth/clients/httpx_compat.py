"""What is read behind the public interface of httpx and httpx2: one function for each, with the reason and
the versions.

Checked with httpx 0.27 to 0.28 and httpx2 2. `tests/test_httpx_compat.py` is the contract.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .failure_reason import exception_chain

__all__ = [
    "callers_timeout",
    "has_connections",
    "has_content",
    "loaded_content",
    "mark_as_read",
    "read_timeout",
    "response_behind",
    "source_of",
    "url_parts",
    "without_response_hooks",
]

#: Seconds. What each of a request's four time-outs is where the caller has set none (httpx and httpx2,
#: "Timeout Configuration").
CLIENTS_OWN_TIMEOUT = 5.0


def url_parts(url: Any) -> Any:
    """Scheme, host and port of a URL as its own properties read them. Both clients, all versions.

    The three properties cost more than all the rest of a request; without the private object they still work.
    """
    return getattr(url, "_uri_reference", url)


def has_content(request: Any) -> bool:
    """Whether the body of a request is in memory.

    Both clients, all versions: `request.content` raises `RequestNotRead` otherwise.
    """
    return hasattr(request, "_content")


def loaded_content(response: Any) -> bytes | None:
    """The decoded body of a response as far as anyone has read it to its end, None before.

    Both clients, all versions.

    `response.content` raises `ResponseNotRead` before, and no attribute says which it is: `is_closed` is true
    of both.
    """
    content: bytes | None = vars(response).get("_content")
    return content


def mark_as_read(response: Any) -> None:
    """Give a response whose stream a hook has consumed an empty body. Both clients, all versions.

    The client reads each response before it sends the next request of a flow, and would raise
    `StreamConsumed` there.
    """
    response._content = b""  # noqa: SLF001


def source_of(stream: Any) -> Any:
    """What a stream of the client's own reads a body from; None for a stream of another make, which may do
    anything with it.

    Both clients, all versions: `ByteStream`, `IteratorByteStream` and `AsyncIteratorByteStream` keep it as
    `_stream`.
    """
    return (
        getattr(stream, "_stream", None) if _package(type(stream).__module__) in ("httpx", "httpx2") else None
    )


def callers_timeout(request: Any) -> float | None:
    """Seconds that the caller waits for an answer; None where it has set no limit, or where the client's own
    default is in force.
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
    """Read on with a read time-out of `seconds` at most: a body that stalls would otherwise hold a caller
    without one for ever.

    httpcore and httpcore2, all versions: the transport reads the request's "timeout" extension when the body
    is first read.
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
    """The last response that the client had when `error` was raised below the auth flow, None where there was
    none.

    Both clients, all versions, run a response hook below the flow. What it raises may say nothing of the
    response, yet it has passed the function of the client that called the hook, whose `response` is in the
    traceback. Where a transport has raised, an error such as `HTTPStatusError` may bring the response. A hook
    of a request has none in either place.
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
        brought = (getattr(item, "response", None) for item in exception_chain(error))
        found = next((response for response in brought if isinstance(response, client.Response)), found)
    return found


def without_response_hooks(client: Any, *, request_hooks: bool) -> Any:
    """The same client, connections included, that runs no response hook: one that raises would hide the
    answer of an auth endpoint.

    A shallow copy, and `event_hooks` set on it: both clients, all versions, keep the hooks in a mapping that
    the setter replaces.
    """
    import copy

    hooks = client.event_hooks
    if not hooks["response"] and (request_hooks or not hooks["request"]):
        return client
    quiet = copy.copy(client)
    quiet.event_hooks = {"request": hooks["request"] if request_hooks else [], "response": []}
    return quiet


def has_connections(client: Any, url: str) -> bool:
    """Whether an asynchronous client has connections open where it would send a request for `url`.

    Both clients, all versions: `_transport_for_url` chooses the transport, its `_pool` is httpcore's, whose
    `connections` are public. A connection belongs to the event loop that opened it: on another one a request
    goes out, and its reply is lost.
    """
    transport = client._transport_for_url(client.build_request("POST", url).url)  # noqa: SLF001
    return bool(getattr(getattr(transport, "_pool", None), "connections", None))


def _frames(error: BaseException) -> Iterator[Any]:
    step = error.__traceback__
    while step is not None:
        yield step.tb_frame
        step = step.tb_next


def _package(module: str) -> str:
    return module.partition(".")[0]
