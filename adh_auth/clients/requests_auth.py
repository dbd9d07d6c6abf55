"""RequestsAuth, for requests.

This room and its two neighbours, requests_body and requests_carrier, are the only ones that know requests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import requests
from requests.cookies import extract_cookies_to_jar, get_cookie_header
from requests.hooks import dispatch_hook
from requests.models import PreparedRequest, Response
from urllib3.util import Timeout

from ..common.secret import REDACTED, BearerHeader, Secret
from ..errors import AdhAuthError, ConfigurationError, RefreshFailed, twin
from ..oauth.endpoint import EndpointCall, EndpointReply
from ..rotation.active_tokens import ActiveTokens
from ..rotation.decision import HAND_OVER, RESEND, after_401
from ..rotation.detached import TransportSpec
from .base import MAX_ROTATIONS, BaseAuth, Rotated, bearer, wrong_client
from .requests_body import can_be_sent_again, read_prefix, release, rewound
from .requests_body import is_plain as _is_plain
from .requests_compat import cookie_jar
from .requests_detached import describe_transport, is_plain_connection
from .requests_transport import mock_behind, post, sessions_are_mocked

__all__ = ["RequestsAuth"]

#: Part of a call's time-out that it waits for a refresh before it is sent: with `timeout=2` a quarter of a
#: second, enough for what needs no network, as a refusal on record. The rest is waited for by the hook, which
#: knows the time-out for certain.
SHARE = 1 / 8
#: Seconds of the same for the first call of a thread, of whose time-out nothing is known: most refreshes are
#: over by then.
FIRST_MOMENT = 1.0


class RequestsAuth(BaseAuth):
    """What `AdhAuth` does: put the token on a request, and answer a 401 of the API."""

    def _prepare(self, scheme: str, host: str, port: int) -> None:
        name = f"[{host}]" if ":" in host else host
        default = 443 if scheme == "https" else 80
        # requests has put a path behind the authority by now, so that these prefixes can't be part of a
        # longer host name.
        explicit = f"{scheme}://{name}:{port}/"
        self._prefixes = (f"{scheme}://{name}/", explicit) if port == default else (explicit,)
        self._seen: Mapping[str, Any] = {}
        self._seen_plain = True
        self._of_thread = threading.local()

    def __call__(self, r: PreparedRequest) -> PreparedRequest:
        """Put the token on a request to the API, and watch for its answer."""
        if not isinstance(r, PreparedRequest):
            raise wrong_client(self, r)
        url = r.url or ""
        if not (url.startswith(self._prefixes) or self._is_ours(url)):
            return r
        core = self._core
        try:
            pair = core.cache.value_if_unchanged() or core.current_fast()
            if pair.needs_check or not (r.body is None or _is_plain(r.body)):
                pair = self._ready(pair, r)
        except AdhAuthError as error:
            trouble = error
        else:
            r.headers["Authorization"] = BearerHeader(pair.header)
            hooks = r.hooks["response"]
            if not hooks:
                hooks.append(_ResponseHook(self))
            elif not (isinstance(hooks[0], _ResponseHook) and hooks[0].is_of(self)):
                # An auth that is put on by hand finds the caller's hooks there. One that raises on a 401
                # would hide the expiry, and a second hook of ours would answer a 401 that the first one hands
                # over.
                hooks[:] = [
                    _ResponseHook(self),
                    *(hook for hook in hooks if not isinstance(hook, _ResponseHook)),
                ]
            return r
        raise _for_requests(trouble, r)

    def _ready(self, pair: ActiveTokens, r: PreparedRequest) -> ActiveTokens:
        one_shot = not can_be_sent_again(r)
        if not self._core.needs_rotation(pair, one_shot=one_shot):
            return pair
        moment = None if one_shot else self._moment()
        if moment is None:
            return self._wait_for_new_tokens(pair.secret).pair
        job = self._core.rotate(pair.secret)
        if job is None:
            return self._core.current()
        try:
            job.wait(moment)
        except RefreshFailed:
            if not job.settled:
                return pair  # the answer will be a 401; by then the time-out is known
            job.wait(0)
        return self._core.current()

    def _moment(self) -> float | None:
        """Seconds to wait for a refresh before a request is sent, None for as long as it takes.

        requests shows the caller's time-out to hooks of the response only, so the one of the thread's last
        call counts.
        """
        if not hasattr(self._of_thread, "timeout"):
            return FIRST_MOMENT
        seconds = read_timeout(self._of_thread.timeout)
        return None if seconds is None else SHARE * seconds

    def _on_response(self, response: Response, sent_with: Mapping[str, Any]) -> Response:
        self._seen, self._seen_plain = sent_with, is_plain_connection(response)
        self._of_thread.timeout = sent_with.get("timeout")
        if response.status_code != 401:
            if (
                300 <= response.status_code < 400 and response.is_redirect
            ):  # is_redirect asks the headers: 1 µs
                # It ends in `history`. requests builds the next hop from the request that it holds itself.
                response.request = _for_the_record(response.request)
            return response
        # requests keeps this hook on redirected hops, after it took the header off for the new host
        # (psf/requests#2577). Answering that host's 401 would send it the new token. (hishel leaves
        # response.url empty: ask the request.)
        request = response.request
        if bearer(request.headers.get("Authorization")) is None or not self._is_ours(request.url or ""):
            return response
        return self._answered(response, sent_with)

    def _answered(self, response: Response, sent_with: Mapping[str, Any]) -> Response:
        """The answer after a 401 of the API.

        A pair that was adopted may turn out to be expired, too; a refreshed one is the last.
        """
        patience = _Patience(read_timeout(sent_with.get("timeout")))
        for _ in range(MAX_ROTATIONS):
            try:
                found = self._replacement(response, sent_with, patience)
            except AdhAuthError as error:
                trouble = error
                break
            if found is None:
                return response
            resent = self._sent_again(response, found.pair, sent_with)
            if resent is response or resent.status_code != 401 or found.refreshed:
                return resent
            response = resent
        else:
            return response
        response.close()
        raise _for_requests(trouble, response.request, response)

    def _replacement(
        self, response: Response, sent_with: Mapping[str, Any], patience: _Patience
    ) -> Rotated | None:
        """What to send again with, None where this 401 is the caller's."""
        rejected = _sent_token(response.request)
        inspected = read_prefix(response, stream=bool(sent_with.get("stream")))
        pair = self._core.current()
        what = after_401(inspected.code, rejected, pair, time.time(), is_bare=inspected.is_bare)
        if what == HAND_OVER:
            return None
        again = can_be_sent_again(response.request)
        if what == RESEND and not again:
            return None
        # Before the wait: the refresh may need this very connection, where `refresh_via` is the session, or
        # another thread may.
        if again or not inspected.ended:
            release(response, inspected)
        if what == RESEND:
            return Rotated(pair, refreshed=False)
        return self._wait_for_new_tokens(
            rejected,
            patience.left(),
            post=partial(self._post, sent_with=sent_with, mock=mock_behind(response)),
            transport=partial(self._describe_transport, sent_with, is_plain=is_plain_connection(response)),
        )

    def _sent_again(self, response: Response, pair: ActiveTokens, sent_with: Mapping[str, Any]) -> Response:
        request = response.request
        connection = getattr(response, "connection", None)
        if connection is None or not rewound(request):
            return response
        again = request.copy()
        _refresh_cookies(again, response)
        again.headers["Authorization"] = BearerHeader(pair.header)
        started = time.perf_counter()
        resent: Response = connection.send(again, **sent_with)
        resent.elapsed = timedelta(seconds=time.perf_counter() - started)
        resent.request = again
        resent.history += [*response.history, response]
        response.request = _for_the_record(request)
        if resent.is_redirect:
            # requests builds the redirected request from the original one, which would go on with the old
            # token.
            _move_on(request, pair)
            resent.request = _for_the_record(again)
        return resent

    def _post(
        self, call: EndpointCall, seconds: float, sent_with: Mapping[str, Any] | None = None, mock: Any = None
    ) -> EndpointReply:
        """Carry a call to an auth endpoint. Raises `Unreachable`."""
        if self._refresh_via is not None and not sessions_are_mocked():
            mock = None
        return post(call, seconds, self._refresh_via, sent_with or self._seen, mock)

    def _describe_transport(
        self, sent_with: Mapping[str, Any] | None = None, *, is_plain: bool | None = None
    ) -> TransportSpec | None:
        if self._refresh_via is not None or not (self._seen_plain if is_plain is None else is_plain):
            return None
        return describe_transport(*self._origin, sent_with or self._seen)

    def _check_carrier(self, carrier: Any) -> None:
        if carrier is not None and not isinstance(carrier, requests.Session):
            raise ConfigurationError(
                f"refresh_via must be a requests.Session, not {type(carrier).__name__}", setting="refresh_via"
            )


