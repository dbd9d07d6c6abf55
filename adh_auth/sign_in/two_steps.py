"""SignIn: a sign-in in two steps, `start` and `finish`, for a web application. `login` is built on it.

Rule 13: neither a state nor a code is in a ``repr``, a message or a frame of this module.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import requests

from ..clients.settings import as_secret, as_url, open_session, resolve_app
from ..common.secret import Secret
from ..common.text import format_duration
from ..errors import ConfigurationError
from ..tokens import Tokens, fingerprint
from .authorization import Authorization, checked_redirect_uri, checked_scope, state_mismatch
from .callback import Callback
from .exchange import complete, in_its_own_thread
from .pending import PendingSignIn, all_pending

if TYPE_CHECKING:
    from ..store.base import SessionStore

__all__ = ["SignIn", "Started"]

#: States that are remembered as used, of at most `max_age` each.
MAX_USED = 10_000


@dataclass(frozen=True, repr=False)
class Started:
    """A sign-in under way.

    `url`: redirect the browser there. `state`: JSON text of about 140 characters, secret. Keep it where only
    your application can write, and for this browser alone: in its server-side session, or a signed cookie.
    """

    url: str
    state: str

    def __repr__(self) -> str:
        return f"Started(url={self.url.partition('?')[0] + '?…'!r}, state=…)"


class SignIn:
    """The sign-in of a web application's users: authorization code with PKCE.

    `redirect_uri`: registered for the app, exactly as it is given here; https, or http on loopback. It is
    never derived from a request.
    `scope`: what to ask for, separated by spaces.
    `client_id`, `client_secret`, `base_url`: as for the auth classes.
    `max_age`: seconds that a user may take from `start` to `finish`.
    `refresh_via`: a `requests.Session` that carries the exchange instead of a client of our own.

    One object serves all users and threads. Building one does no I/O. Raises `ConfigurationError`.
    """

    def __init__(
        self,
        *,
        redirect_uri: str,
        scope: str = "profile:read discussions:read",
        client_id: str | None = None,
        client_secret: str | Secret | None = None,
        base_url: str | None = None,
        max_age: float = 600.0,
        refresh_via: requests.Session | None = None,
    ) -> None:
        client_secret = as_secret(client_secret)  # tracebacks with locals show the arguments of every frame
        self._app = resolve_app(client_id=client_id, client_secret=client_secret, base_url=base_url)
        self._redirect_uri = checked_redirect_uri(redirect_uri)
        self._scope = checked_scope(scope)
        self._max_age = checked_seconds("max_age", max_age)
        self._client = _checked_session(refresh_via)
        self._used: dict[str, object] = {}

    def __repr__(self) -> str:
        if "_used" not in vars(self):  # in a traceback of an `__init__` that raised
            return "<SignIn>"
        return f"SignIn(redirect_uri={self._redirect_uri!r}, client_id={self._app.client_id!r})"

    def start(self) -> Started:
        """Begin a sign-in: redirect the browser to `url`, and keep `state` for `finish`. Sends nothing."""
        authorization = Authorization(self._app, self._redirect_uri, self._scope)
        return Started(authorization.url(), authorization.pending.as_text())

    def finish(
        self,
        answer: str | Mapping[str, Any],
        states: str | Iterable[str] | None,
        *,
        token_file: str | os.PathLike[str] | None = None,
        store: Any = None,
        session: str | None = None,
    ) -> Tokens:
        """Check what the browser came back with, write the user's session, and return the pair.

        `answer`: the URL that was called, its query, or the parameters as the framework has them. Nothing but
        the query is read. `states`: the state of `start`, or several, of several tabs; the one that the
        answer names counts. `token_file`: this user's own; or `store` and `session`,
        as for the auth classes.

        Raises `ReauthorizationRequired` with the code ``state_mismatch`` for a state that is missing, used,
        too old or of another browser, and with ``invalid_grant`` for a code that was refused: send the
        browser to a new `start`. Raises `AdhAuthError` where the user or the server said no,
        `ConfigurationError`, `RefreshFailed`, `TokenStoreError`. The old session is untouched then.
        """
        store = as_url(store)
        parsed = _parsed(answer, states)
        del answer, states  # tracebacks with locals show the arguments of every frame
        work = self._accepted(parsed, open_session(token_file, store, session))
        return work()

    async def afinish(
        self,
        answer: str | Mapping[str, Any],
        states: str | Iterable[str] | None,
        *,
        token_file: str | os.PathLike[str] | None = None,
        store: Any = None,
        session: str | None = None,
    ) -> Tokens:
        """Do the same in a task, on asyncio and trio. One that is cancelled leaves an exchange to its end."""
        store = as_url(store)
        parsed = _parsed(answer, states)
        del answer, states  # tracebacks with locals show the arguments of every frame
        work = self._accepted(parsed, open_session(token_file, store, session))
        return await in_its_own_thread(work)

    def _accepted(self, parsed: _Parsed | TypeError, target: SessionStore) -> partial[Tokens]:
        """Return what is left to do for an answer that belongs to a sign-in. Raises `AdhAuthError`."""
        if isinstance(parsed, TypeError):
            raise parsed
        callback, pending = parsed
        if callback is None:
            raise state_mismatch("the browser came back without a code")
        named = self._named_by(callback, pending)
        if callback.state is not None:
            self._use_up(named)
        authorization = Authorization(self._app, self._redirect_uri, self._scope, named)
        return partial(complete, authorization, authorization.code_from(callback), target, self._client)

    def _named_by(self, callback: Callback, pending: list[PendingSignIn]) -> PendingSignIn:
        if callback.is_bare_error and pending:
            return pending[-1]
        named = next((item for item in pending if item.is_named_by(callback.state)), None)
        if named is None:
            raise state_mismatch(
                "no sign-in of that state was started in this browser, or it was finished before"
            )
        if not named.is_recent(self._max_age, time.time()):
            raise state_mismatch(f"the sign-in was started more than {format_duration(self._max_age)} ago")
        return named

    def _use_up(self, pending: PendingSignIn) -> None:
        """Raise for a state that was used in this process; elsewhere the user's file tells."""
        mine = object()
        # One operation, without a lock that a fork could copy in its locked state.
        if self._used.setdefault(fingerprint(pending.state.reveal()), mine) is not mine:
            raise state_mismatch("this sign-in was finished before")
        with suppress(RuntimeError):  # another thread changes it meanwhile
            while len(self._used) > MAX_USED:
                self._used.pop(next(iter(self._used)), None)


