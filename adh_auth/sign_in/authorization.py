"""One sign-in as a value: the URL for the browser, the check of the callback, the exchange, its errors.

Authorization code with PKCE (RFC 7636), as the ADH guide has it. No I/O.
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

__all__ = ["FILE_UNCHANGED", "Authorization"]

#: Part of every error of a sign-in (rule 8).
FILE_UNCHANGED = "The token file was left as it was"


@dataclass(frozen=True)
class Authorization:
    """One sign-in, with a verifier and a state of its own.

    Raises `ConfigurationError` when it is built.
    """

    settings: Settings
    redirect_uri: str
    scope: str
    #: RFC 7636 section 4.1 and the ADH guide: 32 random bytes, base64url without padding
    verifier: Secret = field(default_factory=lambda: Secret(secrets.token_urlsafe(32)))
    state: Secret = field(default_factory=lambda: Secret(secrets.token_urlsafe(32)))

    def __post_init__(self) -> None:
        uri = self.redirect_uri
        if not isinstance(uri, str) or origin_of(uri) is None or "#" in uri:
            raise ConfigurationError(
                "redirect_uri must be a URL like http://localhost:8765/callback", setting="redirect_uri"
            )
        if not isinstance(self.scope, str) or not self.scope.split():
            raise ConfigurationError(
                'scope must be a string like "profile:read discussions:read"', setting="scope"
            )

    def url(self) -> str:
        """Return the URL that the browser starts on. It holds the state, and no other secret."""
        query = {
            "client_id": self.settings.client_id,
            "redirect_uri": self.redirect_uri,
            "response_type": "code",
            "scope": " ".join(self.scope.split()),
            "state": self.state.reveal(),
            "code_challenge": self._challenge(),
            "code_challenge_method": "S256",
        }
        return f"{self.settings.base_url}{AUTHORIZE_PATH}?{urlencode(query)}"

    def _challenge(self) -> str:
        digest = sha256(self.verifier.reveal().encode("ascii")).digest()
        return urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")

    def code_from(self, callback: Callback) -> Secret:
        """Return the code of the callback. Raises `AdhAuthError` for a wrong state and for an error."""
        # What a denial brings back is not documented. An error without a state can only end this sign-in,
        # so it is not refused for the state.
        is_bare_error = callback.state is None and callback.error
        if not is_bare_error and not _same(callback.state, self.state):
            raise AdhAuthError(
                "the browser came back with the wrong state: that URL belongs to another sign-in, or is an "
                f"attempt to sign you in as another user. {FILE_UNCHANGED}; start again"
            )
        if callback.error == "access_denied":
            raise AdhAuthError(
                f"the sign-in was denied in the browser (access_denied). {FILE_UNCHANGED}",
                code=callback.error,
            )
        if callback.error or callback.code is None:
            raise AdhAuthError(
                f"the server ended the sign-in: {callback.error or 'it returned no code'}. {FILE_UNCHANGED}",
                code=callback.error,
            )
        return callback.code

    def exchange(self, code: Secret) -> EndpointCall:
        """Return the call that trades the code for the first pair."""
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

    def error_for(self, verdict: Verdict) -> AdhAuthError:
        """Return the error for an exchange without a pair: each documented failure, and all others."""
        facts: dict[str, Any] = {
            "code": verdict.code,
            "request_id": verdict.request_id,
            **self.settings.store.facts_for_errors(),
        }
        if verdict.kind == "again":
            facts.update(status=verdict.status, retry_after=verdict.retry_after)
        error, what, next_step = self._failure(verdict)
        return error(f"{what}. {FILE_UNCHANGED}; {next_step}", **facts)

    def _failure(self, verdict: Verdict) -> tuple[type[AdhAuthError], str, str]:
        """Return the class of the error, what happened, and the next step."""
        reason = verdict.reason
        if verdict.kind == "refused":
            what = (
                f"the code was refused ({reason}): it was used already, is older than 60 s, or was issued "
                f"for another redirect URI than {self.redirect_uri}"
            )
            return ReauthorizationRequired, what, "start again"
        if verdict.kind == "misconfigured":
            what = f"the server refuses this client ({reason})"
            return ConfigurationError, what, "check ADH_CLIENT_ID and ADH_CLIENT_SECRET"
        if verdict.kind == "again":
            return RefreshFailed, f"the exchange of the code failed: {reason}", "try again later"
        if verdict.code == "invalid_verifier":
            next_step = "the code belongs to another sign-in: start again"
        else:
            next_step = f"is {self.redirect_uri} registered for the app exactly as it is written here?"
        return AdhAuthError, f"the exchange was refused ({reason})", next_step

    def timed_out(self, seconds: float) -> AdhAuthError:
        """Return the error for a browser that did not come back within `seconds`."""
        # A redirect URI that is not registered shows in the browser only.
        return AdhAuthError(
            f"the browser did not come back to {self.redirect_uri} within {seconds:g} s. If it showed an "
            "error: this redirect URI has to be registered for the app exactly as it is written here. "
            f"{FILE_UNCHANGED}"
        )

    def wrong_paste(self) -> AdhAuthError:
        """Return the error for a pasted line that is no callback URL; often it is the code alone."""
        example = f"{self.redirect_uri}{'&' if '?' in self.redirect_uri else '?'}code=…&state=…"
        return AdhAuthError(
            f"that is not the URL that a sign-in ends on: it has no code. {FILE_UNCHANGED}; start again, "
            f"and paste the whole URL, like {example}"
        )


def _same(given: Secret | None, expected: Secret) -> bool:
    # In constant time. As bytes: compare_digest raises a TypeError for a str beyond ASCII.
    return given is not None and hmac.compare_digest(
        given.reveal().encode("utf-8", "replace"), expected.reveal().encode("ascii")
    )