def _for_requests(
    error: AdhAuthError, request: PreparedRequest, response: Response | None = None
) -> AdhAuthError:
    raised = twin(error, requests.RequestException)
    if response is not None:
        response.request = _for_the_record(request)
    vars(raised).update(request=_for_the_record(request), response=response)
    return raised


def _for_the_record(request: PreparedRequest) -> PreparedRequest:
    """A copy for whoever looks back, without the token: what is kept in `history` and hangs on errors ends in
    logs.
    """
    if bearer(request.headers.get("Authorization")) is None:
        return request
    kept = request.copy()
    kept.headers["Authorization"] = REDACTED
    return kept


def _refresh_cookies(again: PreparedRequest, response: Response) -> None:
    """Add what the 401 set, as requests' own digest auth does; a ``Cookie`` header of the caller's own stays
    as it is, and alone.
    """
    jar = cookie_jar(again)
    if jar is None:
        return
    given = again.headers.pop("Cookie", None)
    of_jar = get_cookie_header(jar, again)  # type: ignore[no-untyped-call]
    extract_cookies_to_jar(jar, response.request, response.raw)  # type: ignore[no-untyped-call]
    if given is not None and given != of_jar:
        again.headers["Cookie"] = given
    again.prepare_cookies(jar)  # leaves such a header alone


