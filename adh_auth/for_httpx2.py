"""AdhHttpx2Auth, for httpx2. The only room that knows httpx2."""

from __future__ import annotations

try:
    import httpx2
except ModuleNotFoundError as missing:
    if missing.name != "httpx2":
        raise
    raise ModuleNotFoundError(
        'AdhHttpx2Auth needs httpx2: pip install "adh-auth[httpx2]"', name="httpx2"
    ) from None

from .clients.base import BaseAuth
from .clients.httpx_flow import HttpxFlow
from .clients.httpx_compat import require_parts

__all__ = ["AdhHttpx2Auth"]

require_parts(httpx2, ">=2", "AdhHttpx2Auth")


class AdhHttpx2Auth(HttpxFlow, httpx2.Auth):  # noqa: D101 - the docstring is put together
    __doc__ = f"""{BaseAuth.__doc__}
    For httpx2: ``httpx2.Client(auth=AdhHttpx2Auth())``, and `httpx2.AsyncClient` on asyncio and trio. `refresh_via` is a `httpx2.Client`,
    or an `AsyncClient` of its own over an `ASGITransport`; without one, the environment decides about proxies and certificates. What a
    request raises is also a `httpx2.HTTPError`.
    """

    _client = httpx2
