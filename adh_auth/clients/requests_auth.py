"""The auth flow for requests: put the token on a request, and answer a 401 of the API.

Rule 9: a call is sent again only with another token, and a second 401 goes to the caller. Rule 12: the token
goes to the API's origin on every hop. `rotation.decision.after_401` decides what a 401 leads to.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from types import MappingProxyType
from typing import Any

import requests
from requests.cookies import get_cookie_header
from requests.models import PreparedRequest, Response
from urllib3.util import Timeout

from ..common.secret import REDACTED, BearerHeader, Secret
from ..errors import AdhAuthError, ConfigurationError, RefreshFailed, error_for_client
from ..oauth.endpoint import EndpointCall, EndpointReply
from ..oauth.origin import DEFAULT_PORTS
from ..rotation.active_tokens import ActiveTokens
from ..rotation.decision import HAND_OVER, RESEND, after_401
from ..rotation.detached import TransportSpec
from . import requests_compat as compat
from .base import MAX_ROTATIONS, BaseAuth, Rotated, bearer, wrong_client
from .requests_body import can_be_sent_again, is_plain, read_prefix, release, rewound
from .requests_detached import describe_transport, is_plain_connection
from .requests_transport import post

__all__ = ["FIRST_WAIT_SECONDS", "WAIT_SHARE", "RequestsAuth", "read_timeout"]

#: Share of a call's time-out that it waits for a refresh before it is sent. With `timeout=2` that is a
#: quarter of a second, enough for a refusal on record, which needs no network. The hook, which knows the
#: time-out for certain, waits for the rest.
WAIT_SHARE = 1 / 8
#: Seconds of the same for a thread's first call, whose time-out is unknown. Most refreshes take less.
FIRST_WAIT_SECONDS = 1.0


class RequestsAuth(BaseAuth):
    """What `AdhAuth` does, except being an auth class of requests."""

    #: What the URL of a request to the API begins with, as requests writes it.
    _prefixes: tuple[str, ...]
    #: `timeout`: that of the thread's last call, absent before the first.
    _thread_state: threading.local
    #: What an adapter got as `verify`, `cert` and `proxies` (and more) with the last call of any thread. Only
    #: refreshes that answer no response use it: `refresh()`, one ahead of time, one before a request is sent.
    #: A 401 brings its own call's options. One set for all threads is right: a background refresh belongs to
    #: no thread, and the calls of one auth object go to one server.
    _last_tls_options: Mapping[str, Any] = MappingProxyType({})
    #: Whether that call went through requests' own adapter.
    _last_was_plain = True

    def _set_origin(self, scheme: str, host: str, port: int) -> None:
        name = f"[{host}]" if ":" in host else host
        # requests has put a path behind the authority by now, so that no longer host name begins like this.
        explicit = f"{scheme}://{name}:{port}/"
        is_default = port == DEFAULT_PORTS[scheme]
        self._prefixes = (f"{scheme}://{name}/", explicit) if is_default else (explicit,)
        self._thread_state = threading.local()

    def __call__(self, r: PreparedRequest) -> PreparedRequest:
        """Put the token on a request to the API, and register the hook that sees its answer."""
        if not isinstance(r, PreparedRequest):
            raise wrong_client(self, r)
        url = r.url or ""
        if not (url.startswith(self._prefixes) or self._is_ours(url)):
            return r
        core = self._core
        try:
            pair = core.cache.value_if_unchanged() or core.current_fast()
            if pair.needs_check or not (r.body is None or is_plain(r.body)):
                pair = self._pair_to_send(pair, r)
        except AdhAuthError as caught:
            error = caught
        else:
            r.headers["Authorization"] = BearerHeader(pair.header)
            hooks = r.hooks["response"]
            if not hooks:
                hooks.append(_ResponseHook(self))
            elif not (isinstance(hooks[0], _ResponseHook) and hooks[0].is_of(self)):
                _put_first(hooks, self)
            return r
        # Raised out here: as its context, the first error would keep the frames, and frames hold tokens.
        raise _as_requests_error(error, r)

    def _pair_to_send(self, pair: ActiveTokens, r: PreparedRequest) -> ActiveTokens:
        """Return the pair for a request, after a wait for a refresh where `pair` is expired."""
        one_shot = not can_be_sent_again(r)
        if not self._core.needs_rotation(pair, one_shot=one_shot):
            return pair
        seconds = None if one_shot else self._wait_before_sending()
        if seconds is None:
            return self._wait_for_new_tokens(pair.secret).pair
        job = self._core.rotate(pair.secret)
        if job is None:
            return self._core.current()
        try:
            job.wait(seconds)
        except RefreshFailed:
            if not job.settled:
                return pair  # it will be answered by a 401, and then the time-out is known
            job.wait(0)
        return self._core.current()

    def _wait_before_sending(self) -> float | None:
        """Return the seconds to wait for a refresh before a request is sent, None for no bound.

        requests shows a call's time-out to response hooks only, so that of the thread's last call counts.
        """
        if not hasattr(self._thread_state, "timeout"):
            return FIRST_WAIT_SECONDS
        seconds = read_timeout(self._thread_state.timeout)
        return None if seconds is None else WAIT_SHARE * seconds

    def _on_response(self, response: Response, sent_with: Mapping[str, Any]) -> Response:
        """Return the response for the caller; `_ResponseHook` calls this. `sent_with`: what `send` got."""
        self._last_tls_options, self._last_was_plain = sent_with, is_plain_connection(response)
        self._thread_state.timeout = sent_with.get("timeout")
        status = response.status_code
        if status != 401:
            if 300 <= status < 400 and response.is_redirect:  # the status first: is_redirect takes 1 µs
                # It ends in `history`. requests builds the next hop from the request that it holds itself.
                response.request = _redacted(response.request)
            return response
        # requests keeps this hook on redirected hops, after it took the header off for the new host
        # (psf/requests#2577). Answering that host's 401 would send it the new token. The URL is taken from
        # the request: hishel leaves response.url empty.
        request = response.request
        if bearer(request.headers.get("Authorization")) is None or not self._is_ours(request.url or ""):
            return response
        return self._answer_401(response, sent_with)

    def _answer_401(self, response: Response, sent_with: Mapping[str, Any]) -> Response:
        """Send again as long as `after_401` says so; an adopted pair may turn out to be expired as well."""
        refreshed = False
        time_limit = _TimeLimit(read_timeout(sent_with.get("timeout")))
        for _ in range(MAX_ROTATIONS):
            try:
                rotated = self._pair_after_401(response, sent_with, time_limit, refreshed=refreshed)
            except AdhAuthError as caught:
                error = caught
                break
            if rotated is None:
                return response
            resent = self._resend(response, rotated.pair, sent_with)
            if resent is response or resent.status_code != 401:
                return resent
            response, refreshed = resent, refreshed or rotated.refreshed
        else:
            return response
        response.close()
        raise _as_requests_error(error, response.request, response)

    def _pair_after_401(
        self,
        response: Response,
        sent_with: Mapping[str, Any],
        time_limit: _TimeLimit,
        *,
        refreshed: bool,
    ) -> Rotated | None:
        """Return what to send again with, None if the caller gets this 401."""
        rejected = _rejected_token(response.request)
        prefix = read_prefix(response, stream=bool(sent_with.get("stream")))
        decided = partial(after_401, prefix.code, rejected, is_bare=prefix.is_bare, refreshed=refreshed)
        pair = self._core.current()
        what = decided(pair, time.time())
        if what == HAND_OVER and self._core.reads_block:
            # What is in memory may be seconds old: another machine may have rotated.
            self._try_to_look(time_limit.left())
            pair = self._core.current()
            what = decided(pair, time.time())
        if what == HAND_OVER:
            return None
        again = can_be_sent_again(response.request)
        if what == RESEND and not again:
            return None
        # Before the wait: in a pool of one, the refresh through `refresh_via` needs this very connection.
        if again or not prefix.ended:
            release(response, prefix)
        if what == RESEND:
            return Rotated(pair, refreshed=False)
        carry = partial(self._post, sent_with=sent_with, mock=compat.mock_adapter(response))
        is_plain = is_plain_connection(response)
        transport = partial(self._describe_transport, sent_with, is_plain=is_plain)
        return self._wait_for_new_tokens(rejected, time_limit.left(), carry, transport)

    def _resend(self, response: Response, pair: ActiveTokens, sent_with: Mapping[str, Any]) -> Response:
        """Return the answer to the same request with `pair`; the 401 itself if it can't be sent again."""
        request = response.request
        adapter = compat.adapter_of(response)
        if adapter is None or not rewound(request):
            return response
        again = request.copy()
        _update_cookies(again, response)
        again.headers["Authorization"] = BearerHeader(pair.header)
        started = time.perf_counter()
        resent: Response = adapter.send(again, **sent_with)
        resent.elapsed = timedelta(seconds=time.perf_counter() - started)
        resent.request = again
        resent.history += [*response.history, response]
        response.request = _redacted(request)
        if resent.is_redirect:
            # requests builds the next hop from the original request, which would go on with the old token.
            request.headers["Authorization"] = BearerHeader(pair.header)
            compat.mark_token_changed(request)
            resent.request = _redacted(again)
        return resent

    def _post(
        self, call: EndpointCall, seconds: float, sent_with: Mapping[str, Any] | None = None, mock: Any = None
    ) -> EndpointReply:
        """Send a call to an auth endpoint, within `seconds`. Raises `Unreachable`."""
        if self._refresh_via is not None and not compat.sessions_are_mocked():
            mock = None
        return post(call, seconds, self._refresh_via, sent_with or self._last_tls_options, mock)

    def _describe_transport(
        self, sent_with: Mapping[str, Any] | None = None, *, is_plain: bool | None = None
    ) -> TransportSpec | None:
        if self._refresh_via is not None or not (self._last_was_plain if is_plain is None else is_plain):
            return None
        return describe_transport(*self._origin, sent_with or self._last_tls_options)

    def _check_refresh_via(self, client: Any) -> None:
        if client is not None and not isinstance(client, requests.Session):
            kind = type(client).__name__
            raise ConfigurationError(
                f"refresh_via must be a requests.Session, not {kind}", setting="refresh_via"
            )


