"""The auth flow that httpx and httpx2 share, sync and async. Imports neither: the class that is built on it brings its client's module."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping
from functools import partial
from typing import IO, TYPE_CHECKING, Any

from .deadline import Deadline
from .endpoint import BODY_LIMIT, DEFAULT_PORTS, EXPIRED, PEEK_SECONDS, REPLY_LIMIT, Call, Reply, Unreachable, decoded, error_code, is_small
from .errors import AdhAuthError, ConfigurationError, twin
from .plugin import REDACTED, Plugin, bearer, wrong_client
from .reasons import reason
from .rotation import Pair
from .secret import Secret

if TYPE_CHECKING:
    from .tokens import Tokens

__all__ = ["HttpxFlow"]

#: Seconds to connect. Nothing has been sent by then, so that giving up is safe.
CONNECT_TIMEOUT = 5.0


class HttpxFlow(Plugin):
    """The plugin, given `_client`: the module httpx or httpx2."""

    _client: Any

    def _prepare(self, scheme: str, host: str, port: int) -> None:
        # As a URL of the client has them: no brackets, and None for the scheme's own port.
        self._raw_host = host.encode("ascii")
        self._scheme = scheme
        self._raw_port = None if port == DEFAULT_PORTS[scheme] else port

    def __call__(self, request: Any) -> Any:
        """Say which class belongs to the client: requests calls an auth, and httpx2 takes any callable for a function of the request."""
        raise wrong_client(self, request)

    async def arefresh(self) -> Tokens:
        """`refresh` for a task: waits without a thread."""
        await self._core.force().wait_async(self._core.patience)
        return self.tokens

    async def arevoke(self) -> None:
        """`revoke` for a task: waits without a thread."""
        await self._core.revoke().wait_async(self._core.patience)

    def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:
        """Put the token on, watch the answer, send again once."""
        url, core = request.url, self._core
        # The usual spelling first: the client has normalised it, and normalising once more would cost more than all the rest.
        if not ((url.raw_host == self._raw_host and url.port == self._raw_port and url.scheme == self._scheme) or self._goes_to_us(url)):
            yield request
            return
        body = _WHOLE if "_content" in request.__dict__ else _Body(request.stream)
        try:
            pair = core.watch.unchanged() or core.glance()
            if (pair.dead or core.always_asks or body.one_shot) and core.due(pair, one_shot=body.one_shot):
                pair = self._rotated(pair.secret)
        except AdhAuthError as error:
            trouble = error
        else:
            request.headers["Authorization"] = pair.header
            response = yield request
            if response.history:
                self._redact_history(response)
            if response.status_code != 401 or (rejected := self._rejected_by_us(response)) is None:
                return
            peeked = _Peeked(response)
            peeked.read()
            try:
                fresh = self._replacement(response, peeked, rejected)
                if fresh is None and peeked.code == EXPIRED:
                    fresh = self._rotated(rejected)
            except AdhAuthError as error:
                trouble = error
                response.close()
            else:
                if fresh is not None and (again := self._again(response.request, body, fresh)) is not None:
                    peeked.keep_for_history()
                    self._redact_history((yield again))
                return
        raise self._for_client(trouble, request)

    async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
        """The same for a task; the waiting is done by the event loop."""
        url, core = request.url, self._core
        # The usual spelling first: the client has normalised it, and normalising once more would cost more than all the rest.
        if not ((url.raw_host == self._raw_host and url.port == self._raw_port and url.scheme == self._scheme) or self._goes_to_us(url)):
            yield request
            return
        body = _WHOLE if "_content" in request.__dict__ else _Body(request.stream)
        try:
            pair = core.watch.unchanged() or core.glance()
            if (pair.dead or core.always_asks or body.one_shot) and core.due(pair, one_shot=body.one_shot):
                pair = await self._rotated_async(pair.secret)
        except AdhAuthError as error:
            trouble = error
        else:
            request.headers["Authorization"] = pair.header
            response = yield request
            if response.history:
                self._redact_history(response)
            if response.status_code != 401 or (rejected := self._rejected_by_us(response)) is None:
                return
            peeked = _Peeked(response)
            await peeked.aread()
            try:
                fresh = self._replacement(response, peeked, rejected)
                if fresh is None and peeked.code == EXPIRED:
                    fresh = await self._rotated_async(rejected)
            except AdhAuthError as error:
                trouble = error
                await response.aclose()
            else:
                if fresh is not None and (again := self._again(response.request, body, fresh)) is not None:
                    peeked.keep_for_history()
                    self._redact_history((yield again))
                return
        raise self._for_client(trouble, request)

    def _goes_to_us(self, url: Any) -> bool:
        return self._is_our_origin(url.scheme, url.raw_host.decode("ascii"), url.port)

    def _rejected_by_us(self, response: Any) -> Secret | None:
        """The token that the API itself has refused. httpx follows redirects below this flow, so the answer may be a stranger's."""
        request = response.request
        rejected = bearer(request.headers.get("Authorization"))
        return rejected if rejected is not None and self._goes_to_us(request.url) else None

    def _replacement(self, response: Any, peeked: _Peeked, rejected: Secret) -> Pair | None:
        """The pair of the file, where it is newer than the one that was refused, whatever the 401's code."""
        peeked.code = error_code(response.headers, peeked.start)
        stored = self._core.current()
        return stored if stored.secret != rejected and not stored.dead else None

    def _again(self, request: Any, body: _Body, pair: Pair) -> Any:
        """The request once more, as a request of its own: hooks and mocks keep the first as it was. None for a body that is gone."""
        if not body.rewind(request.stream):
            return None
        return _with_header(request, pair.header)

    def _for_client(self, error: AdhAuthError, request: Any) -> AdhAuthError:
        raised = twin(error, self._client.HTTPError)
        raised.request = _for_the_record(request)  # type: ignore[attr-defined]
        return raised

    def _redact_history(self, response: Any) -> None:
        """The client follows redirects below this flow, and keeps each hop's request."""
        for past in response.history:
            past.request = _for_the_record(past.request)

    def _post(self, call: Call, seconds: float) -> Reply:
        """Carry a call to an auth endpoint. Raises `Unreachable`."""
        trouble = None
        deadline = Deadline(seconds)
        try:
            if self._refresh_via is not None:
                return self._carried(self._refresh_via, call, seconds, deadline)
            # A client of our own: the environment's proxies and CA bundle, no hooks, no cookies, no .netrc, no redirects.
            with self._client.Client(verify=call.url.startswith("https:")) as own:
                return self._carried(own, call, seconds, deadline)
        except (self._client.HTTPError, self._client.InvalidURL, OSError, ValueError, RuntimeError) as error:
            trouble = Unreachable(reason(error), sent=deadline.sent and not isinstance(error, self._never_sent()))
        raise trouble

    def _carried(self, client: Any, call: Call, seconds: float, deadline: Deadline) -> Reply:
        if isinstance(client, self._client.AsyncClient):
            import anyio

            return anyio.run(self._carried_async, client, call, seconds)
        with deadline:
            request = self._request(client, call, seconds, {"trace": partial(_watch, deadline)})
            response = client.send(request, stream=True, auth=self._client.Auth(), follow_redirects=False)
            try:
                body, cut = self._body_of(response, deadline)
            finally:
                response.close()
        return Reply(response.status_code, response.headers, body, cut)

    async def _carried_async(self, client: Any, call: Call, seconds: float) -> Reply:
        """The same through an asynchronous client, on an event loop of this thread: `ASGITransport` knows no other way."""
        import anyio

        request = self._request(client, call, seconds, {})
        # The loop ends with this call, and a connection that is kept would be bound to it.
        request.headers["Connection"] = "close"
        with anyio.fail_after(seconds):
            response = await client.send(request, stream=True, auth=self._client.Auth(), follow_redirects=False)
            try:
                body = await self._start_of(response)
            finally:
                await response.aclose()
        return Reply(response.status_code, response.headers, body[:REPLY_LIMIT], len(body) > REPLY_LIMIT)

    async def _start_of(self, response: Any) -> bytes:
        if "_content" in vars(response):  # a mock's
            return bytes(response.content)
        body = b""
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > REPLY_LIMIT:
                break
        return decoded(body, response.headers.get("content-encoding", ""), REPLY_LIMIT + 1)

    def _request(self, client: Any, call: Call, seconds: float, extensions: dict[str, Any]) -> Any:
        return client.build_request(
            "POST",
            call.url,
            content=call.body(),
            headers={"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"},
            timeout=self._client.Timeout(seconds, connect=CONNECT_TIMEOUT),
            extensions=extensions,
        )

    def _body_of(self, response: Any, deadline: Deadline) -> tuple[bytes, bool]:
        if "_content" in vars(response):  # a mock's
            return deadline.collect((response.content,), ())
        body, cut = deadline.collect(response.iter_raw(), (self._client.HTTPError,))
        # As it came, and then decoded with a bound: what a client decodes by itself can be a thousand times as much.
        return decoded(body, response.headers.get("content-encoding", ""), REPLY_LIMIT), cut

    def _never_sent(self) -> tuple[type[Exception], ...]:
        names = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol", "InvalidURL")
        return tuple(getattr(self._client, name) for name in names)

    def _check_carrier(self, carrier: Any) -> None:
        if carrier is not None and not isinstance(carrier, (self._client.Client, self._client.AsyncClient)):
            name = self._client.__name__
            raise ConfigurationError(f"refresh_via must be a {name}.Client, not {type(carrier).__name__}", setting="refresh_via")


