"""What the three auth classes have in common: their arguments, the methods that are not part of a request,
repr and pickling.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakMethod

from ..common.notices import logger
from ..common.secret import REDACTED, Secret
from ..errors import AdhAuthError
from ..oauth.endpoint import EndpointCall, EndpointReply
from ..oauth.origin import Origin, normal_origin, origin_of
from ..rotation.active_tokens import ActiveTokens
from ..rotation.context import Calls
from ..rotation.core import Rotation
from ..rotation.detached import TransportSpec
from ..rotation.job import Job
from .settings import hidden, resolve

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..tokens import Tokens

__all__ = ["BaseAuth"]

#: Rotations that one request may wait for. A pair that is dead on arrival twice over is the server's trouble,
#: and the caller's to see.
MAX_ROTATIONS = 3


class Rotated(NamedTuple):
    """What to go on with after a rotation.

    `refreshed`: straight from the server; else adopted, and it may have expired since.
    """

    pair: ActiveTokens
    refreshed: bool


class BaseAuth:
    """Keeps the requests of a client signed in.

    `token_file`: path of the shared token file; default ``$ADH_TOKEN_FILE``, else
    ``$XDG_CONFIG_HOME/adh/tokens.json``.
    `client_id`, `client_secret`: the OAuth app; default ``$ADH_CLIENT_ID``, ``$ADH_CLIENT_SECRET``.
    `base_url`: the API; default ``$ADH_BASE_URL``, else the public one. The token is sent to this origin and
    to no other.
    `refresh_ahead`: seconds before expiry at which a refresh starts in the background; None waits for the
    API's ``401 token_expired``.
    `lock_timeout`: seconds to wait for another process's refresh; more than one whole refresh takes.
    `detached`: which refreshes run in a process of their own, which no kill of the program reaches. None:
    those in the background; True: those that a request waits for, too; False: none.
    `refresh_via`: a client that carries the refresh call instead of one of our own.

    Building one does no I/O. Raises `ConfigurationError`.
    """

    def __init__(
        self,
        token_file: str | os.PathLike[str] | None = None,
        *,
        client_id: str | None = None,
        client_secret: str | Secret | None = None,
        base_url: str | None = None,
        refresh_ahead: float | None = None,
        lock_timeout: float | None = None,
        detached: bool | None = None,
        refresh_via: Any = None,
    ) -> None:
        client_secret = hidden(client_secret)
        settings = resolve(
            token_file,
            client_id=client_id,
            client_secret=client_secret,
            base_url=base_url,
            refresh_ahead=refresh_ahead,
            lock_timeout=lock_timeout,
            detached=detached,
        )
        self._check_carrier(refresh_via)
        self._file = settings.file
        self._origin = settings.origin
        self._refresh_via = refresh_via
        # As they were passed: a pickle carries the secret only if it was an argument, and the rest comes from
        # the environment over there.
        self._arguments = {
            "token_file": str(settings.file.path),
            "client_id": client_id,
            "client_secret": client_secret,
            "base_url": base_url,
            "refresh_ahead": refresh_ahead,
            "lock_timeout": lock_timeout,
            "detached": detached,
        }
        calls = Calls(str(settings.file.path), settings.base_url, settings.client_id, settings.client_secret)
        self._core = Rotation(
            settings.file,
            calls,
            WeakMethod(self._post),
            refresh_ahead=settings.refresh_ahead,
            lock_timeout=settings.lock_timeout,
            launcher=settings.launcher(),
            find_transport=WeakMethod(self._describe_transport),
        )
        self._prepare(*settings.origin)

    @property
    def token_file(self) -> str:
        """Absolute path of the token file."""
        return str(self._file.path)

    @property
    def tokens(self) -> Tokens:
        """The current pair, read from the file. Raises `TokenFileError`."""
        return self._core.current().tokens

    def refresh(self) -> Tokens:
        """Refresh now, or share the refresh that another thread or process has under way; gives the pair in
        force.

        Raises `ReauthorizationRequired`, `RefreshFailed`, `LockTimeout`, `TokenFileError` or
        `ConfigurationError`.
        """
        job = self._core.refresh_now()
        job.wait(self._core.patience)
        self._core.take(job)
        return self.tokens

    def revoke(self) -> None:
        """Sign out everywhere: tell the server, then remove the token file.

        Raises as `refresh`; the file stays if that fails.
        """
        self._core.revoke().wait(self._core.patience)

    def __repr__(self) -> str:
        if "_core" not in vars(self):  # what a traceback shows where the arguments were refused
            return f"<{type(self).__name__}>"
        from .notebook_card import in_short

        return f"{type(self).__name__}({self.token_file!r}, base_url={_url_of(self._origin)!r}, state={in_short(self._file)!r})"

    def _repr_html_(self) -> str:
        """A card for notebooks."""
        from .notebook_card import card

        return card(type(self).__name__, self._file, _url_of(self._origin))

    def __getstate__(self) -> dict[str, Any]:
        arguments = dict(self._arguments)
        secret = arguments["client_secret"]
        return {
            **arguments,
            "client_secret": secret.reveal() if isinstance(secret, Secret) else None,
            "refresh_via": self._refresh_via,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __copy__(self) -> Self:
        return type(self)(**self.__getstate__())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # The client that carries the refresh is shared: its sockets can't be copied.
        return self.__copy__()

    def _post(self, call: EndpointCall, seconds: float) -> EndpointReply:
        raise NotImplementedError

    def _describe_transport(self) -> TransportSpec | None:
        """What carries a refresh, for another process; None where that is no client as it was installed."""
        raise NotImplementedError

    def _check_carrier(self, carrier: Any) -> None:
        raise NotImplementedError

    def _prepare(self, scheme: str, host: str, port: int) -> None:
        """What is worth knowing of the origin before the first request."""
        raise NotImplementedError

    def _is_ours(self, url: str) -> bool:
        return self._is_same(origin_of(url))

    def _is_our_origin(self, scheme: str, host: str, port: int | None) -> bool:
        return self._is_same(normal_origin(scheme, host, port))

    def _is_same(self, origin: Origin | None) -> bool:
        if origin == self._origin:
            return True
        if logger.isEnabledFor(logging.DEBUG):  # a client may have more to say to strangers than to the API
            # Nothing of the URL: its path and query may hold anything.
            logger.debug(
                "a request to %s carries no token: the API is %s",
                origin and _url_of(origin),
                _url_of(self._origin),
            )
        return False

    def _wait_for_new_tokens(self, rejected: Secret, seconds: float | None = None, **post: Any) -> Rotated:
        """The pair to go on with in place of `rejected`.

        Waits `seconds` at most. Raises the outcome's error.
        """
        refreshed = False
        patience = _Patience(self._patience(seconds))
        for _ in range(MAX_ROTATIONS):
            job = self._core.rotate(rejected, **post)
            if job is None:
                break
            job.wait(patience.left())
            self._core.take(job)
            refreshed = job.refreshed
        return Rotated(self._core.current(), refreshed)

    async def _wait_for_new_tokens_async(self, rejected: Secret, seconds: float | None = None) -> Rotated:
        """The same for a task."""
        refreshed = False
        patience = _Patience(self._patience(seconds))
        for _ in range(MAX_ROTATIONS):
            job = self._core.rotate(rejected, without_thread=Job.run_in_a_task)
            if job is None:
                break
            await job.wait_async(patience.left())
            self._core.take(job)
            refreshed = job.refreshed
        return Rotated(self._core.current(), refreshed)

    def _patience(self, seconds: float | None) -> float:
        return self._core.patience if seconds is None else min(seconds, self._core.patience)


class _Patience:
    """Seconds that several waits share. The first gets them all, as a round number for its message."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends: float | None = None

    def left(self) -> float:
        if self._ends is None:
            self._ends = time.monotonic() + self._seconds
            return self._seconds
        return max(0.0, self._ends - time.monotonic())


