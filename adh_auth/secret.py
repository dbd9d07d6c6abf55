"""A text that nothing shows. A room of its own: what builds an auth object needs this, and no pair yet."""

from __future__ import annotations

__all__ = ["Secret"]


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
