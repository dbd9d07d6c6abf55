"""One sign-in as a value: the URL for the browser, the check of the callback, the exchange, its errors.

Authorization code with PKCE (RFC 7636), as the ADH guide has it. No I/O.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from urllib.parse import urlencode

from ..clients.settings import OAuthApp
from ..common.secret import Secret
from ..errors import AdhAuthError, ConfigurationError, ReauthorizationRequired, RefreshFailed
from ..oauth.endpoint import AUTHORIZE_PATH, EXCHANGE_PATH, EndpointCall
from ..oauth.origin import is_loopback, origin_of
from ..oauth.replies import Verdict
from .callback import Callback
from .pending import PendingSignIn

__all__ = ["FILE_UNCHANGED", "Authorization", "checked_redirect_uri", "checked_scope", "state_mismatch"]

#: `code` of the error for an answer that belongs to no sign-in under way.
STATE_MISMATCH = "state_mismatch"

#: Part of every error of a sign-in (rule 8).
FILE_UNCHANGED = "The session was left as it was"


def state_mismatch(what: str) -> ReauthorizationRequired:
    """Return the error for an answer that belongs to no sign-in under way: start again."""
    return ReauthorizationRequired(f"{what}. {FILE_UNCHANGED}; start the sign-in again", code=STATE_MISMATCH)


def checked_redirect_uri(uri: str) -> str:
    """Return a redirect URI that may receive a code. Raises `ConfigurationError`."""
    origin = origin_of(uri) if isinstance(uri, str) else None
    if origin is None or "#" in uri:
        raise ConfigurationError(
            "redirect_uri must be a URL like http://localhost:8765/callback", setting="redirect_uri"
        )
    if origin[0] != "https" and not is_loopback(origin[1]):
        raise ConfigurationError(
            "redirect_uri must be https: over plain http anyone on the way could read the code "
            "(http is for loopback only)",
            setting="redirect_uri",
        )
    return uri


def checked_scope(scope: str) -> str:
    """Return the scopes with one space between them. Raises `ConfigurationError`."""
    if not isinstance(scope, str) or not scope.split():
        raise ConfigurationError(
            'scope must be a string like "profile:read discussions:read"', setting="scope"
        )
    return " ".join(scope.split())


@dataclass(frozen=True)
class Authorization:
    """One sign-in of a user at an app. Its redirect URI and its scope are checked already."""

    app: OAuthApp
    redirect_uri: str
    scope: str
    pending: PendingSignIn = field(default_factory=PendingSignIn)

    def url(self) -> str:
        """Return the URL that the browser starts on. It holds the state, and no other secret."""
        query = {
            "client_id": self.app.client_id,
            "redirect_uri": self.redirect_uri,
            "response_type": "code",
            "scope": self.scope,
            "state": self.pending.state.reveal(),
            "code_challenge": self._challenge(),
            "code_challenge_method": "S256",
        }
        return f"{self.app.base_url}{AUTHORIZE_PATH}?{urlencode(query)}"

    def _challenge(self) -> str:
        digest = sha256(self.pending.verifier.reveal().encode("ascii")).digest()
        return urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")

    def code_from(self, callback: Callback) -> Secret:
        """Return the code of a callback of this sign-in. Raises `AdhAuthError` for an error."""
        if callback.error == "access_denied":
            raise AdhAuthError(
                f"the sign-in was denied in the browser (access_denied). {FILE_UNCHANGED}",
                code=callback.error,
            )
        if callback.error or callback.code is None:
            raise AdhAuthError(
                f"the server ended the sign-in: {_reason(callback.error)}. {FILE_UNCHANGED}",
                code=callback.error,
            )
        return callback.code

    def exchange(self, code: Secret) -> EndpointCall:
        """Return the call that trades the code for the first pair."""
        return EndpointCall(
            self.app.base_url + EXCHANGE_PATH,
            {
                "grant_type": "authorization_code",
                "code": code.reveal(),
                "redirect_uri": self.redirect_uri,
                "client_id": self.app.client_id,
                "client_secret": self.app.client_secret.reveal(),
                "code_verifier": self.pending.verifier.reveal(),
            },
        )

    def error_for(self, verdict: Verdict, facts_of_store: dict[str, str]) -> AdhAuthError:
        """Return the error for an exchange without a pair: each documented failure, and all others."""
        facts: dict[str, Any] = {
            "code": verdict.code,
            "request_id": verdict.request_id,
            **facts_of_store,
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

    def unreachable(self, reason: str) -> RefreshFailed:
        """Return the error for a call that got no reply."""
        return RefreshFailed(
            f"{self.app.base_url} can't be reached to exchange the code ({reason}). {FILE_UNCHANGED}; "
            "try again later"
        )


def _reason(error: str | None) -> str:
    if error is None:
        return "it returned no code"
    return "it gave a reason that is not documented" if error == "unknown" else error