_MOVED = "_adh_auth_moved"


def _move_on(request: PreparedRequest, pair: ActiveTokens) -> None:
    """Let what requests makes of `request` carry `pair`."""
    request.headers["Authorization"] = BearerHeader(pair.header)
    vars(request)[_MOVED] = True


def _sent_token(request: PreparedRequest) -> Secret:
    """The token that it was sent with, or one that never was a token where that can't be told."""
    if _MOVED in vars(request):
        # Several threads send it. What the header says now may not be what went out: a good pair is not
        # refreshed on its word.
        return Secret("")
    return bearer(request.headers.get("Authorization")) or Secret("")


def read_timeout(timeout: Any) -> float | None:
    """Seconds of the read part of a time-out in the forms that requests takes; None for no bound."""
    if isinstance(timeout, tuple):
        timeout = timeout[1]
    elif isinstance(timeout, Timeout):
        started = timeout.clone()
        started.start_connect()  # without it, `read_timeout` refuses to count a `total`
        timeout = started.read_timeout
    return None if timeout is None else float(timeout)


class _Patience:
    """How long a call may wait in all. `seconds`: None where its caller gave no time-out."""

    def __init__(self, seconds: float | None) -> None:
        self._until = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        """Seconds, rounded for the message; None for no bound."""
        return None if self._until is None else round(max(0.0, self._until - time.monotonic()), 2)


class _ResponseHook:
    """Watches for the answer to one request.

    A pickle holds nothing of it, and is readable without this library and its settings: requests pickles a
    response with its request and the hooks of that, and the auth object may know the client secret.
    """

    __slots__ = ("_auth",)

    def __init__(self, auth: RequestsAuth) -> None:
        self._auth = auth

    def __call__(self, response: Response, **sent_with: Any) -> Response:
        return self._auth._on_response(response, sent_with)  # noqa: SLF001 - one story in two classes

    def is_of(self, auth: RequestsAuth) -> bool:
        """Whether it calls that object."""
        return self._auth is auth

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (dispatch_hook, "response", None)  # calls no hook

    def __copy__(self) -> _ResponseHook:
        return self

    def __deepcopy__(self, memo: object) -> _ResponseHook:
        return self

    def __repr__(self) -> str:
        return "<adh_auth: watches for the answer>"
