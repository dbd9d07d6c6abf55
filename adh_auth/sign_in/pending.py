"""What has to be remembered of a sign-in until the browser comes back, and its text form. No I/O."""

from __future__ import annotations

import hmac
import json
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from ..common.secret import Secret

__all__ = ["PendingSignIn"]

#: Seconds by which the clocks of two machines of one application may differ.
MAX_CLOCK_SKEW = 60.0
#: Epoch seconds (the year 5138). With much larger ones no float can be reckoned.
MAX_EPOCH = 10**11


def _random() -> Secret:
    return Secret(secrets.token_urlsafe(32))


@dataclass(frozen=True)
class PendingSignIn:
    """One sign-in under way. `started_at`: epoch seconds."""

    #: RFC 7636 section 4.1 and the ADH guide: 32 random bytes, base64url without padding
    verifier: Secret = field(default_factory=_random)
    state: Secret = field(default_factory=_random)
    started_at: int = field(default_factory=lambda: int(time.time()))

    def as_text(self) -> str:
        """Return it as JSON, for a place that only this application can write to."""
        return json.dumps(
            {"state": self.state.reveal(), "verifier": self.verifier.reveal(), "at": self.started_at}
        )

    @classmethod
    def from_text(cls, text: Secret) -> PendingSignIn | None:
        """Return what a text says, None where it is no text of `as_text`."""
        try:
            return cls._from_mapping(json.loads(text.reveal()))
        except (ValueError, RecursionError):
            return None

    @classmethod
    def _from_mapping(cls, mapping: Any) -> PendingSignIn | None:
        values = mapping if isinstance(mapping, dict) else {}
        state, verifier, at = (values.get(name) for name in ("state", "verifier", "at"))
        if not (_is_token(verifier) and _is_token(state) and isinstance(at, int) and abs(at) < MAX_EPOCH):
            return None
        return cls(Secret(verifier), Secret(state), at)

    def is_named_by(self, state: Secret | None) -> bool:
        """Return whether a callback with that state belongs to this sign-in."""
        # In constant time. As bytes: compare_digest raises a TypeError for a str beyond ASCII.
        return state is not None and hmac.compare_digest(
            state.reveal().encode("utf-8", "replace"), self.state.reveal().encode("ascii")
        )

    def is_recent(self, max_age: float, now: float) -> bool:
        """Return whether it was started at most `max_age` seconds before `now` (epoch seconds)."""
        return -MAX_CLOCK_SKEW <= now - self.started_at <= max_age


def _is_token(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and value.isascii() and bool(value)


def all_pending(texts: object) -> list[PendingSignIn] | None:
    """Return the sign-ins of one text or of several, None where `texts` is neither.

    A text that makes no sense is left out.
    """
    if texts is None:
        return []
    given = [texts] if isinstance(texts, str) else texts
    if not isinstance(given, Iterable) or isinstance(given, (bytes, dict)):
        return None
    found = (PendingSignIn.from_text(Secret(text)) for text in given if isinstance(text, str))
    return [pending for pending in found if pending is not None]
