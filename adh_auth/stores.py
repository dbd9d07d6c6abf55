"""Stores for several machines, and a session in one of them without a client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .clients.settings import as_url
from .errors import ConfigurationError
from .store.factory import session_in
from .tokens import Tokens

if TYPE_CHECKING:
    from .store.postgresql import PostgresStore
    from .store.redis import RedisStore
    from .store.register import Register, RegisterRefused, RegisterUnavailable, Row

__all__ = [
    "PostgresStore",
    "RedisStore",
    "Register",
    "RegisterRefused",
    "RegisterUnavailable",
    "Row",
    "TokenStore",
]


class TokenStore:
    """One session in a store, as `TokenFile` for a file.

    `store`: a URL (``postgresql://``, ``redis://``, ``file://`` for a folder) or an object of this module.
    `session`: its name, 1 to 200 printable characters. Building one connects to nothing. Raises
    `ConfigurationError`. Each method raises `TokenStoreError`; a failure changes nothing.
    """

    def __init__(self, store: Any, session: str = "default") -> None:
        store = as_url(store)
        if store is None:
            raise ConfigurationError("store is missing: pass a URL, or an object", setting="store")
        self._store = session_in(store, session)

    def __repr__(self) -> str:
        if "_store" not in vars(self):  # in a traceback of an `__init__` that raised
            return "<TokenStore>"
        return f"TokenStore({self._store.name!r})"

    def load(self) -> Tokens:
        """Return the pair of the session as it is now."""
        return self._store.load()

    def save(self, tokens: Tokens) -> None:
        """Make `tokens` the session, once a refresh in flight has ended.

        Raises `LockTimeout` after 45 seconds, too.
        """
        if not isinstance(tokens, Tokens):
            del tokens  # type: ignore[unreachable]  # a traceback with locals would show them
            raise TypeError("save() takes Tokens; Tokens.from_response(reply) makes them from a token reply")
        self._store.save(tokens)

    def delete(self) -> None:
        """Sign out here, once a refresh in flight has ended. A session that is not there is no error."""
        self._store.delete()


def __getattr__(name: str) -> Any:
    # Each when it is first asked for, and none of them imports a driver.
    home: Any = None
    if name == "PostgresStore":
        from .store import postgresql as home
    elif name == "RedisStore":
        from .store import redis as home
    elif name in __all__:
        from .store import register as home
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
