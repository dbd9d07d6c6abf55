"""The state of the server: sessions, their tokens, the codes that start them, counts and a log.

The real server's answer to a refresh token that comes twice is not documented. This one takes the strict
reading (RFC 9700 section 4.14.2): the whole session is revoked, unless `grace` says otherwise.
"""

import base64
import hashlib
import math
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NoReturn

from .settings import SandboxSettings

TokenReply = dict[str, Any]

# Enough for any test. A benchmark's millions of calls would fill the memory.
_LOG_LENGTH = 10_000


@dataclass(frozen=True)
class Counts:
    """What the sandbox has seen so far: a snapshot that does not change."""

    requests: int = 0
    """Calls that need an access token: `/api/auth/me` and every other API path."""
    unauthorized: int = 0
    """Those of them that were answered with a 401."""
    refresh_calls: int = 0
    """Calls to the refresh endpoint, the failed ones included."""
    rotations: int = 0
    """Refreshes that spent a refresh token for a new pair, whether or not the reply arrived."""
    refused: int = 0
    """`invalid_grant` answers of the refresh endpoint."""
    reused: int = 0
    """Spent refresh tokens that were sent again. On a strict server each costs a user the session."""
    exchanges: int = 0
    """Codes that were exchanged for a first pair."""
    revocations: int = 0
    """Revoke calls that were accepted."""


@dataclass(frozen=True)
class Call:
    """One answered call, without its query: that holds a sign-in's code and state."""

    method: str
    path: str
    status: int | None
    """None if the connection was dropped."""
    time: float
    """`time.monotonic()` at the reply, in seconds."""


class Refusal(Exception):
    """A request that the server refuses: an HTTP status and one of the API's error codes."""

    def __init__(self, status: int, code: str, message: str, field: str | None = None) -> None:
        super().__init__(status, code, message)
        self.status: int = status
        self.code: str = code
        self.message: str = message
        self.field: str | None = field


@dataclass(repr=False, eq=False)
class _Session:
    scope: str
    revoked: bool = False
    access: list["_Access"] = field(default_factory=list)


@dataclass(repr=False, eq=False)
class _Access:
    session: _Session
    expires_at: float
    killed: bool = False


@dataclass(repr=False, eq=False)
class _Refresh:
    session: _Session
    spent_at: float = math.inf
    successor: TokenReply | None = None


@dataclass(repr=False, eq=False)
class _Code:
    challenge: str
    redirect_uri: str
    scope: str
    issued_at: float
    used: bool = False
    session: _Session | None = None


