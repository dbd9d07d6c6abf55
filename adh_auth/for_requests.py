"""AdhAuth, for requests. The only room that knows requests."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.cookies import extract_cookies_to_jar
from requests.models import PreparedRequest, Response
from requests.utils import get_environ_proxies, rewind_body
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ProxyError, SSLError
from urllib3.response import HTTPResponse

from .deadline import Deadline
from .endpoint import BODY_LIMIT, EXPIRED, PEEK_SECONDS, REPLY_LIMIT, Call, Reply, Unreachable, decoded, error_code, is_small
from .errors import AdhAuthError, ConfigurationError, twin
from .plugin import REDACTED, Plugin, bearer, wrong_client
from .reasons import chain, reason
from .rotation import Pair
from .secret import Secret

__all__ = ["AdhAuth"]

#: Seconds to connect. Nothing has been sent by then, so that giving up is safe.
CONNECT_TIMEOUT = 5.0


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
            if pair.dead or core.always_asks or not (r.body is None or _is_plain(r.body)):
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
        if self._core.due(pair, one_shot=not _can_be_sent_again(r)):
            return self._rotated(pair.secret)
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
        if error_code(response.headers, _peek(response)) == EXPIRED:
            return self._rotated(rejected, post=partial(self._post, sent_with=sent_with, mock=_mock_behind(response)))
        # A server may kill old access tokens when it rotates: any 401 to an older pair than the file's is answered with that one.
        stored = self._core.current()
        return stored if stored.secret != rejected else None

    def _sent_again(self, response: Response, pair: Pair, sent_with: Mapping[str, Any]) -> Response:
        request = response.request
        connection = getattr(response, "connection", None)
        if connection is None or not _rewound(request):
            return response
        again = request.copy()
        _refresh_cookies(again, response)
        again.headers["Authorization"] = pair.header
        _let_go(response)
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
        if self._refresh_via is not None and not _sessions_are_mocked():
            mock = None
        return carried(call, seconds, self._refresh_via, sent_with or self._seen, mock)

    def _check_carrier(self, carrier: Any) -> None:
        if carrier is not None and not isinstance(carrier, requests.Session):
            raise ConfigurationError(f"refresh_via must be a requests.Session, not {type(carrier).__name__}", setting="refresh_via")


def carried(call: Call, seconds: float, session: requests.Session | None, sent_with: Mapping[str, Any], mock: Any = None) -> Reply:
    """Carry a call to an auth endpoint through `mock`, an adapter, or `session`, or directly with the trust of `sent_with`.

    Raises `Unreachable`.
    """
    if session is None and _sessions_are_mocked():
        session = requests.Session()
    with Deadline(seconds) as deadline:
        if mock is not None:
            return _answered(partial(_through, mock, call, seconds, sent_with), deadline)
        if session is not None:
            return _answered(partial(_via_session, session, call, seconds), deadline)
        return _answered(partial(_directly, call, seconds, sent_with, deadline), deadline)


def _mock_behind(response: Response) -> Any:
    """What the call went through where that is no adapter of requests' own: a mock, or an app in this process."""
    connection = getattr(response, "connection", None)
    return None if isinstance(connection, HTTPAdapter) else connection


def _sessions_are_mocked() -> bool:
    # requests_mock.Mocker puts a send of its own on every Session and holds one lock while it runs: a worker thread that sends through a
    # Session waits there for the caller, who waits for the worker.
    return requests.Session.send.__module__.partition(".")[0] == "requests_mock"


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


def _is_plain(body: object) -> bool:
    return body is None or isinstance(body, (bytes, str))


def _can_be_sent_again(request: PreparedRequest) -> bool:
    """Whether the same body can be sent once more: bytes, and files that were asked where they stand and can go back there."""
    if _is_plain(request.body):
        return True
    seekable = getattr(request.body, "seekable", None)
    can_seek = seekable() if callable(seekable) else hasattr(request.body, "seek")
    return bool(can_seek) and isinstance(vars(request).get("_body_position"), int)  # recorded by requests for its own redirects