def bearer(header: str | bytes | None) -> Secret | None:
    """The token of an ``Authorization`` header, None for anything but a bearer token."""
    text = header.decode("latin-1") if isinstance(header, bytes) else header
    scheme, _, token = (text or "").partition(" ")
    return Secret(token) if scheme.lower() == "bearer" and token else None


def wrong_client(auth: object, request: object) -> TypeError:
    """The error for an auth object in the hands of a client it was not made for."""
    client = type(request).__module__.partition(".")[0]
    right = {"requests": "AdhAuth", "httpx": "AdhHttpxAuth", "httpx2": "AdhHttpx2Auth"}.get(client)
    every = "use AdhAuth with requests, AdhHttpxAuth with httpx, AdhHttpx2Auth with httpx2"
    advice = f"use adh_auth.{right} with {client}" if right else every
    return TypeError(f"{type(auth).__name__} was handed a request of {client}: {advice}")


def _url_of(origin: tuple[str, str, int]) -> str:
    scheme, host, port = origin
    shown = f"[{host}]" if ":" in host else host
    return (
        f"{scheme}://{shown}" if port == (443 if scheme == "https" else 80) else f"{scheme}://{shown}:{port}"
    )


__all__ += ["REDACTED", "AdhAuthError", "bearer", "wrong_client"]
