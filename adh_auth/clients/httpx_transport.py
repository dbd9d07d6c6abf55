"""What carries a call to an auth endpoint in httpx and httpx2: the user's own client, or one that is made for
it.

Imports neither.
"""

from __future__ import annotations

# socket.getaddrinfo looks this codec up for each host name. requests imports it for the same reason; httpx
# does not.
import encodings.idna  # noqa: F401
from collections.abc import Mapping
from functools import partial
from typing import Any

from ..common.limits import REPLY_LIMIT
from ..oauth.content_encoding import decoded
from ..oauth.endpoint import EndpointCall, EndpointReply, Unreachable
from .deadline import Deadline
from .failure_reason import describe_failure
from .httpx_compat import has_connections, loaded_content, without_response_hooks
from .system_proxies import must_not_ask_the_system

__all__ = ["Transport"]

#: Seconds to connect. Nothing has been sent by then, so that giving up is safe.
CONNECT_TIMEOUT = 5.0
OTHER_LOOP = "refresh_via is an AsyncClient with connections of another event loop; give the refresh a client of its own"


class Transport:
    """Given the client's module, and the `refresh_via` of the user, or None."""

    def __init__(self, client: Any, refresh_via: Any) -> None:
        self._client = client
        self._refresh_via = refresh_via

    def post(self, call: EndpointCall, seconds: float) -> EndpointReply:
        """Carry a call to an auth endpoint. Raises `Unreachable`."""
        trouble = None
        deadline = Deadline(seconds)
        try:
            if self._refresh_via is not None:
                return self._carried(self._refresh_via, call, seconds, deadline)
            # A client of our own: the environment's proxies and CA bundle, no hooks, no cookies, no .netrc,
            # no redirects.
            with self._own(verify=call.url.startswith("https:")) as own:
                return self._carried(own, call, seconds, deadline)
        except (self._client.HTTPError, self._client.InvalidURL, OSError, ValueError, RuntimeError) as error:
            trouble = Unreachable(
                describe_failure(error), sent=deadline.sent and not isinstance(error, self._never_sent())
            )
        raise trouble

    def _own(self, *, verify: bool) -> Any:
        if must_not_ask_the_system():
            # A transport that is given keeps the client from looking for proxies.
            return self._client.Client(transport=self._client.HTTPTransport(verify=verify))
        return self._client.Client(verify=verify)

    def _carried(self, client: Any, call: EndpointCall, seconds: float, deadline: Deadline) -> EndpointReply:
        # A request hook may add what a gateway asks for. The question about a token is no call that was asked
        # for: no hook sees it.
        client = without_response_hooks(client, request_hooks=call.method == "POST")
        if isinstance(client, self._client.AsyncClient):
            import anyio

            if has_connections(client, call.url):
                raise Unreachable(OTHER_LOOP, sent=False)
            return anyio.run(self._carried_async, client, call, seconds)
        with deadline:
            request = self._request(client, call, seconds, {"trace": partial(_watch, deadline)})
            response = client.send(request, stream=True, auth=self._client.Auth(), follow_redirects=False)
            try:
                body, cut = self._body_of(response, deadline)
            finally:
                response.close()
        return EndpointReply(response.status_code, response.headers, body, cut)

    async def _carried_async(self, client: Any, call: EndpointCall, seconds: float) -> EndpointReply:
        """The same through an asynchronous client, on an event loop of this thread: `ASGITransport` knows no
        other way.
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
                body = await self._start_of(response)
            finally:
                await response.aclose()
        return EndpointReply(
            response.status_code, response.headers, body[:REPLY_LIMIT], len(body) > REPLY_LIMIT
        )

    async def _start_of(self, response: Any) -> bytes:
        content = loaded_content(response)  # a mock's
        if content is not None:
            return content
        body = b""
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > REPLY_LIMIT:
                break
        return decoded(body, response.headers.get("content-encoding", ""), REPLY_LIMIT + 1)

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
        content = loaded_content(response)  # a mock's
        if content is not None:
            return deadline.collect((content,), ())
        body, cut = deadline.collect(response.iter_raw(), (self._client.HTTPError,))
        # As it came, and then decoded with a bound: what a client decodes by itself can be a thousand times
        # as much.
        return decoded(body, response.headers.get("content-encoding", ""), REPLY_LIMIT), cut

    def _never_sent(self) -> tuple[type[Exception], ...]:
        names = (
            "ConnectError",
            "ConnectTimeout",
            "PoolTimeout",
            "ProxyError",
            "UnsupportedProtocol",
            "InvalidURL",
        )
        return tuple(getattr(self._client, name) for name in names)


def _watch(deadline: Deadline, event: str, info: Mapping[str, Any]) -> None:
    """Put each new connection under the watch of the deadline, as the client's transport tells of it: a
    reply's head can trickle, too.
    """
    if event.endswith("connect_tcp.started"):
        deadline.sent = False
    elif event.endswith("send_request_headers.started"):
        # A proxy is asked for the tunnel with a request of its own; the call leaves only after that.
        deadline.sent = info["request"].method != b"CONNECT"
    find = getattr(info.get("return_value"), "get_extra_info", None)
    if find is not None:
        deadline.watch(partial(find, "socket"))
