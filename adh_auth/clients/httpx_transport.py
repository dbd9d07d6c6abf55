"""What carries a call to an auth endpoint in httpx and httpx2: `refresh_via`, or a client of our own.

Rule 7: a call that failed says whether the token may have left. Imports neither client.
"""

from __future__ import annotations

# socket.getaddrinfo imports this codec for each host name, in the thread of a rotation (rule 17). requests
# imports it for the same reason; httpx does not.
import encodings.idna  # noqa: F401
from functools import partial
from typing import Any

from ..common.limits import REPLY_LIMIT
from ..oauth.content_encoding import decoded
from ..oauth.endpoint import EndpointCall, EndpointReply, Unreachable
from .deadline import Deadline
from .failure_reason import describe_failure
from .httpx_compat import has_connections, loaded_content, on_connections, without_response_hooks
from .system_proxies import must_not_ask_the_system

__all__ = ["Transport"]

#: Seconds to connect. Nothing has been sent by then, so that giving up costs nothing.
CONNECT_TIMEOUT = 5.0
OTHER_LOOP = (
    "refresh_via is an AsyncClient with connections of another event loop;"
    " give the refresh a client of its own"
)
#: Exceptions of both clients that come before anything of the request was sent.
NEVER_SENT = (
    "ConnectError",
    "ConnectTimeout",
    "PoolTimeout",
    "ProxyError",
    "UnsupportedProtocol",
    "InvalidURL",
)


class Transport:
    """Carries calls. `client`: the module httpx or httpx2. `refresh_via`: the user's client, or None."""

    def __init__(self, client: Any, refresh_via: Any) -> None:
        self._client = client
        self._refresh_via = refresh_via

    def post(self, call: EndpointCall, seconds: float) -> EndpointReply:
        """Return the reply to a call that may take `seconds`. Raises `Unreachable`."""
        deadline = Deadline(seconds)
        try:
            return self._post(call, seconds, deadline)
        except (self._client.HTTPError, self._client.InvalidURL, OSError, ValueError, RuntimeError) as error:
            sent = deadline.sent and not isinstance(error, self._never_sent())
            problem = Unreachable(describe_failure(error), sent=sent)
        # Outside of the block: the error's context would keep the frames, and frames hold tokens.
        raise problem

    def _post(self, call: EndpointCall, seconds: float, deadline: Deadline) -> EndpointReply:
        if self._refresh_via is not None:
            return self._post_with(self._refresh_via, call, seconds, deadline)
        with self._own_client(verify=call.url.startswith("https:")) as own:
            return self._post_with(own, call, seconds, deadline)

    def _own_client(self, *, verify: bool) -> Any:
        """Return a client with the environment's proxies and CA bundle, without hooks, cookies or .netrc."""
        if must_not_ask_the_system():
            # A client with a transport of its own does not search for proxies.
            return self._client.Client(transport=self._client.HTTPTransport(verify=verify))
        return self._client.Client(verify=verify)

    def _post_with(
        self, client: Any, call: EndpointCall, seconds: float, deadline: Deadline
    ) -> EndpointReply:
        # A request hook may add what a gateway asks for. GET /me, whether a token has expired, is a call that
        # the user did not make: no hook sees it.
        client = without_response_hooks(client, request_hooks=call.method == "POST")
        if isinstance(client, self._client.AsyncClient):
            import anyio

            if has_connections(client, call.url):
                raise Unreachable(OTHER_LOOP, sent=False)
            return anyio.run(self._post_async, client, call, seconds)
        trace = on_connections(partial(setattr, deadline, "sent"), deadline.watch)
        with deadline:
            request = self._request(client, call, seconds, {"trace": trace})
            response = client.send(request, stream=True, auth=self._client.Auth(), follow_redirects=False)
            try:
                body, cut = self._body_of(response, deadline)
            finally:
                response.close()
        return EndpointReply(response.status_code, response.headers, body, cut)

    async def _post_async(self, client: Any, call: EndpointCall, seconds: float) -> EndpointReply:
        """Return the same through an `AsyncClient`, on an event loop of this thread.

        `ASGITransport` has no synchronous side.
        """
        import anyio

        request = self._request(client, call, seconds, {})
        # The loop ends with this call, and a connection that is kept would be bound to it.
        request.headers["Connection"] = "close"
        with anyio.fail_after(seconds):
            response = await client.send(
                request, stream=True, auth=self._client.Auth(), follow_redirects=False
            )
            try:
                body = await self._body_of_async(response)
            finally:
                await response.aclose()
        cut = len(body) > REPLY_LIMIT
        return EndpointReply(response.status_code, response.headers, body[:REPLY_LIMIT], cut)

    def _request(self, client: Any, call: EndpointCall, seconds: float, extensions: dict[str, Any]) -> Any:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if call.method == "POST":
            headers["Content-Type"] = "application/json"
        if call.access_token is not None:
            headers["Authorization"] = "Bearer " + call.access_token.reveal()
        return client.build_request(
            call.method,
            call.url,
            content=call.body(),
            headers=headers,
            timeout=self._client.Timeout(seconds, connect=CONNECT_TIMEOUT),
            extensions=extensions,
        )

    def _body_of(self, response: Any, deadline: Deadline) -> tuple[bytes, bool]:
        """Return the body, `REPLY_LIMIT` bytes at most, and whether it was cut short."""
        content = loaded_content(response)  # a mock's
        if content is not None:
            return deadline.collect((content,), ())
        # Raw, and decoded with a bound: a client's own decoding can make a thousand times as much of it.
        body, cut = deadline.collect(response.iter_raw(), (self._client.HTTPError,))
        return decoded(body, response.headers.get("content-encoding", ""), REPLY_LIMIT), cut

    async def _body_of_async(self, response: Any) -> bytes:
        """Return the body, with one byte more than `REPLY_LIMIT` where it is longer."""
        content = loaded_content(response)  # a mock's
        if content is not None:
            return content
        body = b""
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > REPLY_LIMIT:
                break
        return decoded(body, response.headers.get("content-encoding", ""), REPLY_LIMIT + 1)

    def _never_sent(self) -> tuple[type[Exception], ...]:
        return tuple(getattr(self._client, name) for name in NEVER_SENT)
