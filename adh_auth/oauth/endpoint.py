"""The auth endpoints as values: their paths, and the calls. No I/O.

The wire format is that of the platform's public OAuth guide. Where the guide is silent, more than one form is
accepted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from ..common.secret import Secret

__all__ = ["EndpointCall", "EndpointReply", "Unreachable"]

REFRESH_PATH = "/api/auth/refresh"
REVOKE_PATH = "/api/auth/revoke"
EXCHANGE_PATH = "/api/oauth/signin/exchange"
AUTHORIZE_PATH = "/api/oauth/signin/start"
ME_PATH = "/api/auth/me"


class EndpointCall:
    """One call of an auth endpoint: a POST of `payload` as JSON, a GET where there is none.

    The payload holds secrets, so no ``repr`` shows it.
    """

    __slots__ = ("access_token", "payload", "url")

    def __init__(self, url: str, payload: Mapping[str, str], access_token: Secret | None = None) -> None:
        self.url: str = url
        self.payload: Mapping[str, str] = payload
        self.access_token: Secret | None = access_token

    @property
    def method(self) -> str:
        """Return GET or POST."""
        return "POST" if self.payload else "GET"

    def body(self) -> bytes | None:
        """Return the JSON to send, None for a GET."""
        return json.dumps(dict(self.payload)).encode("ascii") if self.payload else None


class EndpointReply:
    """The reply to an `EndpointCall`, at most `REPLY_LIMIT` bytes of it.

    `cut`: more was to come, or less came than was announced.
    """

    __slots__ = ("body", "cut", "headers", "status")

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes, cut: bool = False) -> None:
        self.status: int = status
        self.headers: Mapping[str, str] = headers
        self.body: bytes = body
        self.cut: bool = cut

    def header(self, name: str) -> str | None:
        """Return a header by its name, in any case; None where it is missing."""
        return next((value for key, value in self.headers.items() if key.lower() == name), None)


class Unreachable(Exception):
    """No reply came.

    `sent`: the request may have reached the server, and the token may be spent. `reason` holds no secret.
    """

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent


def refresh_call(base_url: str, refresh_token: Secret, client_id: str, client_secret: Secret) -> EndpointCall:
    """Return the call that refreshes: RFC 6749 section 6, in the JSON of the ADH guide."""
    return EndpointCall(
        base_url + REFRESH_PATH,
        {
            "grant_type": "refresh_token",
            "refresh_token": refresh_token.reveal(),
            "client_id": client_id,
            "client_secret": client_secret.reveal(),
        },
    )


def revoke_call(base_url: str, refresh_token: Secret, client_id: str, client_secret: Secret) -> EndpointCall:
    """Return the call that revokes a session by its refresh token."""
    return EndpointCall(
        base_url + REVOKE_PATH,
        {"token": refresh_token.reveal(), "client_id": client_id, "client_secret": client_secret.reveal()},
    )


def me_call(base_url: str, access_token: Secret) -> EndpointCall:
    """Return the cheapest call that shows whether the API accepts an access token."""
    return EndpointCall(base_url + ME_PATH, {}, access_token)
