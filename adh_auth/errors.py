"""The errors of adh-auth, and the same errors as a client's own ``except`` clauses catch them.

AdhAuthError                    every error of this library
├─ ConfigurationError           a missing id or secret, a plain-http base_url, a client refused by the server
├─ TokenStoreError              the session can't be read or written where it is kept
│  ├─ TokenFileError            missing, unreadable, corrupt or unwritable token file
│  │  └─ MalformedTokens        a pair that no client may send; also a ValueError
│  └─ StoreError                a store for several machines can't be reached, or holds no such session
├─ LockTimeout                  another process has been refreshing for longer than lock_timeout
├─ RefreshFailed                the endpoint is unreachable or failing; the session is still good
└─ ReauthorizationRequired      invalid_grant: the user must sign in again

Rule 13: messages say what happened, which file, and what to do next. None holds a token, a secret or a code,
and no exception in the chain of one does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from types import TracebackType

__all__ = [
    "AdhAuthError",
    "ConfigurationError",
    "LockTimeout",
    "MalformedTokens",
    "ReauthorizationRequired",
    "RefreshFailed",
    "StoreError",
    "TokenFileError",
    "TokenStoreError",
    "error_for_client",
    "fresh_copy",
    "replaced_errors",
]


class AdhAuthError(Exception):
    """Base of every error of this library.

    Facts that a caller can act on are attributes. They survive a pickle.
    """

    #: path of the token file concerned, None where there is none
    token_file: str | None = None
    #: name of the store concerned, without user and password, and of its session; None for a token file
    store: str | None = None
    session: str | None = None
    #: ``X-Request-Id`` of the endpoint's reply, for support
    request_id: str | None = None
    #: the client's request without the token, on an error that a call of a client raised; absent on others
    request: Any
    #: the response that the error is about, None where there is none; on errors of requests only
    response: Any

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.__dict__.update(facts)

    @property
    def message(self) -> str:
        """Return the message."""
        return str(self.args[0])

    def facts(self) -> dict[str, Any]:
        """Return the attributes that were given, without those that a client set."""
        return {
            name: value
            for name, value in vars(self).items()
            if name not in _SET_BY_CLIENTS and not name.startswith("__")
        }

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), None, self.message, self.facts())


#: What requests and httpx set on their exceptions. The request holds the access token.
_SET_BY_CLIENTS = frozenset({"request", "response", "_request"})


class ConfigurationError(AdhAuthError):
    """A setting is missing or unusable, or the server refuses this client (``invalid_client``)."""

    #: name of the argument or environment variable concerned
    setting: str | None = None
    #: the endpoint's error code, where the server refused
    code: str | None = None


class TokenStoreError(AdhAuthError):
    """The session can't be read or written where it is kept; nothing was changed."""


class TokenFileError(TokenStoreError):
    """The token file is missing, unreadable, corrupt or can't be replaced; nothing was changed."""


class MalformedTokens(TokenFileError, ValueError):
    """A token is missing, is not a string, or holds characters that must not go into a header."""


class StoreError(TokenStoreError):
    """A store for several machines can't be reached, refuses, or holds no such session."""


class LockTimeout(AdhAuthError):
    """Another process has been refreshing for longer than ``lock_timeout``."""

    #: path of the lock file, None for a store
    lock_file: str | None = None
    #: seconds waited
    waited: float | None = None
    #: process id of the holder, None where it is not recorded
    holder: int | None = None


class RefreshFailed(AdhAuthError):
    """The endpoint is unreachable or failing; the session is still good, try later."""

    #: HTTP status of the last reply, None where none came
    status: int | None = None
    #: the endpoint's error code
    code: str | None = None
    #: seconds that the endpoint asked to wait (``Retry-After``)
    retry_after: float | None = None
    #: epoch seconds at which a reply was lost after the token had been sent
    reply_lost_at: float | None = None


