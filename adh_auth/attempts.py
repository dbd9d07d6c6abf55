"""What is recorded of earlier attempts at a rotation, as a value. Pure; the token file keeps it in a small file of its own.

The record is written before a refresh token is sent and again when the outcome is known, always under the lock. So whoever waited,
whoever comes later, and whoever finds the lock freed by a kill, knows what became of that very token. It holds fingerprints, no tokens.
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

#: Bytes of the file. One `write` of a block this small is seen whole or not at all on local disks, and the block never grows.
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
        """Parse; whatever can't be read is no record: nothing depends on it but courtesy."""
        try:
            mapping = json.loads(data)
            return cls(**{name: _checked(name, mapping[name]) for name in _TYPES if name in mapping})
        except (ValueError, TypeError, RecursionError):
            return NOTHING

    def to_bytes(self) -> bytes:
        """The block as it stands in the file, padded to `SIZE`."""
        mapping = {name: value for name, value in asdict(self).items() if value is not None}
        text = json.dumps(mapping)
        if len(text) >= SIZE:
            text = json.dumps({**mapping, "reason": str(self.reason)[:200], "lost_how": str(self.lost_how)[:200], "host": self.host[:64]})
        return text.encode("ascii").ljust(SIZE - 1) + b"\n"

    def concerns(self, token_fingerprint: str) -> bool:
        """Whether this record speaks of that refresh token."""
        return bool(self.about) and self.about == token_fingerprint


_TYPES = {item.name: item.type for item in fields(Record)}
_ALLOWED: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,)}


def _checked(name: str, value: Any) -> Any:
    kind, _, optional = str(_TYPES[name]).partition(" | ")
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, _ALLOWED[kind]):
        raise TypeError(name)
    return value


NOTHING = Record()
