"""The auth endpoints as values: where they are, what is sent, what a reply means. No input or output here.

The wire is that of the platform's public OAuth guide; what the guide leaves open is met with tolerance.
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
    """One POST to an auth endpoint.

    Its payload holds secrets, so it has no place in a ``repr``. Without a payload it is a GET.
    """

    __slots__ = ("access_token", "payload", "url")

    def __init__(self, url: str, payload: Mapping[str, str], access_token: Secret | None = None) -> None:
        self.url = url
        self.payload = payload
        self.access_token = access_token

    @property
    def method(self) -> str:
        """GET or POST."""
        return "POST" if self.payload else "GET"

    def body(self) -> bytes | None:
        """The JSON that is sent, None where there is none."""
        return json.dumps(dict(self.payload)).encode("ascii") if self.payload else None


class EndpointReply:
    """What came back, at most `REPLY_LIMIT` bytes of it.

    `cut`: more was to come, or less came than was announced.
    """

    __slots__ = ("body", "cut", "headers", "status")

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes, cut: bool = False) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.cut = cut

    def header(self, name: str) -> str | None:
        """A header by its name in any case."""
        return next((value for key, value in self.headers.items() if key.lower() == name), None)


class Unreachable(Exception):
    """No reply.

    `sent`: the request may have reached the server, so that the token may be spent. `reason` holds no secret.
    """

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent


def refresh_call(base_url: str, refresh_token: Secret, client_id: str, client_secret: Secret) -> EndpointCall:
    """The refresh, RFC 6749 section 6 in the JSON of the ADH guide."""
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
    """The revocation of a session by its refresh token."""
    return EndpointCall(
        base_url + REVOKE_PATH,
        {"token": refresh_token.reveal(), "client_id": client_id, "client_secret": client_secret.reveal()},
    )


def me_call(base_url: str, access_token: Secret) -> EndpointCall:
    """The cheapest question whether the API takes an access token."""
    return EndpointCall(base_url + ME_PATH, {}, access_token)
