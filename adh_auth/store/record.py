"""What is recorded of earlier attempts at a rotation, as a value.

Rule 6: one attempt, one outcome, shared. The record is written before a refresh token is sent and again when
the outcome is known, always under the lock. A process that waited, that comes later, or that takes over the
lock of a killed one learns from it what became of that token. Rule 13: it holds fingerprints, no tokens.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["NOTHING", "Record", "host_name"]

#: The token has been, or may have been, sent, and nothing more is known.
SENDING = "sending"
#: The new pair is in the file.
DONE = "done"
#: The endpoint answered ``invalid_grant``.
REFUSED = "refused"
#: The attempt failed, and a later one may succeed.
FAILED = "failed"
#: Spent, and the new pair could not be written: the process that holds the lock has it in memory.
UNSAVED = "unsaved"

#: Bytes of the file, always. A `write` of so small a block is seen whole or not at all on local disks. A
#: block of another length could neither be read again nor be written over.
SIZE = 2048
#: Epoch seconds (the year 5138), and any other number of seconds, are less than this: a date can be made of
#: it.
MAX_SECONDS = 1e11
#: Counts, process ids and statuses are less than this: a C long holds them.
MAX_COUNT = 2**31


@dataclass(frozen=True)
class Record:
    """One attempt. Times are epoch seconds."""

    #: counts attempts on this file: a waiter sees whether an outcome is later than its own start
    number: int = 0
    #: fingerprint of the refresh token that the attempt is about
    about: str = ""
    state: str = ""
    at: float = 0.0
    pid: int = 0
    host: str = ""
    #: when and how a reply to this refresh token was lost, None where none was
    lost_at: float | None = None
    lost_how: str | None = None
    #: no try before this time, as the endpoint asked
    not_before: float | None = None
    #: the error that others raise: the name of its class, its message, and its facts (`retry_after` in
    #: seconds)
    error: str | None = None
    reason: str | None = None
    status: int | None = None
    code: str | None = None
    request_id: str | None = None
    retry_after: float | None = None
    #: the last rotation that succeeded, and the process id of who did it
    rotated_at: float | None = None
    rotated_by: int | None = None
    #: fingerprint of the server and the client that the attempt was made at and as
    owner: str | None = None

    @classmethod
    def from_bytes(cls, data: bytes) -> Record:
        """Return the record in a file; `NOTHING` where it can't be read or can't be true.

        A record only serves waiters: no recovery depends on it (rule 16).
        """
        try:
            return cls(**_checked(json.loads(data)))
        except (ValueError, TypeError, RecursionError):
            return NOTHING

    def to_bytes(self) -> bytes:
        """Return the block for the file, padded to `SIZE`.

        Long texts lose their middle: a message ends with the next step.
        """
        mapping = {name: _printable(value) for name, value in asdict(self).items() if value is not None}
        limit = SIZE
        while len(text := json.dumps(mapping)) >= SIZE:
            limit //= 2
            mapping.update({name: _shortened(mapping[name], limit) for name in _UNBOUNDED if name in mapping})
        return text.encode("ascii").ljust(SIZE - 1) + b"\n"

    def concerns(self, token_fingerprint: str, owner: str | None = None) -> bool:
        """Return whether this record is about that refresh token.

        What one server or client has said of a token holds for that one: a refusal or a failure of another
        `owner` does not count. None: whoever it was.
        """
        elsewhere = owner is not None and self.owner is not None and self.owner != owner
        if elsewhere and self.state in (REFUSED, FAILED):
            return False
        return bool(self.about) and self.about == token_fingerprint


NOTHING = Record()


def host_name() -> str:
    """Return this machine's name as a record keeps it: at most 64 characters."""
    return socket.gethostname()[:64]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("must be a string")
    if len(value) > SIZE or not value.isprintable():
        raise ValueError("must be short and printable")
    return value


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("must be an integer")
    if not 0 <= value < MAX_COUNT:
        raise ValueError("must not be negative or huge")
    return value


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError("must be a number")
    if not 0 <= value < MAX_SECONDS:  # false for NaN and the infinities
        raise ValueError("must not be negative or huge")
    return float(value)


#: The check of each field. It returns the value, or raises `TypeError` or `ValueError`.
CHECKS: Mapping[str, Callable[[object], object]] = {
    "number": _count,
    "about": _text,
    "state": _text,
    "at": _seconds,
    "pid": _count,
    "host": _text,
    "lost_at": _seconds,
    "lost_how": _text,
    "not_before": _seconds,
    "error": _text,
    "reason": _text,
    "status": _count,
    "code": _text,
    "request_id": _text,
    "retry_after": _seconds,
    "rotated_at": _seconds,
    "rotated_by": _count,
    "owner": _text,
}
#: Fields that may be null.
_OPTIONAL = frozenset(item.name for item in fields(Record) if item.default is None)
#: Fields whose text comes from outside, at any length. All of them at 16 characters, each escaped as two
#: surrogates, leave half of the block.
_UNBOUNDED = ("reason", "lost_how", "host", "request_id", "code")


def _checked(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return the known fields of a record. Raises `TypeError` and `ValueError`."""
    known = {name: mapping[name] for name in CHECKS if name in mapping}
    return {
        name: None if value is None and name in _OPTIONAL else CHECKS[name](value)
        for name, value in known.items()
    }


def _printable(value: Any) -> Any:
    # A path may hold line breaks, and bytes that are not UTF-8.
    return "".join(char if char.isprintable() else "?" for char in value) if isinstance(value, str) else value


def _shortened(text: str, limit: int) -> str:
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"