def _put_first(hooks: list[Any], auth: RequestsAuth) -> None:
    """Register our hook before the caller's, and only once.

    An auth that is applied by hand finds the caller's hooks there. One that raises on a 401 would hide the
    expiry, and a second hook of ours would answer a 401 that the first one hands over.
    """
    hooks[:] = [_ResponseHook(auth), *(hook for hook in hooks if not isinstance(hook, _ResponseHook))]


def _as_requests_error(
    error: AdhAuthError, request: PreparedRequest, response: Response | None = None
) -> AdhAuthError:
    """Return `error` as a `requests.RequestException` too, with `request` and `response` but no token."""
    raised = error_for_client(error, requests.RequestException)
    if response is not None:
        response.request = _redacted(request)
    vars(raised).update(request=_redacted(request), response=response)
    return raised


def _redacted(request: PreparedRequest) -> PreparedRequest:
    """Return a copy without the token: requests in `history` and on errors end in logs."""
    if bearer(request.headers.get("Authorization")) is None:
        return request
    kept = request.copy()
    kept.headers["Authorization"] = REDACTED
    return kept


def _update_cookies(again: PreparedRequest, response: Response) -> None:
    """Add the cookies that the 401 set, as requests' own digest auth does.

    A ``Cookie`` header that the caller wrote stays as it is, and nothing is added to it.
    """
    jar = compat.cookie_jar(again)
    if jar is None:
        return
    given = again.headers.pop("Cookie", None)
    from_jar = get_cookie_header(jar, again)  # type: ignore[no-untyped-call]
    compat.extract_cookies(jar, response)
    if given is not None and given != from_jar:
        again.headers["Cookie"] = given
    again.prepare_cookies(jar)  # leaves an existing header alone


