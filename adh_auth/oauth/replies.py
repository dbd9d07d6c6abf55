"""What a reply of an auth endpoint means.

Rule 7: only ``invalid_grant`` is terminal. Rule 9: only ``token_expired`` spends a refresh.
"""

from __future__ import annotations

import email.utils
import json
import math
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from types import MappingProxyType
from typing import Any, NamedTuple

from ..common.limits import BODY_LIMIT
from ..common.text import printable
from .content_encoding import decoded
from .endpoint import EndpointReply

__all__ = ["Verdict", "classify", "error_code"]

EXPIRED = "token_expired"
REFUSED = "invalid_grant"
#: RFC 6749 section 5.2: codes that refuse the client, not the session.
CLIENT_REFUSED = frozenset({"invalid_client", "unauthorized_client"})


class Verdict(NamedTuple):
    """What a reply means.

    `kind`: ``pair`` (new tokens), ``refused`` (for good), ``misconfigured`` (the client is refused),
    ``again`` (try again), ``failed``, or ``useless`` (tokens that can't be used; a rotation says so).
    `retry_after`: seconds.
    """

    kind: str
    reason: str = ""
    mapping: Mapping[str, Any] = MappingProxyType({})
    code: str | None = None
    status: int | None = None
    retry_after: float | None = None
    request_id: str | None = None

    def __repr__(self) -> str:
        return f"<Verdict {self.kind}: {self.reason}>"


def says_expired(reply: EndpointReply) -> bool:
    """Return whether a reply to `me_call` says that its token has expired."""
    return reply.status == 401 and error_code(reply.headers, reply.body) == EXPIRED


def classify(reply: EndpointReply, now: float) -> Verdict:
    """Return what a reply of the refresh or exchange endpoint means.

    `now`: epoch seconds, for a ``Retry-After`` that is a date. Only the code ``invalid_grant`` is terminal,
    never a status.
    """
    mapping = _json_object(reply.body)
    code = code_of(mapping)
    facts: dict[str, Any] = {
        "code": code,
        "status": reply.status,
        "request_id": printable(reply.header("x-request-id")),
    }
    if reply.status == 429 or reply.status >= 500:
        wait = retry_after(reply.header("retry-after"), now)
        return Verdict("again", f"HTTP {reply.status}", retry_after=wait, **facts)
    if "access_token" in mapping and 200 <= reply.status < 300:
        return Verdict("pair", mapping=mapping, **facts)
    if code == REFUSED:
        return Verdict("refused", f"HTTP {reply.status} {code}", **facts)
    if code in CLIENT_REFUSED:
        return Verdict("misconfigured", f"HTTP {reply.status} {code}", **facts)
    if 200 <= reply.status < 300:
        # A portal's page, or a reply cut short. The token may be spent; only another try shows it.
        cut = ", cut short" if reply.cut else ""
        return Verdict("again", f"HTTP {reply.status} without tokens{cut}", **facts)
    hint = " (redirects are not followed: is base_url right?)" if 300 <= reply.status < 400 else ""
    return Verdict("failed", f"HTTP {reply.status}{' ' + code if code else ''}{hint}", **facts)


def revoked(reply: EndpointReply) -> bool:
    """Return whether the session is revoked after this reply.

    The guide documents no reply: any 2xx counts, and so does a token that the server does not know.
    """
    return 200 <= reply.status < 300 or code_of(_json_object(reply.body)) in (REFUSED, "invalid_token")


def error_code(headers: Mapping[str, str], body: bytes) -> str | None:
    """Return the code of a 401, in any of the four forms that the platform's documents show; None without
    one.

    `body`: its first bytes, compressed as they came, or decompressed by the client.
    """
    mapping = _json_object(body) or _json_object(
        decoded(body, headers.get("content-encoding", ""), BODY_LIMIT)
    )
    return code_of(mapping) or _challenge_code(headers.get("www-authenticate", ""))


def code_of(mapping: Mapping[str, Any]) -> str | None:
    """Return ``code``, ``error.code`` or ``error`` of an error object, the first that is a code."""
    error = mapping.get("error")
    nested = error.get("code") if isinstance(error, dict) else None
    return next(
        (
            value
            for value in (mapping.get("code"), nested, error)
            if isinstance(value, str) and re.fullmatch(_CODE, value)
        ),
        None,
    )


#: A code as the Errors page has them, snake_case. Anything else may be a sentence that quotes what was sent,
#: and codes go into messages.
_CODE = r"(?!adh_)[a-z][a-z0-9_.-]{0,63}"  # compiled when it is first needed: most programs never do


def retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds to wait, from a number or a date (RFC 9110 section 10.2.3); None where it is
    neither.

    `now`: epoch seconds.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = _seconds_until(value, now)
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _seconds_until(date: str, now: float) -> float:
    try:
        time: datetime = email.utils.parsedate_to_datetime(date)
        return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp() - now
    except (ValueError, TypeError, IndexError, OverflowError):
        return math.nan


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


#: One parameter of a challenge: its name, and its value with quotes or without (RFC 9110 section 11.2).
_PARAMETER = r'(?<![^\s,"])([\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))'


def _challenge_code(challenge: str) -> str | None:
    """Return ``error`` of a ``WWW-Authenticate: Bearer`` challenge (RFC 6750 section 3)."""
    scheme, _, rest = challenge[:BODY_LIMIT].strip().partition(" ")
    if scheme.lower() != "bearer":
        return None
    # A quoted value is matched as a whole: an error_description may hold `error=` inside its quotes.
    for name, quoted, bare in re.findall(_PARAMETER, rest):
        if name.lower() == "error":
            return code_of({"error": quoted or bare})
    return None
