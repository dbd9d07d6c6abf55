"""Copies of an httpx or httpx2 request: the one sent again, and the one kept without its token.

A request of the caller's is never changed after it was sent: hooks and mocks keep it. Rule 13: what hangs on
errors and in `history` holds no token. Imports neither client.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from ..common.secret import REDACTED
from .base import bearer
from .httpx_compat import has_content

__all__ = ["merged_cookies", "redacted", "request_again", "with_header"]


def request_again(response: Any, header: str, client: ModuleType) -> Any:
    """Return a copy of a 401's request, with this ``Authorization`` and the cookies that the 401 set."""
    again = with_header(response.request, header)
    if "set-cookie" in response.headers:
        added = _cookies_set_by(response, client)
        if added:
            again.headers["Cookie"] = merged_cookies(again.headers.get("cookie", ""), added)
    return again


def with_header(request: Any, header: str) -> Any:
    """Return a copy of the request with this ``Authorization``."""
    headers = request.headers.copy()
    headers["Authorization"] = header
    made = type(request)(
        request.method, request.url, headers=headers, stream=request.stream, extensions=request.extensions
    )
    if has_content(request):
        made.read()
    return made


def redacted(request: Any) -> Any:
    """Return the request without its token: a copy if it carries one."""
    return request if bearer(request.headers.get("Authorization")) is None else with_header(request, REDACTED)


def merged_cookies(carried: str, added: str) -> str:
    """Return a ``Cookie`` header with the pairs of both; an added one replaces those of its name."""
    pairs = [pair for pair in (item.strip() for item in added.split(";")) if pair]
    names = {pair.partition("=")[0] for pair in pairs}
    kept = [
        pair
        for pair in (item.strip() for item in carried.split(";"))
        if pair and pair.partition("=")[0] not in names
    ]
    return "; ".join([*kept, *pairs])


def _cookies_set_by(response: Any, client: ModuleType) -> str:
    """Return what a client would send in ``Cookie`` of what the response sets, such as a load balancer's."""
    # `response.cookies` would leave a jar on the response, and a jar holds a lock: it cannot be pickled.
    jar = client.Cookies()
    jar.extract_cookies(response)
    request = type(response.request)(response.request.method, response.request.url)
    jar.set_cookie_header(request)
    return str(request.headers.get("cookie", ""))