class ReauthorizationRequired(AdhAuthError):
    """The refresh token was refused (``invalid_grant``): the user must sign in again."""

    #: the endpoint's error code
    code: str | None = None
    #: fingerprint of the refused refresh token, see `adh_auth.tokens.fingerprint`
    fingerprint: str | None = None
    #: epoch seconds of the refusal
    refused_at: float | None = None
    #: epoch seconds at which an earlier reply was lost, None where none was
    reply_lost_at: float | None = None


#: The error classes by name: a record keeps the name of the class that others are to raise.
KINDS: dict[str, type[AdhAuthError]] = {
    kind.__name__: kind
    for kind in (
        AdhAuthError,
        ConfigurationError,
        TokenStoreError,
        TokenFileError,
        MalformedTokens,
        StoreError,
        LockTimeout,
        RefreshFailed,
        ReauthorizationRequired,
    )
}

E = TypeVar("E", bound=AdhAuthError)
Raised = TypeVar("Raised", bound=Exception)


class replaced_errors(Generic[Raised]):  # noqa: N801 - used like contextlib.suppress
    """Raise `by(error)` in place of an error of these `kinds`, without that error as its context.

    ``raise … from None`` only hides the context. The new error would keep the old one, its traceback and the
    frames in it. Their local variables hold tokens, and error reporters and debuggers show them.
    """

    __slots__ = ("_by", "_kinds", "_outer")

    def __init__(
        self, kinds: type[Raised] | tuple[type[Raised], ...], *, by: Callable[[Raised], Exception]
    ) -> None:
        self._kinds = kinds
        self._by = by

    def __enter__(self) -> None:
        self._outer = sys.exc_info()[1]  # what the caller's own code is handling stays the context

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, self._kinds):
            return
        replacement = self._by(error)
        # The traceback of the replacement has this frame in it.
        del error, traceback
        try:
            raise replacement
        finally:
            replacement.__context__ = self._outer
            del replacement, self._outer


def error_for_client(error: AdhAuthError, clients_base: type[Exception]) -> AdhAuthError:
    """Return `error` as an instance of its own class and of `clients_base`.

    ``except`` clauses written for the client then catch it.
    """
    raised: AdhAuthError = _rebuild(_library_class(error), clients_base, error.message, error.facts())
    return raised


def fresh_copy(error: E) -> E:
    """Return a copy without traceback and causes.

    One outcome is raised in many threads, and the frames of the worker thread hold tokens.
    """
    copied: E = _rebuild(type(error), None, error.message, error.facts())
    return copied


def _rebuild(
    kind: type[AdhAuthError], clients_base: type[Exception] | None, message: str, facts: dict[str, Any]
) -> Any:
    cls = kind if clients_base is None else _class_for_client(kind, clients_base)
    return cls(message, **facts)


class _ForClient(AdhAuthError):
    """What the classes made for a client have in common."""

    _library_class: type[AdhAuthError]
    _clients_base: type[Exception]

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._library_class, self._clients_base, self.message, self.facts())


def _library_class(error: AdhAuthError) -> type[AdhAuthError]:
    return error._library_class if isinstance(error, _ForClient) else type(error)  # noqa: SLF001 - one module


_classes_for_clients: dict[tuple[type[AdhAuthError], type[Exception]], type[AdhAuthError]] = {}


def _class_for_client(kind: type[AdhAuthError], clients_base: type[Exception]) -> type[AdhAuthError]:
    if (kind, clients_base) not in _classes_for_clients:
        _classes_for_clients[kind, clients_base] = _new_class_for_client(kind, clients_base)
    return _classes_for_clients[kind, clients_base]


def _new_class_for_client(kind: type[AdhAuthError], clients_base: type[Exception]) -> type[AdhAuthError]:
    body = {
        "_library_class": kind,
        "_clients_base": clients_base,
        "__doc__": kind.__doc__,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
    }
    return type(kind.__name__, (_ForClient, kind, clients_base), body)
