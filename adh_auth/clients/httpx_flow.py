"""The auth flow that httpx and httpx2 share, sync and async.

Imports neither: the class that is built on it brings its client's module.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from ..common.secret import Secret
from ..errors import AdhAuthError, ConfigurationError, twin
from ..oauth.endpoint import EndpointCall, EndpointReply
from ..oauth.origin import DEFAULT_PORTS
from ..oauth.replies import EXPIRED, error_code
from ..rotation.active_tokens import ActiveTokens
from ..rotation.decision import HAND_OVER, ROTATE, after_401
from ..rotation.detached import TransportSpec
from ..rotation.job import Job
from .base import MAX_ROTATIONS, REDACTED, BaseAuth, bearer, wrong_client
from .httpx_body import COURTESY_SECONDS, with_header
from .httpx_body import WHOLE as _WHOLE
from .httpx_body import Body as _Body
from .httpx_body import BodyPrefix as _Peeked
from .httpx_compat import callers_timeout, loaded_content, response_behind
from .httpx_compat import has_content as _has_content
from .httpx_compat import url_parts as _parts
from .httpx_detached import describe_transport
from .httpx_requirements import load_transport, load_waiting
from .httpx_transport import Transport
from .waits import Wait, Waits, run, run_async

if TYPE_CHECKING:
    from ..tokens import Tokens

__all__ = ["HttpxFlow"]


class Exchange:
    """One request of the caller's, as often as it is sent.

    `left`: how often it may still be sent again. `refreshed`: whether it has had a pair straight from the
    server.
    """

    def __init__(self, request: Any, body: _Body) -> None:
        self.request = request
        self.body = body
        self.left = MAX_ROTATIONS
        self.refreshed = False


class HttpxFlow(BaseAuth):
    """The plugin, given `_client`: the module httpx or httpx2."""

    _client: Any
    _has_loaded = False

    def _load(self, *, in_task: bool) -> None:
        """Load with the first request what a later refresh needs."""
        if self._refresh_via is None:
            load_transport(self._client)
        if in_task:
            load_waiting()
        self._has_loaded = True

    def _prepare(self, scheme: str, host: str, port: int) -> None:
        # As a URL of the client has them: no brackets, and None for the scheme's own port.
        self._host = host
        self._scheme = scheme
        self._raw_port = None if port == DEFAULT_PORTS[scheme] else port

    def __call__(self, request: Any) -> Any:
        """Say which class belongs to the client: requests calls an auth, and httpx2 takes any callable for a
        function of the request.
        """
        raise wrong_client(self, request)

    async def arefresh(self) -> Tokens:
        """`refresh` for a task: waits without a thread."""
        job = self._core.refresh_now(without_thread=Job.run_in_a_task)
        await job.wait_async(self._core.patience)
        self._core.take(job)
        return self.tokens

    async def arevoke(self) -> None:
        """`revoke` for a task: waits without a thread."""
        await self._core.revoke(without_thread=Job.run_in_a_task).wait_async(self._core.patience)

    def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:
        """Put the token on, watch the answer, send again."""
        # The usual spelling first: the client has normalised it, and normalising once more would cost more
        # than all the rest.
        to = _parts(request.url)
        if not (
            (to.host == self._host and to.port == self._raw_port and to.scheme == self._scheme)
            or self._goes_to_us(request.url)
        ):
            yield request
            return
        pair = self._core.cache.value_if_unchanged() or self._current_fast(request)
        body = _WHOLE if _has_content(request) else _Body(request.stream)
        if pair.needs_check or body is not _WHOLE:
            pair = run(self._ready(request, body, pair))
        request.headers["Authorization"] = pair.header
        try:
            response = yield request
            if response.status_code != 401 and not response.history:
                return
            exchange = Exchange(request, body)
            while (again := run(self._follow_up(exchange, response))) is not None:
                response = yield again
            return
        except GeneratorExit:
            pass
        # The client closes the flow while it handles what a hook has raised. That shows only here: in the
        # block above, what is handled is GeneratorExit, and in an asynchronous flow it has no context.
        self._heed_hidden_answer(sys.exc_info()[1])

    async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
        """The same for a task; the waiting is done by the event loop."""
        to = _parts(request.url)
        if not (
            (to.host == self._host and to.port == self._raw_port and to.scheme == self._scheme)
            or self._goes_to_us(request.url)
        ):
            yield request
            return
        pair = self._core.cache.value_if_unchanged() or self._current_fast(request, in_task=True)
        body = _WHOLE if _has_content(request) else _Body(request.stream)
        if pair.needs_check or body is not _WHOLE:
            pair = await run_async(self._ready(request, body, pair))
        request.headers["Authorization"] = pair.header
        try:
            response = yield request
            if response.status_code != 401 and not response.history:
                return
            exchange = Exchange(request, body)
            while (again := await run_async(self._follow_up(exchange, response))) is not None:
                response = yield again
            return
        except GeneratorExit:
            pass
        self._heed_hidden_answer(sys.exc_info()[1])

    def _current_fast(self, request: Any, *, in_task: bool = False) -> ActiveTokens:
        """The pair in force. Raises as the client does."""
        if not self._has_loaded:
            self._load(in_task=in_task)
        try:
            return self._core.current_fast()
        except AdhAuthError as error:
            problem = error
        raise self._for_client(problem, request)

    def _ready(self, request: Any, body: _Body, pair: ActiveTokens) -> Waits:
        """The pair to send `request` with: rotated first where its token is known or believed to have
        expired.
        """
        seconds = callers_timeout(request)
        yield from body.locate()
        if pair.doubtful:
            yield self._question(pair, seconds)
        if self._core.needs_rotation(pair, one_shot=body.one_shot):
            rotated = yield from self._as_clients(request, self._rotation(pair.secret, seconds))
            return rotated.pair
        return pair

    def _follow_up(self, exchange: Exchange, response: Any) -> Waits:
        """The request to send next; None where `response` is the caller's."""
        self._redact_history(response)
        # httpx follows redirects below this flow, so that the answer may be another server's.
        rejected = self._rejected_by_us(response) if response.status_code == 401 else None
        if rejected is None or not exchange.left:
            return None
        return (yield from self._as_clients(exchange.request, self._answered(exchange, response, rejected)))

    def _answered(self, exchange: Exchange, response: Any, rejected: Secret) -> Waits:
        """What follows from a 401 of the API: the next request, or None."""
        seconds = callers_timeout(exchange.request)
        peeked = _Peeked(response)
        code = yield from self._code_of(peeked, response, rejected, seconds)
        pair = self._core.current()
        is_bare = peeked.is_whole and not peeked.start
        action = after_401(code, rejected, pair, time.time(), is_bare=is_bare)
        # A 401 to what this very request has had from the server: another refresh would be answered by
        # another 401.
        ended = pair.expires_at is not None and pair.expires_at <= time.time()
        if action == HAND_OVER or (action == ROTATE and exchange.refreshed and not ended):
            return None
        again = response.request
        rewound = yield from exchange.body.rewind(again.stream)
        yield from peeked.read(COURTESY_SECONDS if rewound else None)
        if rewound or peeked.is_whole:
            # Before anything is waited for: in a small pool it may be the connection that the refresh, or
            # another request, needs.
            yield from peeked.release()
        elif action == ROTATE:
            # More of the body is to come, and it is the caller's. Its connection is not held for the length
            # of a refresh.
            self._core.rotate(rejected, without_thread=Job.give_up)
            return None
        if action == ROTATE:
            pair, exchange.refreshed = yield from self._rotation(rejected, seconds)
        exchange.left -= 1
        if not rewound:
            return None
        peeked.keep_for_history()
        return self._again(response, pair)

    def _code_of(self, peeked: _Peeked, response: Any, rejected: Secret, seconds: float | None) -> Waits:
        """The error code of a 401.

        Its header comes first: what is told there needs no body, which may stall.
        """
        if error_code(response.headers, b"") == EXPIRED:
            return EXPIRED
        yield from peeked.read()
        code = error_code(response.headers, peeked.start)
        pair = self._core.active_for(rejected) if peeked.is_lost else None
        if pair is not None:
            pair.mark_doubtful()
            yield self._question(pair, seconds)
            return EXPIRED if pair.expired else code
        return code

    def _rotation(self, rejected: Secret, seconds: float | None) -> Waits:
        return (
            yield Wait(
                partial(self._wait_for_new_tokens, rejected, seconds),
                partial(self._wait_for_new_tokens_async, rejected, seconds),
            )
        )

    def _question(self, pair: ActiveTokens, seconds: float | None) -> Wait:
        """Wait for the API's word about a doubtful pair. Without an answer the request goes on as before."""
        return Wait(partial(self._asked, pair, seconds), partial(self._asked_async, pair, seconds))

    def _asked(self, pair: ActiveTokens, seconds: float | None) -> None:
        with suppress(AdhAuthError):
            if (job := self._core.ask(pair)) is not None:
                job.wait(self._patience(seconds))

    async def _asked_async(self, pair: ActiveTokens, seconds: float | None) -> None:
        with suppress(AdhAuthError):
            if (job := self._core.ask(pair, without_thread=Job.run_in_a_task)) is not None:
                await job.wait_async(self._patience(seconds))

    def _as_clients(self, request: Any, steps: Waits) -> Waits:
        """Take `steps`; their errors are raised as the client's, too."""
        try:
            return (yield from steps)
        except AdhAuthError as error:
            problem = error
        # Outside of the block: a context would keep the frames, and frames hold tokens.
        raise self._for_client(problem, request)

    def _heed_hidden_answer(self, error: BaseException | None) -> None:
        """Draw from a 401 that a hook has kept from this flow, by raising, what the next request needs to
        know.
        """
        # Whatever goes wrong here must not take the place of what the hook has raised.
        with suppress(Exception):
            answer = response_behind(error, self._client)
            rejected = None if answer is None or answer.status_code != 401 else self._rejected_by_us(answer)
            pair = None if rejected is None else self._core.active_for(rejected)
            if rejected is None or pair is None:
                return
            content = loaded_content(answer)
            code = error_code(answer.headers, content or b"")
            if after_401(code, rejected, pair, time.time(), is_bare=content == b"") == ROTATE:
                pair.mark_expired()
            elif content is None:
                pair.mark_doubtful()
            if pair.needs_check:
                self._core.go_by_expiry()

    def _goes_to_us(self, url: Any) -> bool:
        return self._is_our_origin(url.scheme, url.raw_host.decode("ascii"), url.port)

    def _rejected_by_us(self, response: Any) -> Secret | None:
        """The token that the API itself has refused; None where the answer is another server's, or to other
        credentials.
        """
        request = response.request
        rejected = bearer(request.headers.get("Authorization"))
        return rejected if rejected is not None and self._goes_to_us(request.url) else None

    def _again(self, response: Any, pair: ActiveTokens) -> Any:
        """The request once more, as a request of its own: hooks and mocks keep the first as it was."""
        again = with_header(response.request, pair.header)
        if "set-cookie" in response.headers:
            self._add_cookies(again, response)
        return again

    def _add_cookies(self, again: Any, response: Any) -> None:
        """Send along what the 401 has set, a load balancer's cookie perhaps; what the request carries besides
        stays as it is.
        """
        # Not `response.cookies`, which leaves a jar on the response: that can't be pickled any more.
        fresh = self._client.Cookies()
        fresh.extract_cookies(response)
        request = type(again)(again.method, again.url)
        fresh.set_cookie_header(request)
        added = request.headers.get("cookie")
        if added:
            again.headers["Cookie"] = merged_cookies(again.headers.get("cookie", ""), added)

    def _for_client(self, error: AdhAuthError, request: Any) -> AdhAuthError:
        raised = twin(error, self._client.HTTPError)
        raised.request = _for_the_record(request)  # type: ignore[attr-defined]
        return raised

    def _redact_history(self, response: Any) -> None:
        """The client follows redirects below this flow, and keeps each hop's request."""
        for past in response.history:
            past.request = _for_the_record(past.request)

    def _post(self, call: EndpointCall, seconds: float) -> EndpointReply:
        """Carry a call to an auth endpoint. Raises `Unreachable`."""
        return Transport(self._client, self._refresh_via).post(call, seconds)

    def _describe_transport(self) -> TransportSpec | None:
        if self._refresh_via is not None:
            return None
        return describe_transport(self._client, self._scheme)

    def _check_carrier(self, carrier: Any) -> None:
        if carrier is not None and not isinstance(carrier, (self._client.Client, self._client.AsyncClient)):
            name = self._client.__name__
            raise ConfigurationError(
                f"refresh_via must be a {name}.Client, not {type(carrier).__name__}", setting="refresh_via"
            )


def merged_cookies(carried: str, added: str) -> str:
    """A ``Cookie`` header with the pairs of both; an added one takes the place of those of its name."""
    pairs = [pair for pair in (item.strip() for item in added.split(";")) if pair]
    names = {pair.partition("=")[0] for pair in pairs}
    kept = [
        pair
        for pair in (item.strip() for item in carried.split(";"))
        if pair and pair.partition("=")[0] not in names
    ]
    return "; ".join([*kept, *pairs])


def _for_the_record(request: Any) -> Any:
    """A copy for whoever looks back, without the token: what is kept in `history` and hangs on errors ends in
    logs.
    """
    return request if bearer(request.headers.get("Authorization")) is None else with_header(request, REDACTED)
