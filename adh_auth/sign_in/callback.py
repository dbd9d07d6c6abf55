"""What the browser brings back to the redirect URI, as a value. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from ..common.secret import Secret

__all__ = ["Callback"]

#: Parameters that a query may have. The documented callback has two.
MAX_PARAMETERS = 50
#: RFC 6749 section 4.1.2.1. Any other text of a query is a stranger's, and is quoted nowhere.
KNOWN_ERRORS = frozenset(
    {
        "access_denied",
        "invalid_request",
        "invalid_scope",
        "server_error",
        "temporarily_unavailable",
        "unauthorized_client",
        "unsupported_response_type",
    }
)


@dataclass(frozen=True)
class Callback:
    """The query of a callback: a code and a state, or an error."""

    code: Secret | None
    state: Secret | None
    #: the server's error code, "unknown" for one that is not in `KNOWN_ERRORS`
    error: str | None

    @classmethod
    def from_query(cls, query: str) -> Callback | None:
        """Return the callback, None where the query has neither a code nor an error.

        A parameter that comes twice counts as missing.
        """
        return cls.from_mapping(_parameters(query))

    @classmethod
    def from_mapping(cls, parameters: Mapping[str, Any]) -> Callback | None:
        """Return the callback of a web framework's parameters, None as for `from_query`."""
        code, state = (_secret(_single(parameters, name)) for name in ("code", "state"))
        error = _single(parameters, "error")
        if error is not None and error not in KNOWN_ERRORS:
            error = "unknown"
        return cls(code, state, error) if code is not None or error else None

    @classmethod
    def from_text(cls, text: Secret) -> Callback | None:
        """Return the callback of a whole URL or of its query alone, None as for `from_query`."""
        before, mark, after = text.reveal().partition("?")
        # A query of its own may hold a question mark: a value need not encode it.
        is_url = mark and ("=" not in before or re.match(r"/|[a-z][a-z0-9+.-]*://", before, re.IGNORECASE))
        return cls.from_query((after if is_url else text.reveal()).partition("#")[0])

    def as_mapping(self) -> dict[str, str]:
        """Return the parameters, for `from_mapping`."""
        secrets = {"code": self.code, "state": self.state}
        shown = {name: secret.reveal() for name, secret in secrets.items() if secret is not None}
        return {**shown, "error": self.error} if self.error else shown

    @property
    def is_bare_error(self) -> bool:
        """Return whether it is an error of the server that names no state.

        What a denial brings back is not documented. It can only end a sign-in.
        """
        return self.state is None and self.error is not None and self.error != "unknown"


def _secret(text: str | None) -> Secret | None:
    return None if text is None else Secret(text)


def _single(parameters: Mapping[str, Any], name: str) -> str | None:
    """Return the value of a parameter that comes once and is not empty."""
    # The multi-dicts of Werkzeug, Starlette, Django and aiohttp: their `get` hides all values but one.
    all_of = getattr(parameters, "getlist", None) or getattr(parameters, "getall", None)
    values = all_of(name) if all_of is not None and name in parameters else parameters.get(name)
    if isinstance(values, list):
        values = values[0] if len(values) == 1 else None
    return values if isinstance(values, str) and values else None


def _parameters(query: str) -> dict[str, list[str]]:
    try:
        return parse_qs(query, max_num_fields=MAX_PARAMETERS)
    except ValueError:
        return {}
