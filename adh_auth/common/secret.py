"""A text that nothing shows. A room of its own: what builds an auth object needs this, and no pair yet."""

from __future__ import annotations

__all__ = ["REDACTED", "BearerHeader", "Secret"]

#: What stands in place of the token in a request that is kept for the record.
REDACTED = "Bearer [redacted]"


class Secret:
    """A text that no ``repr``, log or traceback shows. Compare it, or `reveal()` it where it is sent."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text."""
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret(…)"


class BearerHeader(str):
    """The value of an ``Authorization`` header, whose pickle holds no token.

    requests pickles a response together with its request: joblib, a cache on disk, the result of a pool.
    """

    __slots__ = ()

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (REDACTED,)

    def __copy__(self) -> BearerHeader:
        return self

    def __deepcopy__(self, memo: object) -> BearerHeader:
        return self
