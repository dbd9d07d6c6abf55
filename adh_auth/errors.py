"""The errors of adh-auth, and their twins that a client's own ``except`` clauses catch.

AdhAuthError                    every error of this library
├─ ConfigurationError           a missing id or secret, a plain-http base_url, a client refused by the server
├─ TokenFileError               missing, unreadable, corrupt or unwritable token file
│  └─ MalformedTokens           a pair that no client may send; also a ValueError
├─ LockTimeout                  another process has been refreshing for longer than lock_timeout
├─ RefreshFailed                the endpoint is unreachable or in trouble; the session is still good
└─ ReauthorizationRequired      invalid_grant: the user must sign in again

Messages say what happened, which file, and what to do next. No token, secret or code is ever part of one.
"""

from __future__ import annotations

from typing import Any, TypeVar

__all__ = [
    "AdhAuthError",
    "ConfigurationError",
    "LockTimeout",
    "MalformedTokens",
    "ReauthorizationRequired",
    "RefreshFailed",
    "TokenFileError",
    "fresh_copy",
    "twin",
]


class AdhAuthError(Exception):
    """Every error of this library. Facts a caller can act on are attributes; they survive a pickle."""

    #: the token file concerned, where there is one
    token_file: str | None = None
    #: ``X-Request-Id`` of the endpoint's reply, for support
    request_id: str | None = None

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.__dict__.update(facts)

    @property
    def message(self) -> str:
        """The message as text."""
        return str(self.args[0])

    def facts(self) -> dict[str, Any]:
        """The attributes that were given, without what a client hung on (its request holds the token)."""
        return {
            name: value
            for name, value in vars(self).items()
            if name not in _CLIENTS_OWN and not name.startswith("__")
        }

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), None, self.message, self.facts())


#: what requests and httpx put on their exceptions
_CLIENTS_OWN = frozenset({"request", "response", "_request"})


class ConfigurationError(AdhAuthError):
    """A setting is missing or unusable, or the server refuses this client (``invalid_client``)."""

    #: name of the argument or environment variable concerned
    setting: str | None = None
    #: the endpoint's error code, where the server refused
    code: str | None = None


class TokenFileError(AdhAuthError):
    """The token file is missing, unreadable, corrupt or can't be replaced. Nothing was changed."""


class MalformedTokens(TokenFileError, ValueError):
    """A token is missing, is no text, or holds characters that must not go into a header."""


class LockTimeout(AdhAuthError):
    """Another process has been refreshing for longer than ``lock_timeout``."""

    #: the lock file
    lock_file: str | None = None
    #: seconds waited
    waited: float | None = None
    #: process id of the holder as far as it is recorded
    holder: int | None = None


class RefreshFailed(AdhAuthError):
    """The endpoint is unreachable or in trouble. The session is still good: try later."""

    #: HTTP status of the last reply, None where there was none
    status: int | None = None
    #: the endpoint's error code
    code: str | None = None
    #: seconds the endpoint asked to wait (``Retry-After``)
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


KINDS: dict[str, type[AdhAuthError]] = {
    kind.__name__: kind
    for kind in (
        AdhAuthError,
        ConfigurationError,
        TokenFileError,
        MalformedTokens,
        LockTimeout,
        RefreshFailed,
        ReauthorizationRequired,
    )
}

E = TypeVar("E", bound=AdhAuthError)


def twin(error: AdhAuthError, clients_base: type[Exception]) -> AdhAuthError:
    """`error` as an instance of its own class and of `clients_base`, so that ``except`` clauses that exist
    keep working.
    """
    raised: AdhAuthError = _rebuild(_plain(type(error)), clients_base, error.message, error.facts())
    return raised


def fresh_copy(error: E) -> E:
    """A copy without traceback and causes: one outcome is raised in many threads, and frames of the worker
    hold tokens.
    """
    copied: E = _rebuild(type(error), None, error.message, error.facts())
    return copied


def _rebuild(
    kind: type[AdhAuthError], clients_base: type[Exception] | None, message: str, facts: dict[str, Any]
) -> Any:
    cls = kind if clients_base is None else _twin_class(kind, clients_base)
    return cls(message, **facts)


def _plain(kind: type[AdhAuthError]) -> type[AdhAuthError]:
    return next(cls for cls in kind.__mro__ if cls.__name__ in KINDS and KINDS[cls.__name__] is cls)


_twins: dict[tuple[type[AdhAuthError], type[Exception]], type[AdhAuthError]] = {}


def _twin_class(kind: type[AdhAuthError], clients_base: type[Exception]) -> type[AdhAuthError]:
    if (kind, clients_base) not in _twins:
        _twins[kind, clients_base] = _new_twin_class(kind, clients_base)
    return _twins[kind, clients_base]


def _new_twin_class(kind: type[AdhAuthError], clients_base: type[Exception]) -> type[AdhAuthError]:
    def reduce(self: AdhAuthError) -> tuple[Any, ...]:
        return _rebuild, (kind, clients_base, self.message, self.facts())

    body = {
        "__reduce__": reduce,
        "__doc__": kind.__doc__,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
    }
    return type(kind.__name__, (kind, clients_base), body)
