"""What is recorded of earlier attempts at a rotation, as a value.

Pure; the token file keeps it in a small file of its own.

The record is written before a refresh token is sent and again when the outcome is known, always under the
lock. So whoever waited, whoever comes later, and whoever finds the lock freed by a kill, knows what became of
that very token. It holds fingerprints, no tokens.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["NOTHING", "Record"]

#: The token has been, or may have been, sent, and nothing more is known.
SENDING = "sending"
#: The new pair is in the file.
DONE = "done"
#: The endpoint answered ``invalid_grant``.
REFUSED = "refused"
#: Trouble that may pass.
FAILED = "failed"
#: Spent, and the new pair could not be written: the process that holds the lock has it in memory.
UNSAVED = "unsaved"

#: Bytes of the file. One `write` of a block this small is seen whole or not at all on local disks. It never
#: grows, whatever a path or a reply holds: a block of another length could neither be read again nor be
#: written over.
SIZE = 2048


@dataclass(frozen=True)
class Record:
    """One attempt. Times are epoch seconds."""

    #: counts attempts on this file, so that a waiter can tell an outcome that is later than its own start
    number: int = 0
    #: fingerprint of the refresh token that the attempt is about
    about: str = ""
    state: str = ""
    at: float = 0.0
    pid: int = 0
    host: str = ""
    #: when and how a reply to this refresh token was lost, if one was
    lost_at: float | None = None
    lost_how: str | None = None
    #: not before this moment, as the endpoint asked
    not_before: float | None = None
    #: for the error that others raise: its class, its message's core and the facts
    error: str | None = None
    reason: str | None = None
    status: int | None = None
    code: str | None = None
    request_id: str | None = None
    retry_after: float | None = None
    #: the last rotation that went well
    rotated_at: float | None = None
    rotated_by: int | None = None

    @classmethod
    def from_bytes(cls, data: bytes) -> Record:
        """Parse; what can't be read, or can't be true, is no record: nothing depends on it but courtesy."""
        try:
            mapping = json.loads(data)
            return cls(**{name: _checked(name, mapping[name]) for name in _TYPES if name in mapping})
        except (ValueError, TypeError, RecursionError):
            return NOTHING

    def to_bytes(self) -> bytes:
        """The block as it stands in the file, padded to `SIZE`.

        Long texts lose their middle: a message has its next step at the end.
        """
        mapping = {name: _printable(value) for name, value in asdict(self).items() if value is not None}
        limit = SIZE
        while len(text := json.dumps(mapping)) >= SIZE:
            limit //= 2
            mapping.update(
                {name: _shortened(mapping[name], limit) for name in _FREE_TEXTS if name in mapping}
            )
        return text.encode("ascii").ljust(SIZE - 1) + b"\n"

    def concerns(self, token_fingerprint: str) -> bool:
        """Whether this record speaks of that refresh token."""
        return bool(self.about) and self.about == token_fingerprint


_TYPES = {item.name: str(item.type).removesuffix(" | None") for item in fields(Record)}
_OPTIONAL = frozenset(item.name for item in fields(Record) if item.default is None)
#: What comes from outside, at any length. All of these at 16 characters, each escaped as two surrogates,
#: leave half of the block.
_FREE_TEXTS = ("reason", "lost_how", "host", "request_id", "code")
#: What numbers are less than: epoch seconds of the year 5138, which any platform can turn into a date, and
#: what a C long holds.
_LIMITS = {"float": 1e11, "int": 2**31}


def _checked(name: str, value: Any) -> Any:
    """The value of that field.

    Raises `TypeError` for one of another type and `ValueError` for one that can't be true.
    """
    if value is None and name in _OPTIONAL:
        return None
    kind = _TYPES[name]
    if kind == "str":
        if not isinstance(value, str):
            raise TypeError(name)
        if len(value) > SIZE or not value.isprintable():
            raise ValueError(name)
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind == "float" else int):
        raise TypeError(name)
    if not 0 <= value < _LIMITS[kind]:  # NaN and the infinities are not in there
        raise ValueError(name)
    return float(value) if kind == "float" else value


def _printable(value: Any) -> Any:
    # A path may hold line breaks, and bytes that are no text.
    return "".join(char if char.isprintable() else "?" for char in value) if isinstance(value, str) else value


def _shortened(text: str, limit: int) -> str:
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"


NOTHING = Record()
