"""What carries a call to an auth endpoint in requests: a mock, the user's own Session, or an adapter of our
own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.models import PreparedRequest, Response
from requests.utils import get_environ_proxies
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ProxyError, SSLError
from urllib3.response import HTTPResponse

from ..common.limits import REPLY_LIMIT
from ..oauth.content_encoding import decoded
from ..oauth.endpoint import EndpointCall, EndpointReply, Unreachable
from .deadline import Deadline
from .failure_reason import describe_failure, exception_chain
from .requests_compat import loaded, on_connections, read_piece
from .system_proxies import must_not_ask_the_system

__all__ = ["mock_behind", "post", "sessions_are_mocked"]

#: Seconds to connect. Nothing has been sent by then, so that giving up is safe.
CONNECT_TIMEOUT = 5.0


def post(
    call: EndpointCall,
    seconds: float,
    session: requests.Session | None,
    sent_with: Mapping[str, Any],
    mock: Any = None,
) -> EndpointReply:
    """Carry a call to an auth endpoint through `mock`, an adapter, or `session`, or directly with the trust
    of `sent_with`.

    Raises `Unreachable`.
    """
    if session is None and sessions_are_mocked():
        session = requests.Session()
    with Deadline(seconds) as deadline:
        if mock is not None:
            return _answered(partial(_through, mock, call, seconds, sent_with), deadline)
        if session is not None:
            return _answered(partial(_via_session, session, call, seconds), deadline)
        return _answered(partial(_directly, call, seconds, sent_with, deadline), deadline)


def mock_behind(response: Response) -> Any:
    """What the call went through where that is no adapter of requests' own: a mock, or an app in this
    process.
    """
    connection = getattr(response, "connection", None)
    return None if isinstance(connection, HTTPAdapter) else connection


def sessions_are_mocked() -> bool:
    """Whether requests_mock answers for every Session."""
    # requests_mock.Mocker puts a send of its own on every Session and holds one lock while it runs: a worker
    # thread that sends through a Session waits there for the caller, who waits for the worker.
    return requests.Session.send.__module__.partition(".")[0] == "requests_mock"


def _directly(
    call: EndpointCall, seconds: float, sent_with: Mapping[str, Any], deadline: Deadline
) -> Response:
    # No Session: it would bring .netrc, cookies, and whatever patches every Session
    # (requests_cache.install_cache stored the reply).
    adapter = _WatchedAdapter(deadline)
    try:
        return _through(adapter, call, seconds, sent_with)
    finally:
        # Closing a pool leaves connections that are in use alone; the reply is read through its own.
        adapter.close()


def _through(adapter: Any, call: EndpointCall, seconds: float, sent_with: Mapping[str, Any]) -> Response:
    request = requests.Request("POST", call.url, data=call.body(), headers=_HEADERS).prepare()
    response: Response = adapter.send(
        request, stream=True, timeout=(CONNECT_TIMEOUT, seconds), **_tls_options(call.url, sent_with)
    )
    return response


class _WatchedAdapter(HTTPAdapter):
    """Puts each connection under the watch of a deadline before it is used: a reply's head can trickle, too."""

    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def get_connection_with_tls_context(self, *arguments: Any, **named: Any) -> Any:
        pool = super().get_connection_with_tls_context(*arguments, **named)
        self._deadline.sent = False
        on_connections(pool, self._made, self._sending)
        return pool

    def _made(self, connection: Any) -> None:
        self._deadline.watch(lambda: connection.sock)

    def _sending(self) -> None:
        # urllib3 calls a tunnel or a handshake that hangs a ReadTimeout, too; the call leaves only here.
        self._deadline.sent = True


_HEADERS = {
    "Content-Type": "application/json",
    "Accept": "application/json",
    "User-Agent": "adh-auth",
    "Accept-Encoding": "identity",
}


def _tls_options(url: str, sent_with: Mapping[str, Any]) -> dict[str, Any]:
    """`verify`, `cert` and `proxies` as requests merged them for the last call; before the first, what the
    environment says.
    """
    if sent_with:
        return {name: sent_with.get(name) for name in ("verify", "cert", "proxies")}
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
    # A forked child whose Session has `trust_env=False`, or proxies of its own, has not asked the system, and
    # must not for our sake.
    proxies = {} if must_not_ask_the_system() else get_environ_proxies(url)
    return {"verify": bundle, "cert": None, "proxies": proxies}


def _via_session(session: requests.Session, call: EndpointCall, seconds: float) -> Response:
    # An auth that does nothing keeps .netrc, and an AdhAuth that sits on that very session, out of it.
    return session.post(
        call.url,
        data=call.body(),
        headers=_HEADERS,
        auth=_no_auth,
        timeout=(CONNECT_TIMEOUT, seconds),
        allow_redirects=False,
        stream=True,
    )


def _no_auth(request: PreparedRequest) -> PreparedRequest:
    """Sign nothing, and let no hook of the session's break in on the reply: one that raises would drop it
    after the token is spent.

    requests registers the session's hooks right after the auth, on the request that this gives back.
    """
    request.hooks = {"response": _GuardedHooks()}
    return request


class _GuardedHooks(list[Any]):
    """Hooks that are called as ever, and whose errors end there."""

    def append(self, hook: Any) -> None:
        """Register one."""
        super().append(_guarded(hook))

    def extend(self, hooks: Iterable[Any]) -> None:
        """Register several."""
        super().extend(_guarded(hook) for hook in hooks)


def _guarded(hook: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        with suppress(Exception, SystemExit):
            return hook(*arguments, **named)

    return call


def _answered(send: Any, deadline: Deadline) -> EndpointReply:
    """Send and read, bounded.

    What goes wrong is told without the exception: its request holds the refresh token.
    """
    trouble = None
    try:
        response = send()
    except (requests.RequestException, HTTPError, OSError, ValueError) as error:
        trouble = Unreachable(describe_failure(error), sent=deadline.sent and not _never_sent(error))
    if trouble is not None:
        raise trouble
    try:
        body, cut = _body_of(response, deadline)
    finally:
        response.close()
    return EndpointReply(response.status_code, response.headers, body, cut)


def _body_of(response: Response, deadline: Deadline) -> tuple[bytes, bool]:
    raw = response.raw
    troubles = (requests.RequestException, HTTPError, OSError)
    if not isinstance(raw, HTTPResponse) or loaded(response) is not None:  # a mock's
        return deadline.collect(response.iter_content(8192), troubles)
    body, cut = deadline.collect(iter(partial(read_piece, raw, 8192), b""), troubles)
    # As it came, and then decoded with a bound: what a client decodes by itself can be a thousand times as
    # much.
    return decoded(body, response.headers.get("Content-Encoding", ""), REPLY_LIMIT), cut


_NEVER_SENT = (
    NewConnectionError,
    ConnectTimeoutError,
    ProxyError,
    SSLError,
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
)


def _never_sent(error: BaseException) -> bool:
    return any(isinstance(item, _NEVER_SENT) for item in exception_chain(error))