class _Parsed(NamedTuple):
    """What was given to `finish`, as values that show nothing."""

    callback: Callback | None
    pending: list[PendingSignIn]


def _parsed(answer: object, states: object) -> _Parsed | TypeError:
    """Return both, or the error for a wrong type: raised here, its frames would hold them."""
    pending = all_pending(states)
    if not isinstance(answer, (str, Mapping)):
        kind = type(answer).__name__
        return TypeError(f"answer must be a URL, its query or a mapping of its parameters, not {kind}")
    if pending is None:
        kind = type(states).__name__
        return TypeError(f"states must be the text of Started.state, or several, not {kind}")
    return _Parsed(_callback_in(answer), pending)


def _callback_in(answer: str | Mapping[str, Any]) -> Callback | None:
    if isinstance(answer, str):
        return Callback.from_text(Secret(answer))
    return Callback.from_mapping(answer)


def _checked_session(client: Any) -> requests.Session | None:
    if client is None or isinstance(client, requests.Session):
        return client
    kind = type(client).__name__
    raise ConfigurationError(f"refresh_via must be a requests.Session, not {kind}", setting="refresh_via")


def checked_seconds(name: str, value: float) -> float:
    """Return a number of seconds. Raises `ConfigurationError`."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not (math.isfinite(value) and value > 0):
        raise ConfigurationError(f"{name} must be a number of seconds above 0", setting=name)
    return float(value)