def _rewound(request: PreparedRequest) -> bool:
    if _is_plain(request.body):
        return True
    if not _can_be_sent_again(request):
        return False
    try:
        rewind_body(request)
    except (requests.exceptions.UnrewindableBodyError, ValueError):  # ValueError: the caller has closed the file
        return False
    return True


def _refresh_cookies(again: PreparedRequest, response: Response) -> None:
    jar = vars(again).get("_cookies")  # as requests' own digest auth does
    if jar is None:
        return
    extract_cookies_to_jar(jar, response.request, response.raw)  # type: ignore[no-untyped-call]
    again.headers.pop("Cookie", None)
    again.prepare_cookies(jar)


def _peek(response: Response) -> bytes:
    """The first bytes of a 401's body as they came, which stays as readable as it was."""
    content = _loaded(response)
    if isinstance(content, bytes):
        return content[:BODY_LIMIT]
    raw = response.raw
    if not isinstance(raw, HTTPResponse):  # vcrpy's, and those of adapters that call an app in this process: it is in memory
        with suppress(requests.RequestException, OSError):
            return response.content[:BODY_LIMIT]
        return b""
    start, whole = _read_some(raw)
    rest = _Rejoined(start, raw, whole=whole)
    response.raw = HTTPResponse(
        body=rest,
        headers=raw.headers,
        status=raw.status,
        reason=raw.reason,
        version=raw.version,
        preload_content=False,
        original_response=getattr(raw, "_original_response", None),
        request_method=response.request.method,
    )
    return start


def _loaded(response: Response) -> object:
    """The body as far as requests has read it: bytes, None, or False before."""
    return vars(response).get("_content", False)


def _read_some(raw: HTTPResponse) -> tuple[bytes, bool]:
    """The first bytes, and whether they are all."""
    start = b""
    patience = time.monotonic() + PEEK_SECONDS
    # What breaks off here breaks off again for whoever reads on.
    with suppress(HTTPError, OSError):
        while len(start) <= BODY_LIMIT and time.monotonic() < patience:
            chunk = _read_a_piece(raw, BODY_LIMIT + 1 - len(start))
            if not chunk:
                return start, True
            start += chunk
    return start, False


def _read_a_piece(raw: HTTPResponse, size: int) -> bytes:
    """What has arrived, at most `size` bytes as they came; `read`, all that urllib3 1 has, waits for that many."""
    at_once = hasattr(raw, "read1") and hasattr(getattr(raw, "_fp", None), "read1")
    return (raw.read1 if at_once else raw.read)(size, decode_content=False)


class _Rejoined(io.RawIOBase):
    """A response's bytes from the first one on, of which some were read already."""

    def __init__(self, start: bytes, rest: HTTPResponse, *, whole: bool) -> None:
        self._start = start
        self._rest = rest
        self._whole = whole

    def fits_history(self, encoding: str) -> bool:
        """Whether all of it has been read, and stays small when it is decoded."""
        return self._whole and is_small(self._start, encoding)

    def read(self, size: int = -1) -> bytes:
        if self._start:
            size = len(self._start) if size is None or size < 0 else size
            piece, self._start = self._start[:size], self._start[size:]
            return piece
        return self._rest.read(None if size is None or size < 0 else size, decode_content=False)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        super().close()
        self._rest.close()
        self._rest.release_conn()


def _let_go(response: Response) -> None:
    """Give the connection back, with as much of the 401 kept for `history` as was looked at."""
    raw = response.raw
    if not isinstance(_loaded(response), bytes):
        body: Any = getattr(raw, "_fp", None)
        if isinstance(body, _Rejoined) and body.fits_history(response.headers.get("Content-Encoding", "")):
            with suppress(requests.RequestException, HTTPError):
                response.content  # noqa: B018 - a read of something that is in memory
        else:
            # Hung up on. requests itself would do that only for a body that is not marked as read.
            raw.close()
            response._content = b""  # noqa: SLF001
            vars(response)["_content_consumed"] = True
    response.close()


