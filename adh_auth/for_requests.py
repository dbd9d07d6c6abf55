"""AdhAuth, the auth class for requests."""

from __future__ import annotations

from requests.auth import AuthBase

from .clients.requests_auth import RequestsAuth

__all__ = ["AdhAuth"]


class AdhAuth(RequestsAuth, AuthBase):
    """Keep the requests of a client signed in.

    `token_file`: path of the shared token file; default ``$ADH_TOKEN_FILE``, else
    ``$XDG_CONFIG_HOME/adh/tokens.json`` (``~/.config/adh/tokens.json``).
    `store`, `session`: instead of `token_file`, a session in a store for several machines: a URL
    (``postgresql://``, ``redis://``, ``file://`` for a folder) or an object of `adh_auth.stores`; default
    ``$ADH_STORE``, and ``$ADH_SESSION`` or ``"default"``.
    `client_id`, `client_secret`: the OAuth app; default ``$ADH_CLIENT_ID``, ``$ADH_CLIENT_SECRET``.
    `base_url`: URL of the API; default ``$ADH_BASE_URL``, else ``https://api.agenticdeveloperhub.com``. The
    token is sent to this origin and to no other.
    `refresh_ahead`: seconds before expiry at which a refresh starts in the background; None waits for the
    API's ``401 token_expired``.
    `lock_timeout`: seconds to wait for another process's refresh, default 45; must exceed one whole refresh,
    which takes 30 at most.
    `detached`: which refreshes run in a process of their own, which no kill of the program reaches. None:
    those in the background, and all in a daemonic child of multiprocessing; True: all; False: none.
    `on_event`: called with an `adh_auth.Event` after each outcome of a rotation, in the rotation's thread;
    what it raises is logged.
    `refresh_via`: a client that carries the refresh call instead of one of our own.

    Building one does no I/O. Raises `ConfigurationError`.

    For requests: ``session.auth = AdhAuth()``. `refresh_via` is a `requests.Session`; without one, the
    refresh goes out directly, with the `verify`, `cert` and `proxies` of the call that it answers. What a
    request raises is also a `requests.RequestException`.
    """
