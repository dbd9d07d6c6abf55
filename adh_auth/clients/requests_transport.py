"""What carries a call to an auth endpoint in requests: a mock, the user's own Session, or an adapter of ours.

Rule 13: its errors quote nothing that was sent. The caller's adapters and retries never carry a refresh.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.models import PreparedRequest, Response
from requests.utils import get_environ_proxies
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ProxyError, SSLError

from ..common.limits import REPLY_LIMIT
from ..oauth.content_encoding import decoded
from ..oauth.endpoint import EndpointCall, EndpointReply, Unreachable
from . import requests_compat as compat
from .deadline import CONNECT_TIMEOUT, Deadline
from .failure_reason import describe_failure, exception_chain
from .system_proxies import must_not_ask_the_system

__all__ = ["post"]


def post(
    call: EndpointCall,
    seconds: float,
    session: requests.Session | None,
    sent_with: Mapping[str, Any],
    mock: Any = None,
) -> EndpointReply:
    """Send a call to an auth endpoint and return its reply, within `seconds`. Raises `Unreachable`.

    It goes through the adapter `mock` or through `session`; without either directly, with the TLS and proxy
    options of `sent_with` (the arguments of an adapter's `send`).
    """
    if session is None and compat.sessions_are_mocked():
        session = requests.Session()
    with Deadline(seconds) as deadline:
        if mock is not None:
            return _reply(partial(_through, mock, call, seconds, sent_with), deadline)
        if session is not None:
            return _reply(partial(_via_session, session, call, seconds), deadline)
        return _reply(partial(_directly, call, seconds, sent_with, deadline), deadline)


def _directly(
    call: EndpointCall, seconds: float, sent_with: Mapping[str, Any], deadline: Deadline
) -> Response:
    # No Session: it would bring .netrc, cookies, and patches of the Session class
    # (requests_cache.install_cache stored the reply).
    adapter = _WatchedAdapter(deadline)
    try:
        return _through(adapter, call, seconds, sent_with)
    finally:
        # Closing a pool leaves its connections in use open; the reply is read through one of them.
        adapter.close()


def _through(adapter: Any, call: EndpointCall, seconds: float, sent_with: Mapping[str, Any]) -> Response:
    request = requests.Request("POST", call.url, data=call.body(), headers=_HEADERS).prepare()
    response: Response = adapter.send(
        request, stream=True, timeout=(CONNECT_TIMEOUT, seconds), **_tls_options(call.url, sent_with)
    )
    return response


class _WatchedAdapter(HTTPAdapter):
    """Registers each connection with a deadline before it is used: a reply's head can trickle, too."""

    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def get_connection_with_tls_context(self, *arguments: Any, **named: Any) -> Any:
        pool = super().get_connection_with_tls_context(*arguments, **named)
        self._deadline.sent = False
        compat.watch_connections(pool, self._made, self._sending)
        return pool

    def _made(self, connection: Any) -> None:
        self._deadline.watch(partial(compat.plain_socket, connection))

    def _sending(self) -> None:
        # urllib3 raises ReadTimeout for a tunnel or a handshake that hangs, too; the call leaves only here.
        self._deadline.sent = True


_HEADERS = {
    "Content-Type": "application/json",
    "Accept": "application/json",
    "User-Agent": "adh-auth",
    "Accept-Encoding": "identity",
}


def _tls_options(url: str, sent_with: Mapping[str, Any]) -> dict[str, Any]:
    """Return `verify`, `cert` and `proxies` as requests merged them for a call, or the environment's."""
    if sent_with:
        return {name: sent_with.get(name) for name in ("verify", "cert", "proxies")}
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
    # A forked child whose Session has proxies of its own, or trust_env=False, has not asked the system.
    proxies = {} if must_not_ask_the_system() else get_environ_proxies(url)
    return {"verify": bundle, "cert": None, "proxies": proxies}


def _via_session(session: requests.Session, call: EndpointCall, seconds: float) -> Response:
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
    """Add nothing to the request. Without an auth, requests would use .netrc or the session's own AdhAuth.

    A hook of the session sees the reply, but its error does not reach us.
    """
    compat.guard_hooks(request)
    return request


def _reply(send: Callable[[], Response], deadline: Deadline) -> EndpointReply:
    """Send, and read the reply up to its bound."""
    failure = None
    try:
        response = send()
    except (requests.RequestException, HTTPError, OSError, ValueError) as error:
        failure = Unreachable(describe_failure(error), sent=deadline.sent and not _never_sent(error))
    if failure is not None:
        # Raised out here: as its context, the client's exception would keep the request with its token.
        raise failure
    try:
        body, cut = _body_of(response, deadline)
    finally:
        response.close()
    return EndpointReply(response.status_code, response.headers, body, cut)


def _body_of(response: Response, deadline: Deadline) -> tuple[bytes, bool]:
    errors = (requests.RequestException, HTTPError, OSError)
    raw = compat.urllib3_response(response)
    if raw is None or compat.loaded_content(response) is not None:  # a mock's
        return deadline.collect(response.iter_content(8192), errors)
    body, cut = deadline.collect(iter(partial(compat.read_piece, raw, 8192), b""), errors)
    # Decoded here, with a bound: a client that decodes can return a thousand times what it was sent.
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
