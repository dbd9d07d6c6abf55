"""One pair of tokens as a value: parsed from a token reply, parsed from a token file. Pure.

Rule 8: unknown keys of a file are kept for ever. Rule 13: neither a ``repr`` nor an error shows a token.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from hashlib import sha256
from typing import Any, ParamSpec, TypeVar

from .common.limits import MAX_FILE_BYTES
from .common.secret import Secret
from .errors import MalformedTokens

__all__ = ["Secret", "Stored", "Tokens", "fingerprint"]

P = ParamSpec("P")
T = TypeVar("T")

#: Characters of one token. A request line and its headers fit 8 to 64 KiB in the usual servers.
TOKEN_LIMIT = 32 * 1024
#: Seconds. A life of more than ten years is a mistake of the server's, or in milliseconds.
MAX_LIFE = 10 * 365 * 86400.0
#: Epoch seconds (the year 5138). A larger expiry is a mistake, or in milliseconds.
MAX_EPOCH = 1e11
#: Levels of objects and arrays. json parses thousands, and then fails to write them: its writer is recursive.
MAX_NESTING = 32
#: Key of a file: the fingerprint of the refresh token that was spent for its pair. A pair that a kill or a
#: power failure left beside the token file is matched by it. In the token file itself it means nothing.
REPLACES = "replaces_refresh_token"
#: Keys of a file that say whose session it is: the server, the client, and the name of the user. A new
#: session does not inherit them.
OWNER_KEYS = ("base_url", "client_id", "signed_in_as")
#: The key of a token file whose session is on its way to a store. Its token must not be sent from here, too.
MOVING_TO = "adh_moving_to"


def fingerprint(token: str) -> str:
    """Return twelve hex digits that identify a token without showing any of it."""
    return sha256(b"adh-auth fingerprint\0" + token.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _without_frames(parse: Callable[P, T]) -> Callable[P, T]:
    """Raise the `MalformedTokens` of `parse` from here, where no local variable holds a token.

    Tracebacks with locals (Sentry, IPython's verbose mode) show the arguments of every frame.
    """

    @wraps(parse)
    def parse_without_frames(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return parse(*arguments, **named)
        except MalformedTokens as malformed:
            message = malformed.message
        del arguments, named
        raise MalformedTokens(message)

    return parse_without_frames


@dataclass(frozen=True, repr=False, init=False)
class Tokens:
    """One access token and the single-use refresh token that replaces it.

    `expires_at` is in epoch seconds, None where the server did not say. Raises `MalformedTokens` (a
    `ValueError`) for a token that is empty, not a string, or not printable ASCII: it would end its header
    line, and what follows would be read as another header.
    """

    access_token: str
    refresh_token: str
    expires_at: float | None = None
    token_type: str = "Bearer"
    scope: str | None = None

    @_without_frames
    def __init__(
        self,
        access_token: str,
        refresh_token: str,
        expires_at: float | None = None,
        token_type: str = "Bearer",
        scope: str | None = None,
    ) -> None:
        _check_token("access_token", access_token)
        _check_token("refresh_token", refresh_token)
        vars(self).update(
            access_token=access_token,
            refresh_token=refresh_token,
            expires_at=expires_at,
            token_type=token_type,
            scope=scope,
        )

    @classmethod
    @_without_frames
    def from_response(
        cls, reply: Mapping[str, Any], *, now: float | None = None, previous: Tokens | None = None
    ) -> Tokens:
        """Return the pair of a token reply (RFC 6749 section 5.1).

        `now`: epoch seconds from which `expires_in` counts. A reply that omits `refresh_token` or `scope`
        keeps those of `previous`. An invalid `expires_in` or `token_type` never costs the tokens. Raises
        `MalformedTokens`.
        """
        pair = _pair_in(reply, previous)
        scope = previous.scope if pair.scope is None and previous else pair.scope
        return replace(pair, expires_at=_expiry_of(reply, time.time() if now is None else now), scope=scope)

    def __repr__(self) -> str:
        return (
            f"Tokens(access_token=<{fingerprint(self.access_token)}>, "
            f"refresh_token=<{fingerprint(self.refresh_token)}>, "
            f"expires_at={self.expires_at!r}, token_type={self.token_type!r}, scope={self.scope!r})"
        )


@dataclass(frozen=True)
class Stored:
    """What the token file holds: the pair, and every other key as it came."""

    tokens: Tokens
    mapping: Mapping[str, Any] = field(repr=False)

    @classmethod
    @_without_frames
    def from_bytes(cls, data: bytes) -> Stored:
        """Return what a token file holds; an exchange reply saved as it came is one.

        Raises `MalformedTokens`, whose message is the reason alone.
        """
        mapping = _object_in(data)
        return cls(replace(_pair_in(mapping), expires_at=_epoch_of(mapping.get("expires_at"))), mapping)

    def rotated(self, reply: Mapping[str, Any], now: float) -> Stored:
        """Return what the file holds after `reply` answered a refresh: unknown keys stay, an old expiry goes.

        `now`: epoch seconds from which `expires_in` counts. Raises `MalformedTokens`.
        """
        return Stored.of(Tokens.from_response(reply, now=now, previous=self.tokens), self.mapping, reply)

    @classmethod
    def of(cls, tokens: Tokens, kept: Mapping[str, Any], reply: Mapping[str, Any]) -> Stored:
        """Return `tokens` with the keys `kept` from the file and those of the `reply` that brought them."""
        whole = {**kept, **reply}
        fresh = cls(tokens, file_mapping(tokens, whole))
        # What else a server says must never keep the pair from being written, or from being read again.
        fits = _is_shallow(whole) and len(fresh.to_bytes()) <= MAX_FILE_BYTES
        return fresh if fits else cls(tokens, file_mapping(tokens, kept))

    def in_place_of(self, spent: Stored) -> Stored:
        """Return the same, marked with the refresh token that was spent for it."""
        return Stored(self.tokens, {**self.mapping, REPLACES: fingerprint(spent.tokens.refresh_token)})

    def follows(self, stored: Stored) -> bool | None:
        """Return whether this pair was issued for the refresh token of `stored`.

        None where it does not say so: earlier versions wrote no mark.
        """
        replaces = self.mapping.get(REPLACES)
        if self.tokens.refresh_token == stored.tokens.refresh_token:
            return False
        return None if replaces is None else replaces == fingerprint(stored.tokens.refresh_token)

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        return encoded(self.mapping)


def file_mapping(tokens: Tokens, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return `kept` with the five keys of the pair set to those of `tokens`.

    Keys that describe another pair are dropped.
    """
    mapping = {name: value for name, value in kept.items() if name != REPLACES}
    mapping.update(
        access_token=tokens.access_token, refresh_token=tokens.refresh_token, token_type=tokens.token_type
    )
    for name, value in (("expires_at", tokens.expires_at), ("scope", tokens.scope)):
        if value is None:
            mapping.pop(name, None)
        else:
            mapping[name] = value
    return mapping


def encoded(mapping: Mapping[str, Any]) -> bytes:
    """Return a JSON file's bytes. ASCII only: UTF-8 has no form for a lone surrogate in an unknown key."""
    return json.dumps(mapping, indent=2).encode("ascii") + b"\n"


# From here on `MalformedTokens` is raised with tokens in the frames: `_without_frames` is around each caller.


def _object_in(data: bytes) -> dict[str, Any]:
    if not data.strip():
        raise MalformedTokens("it is empty")
    try:
        mapping = json.loads(data)
    except (ValueError, RecursionError):
        raise MalformedTokens("it is not JSON (cut short, perhaps)") from None
    if not isinstance(mapping, dict):
        raise MalformedTokens("it is not a JSON object")
    if not _is_shallow(mapping):
        raise MalformedTokens(f"it is nested more than {MAX_NESTING} levels deep")
    return mapping


def _is_shallow(value: object, levels: int = MAX_NESTING) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, (list, tuple)):
        return True
    return levels > 0 and all(_is_shallow(item, levels - 1) for item in value)