class State:
    """Each method is one step under one lock: it takes effect as a whole, or raises `Refusal`."""

    def __init__(self, settings: SandboxSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._sessions: list[_Session] = []
        self._access: dict[str, _Access] = {}
        self._refresh: dict[str, _Refresh] = {}
        self._codes: dict[str, _Code] = {}
        self._denials = 0
        self._counts: dict[str, int] = dict.fromkeys(Counts.__dataclass_fields__, 0)
        self._log: deque[Call] = deque(maxlen=_LOG_LENGTH)

    # For the test.

    def sign_in(self, scope: str) -> TokenReply:
        with self._lock:
            return self._open_session(scope)[1]

    def expire(self) -> None:
        with self._lock:
            for access in self._access.values():
                access.expires_at = -math.inf

    def revoke_all(self) -> None:
        with self._lock:
            for session in self._sessions:
                session.revoked = True

    def deny(self, count: int) -> None:
        with self._lock:
            self._denials = count

    def counts(self) -> Counts:
        with self._lock:
            return Counts(**self._counts)

    def log(self) -> list[Call]:
        with self._lock:
            return list(self._log)

    # For the endpoints.

    def take_denial(self) -> bool:
        with self._lock:
            denied = self._denials > 0
            self._denials -= denied
        return denied

    def authorize(self, challenge: str, redirect_uri: str, scope: str) -> str:
        code = secrets.token_urlsafe(24)
        with self._lock:
            self._codes[code] = _Code(challenge, redirect_uri, scope, time.monotonic())
        return code

    def exchange(self, code: str, redirect_uri: str, verifier: str) -> TokenReply:
        """Return the first pair for a code.

        Any try spends the code; a second one revokes the session that the first started.
        """
        with self._lock:
            known = self._spend_code(code)
            if (
                time.monotonic() - known.issued_at > self._settings.code_life
                or redirect_uri != known.redirect_uri
            ):
                raise Refusal(400, "invalid_grant", "The code is too old or belongs to another redirect_uri.")
            if s256(verifier) != known.challenge:
                raise Refusal(401, "invalid_verifier", "The code_verifier does not match the code_challenge.")
            known.session, reply = self._open_session(known.scope)
            self._counts["exchanges"] += 1
            return reply

    def rotate(self, refresh_token: str) -> TokenReply:
        """Return a new pair for an unused refresh token. A used one revokes its session."""
        with self._lock:
            presented = self._refresh.get(refresh_token)
            now = time.monotonic()
            if presented is not None and not presented.session.revoked:
                if presented.successor is None:
                    return self._spend(presented, now)
                if now - presented.spent_at < self._settings.grace:
                    return dict(presented.successor)
            self._refuse(presented)

    def revoke(self, refresh_token: str) -> None:
        """End the session. An unknown token is no error (RFC 7009 section 2.2)."""
        with self._lock:
            self._counts["revocations"] += 1
            if known := self._refresh.get(refresh_token):
                known.session.revoked = True

    def check(self, access_token: str) -> None:
        """Raise `Refusal` unless the access token is live."""
        with self._lock:
            access = self._access.get(access_token)
            if access is None or access.killed or access.session.revoked:
                raise Refusal(401, "invalid_token", "The access token is unknown or was revoked.")
            if access.expires_at <= time.monotonic():
                raise Refusal(401, "token_expired", "The access token has expired.")

    def count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1

    def record(self, method: str, path: str, status: int | None) -> None:
        with self._lock:
            self._log.append(Call(method, path, status, time.monotonic()))

    # Steps of the above. The caller holds the lock.

    def _open_session(self, scope: str) -> tuple[_Session, TokenReply]:
        session = _Session(scope)
        self._sessions.append(session)
        return session, {**self._issue(session), "scope": scope}

    def _issue(self, session: _Session) -> TokenReply:
        life = self._settings.token_life
        access_token, refresh_token = (
            "adh_" + secrets.token_urlsafe(24),
            "adh_rt_" + secrets.token_urlsafe(24),
        )
        access = self._access[access_token] = _Access(session, time.monotonic() + life)
        session.access.append(access)
        self._refresh[refresh_token] = _Refresh(session)
        return {
            "access_token": access_token,
            "refresh_token": refresh_token,
            "expires_in": int(life) if life == int(life) else life,
            "token_type": "Bearer",
        }

    def _spend_code(self, code: str) -> _Code:
        known = self._codes.get(code)
        if known is None or known.used:
            if known is not None and known.session is not None:
                known.session.revoked = True
            raise Refusal(400, "invalid_grant", "The code is unknown or was used already.")
        known.used = True
        return known

    def _spend(self, presented: _Refresh, now: float) -> TokenReply:
        session = presented.session
        if self._settings.kills_old_access:
            for access in session.access:
                access.killed = True
            session.access.clear()
        presented.spent_at = now
        presented.successor = self._issue(session)
        self._counts["rotations"] += 1
        return dict(presented.successor)

    def _refuse(self, presented: _Refresh | None) -> NoReturn:
        self._counts["refused"] += 1
        if presented is not None and presented.successor is not None:
            self._counts["reused"] += 1
            presented.session.revoked = True
        raise Refusal(
            400, "invalid_grant", "The refresh token is unknown, revoked, expired or was used already."
        )


def s256(verifier: str) -> str:
    """Return the code challenge of a verifier (RFC 7636 section 4.2)."""
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
