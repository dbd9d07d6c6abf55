"""AdhAuth, the auth class for requests."""

from __future__ import annotations

import requests

from .clients.base import BaseAuth
from .clients.requests_auth import RequestsAuth

__all__ = ["AdhAuth"]


class AdhAuth(RequestsAuth, requests.auth.AuthBase):  # noqa: D101 - the docstring is put together
    __doc__ = f"""{BaseAuth.__doc__}
    For requests: ``session.auth = AdhAuth()``. `refresh_via` is a `requests.Session`; without one, the
    refresh goes out directly, with the `verify`, `cert` and `proxies` of the call that it answers. What a
    request raises is also a `requests.RequestException`.
    """
