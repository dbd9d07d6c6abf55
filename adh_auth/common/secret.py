"""Strings that nothing shows (rule 13)."""

from __future__ import annotations

__all__ = ["REDACTED", "BearerHeader", "Secret"]

#: Replaces the header's value in a request that is kept in a response's history, or pickled.
REDACTED = "Bearer [redacted]"


class Secret:
    """A string that no ``repr``, log or traceback shows. `reveal()` it where it is sent."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the string."""
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret(…)"


class BearerHeader(str):
    """The value of an ``Authorization`` header; its pickle holds no token.

    requests pickles a response together with its request, for joblib, a cache on disk, or a pool's result.
    """

    __slots__ = ()

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (REDACTED,)

    def __copy__(self) -> BearerHeader:
        return self

    def __deepcopy__(self, memo: object) -> BearerHeader:
        return self