def _with_header(request: Any, header: str) -> Any:
    """The request as another one, with this ``Authorization``."""
    headers = request.headers.copy()
    headers["Authorization"] = header
    made = type(request)(request.method, request.url, headers=headers, stream=request.stream, extensions=request.extensions)
    if _is_in_memory(request):
        made.read()
    return made


def _for_the_record(request: Any) -> Any:
    """A copy for whoever looks back, without the token: what is kept in `history` and hangs on errors ends in logs."""
    return request if bearer(request.headers.get("Authorization")) is None else _with_header(request, REDACTED)


def _watch(deadline: Deadline, event: str, info: Mapping[str, Any]) -> None:
    """Put each new connection under the watch of the deadline, as the client's transport tells of it: a reply's head can trickle, too."""
    if event.endswith("connect_tcp.started"):
        deadline.sent = False
    elif event.endswith("send_request_headers.started"):
        # A proxy is asked for the tunnel with a request of its own; the call leaves only after that.
        deadline.sent = info["request"].method != b"CONNECT"
    find = getattr(info.get("return_value"), "get_extra_info", None)
    if find is not None:
        deadline.watch(partial(find, "socket"))


class _Body:
    """A request's body before it is first sent: can it be sent again, and from where?"""

    __slots__ = ("_file", "_position", "one_shot")

    def __init__(self, stream: Any = None) -> None:
        self._file: IO[bytes] | None = None
        self._position = 0
        self.one_shot = False
        if stream is not None:
            self._look(stream)

    def _look(self, stream: Any) -> None:
        fields = getattr(stream, "fields", None)
        if fields is not None:  # multipart: the client goes back to the start of each file itself, if it can
            self.one_shot = not all(_is_data(field) or _can_seek(field.file) for field in fields)
            return
        source = stream_source(stream)
        if isinstance(source, (list, tuple)):
            return
        if _can_seek(source) and hasattr(source, "read"):
            self._file, self._position = source, source.tell()
            return
        self.one_shot = True

    def rewind(self, stream: Any) -> bool:
        """Go back to where the body began; False where that can't be done. A redirect may have dropped the body."""
        if self._file is not None and stream_source(stream) is self._file:
            try:
                self._file.seek(self._position)
            except (OSError, ValueError):  # ValueError: the caller has closed the file
                return False
            return True
        return not self.one_shot or _is_bytes(stream)


