"""AdhAuth, for requests. This room and its two neighbours, requests_body and requests_carrier, are the only ones that know requests."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import requests
from requests.cookies import extract_cookies_to_jar
from requests.models import PreparedRequest, Response

from .endpoint import EXPIRED, Call, Reply, error_code
from .errors import AdhAuthError, ConfigurationError, twin
from .plugin import REDACTED, Plugin, bearer, wrong_client
from .requests_body import can_be_sent_again, let_go, peek, rewound
from .requests_body import is_plain as _is_plain
from .requests_carrier import carried, mock_behind, sessions_are_mocked
from .rotation import Pair
from .secret import Secret

__all__ = ["AdhAuth"]


class AdhAuth(Plugin, requests.auth.AuthBase):  # noqa: D101 - the docstring is put together
    __doc__ = f"""{Plugin.__doc__}
    For requests: ``session.auth = AdhAuth()``. `refresh_via` is a `requests.Session`; without one, the refresh goes out directly, with the
    `verify`, `cert` and `proxies` of the call that it answers. What a request raises is also a `requests.RequestException`.
    """

    def _prepare(self, scheme: str, host: str, port: int) -> None:
        name = f"[{host}]" if ":" in host else host
        default = 443 if scheme == "https" else 80
        # requests has put a path behind the authority by now, so that these prefixes can't be part of a longer host name.
        explicit = f"{scheme}://{name}:{port}/"
        self._prefixes = (f"{scheme}://{name}/", explicit) if port == default else (explicit,)
        self._seen: Mapping[str, Any] = {}
        self._hook = self._on_response

    def __call__(self, r: PreparedRequest) -> PreparedRequest:
        """Put the token on a request to the API, and watch for its answer."""
        if not isinstance(r, PreparedRequest):
            raise wrong_client(self, r)
        url = r.url or ""
        if not (url.startswith(self._prefixes) or self._is_ours(url)):
            return r
        core = self._core
        try:
            pair = core.watch.unchanged() or core.glance()
            if pair.ask or not (r.body is None or _is_plain(r.body)):
                pair = self._ready(pair, r)
        except AdhAuthError as error:
            trouble = error
        else:
            r.headers["Authorization"] = pair.header
            hooks = r.hooks["response"]
            if not hooks or self._hook not in hooks:
                hooks.append(self._hook)
            return r
        raise _for_requests(trouble, r)

    def _ready(self, pair: Pair, r: PreparedRequest) -> Pair:
        if self._core.due(pair, one_shot=not can_be_sent_again(r)):
            return self._rotated(pair.secret).pair
        return pair

    def _on_response(self, response: Response, **sent_with: Any) -> Response:
        self._seen = sent_with
        if response.status_code != 401:
            if 300 <= response.status_code < 400 and response.is_redirect:  # is_redirect asks the headers: 1 µs
                # It ends in `history`. requests builds the next hop from the request that it holds itself.
                response.request = _for_the_record(response.request)
            return response
        # requests keeps this hook on redirected hops, after it took the header off for the new host (psf/requests#2577).
        # Answering that host's 401 would send it the new token. (hishel leaves response.url empty: ask the request.)
        request = response.request
        rejected = bearer(request.headers.get("Authorization"))
        if rejected is None or not self._is_ours(request.url or ""):
            return response
        try:
            pair = self._replacement(response, rejected, sent_with)
        except AdhAuthError as error:
            trouble = error
        else:
            return response if pair is None else self._sent_again(response, pair, sent_with)
        response.close()
        raise _for_requests(trouble, request, response)

    def _replacement(self, response: Response, rejected: Secret, sent_with: Mapping[str, Any]) -> Pair | None:
        """The pair to send again with, None where this 401 is the caller's."""
        if error_code(response.headers, peek(response)) == EXPIRED:
            return self._rotated(rejected, post=partial(self._post, sent_with=sent_with, mock=mock_behind(response))).pair
        # A server may kill old access tokens when it rotates: any 401 to an older pair than the file's is answered with that one.
        stored = self._core.current()
        return stored if stored.secret != rejected else None

    def _sent_again(self, response: Response, pair: Pair, sent_with: Mapping[str, Any]) -> Response:
        request = response.request
        connection = getattr(response, "connection", None)
        if connection is None or not rewound(request):
            return response
        again = request.copy()
        _refresh_cookies(again, response)
        again.headers["Authorization"] = pair.header
        let_go(response)
        started = time.perf_counter()
        resent: Response = connection.send(again, **sent_with)
        resent.elapsed = timedelta(seconds=time.perf_counter() - started)
        resent.request = again
        resent.history.append(response)
        response.request = _for_the_record(request)
        if resent.is_redirect:
            # requests builds the redirected request from the original one, which would go on with the old token.
            request.headers["Authorization"] = pair.header
            resent.request = _for_the_record(again)
        return resent

    def _post(self, call: Call, seconds: float, sent_with: Mapping[str, Any] | None = None, mock: Any = None) -> Reply:
        """Carry a call to an auth endpoint. Raises `Unreachable`."""
        if self._refresh_via is not None and not sessions_are_mocked():
            mock = None
        return carried(call, seconds, self._refresh_via, sent_with or self._seen, mock)

    def _check_carrier(self, carrier: Any) -> None:
        if carrier is not None and not isinstance(carrier, requests.Session):
            raise ConfigurationError(f"refresh_via must be a requests.Session, not {type(carrier).__name__}", setting="refresh_via")


def _for_requests(error: AdhAuthError, request: PreparedRequest, response: Response | None = None) -> AdhAuthError:
    raised = twin(error, requests.RequestException)
    if response is not None:
        response.request = _for_the_record(request)
    vars(raised).update(request=_for_the_record(request), response=response)
    return raised


def _for_the_record(request: PreparedRequest) -> PreparedRequest:
    """A copy for whoever looks back, without the token: what is kept in `history` and hangs on errors ends in logs."""
    if bearer(request.headers.get("Authorization")) is None:
        return request
    kept = request.copy()
    kept.headers["Authorization"] = REDACTED
    return kept


def _refresh_cookies(again: PreparedRequest, response: Response) -> None:
    jar = vars(again).get("_cookies")  # as requests' own digest auth does
    if jar is None:
        return
    extract_cookies_to_jar(jar, response.request, response.raw)  # type: ignore[no-untyped-call]
    again.headers.pop("Cookie", None)
    again.prepare_cookies(jar)
