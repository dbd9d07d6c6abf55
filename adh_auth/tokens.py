"""One pair of tokens as a value: read from a token reply, read from a token file. Pure."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from .common.secret import Secret
from .errors import MalformedTokens

__all__ = ["Secret", "Stored", "Tokens", "fingerprint"]

#: Characters of one token. A request line and its headers fit 8 to 64 KiB in the usual servers.
TOKEN_LIMIT = 32 * 1024
#: Seconds. A life of more than ten years is a mistake of the server's, or milliseconds.
MAX_LIFE = 10 * 365 * 86400.0
#: Levels of objects and arrays. Thousands can be parsed, but not written: json's writer counts its calls, its
#: parser does not.
MAX_NESTING = 32
#: Bytes of a file after a rotation. Far less than what is refused as no token file
#: (`adh_auth.common.limits.FILE_LIMIT`).
MAX_FILE_BYTES = 512 * 1024
#: Key of a file: the fingerprint of the refresh token that was spent for its pair. A pair that a kill or a
#: power failure has left beside the token file says so itself whose place it takes. Nothing depends on it
#: once it is the file.
REPLACES = "replaces_refresh_token"


def fingerprint(token: str) -> str:
    """Twelve hex digits that tell one token from another and give nothing of it away: a hash, never a prefix."""
    return sha256(b"adh-auth fingerprint\0" + token.encode("utf-8", "surrogatepass")).hexdigest()[:12]


@dataclass(frozen=True, repr=False, init=False)
class Tokens:
    """One access token and the single-use refresh token that replaces it.

    `expires_at` is in epoch seconds, None where the server did not say. Raises `MalformedTokens` (a
    `ValueError`) for a token that is empty, no text, or not printable ASCII: such a token would break out of
    its header.
    """

    access_token: str
    refresh_token: str
    expires_at: float | None = None
    token_type: str = "Bearer"
    scope: str | None = None

    def __init__(
        self,
        access_token: str,
        refresh_token: str,
        expires_at: float | None = None,
        token_type: str = "Bearer",
        scope: str | None = None,
    ) -> None:
        trouble = _first_problem({"access_token": access_token, "refresh_token": refresh_token})
        if trouble:
            # A traceback with locals (Sentry, %xmode Verbose) shows the arguments of every frame it passes.
            del access_token, refresh_token, self
            raise MalformedTokens(trouble)
        vars(self).update(
            access_token=access_token,
            refresh_token=refresh_token,
            expires_at=expires_at,
            token_type=token_type,
            scope=scope,
        )

    @classmethod
    def from_response(
        cls, reply: Mapping[str, Any], *, now: float | None = None, previous: Tokens | None = None
    ) -> Tokens:
        """The pair of a token reply (RFC 6749 section 5.1).

        `now`: epoch seconds from which `expires_in` counts. A reply that omits `refresh_token` or `scope`
        keeps those of `previous`. A detail that makes no sense (`expires_in`, `token_type`) never costs the
        tokens. Raises `MalformedTokens`.
        """
        pair = _pair_of(reply, previous)
        if isinstance(pair, str):
            del reply  # as above
            raise MalformedTokens(pair)
        scope = previous.scope if pair.scope is None and previous else pair.scope
        return replace(pair, expires_at=_expiry_of(reply, time.time() if now is None else now), scope=scope)

    def __repr__(self) -> str:
        return (
            f"Tokens(access_token=<{fingerprint(self.access_token)}>, refresh_token=<{fingerprint(self.refresh_token)}>, "
            f"expires_at={self.expires_at!r}, token_type={self.token_type!r}, scope={self.scope!r})"
        )


@dataclass(frozen=True)
class Stored:
    """What the token file holds: the pair, and every other key as it came."""

    tokens: Tokens
    mapping: Mapping[str, Any] = field(repr=False)

    @classmethod
    def from_bytes(cls, data: bytes) -> Stored:
        """Parse a token file; an exchange reply saved as it came is one.

        Raises `MalformedTokens` with the reason alone.
        """
        mapping = _object_of(data)
        pair = mapping if isinstance(mapping, str) else _pair_of(mapping)
        if isinstance(mapping, str) or isinstance(pair, str):
            del data, mapping  # as above
            raise MalformedTokens(str(pair))
        return cls(replace(pair, expires_at=_epoch_of(mapping.get("expires_at"))), mapping)

    def rotated(self, reply: Mapping[str, Any], now: float) -> Stored:
        """What the file holds after a refresh was answered by `reply`: unknown keys stay, `expires_at` goes
        with the new pair.
        """
        return Stored.of(Tokens.from_response(reply, now=now, previous=self.tokens), self.mapping, reply)

    @classmethod
    def of(cls, tokens: Tokens, kept: Mapping[str, Any], reply: Mapping[str, Any]) -> Stored:
        """`tokens` with the keys that were `kept` from the file and those of the `reply` that brought them."""
        whole = {**kept, **reply}
        fresh = cls(tokens, file_mapping(tokens, whole))
        # What else a server says must never keep the pair from being written, or from being read again.
        fits = _is_shallow(whole) and len(fresh.to_bytes()) <= MAX_FILE_BYTES
        return fresh if fits else cls(tokens, file_mapping(tokens, kept))

    def in_place_of(self, spent: Stored) -> Stored:
        """The same, marked with the refresh token that was spent for it."""
        return Stored(self.tokens, {**self.mapping, REPLACES: fingerprint(spent.tokens.refresh_token)})

    def follows(self, stored: Stored) -> bool | None:
        """Whether it came for the refresh token of `stored`; None where it does not say, as those of earlier
        versions.
        """
        replaces = self.mapping.get(REPLACES)
        if self.tokens.refresh_token == stored.tokens.refresh_token:
            return False
        return None if replaces is None else replaces == fingerprint(stored.tokens.refresh_token)

    def to_bytes(self) -> bytes:
        """The file's content."""
        return encoded(self.mapping)


