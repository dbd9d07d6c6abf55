"""AdhHttpxAuth, for httpx. The only room that knows httpx."""

from __future__ import annotations

import httpx

from .clients.base import BaseAuth
from .clients.httpx_flow import HttpxFlow
from .clients.httpx_compat import require_parts

__all__ = ["AdhHttpxAuth"]

require_parts(httpx, ">=0.27,<1", "AdhHttpxAuth")


class AdhHttpxAuth(HttpxFlow, httpx.Auth):  # noqa: D101 - the docstring is put together
    __doc__ = f"""{BaseAuth.__doc__}
    For httpx: ``httpx.Client(auth=AdhHttpxAuth())``, and `httpx.AsyncClient` on asyncio and trio. `refresh_via` is a `httpx.Client`,
    or an `AsyncClient` of its own over an `ASGITransport`; without one, the environment decides about proxies and certificates. What a
    request raises is also a `httpx.HTTPError`.
    """

    _client = httpx
