"""What the three auth classes share: arguments, `refresh`, `get_token`, `revoke`, `tokens`, repr, pickling.

Rule 12: the token goes to the API's origin only. Rule 13: no repr and no log line shows a secret.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec
from weakref import WeakMethod

from ..common.notices import logger
from ..common.secret import REDACTED, Secret
from ..errors import AdhAuthError
from ..oauth.endpoint import EndpointCall, EndpointReply
from ..oauth.origin import HANDSHAKE_SCHEMES, Origin, are_twins, normal_origin, origin_of, origin_url
from ..rotation.active_tokens import ActiveTokens
from ..rotation.context import Calls, Post
from ..rotation.core import DescribeTransport, Fallback, Rotation
from ..rotation.detached import TransportSpec
from ..rotation.job import Job
from ..store.token_file import TokenFile
from .settings import Settings, as_secret, as_url, resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from ..events import Event
    from ..tokens import Tokens
    from .waits import Waits

__all__ = ["MAX_ROTATIONS", "REDACTED", "BaseAuth", "Rotated", "bearer", "wrong_client"]

#: Rotations that one request may wait for. A server that issues expired tokens twice in a row has a problem
#: of its own; the caller gets its 401.
MAX_ROTATIONS = 3


class Rotated(NamedTuple):
    """The pair to send next, after a rotation.

    `refreshed`: it came from the server just now. An adopted pair may have expired since.
    """

    pair: ActiveTokens
    refreshed: bool


P = ParamSpec("P")


def explaining_misuse(init: Callable[Concatenate[Any, P], None]) -> Callable[Concatenate[Any, P], None]:
    """Make a call that can't be meant so raise a `TypeError` that says what was meant.

    Python's own names this class instead of the one that was called. A class without parentheses is called
    with a request.
    """
    code = init.__code__
    known = frozenset(code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount])

    @wraps(init)
    def checked(self: Any, /, *given: P.args, **named: P.kwargs) -> None:
        # A traceback that shows locals shows these.
        if "client_secret" in named:
            named["client_secret"] = as_secret(named["client_secret"])
        if "store" in named:
            named["store"] = as_url(named["store"])
        first = given[0] if given else named.get("token_file")
        is_path = first is None or _is_path(first) or isinstance(first, os.PathLike)
        is_session = isinstance(named.get("session"), (str, type(None)))
        if len(given) > 1 or not (is_path and is_session and known >= named.keys()):
            from .misuse import misuse

            error = misuse(type(self), known, given, named)
            if error is not None:
                del given, first
                named.clear()
                raise error
        init(self, *given, **named)

    return checked


def _is_path(first: object) -> bool:
    # What the API's tokens begin with, and a URL, which may hold a password: as a path it would be quoted.
    return isinstance(first, str) and not first.startswith("adh_") and "://" not in first


class BaseAuth:
    """Keep the requests of a client signed in.

    `token_file`: path of the shared token file; default ``$ADH_TOKEN_FILE``, else
    ``$XDG_CONFIG_HOME/adh/tokens.json`` (``~/.config/adh/tokens.json``).
    `store`, `session`: instead of `token_file`, a session in a store for several machines: a URL
    (``postgresql://``, ``redis://``, ``file://`` for a folder) or an object of `adh_auth.stores`; default
    ``$ADH_STORE``, and ``$ADH_SESSION`` or ``"default"``.
    `client_id`, `client_secret`: the OAuth app; default ``$ADH_CLIENT_ID``, ``$ADH_CLIENT_SECRET``.
    `base_url`: URL of the API; default ``$ADH_BASE_URL``, else ``https://api.agenticdeveloperhub.com``. The
    token is sent to this origin and to no other.
    `refresh_ahead`: seconds before expiry at which a refresh starts in the background; None waits for the
    API's ``401 token_expired``.
    `lock_timeout`: seconds to wait for another process's refresh, default 45; must exceed one whole refresh,
    which takes 30 at most.
    `detached`: which refreshes run in a process of their own, which no kill of the program reaches. None:
    those in the background, and all in a daemonic child of multiprocessing; True: all; False: none.
    `on_event`: called with an `adh_auth.Event` after each outcome of a rotation, in the rotation's thread;
    what it raises is logged.
    `refresh_via`: a client that carries the refresh call instead of one of our own.

    Building one does no I/O. Raises `ConfigurationError`.
    """

    @explaining_misuse
    def __init__(
        self,
        token_file: str | os.PathLike[str] | None = None,
        *,
        store: Any = None,
        session: str | None = None,
        client_id: str | None = None,
        client_secret: str | Secret | None = None,
        base_url: str | None = None,
        refresh_ahead: float | None = None,
        lock_timeout: float | None = None,
        detached: bool | None = None,
        on_event: Callable[[Event], object] | None = None,
        refresh_via: Any = None,
    ) -> None:
        arguments: dict[str, Any] = {
            "token_file": token_file,
            "store": as_url(store),
            "session": session,
            "client_id": client_id,
            "client_secret": as_secret(client_secret),
            "base_url": base_url,
            "refresh_ahead": refresh_ahead,
            "lock_timeout": lock_timeout,
            "detached": detached,
            "on_event": on_event,
        }
        # A traceback that shows locals shows the arguments of every frame.
        del client_secret, store
        settings = resolve(**arguments)
        self._check_refresh_via(refresh_via)
        self._store = settings.store
        self._origin = settings.origin
        self._refresh_via = refresh_via
        # As they were passed: a pickle holds a secret, and a store's URL, only if it was an argument. What
        # came from the environment is read from the environment of the process that loads it.
        if arguments["store"] is None:
            if type(settings.store) is TokenFile:
                arguments["token_file"] = settings.store.name
            else:  # with a session, a process that has no store gets an error instead of its token file
                arguments["session"] = settings.store.facts_for_errors()["session"]
        self._arguments = arguments
        self._settings = settings
        self._core = self._core_for(settings)
        self._set_origin(*settings.origin)

    def _core_for(self, settings: Settings) -> Rotation:
        if type(settings.store) is TokenFile or self._refresh_via is not None:
            return _new_core(settings, WeakMethod(self._post), WeakMethod(self._describe_transport))
        # Late: most programs have a token file.
        from .shared_cores import shared_core

        # By their ids: whether they are equal is up to the program, and the core keeps both alive.
        key = (type(self), id(settings.store), id(settings.on_event), *settings[1:-1])
        self._shared = shared_core(self, key, partial(_new_shared_core, settings))
        return self._shared.core

    @property
    def token_file(self) -> str | None:
        """Return the absolute path of the token file; None where the session is in PostgreSQL or Redis."""
        return self._store.facts_for_errors().get("token_file")

    @property
    def base_url(self) -> str:
        """Return the URL of the API, without a trailing slash."""
        return self._settings.base_url

    @property
    def tokens(self) -> Tokens:
        """Return the current pair, read from the file or the store. Raises `TokenStoreError`."""
        return self._core.current().tokens

    def refresh(self) -> Tokens:
        """Refresh now, or share a refresh under way in another thread or process. Return the current pair.

        Raises `ReauthorizationRequired`, `RefreshFailed`, `LockTimeout`, `TokenStoreError` or
        `ConfigurationError`.
        """
        job = self._core.refresh_now()
        job.wait(self._core.patience)
        return self._core.use_outcome(job)

    def get_token(self, min_life: float = 30.0, rejected: str | None = None) -> str:
        """Return an access token that works for `min_life` seconds, refreshed first if it has less left.

        For websockets, gRPC and clients without a class of their own. `rejected`: the token that the far end
        has just refused; it is rotated away from, unless another process has done so.

        A token whose whole life is shorter is refreshed once its first half is over. Without a stored expiry
        it counts as good. Raises the errors of `refresh`; for a wrong argument `ConfigurationError`.
        """
        refused = as_secret(rejected)
        del rejected
        from .waits import run_sync

        pair = run_sync(self._working_pair(min_life, refused, Job.run_here))
        return str(pair.tokens.access_token)

    async def aget_token(self, min_life: float = 30.0, rejected: str | None = None) -> str:
        """Return what `get_token` does, to a task of asyncio or trio. Waits without a thread."""
        refused = as_secret(rejected)
        del rejected
        from .waits import run_async

        pair = await run_async(self._working_pair(min_life, refused, Job.run_in_a_task, in_task=True))
        return str(pair.tokens.access_token)

    def _working_pair(
        self, min_life: float, refused: Secret | None, without_thread: Fallback, *, in_task: bool = False
    ) -> Waits:
        from .current_token import check_request, working_pair
        from .waits import Wait

        check_request(min_life, refused)
        self._load(in_task=in_task)
        replaced = None
        if refused is not None:
            replaced = Wait(
                partial(self._wait_for_new_tokens, refused),
                partial(self._wait_for_new_tokens_async, refused),
            )
        if self._core.must_look_first():
            yield Wait(partial(self._look, None), partial(self._look_async, None))
        return (
            yield from working_pair(
                self._core, min_life, replaced, rounds=MAX_ROTATIONS, without_thread=without_thread
            )
        )

    def revoke(self) -> None:
        """Sign out everywhere: revoke the session at the server, then remove the token file.

        In a store it is marked as signed out. Raises the errors of `refresh`; it stays if revoking fails.
        """
        self._core.revoke().wait(self._core.patience)

    def __repr__(self) -> str:
        name = type(self).__name__
        if "_core" not in vars(self):  # in a traceback of an `__init__` that raised
            return f"<{name}>"
        from .notebook_card import in_short

        state = in_short(self._store)
        return f"{name}({self._store.name!r}, base_url={origin_url(self._origin)!r}, state={state!r})"

    def _repr_html_(self) -> str:
        """Return a card for notebooks, as HTML."""
        from .notebook_card import card

        return card(type(self).__name__, self._store, origin_url(self._origin))

    def __getstate__(self) -> dict[str, Any]:
        given = {
            name: value.reveal() if isinstance(value, Secret) else value
            for name, value in self._arguments.items()
        }
        return {**given, "refresh_via": self._refresh_via}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __copy__(self) -> Self:
        # With what this object works with, whatever has become of the environment since.
        settings = self._settings
        app = {name: getattr(settings, name) for name in ("client_id", "client_secret", "base_url")}
        given = {**self._arguments, **app, "refresh_via": self._refresh_via}
        if type(settings.store) is not TokenFile:
            given.update(store=settings.store, session=None)
        copied = type(self)(**given)
        copied._arguments = self._arguments  # noqa: SLF001 - of the same class
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Sockets can't be copied, so the copy shares `refresh_via`.
        return self.__copy__()

    def _post(self, call: EndpointCall, seconds: float) -> EndpointReply:
        """Send a call to an auth endpoint, within `seconds`. Raises `Unreachable`."""
        raise NotImplementedError

    def _load(self, *, in_task: bool) -> None:
        """Import what a refresh needs that did not come with the class (rule 17)."""

    def _describe_transport(self) -> TransportSpec | None:
        """Return what carries a refresh, for another process; None if that is no client as installed."""
        raise NotImplementedError

    def _check_refresh_via(self, client: Any) -> None:
        """Raise `ConfigurationError` if `refresh_via` is not a client of the right library."""
        raise NotImplementedError

    def _set_origin(self, scheme: str, host: str, port: int) -> None:
        """Set the attributes by which a request to the API is recognised; `__init__` calls this once.

        Each class declares them in its body.
        """
        raise NotImplementedError

    def _is_ours(self, url: str) -> bool:
        return self._is_same(origin_of(url))

    def _is_our_origin(self, scheme: str, host: str, port: int | None) -> bool:
        return self._is_same(normal_origin(HANDSHAKE_SCHEMES.get(scheme, scheme), host, port))

    def _is_same(self, origin: Origin | None) -> bool:
        if origin == self._origin:
            return True
        if logger.isEnabledFor(logging.DEBUG):
            # The origin only: path and query may hold secrets.
            logger.debug(
                "a request to %s carries no token: the API is %s",
                origin and origin_url(origin),
                origin_url(self._origin),
            )
        if origin is not None and (self._origin, origin) not in _warned_twins:
            self._warn_of_a_twin(origin)
        return False

    def _warn_of_a_twin(self, origin: Origin) -> None:
        """Warn once: a request without a token may have been meant for the API, and meets a 401."""
        if are_twins(self._origin, origin):
            _warned_twins.add((self._origin, origin))
            logger.warning(
                "a request to %s carries no token: the API is %s, as base_url or ADH_BASE_URL has it",
                origin_url(origin),
                origin_url(self._origin),
            )

    def _wait_for_new_tokens(
        self,
        rejected: Secret,
        seconds: float | None = None,
        post: Post | None = None,
        transport: DescribeTransport | None = None,
    ) -> Rotated:
        """Return the pair that replaces `rejected`, after waiting `seconds` at most. Raises the job's error.

        `post`: carries the refresh call instead of `_post`. `transport`: describes what `post` goes through.
        """
        refreshed = False
        budget = WaitBudget(self._seconds_to_wait(seconds))
        for _ in range(MAX_ROTATIONS):
            job = self._core.rotate(rejected, post, transport=transport)
            if job is None:
                break
            job.wait(budget.left())
            self._core.use_outcome(job)
            refreshed = job.refreshed
        return Rotated(self._core.current(), refreshed)

    async def _wait_for_new_tokens_async(self, rejected: Secret, seconds: float | None = None) -> Rotated:
        """Do the same in a task."""
        refreshed = False
        budget = WaitBudget(self._seconds_to_wait(seconds))
        for _ in range(MAX_ROTATIONS):
            job = self._core.rotate(rejected, without_thread=Job.run_in_a_task)
            if job is None:
                break
            await job.wait_async(budget.left())
            self._core.use_outcome(job)
            refreshed = job.refreshed
        return Rotated(self._core.current(), refreshed)

    def _look(self, seconds: float | None, *, is_newest: bool = False) -> None:
        """Read the session as it is now, in a job. Raises its error.

        `is_newest`: no read counts that may have begun before this call.
        """
        budget = WaitBudget(self._seconds_to_wait(seconds))
        for _ in range(2):
            job, begins = self._core.look()
            job.wait(budget.left())
            if begins or not is_newest:
                break

    async def _look_async(self, seconds: float | None, *, is_newest: bool = False) -> None:
        """Do the same in a task."""
        budget = WaitBudget(self._seconds_to_wait(seconds))
        for _ in range(2):
            job, begins = self._core.look(without_thread=Job.run_in_a_task)
            await job.wait_async(budget.left())
            if begins or not is_newest:
                break

    def _try_to_look(self, seconds: float | None) -> None:
        """Read the session as it is now. Where that fails, nothing changes."""
        with suppress(AdhAuthError):
            self._look(seconds, is_newest=True)

    def _seconds_to_wait(self, seconds: float | None) -> float:
        return self._core.patience if seconds is None else min(seconds, self._core.patience)


def _new_core(
    settings: Settings,
    find_post: Callable[[], Post | None],
    find_transport: Callable[[], DescribeTransport | None],
) -> Rotation:
    return Rotation(
        settings.store,
        Calls(settings.base_url, settings.client_id, settings.client_secret),
        find_post,
        refresh_ahead=settings.refresh_ahead,
        lock_timeout=settings.lock_timeout,
        launcher=settings.launcher(),
        find_transport=find_transport,
        on_event=settings.on_event,
    )


def _new_shared_core(settings: Settings, find: Callable[[str], Any]) -> Rotation:
    """Return a core that any of several auth objects serves. `find`: returns a method of one that lives."""
    return _new_core(settings, partial(find, "_post"), partial(find, "_describe_transport"))


class WaitBudget:
    """Seconds that several waits share. The first wait gets them all, as a round number for its message."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends: float | None = None

    def left(self) -> float:
        """Return the seconds that are left; counting starts with the first call."""
        if self._ends is None:
            self._ends = time.monotonic() + self._seconds
            return self._seconds
        return max(0.0, self._ends - time.monotonic())


#: pairs of the API and its twin that this process has been warned of
_warned_twins: set[tuple[Origin, Origin]] = set()


def bearer(header: str | bytes | None) -> Secret | None:
    """Return the token of an ``Authorization`` header; None for anything but a bearer token."""
    value = header.decode("latin-1") if isinstance(header, bytes) else header
    scheme, _, token = (value or "").partition(" ")
    return Secret(token) if scheme.lower() == "bearer" and token else None


def wrong_client(auth: object, request: object) -> TypeError:
    """Return the error for an auth object that was passed to a client of another library."""
    from .misuse import other_library

    return other_library(auth, request)