#: Every body that is in memory: there is nothing to remember of it.
_WHOLE = _Body()


def stream_source(stream: Any) -> Any:
    """What the client's stream of a body reads from."""
    return getattr(stream, "_stream", None)


def _is_in_memory(request: Any) -> bool:
    return "_content" in vars(request)


def _is_bytes(stream: Any) -> bool:
    return isinstance(stream_source(stream), bytes)


def _is_data(field: Any) -> bool:
    return not hasattr(field, "file") or isinstance(field.file, (str, bytes))


def _can_seek(source: Any) -> bool:
    seekable = getattr(source, "seekable", None)
    try:
        return bool(seekable()) if callable(seekable) else False
    except ValueError:  # closed
        return False


class _Peeked:
    """The first bytes of a 401's body as they came; the response stays as readable as it was."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self._inner = response.stream
        self.start = b""
        self.code: str | None = None
        self._whole = False

    def read(self) -> None:
        """Look at up to `BODY_LIMIT` bytes."""
        if self._is_loaded():
            return
        rest = iter(self._inner)
        patience = time.monotonic() + PEEK_SECONDS
        while len(self.start) <= BODY_LIMIT and time.monotonic() < patience:
            chunk = next(rest, None)
            if chunk is None:
                self._whole = True
                break
            self.start += chunk
        self._response.stream = self._rejoined(rest)

    async def aread(self) -> None:
        """The same from an asynchronous stream."""
        if self._is_loaded():
            return
        rest = aiter_of(self._inner)
        patience = time.monotonic() + PEEK_SECONDS
        while len(self.start) <= BODY_LIMIT and time.monotonic() < patience:
            try:
                chunk = await rest.__anext__()
            except StopAsyncIteration:
                self._whole = True
                break
            self.start += chunk
        self._response.stream = self._rejoined(rest)

    def _is_loaded(self) -> bool:
        if "_content" not in vars(self._response):
            return False
        self.start = self._response.content[:BODY_LIMIT]
        self._whole = True
        return True

    def _rejoined(self, rest: Any) -> Any:
        return _stream_like(self._inner, self.start, None if self._whole else rest)

    def keep_for_history(self) -> None:
        """The client reads this response to its end before it sends again: give it no more than was looked at."""
        response = self._response
        if "_content" not in vars(response):
            whole = self._whole and is_small(self.start, response.headers.get("content-encoding", ""))
            response.stream = _stream_like(self._inner, self.start if whole else b"", None)


def aiter_of(stream: Any) -> Any:
    """The stream's asynchronous iterator."""
    return stream.__aiter__()


def _stream_like(inner: Any, start: bytes, rest: Any) -> Any:
    """A stream that gives `start`, then `rest`; of the same kinds as `inner`, so that the client's own checks take it."""
    kinds = tuple(kind for kind in type(inner).__mro__ if kind.__name__ in ("SyncByteStream", "AsyncByteStream"))
    return type("Rejoined", (_Rejoined, *kinds), {})(inner, start, rest)


class _Rejoined:
    """A response's bytes from the first one on, of which some were read already."""

    def __init__(self, inner: Any, start: bytes, rest: Any) -> None:
        self._inner = inner
        self._start = start
        self._rest = rest

    @property
    def elapsed(self) -> Any:
        """httpx2 reads the time that the response took from its stream."""
        return getattr(self._inner, "elapsed", None)

    def __iter__(self) -> Iterator[bytes]:
        if self._start:
            yield self._start
        if self._rest is not None:
            yield from self._rest

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._start:
            yield self._start
        if self._rest is not None:
            async for chunk in self._rest:
                yield chunk

    def close(self) -> None:
        """Close the response that this is of."""
        self._inner.close()

    async def aclose(self) -> None:
        """Close the response that this is of."""
        await self._inner.aclose()