def _directly(call: Call, seconds: float, sent_with: Mapping[str, Any], deadline: Deadline) -> Response:
    # No Session: it would bring .netrc, cookies, and whatever patches every Session (requests_cache.install_cache stored the reply).
    adapter = _WatchedAdapter(deadline)
    try:
        return _through(adapter, call, seconds, sent_with)
    finally:
        # Closing a pool leaves connections that are in use alone; the reply is read through its own.
        adapter.close()


def _through(adapter: Any, call: Call, seconds: float, sent_with: Mapping[str, Any]) -> Response:
    request = requests.Request("POST", call.url, data=call.body(), headers=_HEADERS).prepare()
    response: Response = adapter.send(request, stream=True, timeout=(CONNECT_TIMEOUT, seconds), **_trust(call.url, sent_with))
    return response


class _WatchedAdapter(HTTPAdapter):
    """Puts each connection under the watch of a deadline before it is used: a reply's head can trickle, too."""

    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def get_connection_with_tls_context(self, *arguments: Any, **named: Any) -> Any:
        return self._watched(super().get_connection_with_tls_context(*arguments, **named))

    def get_connection(self, *arguments: Any, **named: Any) -> Any:
        """As requests had it before 2.32."""
        return self._watched(super().get_connection(*arguments, **named))

    def _watched(self, pool: Any) -> Any:
        kind: Any = pool.ConnectionCls
        deadline = self._deadline
        deadline.sent = False

        class Watched(kind):  # type: ignore[misc]  # a class: vcrpy asks whether a connection is an instance of it
            def __init__(self, *arguments: Any, **named: Any) -> None:
                super().__init__(*arguments, **named)
                deadline.watch(lambda: self.sock)

            def request(self, *arguments: Any, **named: Any) -> Any:
                # urllib3 calls a tunnel or a handshake that hangs a ReadTimeout, too; the call leaves only here.
                deadline.sent = True
                return super().request(*arguments, **named)

        pool.ConnectionCls = Watched
        return pool


_HEADERS = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "adh-auth", "Accept-Encoding": "identity"}


def _trust(url: str, sent_with: Mapping[str, Any]) -> dict[str, Any]:
    """`verify`, `cert` and `proxies` as requests merged them for the last call; before the first, what the environment says."""
    if sent_with:
        return {name: sent_with.get(name) for name in ("verify", "cert", "proxies")}
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
    return {"verify": bundle, "cert": None, "proxies": get_environ_proxies(url)}


def _via_session(session: requests.Session, call: Call, seconds: float) -> Response:
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
    return request


def _answered(send: Any, deadline: Deadline) -> Reply:
    """Send and read, bounded. What goes wrong is told without the exception: its request holds the refresh token."""
    trouble = None
    try:
        response = send()
    except (requests.RequestException, HTTPError, OSError, ValueError) as error:
        trouble = Unreachable(reason(error), sent=deadline.sent and not _never_sent(error))
    if trouble is not None:
        raise trouble
    try:
        body, cut = _body_of(response, deadline)
    finally:
        response.close()
    return Reply(response.status_code, response.headers, body, cut)


def _body_of(response: Response, deadline: Deadline) -> tuple[bytes, bool]:
    raw = response.raw
    troubles = (requests.RequestException, HTTPError, OSError)
    if not isinstance(raw, HTTPResponse) or isinstance(_loaded(response), bytes):  # a mock's
        return deadline.collect(response.iter_content(8192), troubles)
    body, cut = deadline.collect(iter(partial(_read_a_piece, raw, 8192), b""), troubles)
    # As it came, and then decoded with a bound: what a client decodes by itself can be a thousand times as much.
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
    return any(isinstance(item, _NEVER_SENT) for item in chain(error))
