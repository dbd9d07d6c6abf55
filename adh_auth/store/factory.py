"""Opens the place of a session that `store` and `session` name. Imported by who names one.

A URL may hold a password: no message, error or traceback local shows it (rule 13).
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from ..common.secret import Secret
from ..errors import ConfigurationError

if TYPE_CHECKING:
    from .base import SessionStore

__all__ = ["DEFAULT_SESSION", "FILE_SCHEME", "SCHEMES", "require_one", "session_in"]

FILE_SCHEME = "file"
SCHEMES = (FILE_SCHEME, "postgresql", "postgres", "redis", "rediss", "valkey", "valkeys")
DEFAULT_SESSION = "default"
#: Characters of a session's name.
MAX_SESSION = 200

#: what is open in this process, for as long as somebody uses it
_open: WeakValueDictionary[tuple[Any, str], SessionStore] = WeakValueDictionary()


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
    key = (store if isinstance(store, Secret) else id(store), name)
    found = _open.get(key)
    if found is None:
        # No lock, which a fork may find held: two threads may open two, and both work.
        found = _open.setdefault(key, _opened(store, name))
    return found


def checked_session(session: object) -> str:
    """Return the name of a session. Raises `ConfigurationError`."""
    if isinstance(session, str) and 0 < len(session) <= MAX_SESSION and session.isprintable():
        return session
    raise ConfigurationError(
        f"session must be 1 to {MAX_SESSION} printable characters; choose another name", setting="session"
    )


def _opened(store: Any, session: str) -> SessionStore:
    if not isinstance(store, Secret):
        return _of_register(store, session)
    scheme = _scheme_of(store)
    if scheme == FILE_SCHEME:
        from .folder import session_file

        return session_file(store, session)
    if scheme is None:
        raise ConfigurationError(
            f"store must be a URL that begins with one of {', '.join(SCHEMES)}, then ://", setting="store"
        )
    # Named by strings for the time being: PyInstaller and Nuitka miss them.
    opened: SessionStore = import_module(".opening", __package__).open_url(store, session)
    return opened


def _scheme_of(url: Secret) -> str | None:
    """Return the scheme if it is one of ours. In a frame of its own, whose locals no traceback shows."""
    scheme, separator, _ = url.reveal().partition(":")
    return scheme.lower() if separator and scheme.lower() in SCHEMES else None


def _of_register(register: Any, session: str) -> SessionStore:
    if not hasattr(register, "take") or not hasattr(register, "put"):
        raise ConfigurationError(
            f"store must be a URL or a store of adh_auth.stores, not {type(register).__name__}",
            setting="store",
        )
    cipher = import_module(".cipher", __package__).cipher_from()
    registry = import_module(".registry", __package__)
    opened: SessionStore = registry.RegistryStore(register, session, cipher=cipher)
    return opened
