"""What the browser brings back to the redirect URI, as a value. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qs

from ..common.secret import Secret
from ..common.text import printable

__all__ = ["Callback"]

#: Parameters that a query may have. The documented callback has two.
MAX_PARAMETERS = 50


@dataclass(frozen=True)
class Callback:
    """The query of a callback: a code and a state, or an error."""

    code: Secret | None
    state: Secret | None
    #: the server's error code (RFC 6749 section 4.1.2.1)
    error: str | None

    @classmethod
    def from_query(cls, query: str) -> Callback | None:
        """Return the callback, None where the query has neither a code nor an error.

        A parameter that comes twice counts as missing.
        """
        found = {name: values[0] for name, values in _parameters(query).items() if len(values) == 1}
        code, state = (Secret(found[name]) if name in found else None for name in ("code", "state"))
        callback = cls(code, state, printable(found.get("error")))
        return callback if code is not None or callback.error else None

    @classmethod
    def from_url(cls, url: Secret) -> Callback | None:
        """Return the callback of a whole URL, None as for `from_query`."""
        _, _, query = url.reveal().partition("?")
        return cls.from_query(query.partition("#")[0])


def _parameters(query: str) -> dict[str, list[str]]:
    try:
        return parse_qs(query, max_num_fields=MAX_PARAMETERS)
    except ValueError:
        return {}
