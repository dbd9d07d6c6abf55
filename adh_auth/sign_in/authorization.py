"""One sign-in as a value: the address for the browser, the check of what comes back, the exchange, what a
refusal means.

No I/O.
"""

from __future__ import annotations

import hmac
import secrets
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from urllib.parse import urlencode

from ..clients.settings import Settings
from ..common.secret import Secret
from ..errors import AdhAuthError, ConfigurationError, ReauthorizationRequired, RefreshFailed
from ..oauth.endpoint import AUTHORIZE_PATH, EXCHANGE_PATH, EndpointCall
from ..oauth.origin import origin_of
from ..oauth.replies import Verdict
from .callback import Callback

__all__ = ["KEPT", "Authorization"]

#: Said with every failure.
KEPT = "The token file was left as it was"


@dataclass(frozen=True)
class Authorization:
    """One sign-in: its verifier and state are made for it and end with it.

    Raises `ConfigurationError` when it is built.
    """

    settings: Settings
    redirect_uri: str
    scope: str
    #: RFC 7636 section 4.1 and the ADH guide: 32 random bytes, base64url without padding
    verifier: Secret = field(default_factory=lambda: Secret(secrets.token_urlsafe(32)))
    state: Secret = field(default_factory=lambda: Secret(secrets.token_urlsafe(32)))

    def __post_init__(self) -> None:
        if (
            not isinstance(self.redirect_uri, str)
            or origin_of(self.redirect_uri) is None
            or "#" in self.redirect_uri
        ):
            raise ConfigurationError(
                "redirect_uri must be an address like http://localhost:8765/callback", setting="redirect_uri"
            )
        if not isinstance(self.scope, str) or not self.scope.split():
            raise ConfigurationError(
                'scope must be a text like "profile:read discussions:read"', setting="scope"
            )

    def address(self) -> str:
        """Where the browser goes."""
        challenge = (
            urlsafe_b64encode(sha256(self.verifier.reveal().encode("ascii")).digest())
            .rstrip(b"=")
            .decode("ascii")
        )
        query = {
            "client_id": self.settings.client_id,
            "redirect_uri": self.redirect_uri,
            "response_type": "code",
            "scope": " ".join(self.scope.split()),
            "state": self.state.reveal(),
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        return f"{self.settings.base_url}{AUTHORIZE_PATH}?{urlencode(query)}"

    def code_in(self, callback: Callback) -> Secret:
        """The code that the browser brought back. Raises `AdhAuthError`."""
        # The platform does not document what a denial brings back: one without a state tells nobody anything,
        # and ends the sign-in.
        if not (callback.state is None and callback.error) and not _same(callback.state, self.state):
            raise AdhAuthError(
                "the browser came back with the wrong state: that address belongs to another sign-in, or somebody tried to slip you "
                f"theirs. {KEPT}; start again"
            )
        if callback.error == "access_denied":
            raise AdhAuthError(
                f"the sign-in was denied in the browser (access_denied). {KEPT}", code=callback.error
            )
        if callback.error or callback.code is None:
            raise AdhAuthError(
                f"the server ended the sign-in: {callback.error or 'it gave no code'}. {KEPT}",
                code=callback.error,
            )
        return callback.code

    def exchange(self, code: Secret) -> EndpointCall:
        """The call that trades the code for the first pair."""
        return EndpointCall(
            self.settings.base_url + EXCHANGE_PATH,
            {
                "grant_type": "authorization_code",
                "code": code.reveal(),
                "redirect_uri": self.redirect_uri,
                "client_id": self.settings.client_id,
                "client_secret": self.settings.client_secret.reveal(),
                "code_verifier": self.verifier.reveal(),
            },
        )

    def refusal(self, verdict: Verdict) -> AdhAuthError:
        """The error for an exchange that gave no pair: each documented failure, and all others."""
        facts: dict[str, Any] = {
            "code": verdict.code,
            "request_id": verdict.request_id,
            "token_file": str(self.settings.file.path),
        }
        if verdict.kind == "refused":
            return ReauthorizationRequired(
                f"the code was refused ({verdict.reason}): it was used already, is older than 60 s, or was issued for another redirect "
                f"URI than {self.redirect_uri}. {KEPT}; start again",
                **facts,
            )
        if verdict.kind == "misconfigured":
            advice = "check ADH_CLIENT_ID and ADH_CLIENT_SECRET"
            return ConfigurationError(
                f"the server refuses this client ({verdict.reason}). {KEPT}; {advice}", **facts
            )
        if verdict.kind == "again":
            facts.update(status=verdict.status, retry_after=verdict.retry_after)
            return RefreshFailed(
                f"the exchange of the code failed: {verdict.reason}. {KEPT}; try again later", **facts
            )
        return AdhAuthError(
            f"the exchange was refused ({verdict.reason}). {KEPT}; {self._advice(verdict.code)}", **facts
        )

    def _advice(self, code: str | None) -> str:
        if code == "invalid_verifier":
            return "the code belongs to another sign-in: start again"
        return f"is {self.redirect_uri} registered for the app exactly as it is written here?"

    def nobody_came(self, seconds: float) -> AdhAuthError:
        """The error for a browser that never came back.

        A redirect URI that is not registered shows in the browser only.
        """
        return AdhAuthError(
            f"nobody came back to {self.redirect_uri} within {seconds:g} s. If the browser showed an error: this redirect URI has to be "
            f"registered for the app exactly as it is written here. {KEPT}"
        )

    def no_code(self) -> AdhAuthError:
        """The error for what was pasted and is no such address; often it is the code alone, which comes
        without the state.
        """
        example = f"{self.redirect_uri}{'&' if '?' in self.redirect_uri else '?'}code=…&state=…"
        return AdhAuthError(
            f"that is no address that a sign-in ends on: it has no code. {KEPT}; start again, and paste the whole address, like {example}"
        )


def _same(given: Secret | None, expected: Secret) -> bool:
    # In constant time, and as bytes: compare_digest takes no text beyond ASCII.
    return given is not None and hmac.compare_digest(
        given.reveal().encode("utf-8", "replace"), expected.reveal().encode("ascii")
    )
