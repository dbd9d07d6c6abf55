"""Stores for several machines, and a session in one of them without a client."""

from __future__ import annotations

from typing import Any

from .clients.settings import as_url
from .errors import ConfigurationError
from .store.factory import session_in
from .tokens import Tokens

__all__ = ["TokenStore"]


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
