"""The pair in memory that requests are sent with."""

from __future__ import annotations

from ..common.secret import Secret
from ..tokens import Tokens

__all__ = ["Pair"]


class Pair:
    """The pair in memory, with what each request needs of it made once."""

    __slots__ = ("ask", "dead", "doubtful", "expires_at", "header", "secret", "tokens")

    def __init__(self, tokens: Tokens, *, ask: bool) -> None:
        self.tokens = tokens
        self.header = "Bearer " + tokens.access_token
        self.secret = Secret(tokens.access_token)
        self.expires_at = tokens.expires_at
        #: the API has said that the access token is expired
        self.dead = False
        #: the API has refused it, and why was kept from us
        self.doubtful = False
        #: whether `Rotation.due` has to be asked before each request
        self.ask = ask

    def end(self) -> None:
        """The API has said that it is expired."""
        self.dead = self.ask = True

    def doubt(self) -> None:
        """The API has refused it for a reason that can't be read any more."""
        self.doubtful = self.ask = True

    def __repr__(self) -> str:
        return f"Pair({self.tokens!r})"
