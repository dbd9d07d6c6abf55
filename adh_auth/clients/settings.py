"""Arguments and environment of an auth object, checked once when it is built. No I/O.

Rule 12: `base_url` is https or loopback; anything else is refused here.
"""

from __future__ import annotations

import math
import os
from functools import lru_cache
from inspect import CO_COROUTINE
from typing import TYPE_CHECKING, Any, NamedTuple

from ..common.limits import LOCK_TIMEOUT
from ..common.secret import Secret
from ..errors import ConfigurationError
from ..oauth.origin import Origin, base_url_of, origin_of
from ..rotation.detached import Launcher
from ..store.token_file import TokenFile

if TYPE_CHECKING:
    from ..rotation.reporting import OnEvent
    from ..store.base import SessionStore

__all__ = [
    "DEFAULT_BASE_URL",
    "OAuthApp",
    "Settings",
    "as_secret",
    "as_url",
    "open_session",
    "resolve",
    "resolve_app",
]

DEFAULT_BASE_URL = "https://api.agenticdeveloperhub.com"


class OAuthApp(NamedTuple):
    """An app that is registered with the platform, and the API that it is registered at."""

    client_id: str
    client_secret: Secret
    base_url: str


class Settings(NamedTuple):
    """What an auth object or a command works with. `refresh_ahead` and `lock_timeout` are in seconds."""

    store: SessionStore
    client_id: str
    client_secret: Secret
    base_url: str
    origin: Origin
    refresh_ahead: float | None
    lock_timeout: float
    detached: bool | None
    on_event: OnEvent | None = None

    def launcher(self) -> Launcher:
        """Return what starts a process of its own for a refresh of this session."""
        place = self.store.for_helper()
        if place is None:
            return Launcher(self.detached, None)
        app = {"base_url": Secret(self.base_url), "client_id": Secret(self.client_id)}
        return Launcher(self.detached, {**place, **app, "client_secret": self.client_secret})


def resolve(
    token_file: str | os.PathLike[str] | None,
    *,
    store: Any = None,
    session: str | None = None,
    client_id: str | None,
    client_secret: str | Secret | None,
    base_url: str | None,
    refresh_ahead: float | None = None,
    lock_timeout: float | None = None,
    detached: bool | None = None,
    on_event: OnEvent | None = None,
) -> Settings:
    """Return the settings: arguments first, then the environment, then the defaults.

    `refresh_ahead`, `lock_timeout`: seconds. Raises `ConfigurationError`.
    """
    client_secret = as_secret(client_secret)
    store = as_url(store)
    app = resolve_app(client_id=client_id, client_secret=client_secret, base_url=base_url)
    _, origin = _server(app.base_url)
    return Settings(
        **app._asdict(),
        origin=origin,
        refresh_ahead=_seconds("refresh_ahead", refresh_ahead),
        lock_timeout=_seconds("lock_timeout", lock_timeout) or LOCK_TIMEOUT,
        detached=_choice("detached", detached),
        on_event=_hook("on_event", on_event),
        store=open_session(token_file, store, session),  # last: it imports a driver
    )


def resolve_app(*, client_id: str | None, client_secret: Secret | None, base_url: str | None) -> OAuthApp:
    """Return the app as `resolve` does. Raises `ConfigurationError`."""
    base, _ = _server(_string("base_url", base_url, "ADH_BASE_URL", DEFAULT_BASE_URL))
    _check_any_credentials(client_id, client_secret)
    return OAuthApp(_string("client_id", client_id, "ADH_CLIENT_ID"), _secret(client_secret), base)


def _check_any_credentials(client_id: str | None, client_secret: Secret | None) -> None:
    """Raise one error for both: a first run would meet them one after the other."""
    given = client_id or (client_secret and client_secret.reveal())
    if not (given or os.environ.get("ADH_CLIENT_ID") or os.environ.get("ADH_CLIENT_SECRET")):
        raise ConfigurationError(
            "client_id and client_secret are missing: set ADH_CLIENT_ID and ADH_CLIENT_SECRET to those of "
            "your OAuth app, or pass client_id= and client_secret=",
            setting="ADH_CLIENT_ID",
        )


@lru_cache(maxsize=16)
def _server(base_url: str) -> tuple[str, Origin]:
    """Return URL and origin of the API; a web application asks with each request."""
    base = base_url_of(base_url)
    origin = origin_of(base)
    assert origin is not None
    return base, origin


def open_session(
    token_file: str | os.PathLike[str] | None, store: Any = None, session: str | None = None
) -> SessionStore:
    """Return the place of a session: arguments first, then the environment, then the default token file.

    `store`: a URL, wrapped by `as_url`, or an object. Raises `ConfigurationError`.
    """
    named = _url_in_environment() if token_file is None and store is None else None
    if store is None and session is None and named is None:
        return TokenFile(token_file)
    # Late: most programs have a token file.
    from ..store.factory import require_one, session_in

    require_one(token_file, store, session)
    return session_in(named or store, session)


def _url_in_environment() -> Secret | None:
    url = os.environ.get("ADH_STORE")
    return Secret(url) if url else None


def as_url(store: Any) -> Any:
    """Return the URL of a store, wrapped so that no traceback with locals shows it; an object as it is."""
    return Secret(store) if isinstance(store, str) else store


def as_secret(client_secret: Any) -> Secret | None:
    """Return the client secret, of whatever type, wrapped so that no traceback with locals shows it."""
    if client_secret is None or isinstance(client_secret, Secret):
        return client_secret
    return Secret(client_secret)


def _secret(given: Secret | None) -> Secret:
    if given is None:
        return Secret(_string("client_secret", None, "ADH_CLIENT_SECRET"))
    if not isinstance(given.reveal(), str):
        kind = type(given.reveal()).__name__
        raise ConfigurationError(f"client_secret must be a string, not {kind}", setting="client_secret")
    return given if given.reveal() else Secret(_string("client_secret", "", "ADH_CLIENT_SECRET"))


def _string(name: str, value: Any, variable: str, default: str | None = None) -> str:
    if value is None:
        value = os.environ.get(variable) or default
    if value is None or value == "":
        raise ConfigurationError(f"{name} is missing: pass {name}= or set {variable}", setting=variable)
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} must be a string, not {type(value).__name__}", setting=name)
    return value


def _choice(name: str, value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise ConfigurationError(f"{name} must be True, False or None, not {type(value).__name__}", setting=name)


def _hook(name: str, value: Any) -> Any:
    code = getattr(value, "__code__", None)
    if value is None or (callable(value) and not (code is not None and code.co_flags & CO_COROUTINE)):
        return value
    kind = "a coroutine function" if callable(value) else type(value).__name__
    raise ConfigurationError(
        f"{name} must be a function that takes an event, not {kind}: it is called in a thread", setting=name
    )


def _seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value <= 0
    ):
        raise ConfigurationError(f"{name} must be a number of seconds above 0", setting=name)
    return float(value)