def _pair_in(mapping: object, previous: Tokens | None = None) -> Tokens:
    """Return the pair without its expiry."""
    if not isinstance(mapping, Mapping):
        raise MalformedTokens("the token reply is not a JSON object")
    refresh_token = mapping.get("refresh_token")
    if refresh_token is None and previous:
        refresh_token = previous.refresh_token
    return Tokens(
        mapping.get("access_token"),  # type: ignore[arg-type]  # checked by Tokens
        refresh_token,  # type: ignore[arg-type]
        token_type=_type_of(mapping),
        scope=_scope_of(mapping),
    )


def _check_token(name: str, token: object) -> None:
    if token is None:
        raise MalformedTokens(f"{name} is missing")
    if not isinstance(token, str):
        raise MalformedTokens(f"{name} must be a string")
    if not token:
        raise MalformedTokens(f"{name} is empty")
    if len(token) > TOKEN_LIMIT:
        raise MalformedTokens(f"{name} is longer than {TOKEN_LIMIT} characters")
    # RFC 6750 section 2.1 allows less (b64token); what matters is that nothing here can end a header line.
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise MalformedTokens(f"{name} holds characters that must not go into a header")


def _expiry_of(reply: Mapping[str, Any], now: float) -> float | None:
    life = _number_of(reply.get("expires_in"))
    if life is None or not 0 < life <= MAX_LIFE:
        return None
    return round(now + life, 3)


def _number_of(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _epoch_of(value: object) -> float | None:
    # A file's expiry is a hint: an invalid one never makes the tokens useless.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < MAX_EPOCH:
        return None
    return float(value)


def _type_of(mapping: Mapping[str, Any]) -> str:
    kind = mapping.get("token_type")
    if not isinstance(kind, str) or not kind or not kind.isprintable():
        return "Bearer"
    # RFC 6749 section 5.1: the value is case insensitive.
    return "Bearer" if kind.lower() == "bearer" else kind


def _scope_of(mapping: Mapping[str, Any]) -> str | None:
    scope = mapping.get("scope")
    return scope if isinstance(scope, str) else None
