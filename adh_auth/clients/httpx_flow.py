"""The auth flow of httpx and httpx2: put the token on a request, and answer a 401 of the API.

Rules 9 to 12. `sync_auth_flow` and `async_auth_flow` are the two drivers. What they do after an answer is
written once, in `_next_request` and `_answer_401`, and decided in `rotation.decision.after_401`. Imports
neither client: a subclass brings its module.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from ..common.secret import Secret
from ..errors import AdhAuthError, ConfigurationError, error_for_client
from ..oauth.endpoint import EndpointCall, EndpointReply
from ..oauth.origin import DEFAULT_PORTS
from ..oauth.replies import EXPIRED, error_code
from ..rotation.active_tokens import ActiveTokens
from ..rotation.decision import HAND_OVER, ROTATE, after_401
from ..rotation.detached import TransportSpec
from ..rotation.job import Job
from .base import MAX_ROTATIONS, BaseAuth, bearer, wrong_client
from .httpx_body import DRAIN_SECONDS, IN_MEMORY, BodyPrefix, RequestBody
from .httpx_compat import (
    callers_timeout,
    has_content,
    has_origin,
    load_transport,
    load_waiting,
    loaded_content,
    response_behind,
)
from .httpx_detached import describe_transport
from .httpx_request import redacted, request_again
from .httpx_transport import Transport
from .waits import Wait, Waits, run_async, run_sync

if TYPE_CHECKING:
    from ..tokens import Tokens

__all__ = ["HttpxFlow"]


class SentRequest:
    """One request of the caller's, however often it is sent.

    `seconds`: how long its caller waits for an answer, or None. `left`: how often it may still be sent again.
    `refreshed`: whether it has had a pair straight from the server.
    """

    def __init__(self, request: Any, body: RequestBody) -> None:
        self.request = request
        self.body = body
        self.seconds: float | None = callers_timeout(request)
        self.left = MAX_ROTATIONS
        self.refreshed = False


class HttpxFlow(BaseAuth):
    """The auth class without its client. `_client`: the module httpx or httpx2."""

    _client: Any
    _has_loaded = False

    def _set_origin(self, scheme: str, host: str, port: int) -> None:
        # As a URL of the client has them: no brackets, and None for the scheme's own port.
        self._host = host
        self._scheme = scheme
        self._raw_port = None if port == DEFAULT_PORTS[scheme] else port

    def __call__(self, request: Any) -> Any:
        """Raise a `TypeError` that names the class for the client.

        requests calls an auth; httpx2 takes any callable for a function of the request.
        """
        raise wrong_client(self, request)

    async def arefresh(self) -> Tokens:
        """Refresh now, as `refresh` does, and return the pair in force. Waits without a thread."""
        if self._core.must_look_first():
            await self._look_async(None)
        job = self._core.refresh_now(without_thread=Job.run_in_a_task)
        await job.wait_async(self._core.patience)
        return self._core.use_outcome(job)

    async def arevoke(self) -> None:
        """Sign out everywhere, as `revoke` does. Waits without a thread."""
        await self._core.revoke(without_thread=Job.run_in_a_task).wait_async(self._core.patience)

    def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:
        """Send a request with the token, and again after a 401 that a rotation can mend."""
        # The client has normalised its URL. To normalise it once more costs more than all the rest.
        if not (
            has_origin(request.url, self._scheme, self._host, self._raw_port) or self._is_for_api(request.url)
        ):
            yield request
            return
        pair = self._core.cache.value_if_unchanged() or self._current_fast(request)
        body = IN_MEMORY if has_content(request) else RequestBody(request.stream)
        if pair.needs_check or body is not IN_MEMORY:
            pair = run_sync(self._ready(request, body, pair))
        request.headers["Authorization"] = pair.header
        try:
            response = yield request
            if response.status_code == 401 or response.history:
                sent = SentRequest(request, body)
                again = run_sync(self._next_request(sent, response))
                while again is not None:
                    response = yield again
                    again = run_sync(self._next_request(sent, response))
            return
        except GeneratorExit:
            pass
        # The client closes the flow while it handles what a hook has raised. Only here is that the current
        # exception: inside the block it is GeneratorExit, which has no context in an asynchronous flow.
        self._learn_from_hidden_401(sys.exc_info()[1])

    async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
        """Do the same as `sync_auth_flow`, step by step, on the event loop."""
        if not (
            has_origin(request.url, self._scheme, self._host, self._raw_port) or self._is_for_api(request.url)
        ):
            yield request
            return
        pair = self._core.cache.value_if_unchanged()
        if pair is None:
            if self._core.must_look_first():
                await run_async(self._with_client_errors(request, self._first_look(request)))
            pair = self._current_fast(request, in_task=True)
        body = IN_MEMORY if has_content(request) else RequestBody(request.stream)
        if pair.needs_check or body is not IN_MEMORY:
            pair = await run_async(self._ready(request, body, pair))
        request.headers["Authorization"] = pair.header
        try:
            response = yield request
            if response.status_code == 401 or response.history:
                sent = SentRequest(request, body)
                again = await run_async(self._next_request(sent, response))
                while again is not None:
                    response = yield again
                    again = await run_async(self._next_request(sent, response))
            return
        except GeneratorExit:
            pass
        self._learn_from_hidden_401(sys.exc_info()[1])

    def _current_fast(self, request: Any, *, in_task: bool = False) -> ActiveTokens:
        """Return the pair in force. The first call imports what a refresh needs. Raises a client's error."""
        if not self._has_loaded:
            self._load(in_task=in_task)
        try:
            return self._core.current_fast()
        except AdhAuthError as error:
            failure = error
        raise self._client_error(failure, request)

    def _load(self, *, in_task: bool) -> None:
        """Import what a later refresh needs (rule 17)."""
        if self._has_loaded:
            return
        if self._refresh_via is None:
            load_transport(self._client)
        if in_task:
            load_waiting()
        self._has_loaded = True

    def _ready(self, request: Any, body: RequestBody, pair: ActiveTokens) -> Waits:
        """Return the pair to send `request` with, rotated first if its token has expired as far as known."""
        seconds = callers_timeout(request)
        yield from body.locate()
        if pair.doubtful:
            yield self._check(pair, seconds)
        if self._core.needs_rotation(pair, one_shot=body.one_shot):
            rotated = yield from self._with_client_errors(request, self._rotation(pair.secret, seconds))
            return rotated.pair
        return pair

    def _next_request(self, sent: SentRequest, response: Any) -> Waits:
        """Return the request to send next, None where `response` is the caller's."""
        # The client follows redirects below this flow, and keeps each hop's request.
        for past in response.history:
            past.request = redacted(past.request)
        rejected = self._rejected_token(response)
        if rejected is None or not sent.left:
            return None
        answer = self._answer_401(sent, response, rejected)
        return (yield from self._with_client_errors(sent.request, answer))

    def _answer_401(self, sent: SentRequest, response: Any, rejected: Secret) -> Waits:
        """Return the request that follows a 401 of the API, after a rotation where one is due; else None."""
        prefix = BodyPrefix(response, self._client)
        code = yield from self._code_of(prefix, response, rejected, sent.seconds)
        decided = partial(after_401, code, rejected, is_bare=prefix.is_empty, refreshed=sent.refreshed)
        pair = self._core.current()
        action = decided(pair, time.time())
        if action == HAND_OVER and self._core.reads_block:
            # What is in memory may be seconds old: another machine may have rotated.
            yield self._newest_look(sent.seconds)
            pair = self._core.current()
            action = decided(pair, time.time())
        if action == HAND_OVER:
            return None
        rewound = yield from sent.body.rewind(response.request.stream)
        yield from prefix.read(DRAIN_SECONDS if rewound else None)
        if not (rewound or prefix.is_whole):
            # The rest of the body is the caller's. A refresh does not hold its connection up.
            if action == ROTATE:
                self._core.rotate(rejected, without_thread=Job.give_up)
            return None
        # Before the wait: in a small pool the refresh, or another request, may need this very connection.
        yield from prefix.release()
        if action == ROTATE:
            pair, sent.refreshed = yield from self._rotation(rejected, sent.seconds)
        sent.left -= 1
        if not rewound:
            return None
        prefix.keep_for_history()
        return request_again(response, pair.header, self._client)

    def _code_of(self, prefix: BodyPrefix, response: Any, rejected: Secret, seconds: float | None) -> Waits:
        """Return the error code of a 401. A header that has it comes first: the body may stall."""
        if error_code(response.headers, b"") == EXPIRED:
            return EXPIRED
        yield from prefix.read()
        code = error_code(response.headers, prefix.start)
        pair = self._core.active_for(rejected) if prefix.is_lost else None
        if pair is None:
            return code
        pair.mark_doubtful()
        yield self._check(pair, seconds)
        return EXPIRED if pair.expired else code

    def _rotation(self, rejected: Secret, seconds: float | None) -> Waits:
        """Return what `_wait_for_new_tokens` returns. Raises the outcome's error."""
        return (
            yield Wait(
                partial(self._wait_for_new_tokens, rejected, seconds),
                partial(self._wait_for_new_tokens_async, rejected, seconds),
            )
        )

    def _first_look(self, request: Any) -> Waits:
        """Read the session in a job: an event loop's thread waits for no network. Raises its error."""
        seconds = callers_timeout(request)
        yield Wait(partial(self._look, seconds), partial(self._look_async, seconds))

    def _newest_look(self, seconds: float | None) -> Wait:
        """Return the wait for the session as it is now. Without one, nothing changes."""
        return Wait(
            partial(self._try_to_look, seconds),
            partial(self._try_to_look_async, seconds),
        )

    async def _try_to_look_async(self, seconds: float | None) -> None:
        with suppress(AdhAuthError):
            await self._look_async(seconds, is_newest=True)

    def _check(self, pair: ActiveTokens, seconds: float | None) -> Wait:
        """Return the wait for the API's word about a doubtful pair. Without one, nothing changes."""
        return Wait(partial(self._check_sync, pair, seconds), partial(self._check_async, pair, seconds))

    def _check_sync(self, pair: ActiveTokens, seconds: float | None) -> None:
        with suppress(AdhAuthError):
            job = self._core.ask(pair)
            if job is not None:
                job.wait(self._seconds_to_wait(seconds))

    async def _check_async(self, pair: ActiveTokens, seconds: float | None) -> None:
        with suppress(AdhAuthError):
            job = self._core.ask(pair, without_thread=Job.run_in_a_task)
            if job is not None:
                await job.wait_async(self._seconds_to_wait(seconds))

    def _learn_from_hidden_401(self, error: BaseException | None) -> None:
        """Note for the next request what a 401 says that a hook, by raising `error`, kept from this flow."""
        # Whatever fails here must not take the place of what the hook has raised.
        with suppress(Exception):
            response = response_behind(error, self._client)
            rejected = None if response is None else self._rejected_token(response)
            pair = None if rejected is None else self._core.active_for(rejected)
            if rejected is None or pair is None:
                return
            content = loaded_content(response)
            code = error_code(response.headers, content or b"")
            if after_401(code, rejected, pair, time.time(), is_bare=content == b"") == ROTATE:
                pair.mark_expired()
            elif content is None:
                pair.mark_doubtful()
            if pair.needs_check:
                self._core.go_by_expiry()

    def _rejected_token(self, response: Any) -> Secret | None:
        """Return the token that the API has answered with a 401.

        None for any other answer: another status, another server's behind a redirect, other credentials.
        """
        if response.status_code != 401:
            return None
        request = response.request
        token = bearer(request.headers.get("Authorization"))
        return token if token is not None and self._is_for_api(request.url) else None

    def _is_for_api(self, url: Any) -> bool:
        return self._is_our_origin(url.scheme, url.raw_host.decode("ascii"), url.port)

    def _with_client_errors(self, request: Any, waits: Waits) -> Waits:
        """Run `waits`. Raises their errors as the client's, too."""
        try:
            return (yield from waits)
        except AdhAuthError as error:
            failure = error
        # Outside of the block: the error's context would keep the frames, and frames hold tokens.
        raise self._client_error(failure, request)

    def _client_error(self, error: AdhAuthError, request: Any) -> AdhAuthError:
        raised = error_for_client(error, self._client.HTTPError)
        raised.request = redacted(request)
        return raised

    def _post(self, call: EndpointCall, seconds: float) -> EndpointReply:
        """Return the reply to a call of an auth endpoint. Raises `Unreachable`."""
        return Transport(self._client, self._refresh_via).post(call, seconds)

    def _describe_transport(self) -> TransportSpec | None:
        if self._refresh_via is not None:
            return None
        return describe_transport(self._client, self._scheme)

    def _check_refresh_via(self, carrier: Any) -> None:
        if carrier is not None and not isinstance(carrier, (self._client.Client, self._client.AsyncClient)):
            name = self._client.__name__
            raise ConfigurationError(
                f"refresh_via must be a {name}.Client, not {type(carrier).__name__}", setting="refresh_via"
            )
