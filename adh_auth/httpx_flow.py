"""The auth flow that httpx and httpx2 share, sync and async. Imports neither: the class that is built on it brings its client's module."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Any

from .endpoint import DEFAULT_PORTS, EXPIRED, Call, Reply, error_code
from .errors import AdhAuthError, ConfigurationError, twin
from .httpx_body import WHOLE as _WHOLE
from .httpx_body import Body as _Body
from .httpx_body import Peeked as _Peeked
from .httpx_body import with_header
from .httpx_carrier import Carrier
from .job import Job
from .plugin import REDACTED, Plugin, bearer, wrong_client
from .rotation import Pair
from .secret import Secret

if TYPE_CHECKING:
    from .tokens import Tokens

__all__ = ["HttpxFlow"]


class HttpxFlow(Plugin):
    """The plugin, given `_client`: the module httpx or httpx2."""

    _client: Any

    def _prepare(self, scheme: str, host: str, port: int) -> None:
        # As a URL of the client has them: no brackets, and None for the scheme's own port.
        self._host = host
        self._scheme = scheme
        self._raw_port = None if port == DEFAULT_PORTS[scheme] else port

    def __call__(self, request: Any) -> Any:
        """Say which class belongs to the client: requests calls an auth, and httpx2 takes any callable for a function of the request."""
        raise wrong_client(self, request)

    async def arefresh(self) -> Tokens:
        """`refresh` for a task: waits without a thread."""
        job = self._core.force(without_thread=Job.run_in_a_task)
        await job.wait_async(self._core.patience)
        self._core.take(job)
        return self.tokens

    async def arevoke(self) -> None:
        """`revoke` for a task: waits without a thread."""
        await self._core.revoke(without_thread=Job.run_in_a_task).wait_async(self._core.patience)

    def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:
        """Put the token on, watch the answer, send again once."""
        url, core = request.url, self._core
        # The usual spelling first: the client has normalised it, and normalising once more would cost more than all the rest.
        to = getattr(url, "_uri_reference", url)  # what its properties read, one call each
        if not ((to.host == self._host and to.port == self._raw_port and to.scheme == self._scheme) or self._goes_to_us(url)):
            yield request
            return
        body = _WHOLE if hasattr(request, "_content") else _Body(request.stream)  # `in vars(request)` would slow down its every attribute
        try:
            pair = core.watch.unchanged() or core.glance()
            if (pair.ask or body.one_shot) and core.due(pair, one_shot=body.one_shot):
                pair = self._rotated(pair.secret).pair
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
                    fresh = self._rotated(rejected).pair
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
        to = getattr(url, "_uri_reference", url)  # what its properties read, one call each
        if not ((to.host == self._host and to.port == self._raw_port and to.scheme == self._scheme) or self._goes_to_us(url)):
            yield request
            return
        body = _WHOLE if hasattr(request, "_content") else _Body(request.stream)  # `in vars(request)` would slow down its every attribute
        try:
            pair = core.watch.unchanged() or core.glance()
            if (pair.ask or body.one_shot) and core.due(pair, one_shot=body.one_shot):
                pair = (await self._rotated_async(pair.secret)).pair
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
                    fresh = (await self._rotated_async(rejected)).pair
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
        return with_header(request, pair.header)

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
        return Carrier(self._client, self._refresh_via).post(call, seconds)

    def _check_carrier(self, carrier: Any) -> None:
        if carrier is not None and not isinstance(carrier, (self._client.Client, self._client.AsyncClient)):
            name = self._client.__name__
            raise ConfigurationError(f"refresh_via must be a {name}.Client, not {type(carrier).__name__}", setting="refresh_via")


def _for_the_record(request: Any) -> Any:
    """A copy for whoever looks back, without the token: what is kept in `history` and hangs on errors ends in logs."""
    return request if bearer(request.headers.get("Authorization")) is None else with_header(request, REDACTED)