def file_mapping(tokens: Tokens, kept: Mapping[str, Any]) -> dict[str, Any]:
    """`kept` with the five keys of the pair set to those of `tokens`; keys that would tell of another pair
    are gone.
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
    """A JSON file's bytes. ASCII only: a lone surrogate in an unknown key can't be written as UTF-8."""
    return json.dumps(mapping, indent=2).encode("ascii") + b"\n"


def _object_of(data: bytes) -> dict[str, Any] | str:
    """The object, or what is the trouble."""
    if not data.strip():
        return "it is empty"
    try:
        mapping = json.loads(data)
    except (ValueError, RecursionError):
        return "it is not JSON (cut short, perhaps)"
    if not isinstance(mapping, dict):
        return "it holds no JSON object"
    return mapping if _is_shallow(mapping) else f"it is nested more than {MAX_NESTING} levels deep"


def _is_shallow(value: object, levels: int = MAX_NESTING) -> bool:
    inner = (
        value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else None
    )
    return inner is None or (levels > 0 and all(_is_shallow(item, levels - 1) for item in inner))


def _pair_of(mapping: Any, previous: Tokens | None = None) -> Tokens | str:
    """The pair, its expiry aside, or what is the trouble."""
    if not isinstance(mapping, Mapping):
        return "the token reply is no JSON object"
    texts: dict[str, Any] = {name: mapping.get(name) for name in ("access_token", "refresh_token")}
    if texts["refresh_token"] is None and previous:
        texts["refresh_token"] = previous.refresh_token
    trouble = _first_problem(texts)
    return trouble or Tokens(**texts, token_type=_type_of(mapping), scope=_scope_of(mapping))


def _first_problem(texts: Mapping[str, object]) -> str | None:
    return next((f"{name} {trouble}" for name, text in texts.items() if (trouble := _trouble_of(text))), None)


def _trouble_of(token: object) -> str | None:
    if token is None:
        return "is missing"
    if not isinstance(token, str):
        return "is no text"
    if not token:
        return "is empty"
    if len(token) > TOKEN_LIMIT:
        return f"is longer than {TOKEN_LIMIT} characters"
    # RFC 6750 section 2.1 allows less (b64token); what matters is that nothing here can end a header line.
    if not (token.isascii() and token.isprintable() and " " not in token):
        return "holds characters that must not go into a header"
    return None


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
    # A file's expiry is a hint: one that makes no sense never makes the tokens useless.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e11:
        return None
    return float(value)


def _type_of(mapping: Mapping[str, Any]) -> str:
    # RFC 6749 section 5.1: the value is case insensitive.
    kind = mapping.get("token_type")
    return (
        kind
        if isinstance(kind, str) and kind and kind.lower() != "bearer" and kind.isprintable()
        else "Bearer"
    )


def _scope_of(mapping: Mapping[str, Any]) -> str | None:
    scope = mapping.get("scope")
    return scope if isinstance(scope, str) else None
