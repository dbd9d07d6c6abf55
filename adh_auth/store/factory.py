"""Opens the place of a session that `store` and `session` name. Imported by who names one.

A URL may hold a password: no message, error or traceback local shows it (rule 13).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from ..common.secret import Secret
from ..errors import ConfigurationError
from . import cipher
from .patience import READ_PATIENCE
from .store_messages import checked_session

if TYPE_CHECKING:
    from .base import SessionStore
    from .register import Register
    from .registry import RegistryStore

__all__ = [
    "DEFAULT_SESSION",
    "FILE_SCHEME",
    "SCHEMES",
    "load_driver",
    "open_register",
    "open_registry",
    "require_one",
    "scheme_of",
    "session_in",
]

DEFAULT_SESSION = "default"
FILE_SCHEME = "file"


def _postgresql(url: Secret) -> Register:
    from .postgresql import PostgresStore

    return PostgresStore.from_url(url)


def _redis(url: Secret) -> Register:
    from .redis import RedisStore

    return RedisStore.from_url(url)


#: What opens the register at a URL, by its scheme. Drivers are imported at first use.
_REGISTERS: dict[str, Callable[[Secret], Register]] = {
    "postgresql": _postgresql,
    "postgres": _postgresql,
    "redis": _redis,
    "rediss": _redis,
    "valkey": _redis,
    "valkeys": _redis,
}
#: Schemes of the URLs that name a store.
SCHEMES = (FILE_SCHEME, *_REGISTERS)

#: what is open in this process, for as long as somebody uses it
_open: WeakValueDictionary[tuple[Any, str, Secret], SessionStore] = WeakValueDictionary()


def require_one(token_file: object, store: object, session: object) -> None:
    """Raise `ConfigurationError` unless one place is named: a token file or a store."""
    if token_file is not None and (store is not None or session is not None):
        name = "store" if store is not None else "session"
        raise ConfigurationError(f"give token_file or {name}, not both", setting=name)
    if store is not None or token_file is not None:
        return
    if not os.environ.get("ADH_STORE"):
        raise ConfigurationError(
            "session names a session of a store: pass store= or set ADH_STORE", setting="ADH_STORE"
        )
    if os.environ.get("ADH_TOKEN_FILE"):
        raise ConfigurationError(
            "ADH_STORE and ADH_TOKEN_FILE are both set: unset one, or pass store= or token_file=",
            setting="ADH_STORE",
        )


def session_in(store: Any, session: str | None = None) -> SessionStore:
    """Return a session of a store; None: that of ``$ADH_SESSION``, else "default".

    `store`: a URL as a `Secret`, a `Register`, or a store that is open. Raises `ConfigurationError`.
    """
    if hasattr(store, "look"):
        opened: SessionStore = store
        return opened
    name = checked_session(os.environ.get("ADH_SESSION") or DEFAULT_SESSION if session is None else session)
    # A variable that is set later counts for what is opened then.
    keys = Secret(os.environ.get(cipher.VARIABLE, ""))
    key = (store if isinstance(store, Secret) else id(store), name, keys)
    found = _open.get(key)
    if found is None:
        # No lock, which a fork may find held: two threads may open two, and both work.
        found = _open.setdefault(key, _opened(store, name, keys))
    return found


def open_register(store: Any) -> Register:
    """Return the register that a URL, as a `Secret`, names; a register as it is. Connects to nothing.

    Raises `ConfigurationError`, also for a ``file:`` URL.
    """
    if isinstance(store, Secret):
        opened = _REGISTERS.get(scheme_of(store) or "")
        if opened is None:
            raise _unknown_scheme()
        return opened(store)
    if not hasattr(store, "take") or not hasattr(store, "put"):
        raise ConfigurationError(
            f"store must be a URL or a store of adh_auth.stores, not {type(store).__name__}", setting="store"
        )
    register: Register = store
    return register


def scheme_of(url: Secret) -> str | None:
    """Return the scheme if it is one of ours. In a frame of its own, whose locals no traceback shows."""
    scheme, separator, rest = url.reveal().partition(":")
    known = (
        separator and scheme.lower() in SCHEMES and (rest.startswith("//") or scheme.lower() == FILE_SCHEME)
    )
    return scheme.lower() if known else None


def load_driver(scheme: str, *, encrypted: bool) -> None:
    """Import what opens a store with URLs of that scheme. Raises `ConfigurationError`."""
    from . import registry  # noqa: F401

    if _REGISTERS[scheme] is _postgresql:
        from . import postgresql  # noqa: F401
        from .postgresql_connections import require_driver
    else:
        from . import redis  # noqa: F401
        from .redis_client import require_driver
    require_driver()
    if encrypted:
        cipher.require_library()


def _unknown_scheme() -> ConfigurationError:
    return ConfigurationError(
        f"store must be a URL that begins with one of {', '.join(SCHEMES)}, then ://", setting="store"
    )


def _opened(store: Any, session: str, keys: Secret) -> SessionStore:
    if isinstance(store, Secret) and scheme_of(store) == FILE_SCHEME:
        from .folder import session_file

        return session_file(store, session)
    return open_registry(store, session, keys)


def _cipher_from(keys: Secret) -> cipher.Cipher | None:
    return cipher.cipher_from({cipher.VARIABLE: keys.reveal()})


def open_registry(
    store: Any, session: str, keys: Secret, *, patience: float = READ_PATIENCE
) -> RegistryStore:
    """Return a session of a register, or of the URL of one. Raises `ConfigurationError`.

    `keys`: as in ``$ADH_STORE_KEY``. The pair is encrypted where there are some. `patience`: seconds for
    which a read is tried again.
    """
    register = open_register(store)
    from .registry import RegistryStore

    url = store if isinstance(store, Secret) else None
    return RegistryStore(register, session, cipher=_cipher_from(keys), url=url, keys=keys, patience=patience)
