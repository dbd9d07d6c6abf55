"""What the errors of redis-py and valkey-py mean for a register. Nothing of their text is kept."""

from __future__ import annotations

import re

from .register import UNKNOWN_HOST, RegisterRefused, RegisterUnavailable, unavailable

__all__ = ["register_error"]

CHECK_URL = "Check the user and the password of the store's URL"
ALLOW = "Allow this user: ~adh:session:* +@read +@write +@scripting +@connection +time +info"

#: By the server's error code: a second try won't help.
REFUSALS = {
    "WRONGPASS": ("the password is wrong", CHECK_URL),
    "NOAUTH": ("the server wants a password", "Put it into the URL in ADH_STORE"),
    "NOPERM": ("permission denied", ALLOW),
    "OOM": ("its memory is full", "Raise maxmemory, or give the sessions a Redis of their own"),
    "MISCONF": ("it can't write to its disk", "Look into the server's log"),
    "WRONGTYPE": ("its key holds something else", "Delete the key, or choose another session"),
    "MOVED": ("it is part of a cluster", "Pass RedisStore(RedisCluster(…)) in place of the URL"),
    "ASK": ("it is part of a cluster", "Pass RedisStore(RedisCluster(…)) in place of the URL"),
}

#: The same may work in a moment.
PASSING = {
    "LOADING": "the server is starting",
    "READONLY": "the server is a replica",
    "CLUSTERDOWN": "the cluster is down",
    "MASTERDOWN": "the master is down",
    "NOREPLICAS": "too few replicas are connected",
    "TRYAGAIN": "the cluster is moving the session",
    "BUSY": "the server is busy with a script",
    "UNBLOCKED": "the server has become a replica",
}

#: The codes of what a client has made a class of; the names are those of redis-py and of valkey-py.
CODES = {
    "AuthenticationError": "WRONGPASS",
    "AuthorizationError": "NOPERM",
    "BusyLoadingError": "LOADING",
    "ClusterDownError": "CLUSTERDOWN",
    "MasterDownError": "MASTERDOWN",
    "MovedError": "MOVED",
    "NoPermissionError": "NOPERM",
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
    "SlotNotCoveredError": "CLUSTERDOWN",
    "TryAgainError": "TRYAGAIN",
}

#: What a server says where none was given. Clients cut the code off, and have one class for a wrong one, too.
NO_PASSWORD_WORDS = ("Authentication required", "HELLO must be called with the client already authenticated")

# Before Redis 7 the code of an error in a script stands somewhere in its text.
_CODE = re.compile(r"\b(" + "|".join((*REFUSALS, *PASSING)) + r")\b")

#: What is in the text of an error without a code.
REFUSED_WORDS = (
    ("The user executing the script", REFUSALS["NOPERM"]),
    ("CERTIFICATE", ("TLS failed", "Check the certificates in the store's URL")),
    ("certificate", ("TLS failed", "Check the certificates in the store's URL")),
    ("DB index", ("there is no such database", "Check the database in the store's URL")),
    ("unknown command", ("it runs no scripts", "Use a server that allows EVAL")),
)
PASSING_WORDS = (
    ("refused", "connection refused"),
    ("imed out", "no answer in time"),
    ("max number of clients", "the server has no connection left"),
    ("Name or service not known", UNKNOWN_HOST),
    ("No address associated", UNKNOWN_HOST),
    ("name resolution", UNKNOWN_HOST),
    ("getaddrinfo", UNKNOWN_HOST),
    ("No such file", "there is no server at this socket"),
)


def register_error(error: BaseException) -> Exception:
    """Return the register's error for one of the client's, without anything that hangs on it."""
    code = _code_of(error)
    if code in REFUSALS:
        return RegisterRefused(*REFUSALS[code])
    if code in PASSING:
        return RegisterUnavailable(PASSING[code])
    return _by_words(error, str(error))


def _code_of(error: BaseException) -> str:
    if any(words in str(error) for words in NO_PASSWORD_WORDS):
        return "NOAUTH"
    for kind in type(error).__mro__:
        if kind.__name__ in CODES:
            return CODES[kind.__name__]
    found = _CODE.search(str(error))
    return found[1] if found else ""


def _by_words(error: BaseException, words: str) -> Exception:
    for known, refusal in REFUSED_WORDS:
        if known in words:
            return RegisterRefused(*refusal)
    for known, reason in PASSING_WORDS:
        if known in words:
            return unavailable(reason)
    names = {kind.__name__ for kind in type(error).__mro__}
    if "MasterNotFoundError" in names:
        return RegisterUnavailable("no master is known")
    if "TimeoutError" in names:
        return RegisterUnavailable("no answer in time")
    if names & {"ConnectionError", "OSError", "RedisClusterException", "ValkeyClusterException"}:
        return RegisterUnavailable("the connection was lost")
    return RegisterRefused(f"it answered with {type(error).__name__}", "Look into the server's log")
