"""The pair in memory that requests are sent with."""

from __future__ import annotations

from ..common.secret import Secret
from ..tokens import Tokens

__all__ = ["ActiveTokens"]


class ActiveTokens:
    """The pair in memory, with what each request needs of it made once."""

    __slots__ = ("doubtful", "expired", "expires_at", "header", "needs_check", "secret", "tokens")

    def __init__(self, tokens: Tokens, *, needs_check: bool) -> None:
        self.tokens: Tokens = tokens
        self.header: str = "Bearer " + tokens.access_token
        self.secret: Secret = Secret(tokens.access_token)
        #: epoch seconds, None where no expiry is stored
        self.expires_at: float | None = tokens.expires_at
        #: the API has said that the access token is expired
        self.expired: bool = False
        #: the API has refused it, and the reason could not be read
        self.doubtful: bool = False
        #: whether `Rotation.needs_rotation` has to be asked before each request
        self.needs_check: bool = needs_check

    def mark_expired(self) -> None:
        """Note that the API has called the access token expired."""
        self.expired = self.needs_check = True

    def mark_doubtful(self) -> None:
        """Note that the API has refused the access token for a reason that could not be read."""
        self.doubtful = self.needs_check = True

    def __repr__(self) -> str:
        return f"ActiveTokens({self.tokens!r})"