def _rejected_token(request: PreparedRequest) -> Secret:
    """Return the token that a request was sent with, or an empty one where that is unknown."""
    if compat.token_was_changed(request):
        # Several threads may send this object: its header now need not be what went out, and a refresh would
        # spend a good pair.
        return Secret("")
    return bearer(request.headers.get("Authorization")) or Secret("")


def read_timeout(timeout: Any) -> float | None:
    """Return the read part, in seconds, of a time-out in any form that requests takes; None for no bound."""
    if isinstance(timeout, tuple):
        timeout = timeout[1]
    elif isinstance(timeout, Timeout):
        started = timeout.clone()
        started.start_connect()  # without it, `read_timeout` raises if there is a `total`
        timeout = started.read_timeout
    return None if timeout is None else float(timeout)


class _TimeLimit:
    """How long one call may wait in all. `seconds`: the caller's time-out, None without one."""

    def __init__(self, seconds: float | None) -> None:
        self._until = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        """Return the seconds left, rounded for a message; None for no bound."""
        return None if self._until is None else round(max(0.0, self._until - time.monotonic()), 2)


class _ResponseHook:
    """The response hook of one request: it passes each response to the auth object that signed the request.

    An object, not a bound method: requests copies a request's hooks and pickles them with each response. A
    copy has to call the same auth object, and a pickle must hold neither it nor its client secret.
    """

    __slots__ = ("_auth",)

    def __init__(self, auth: RequestsAuth) -> None:
        self._auth = auth

    def __call__(self, response: Response, **sent_with: Any) -> Response:
        return self._auth._on_response(response, sent_with)  # noqa: SLF001 - the other half of this module

    def is_of(self, auth: RequestsAuth) -> bool:
        """Return whether it calls that object."""
        return self._auth is auth

    def __reduce__(self) -> tuple[Any, ...]:
        return compat.pickled_hook()

    def __copy__(self) -> _ResponseHook:
        return self

    def __deepcopy__(self, memo: object) -> _ResponseHook:
        return self

    def __repr__(self) -> str:
        return "<adh_auth: response hook>"
