"""What the drivers' errors mean: pure tables, without a server."""

from __future__ import annotations

from types import ModuleType

import pytest

from adh_auth.store import postgresql_errors, redis_errors
from adh_auth.store.register import RegisterRefused, RegisterUnavailable, TableMissing

REFUSED = 'connection to server at "::1", port 5432 failed: Connection refused'
PASSWORD = 'connection to server at "127.0.0.1" failed: FATAL:  password authentication failed for user "app"'


@pytest.mark.parametrize(
    ("state", "kind", "reason"),
    [
        ("42P01", TableMissing, "no table"),
        ("42501", RegisterRefused, "permission denied"),
        ("28P01", RegisterRefused, "the password is wrong"),
        ("28000", RegisterRefused, "refuses this user"),
        ("53100", RegisterRefused, "its disk is full"),
        ("53200", RegisterUnavailable, "memory"),
        ("53300", RegisterUnavailable, "no connection"),
        ("08006", RegisterUnavailable, "the connection was lost"),
        ("08P01", RegisterUnavailable, "the connection was lost"),
        ("25006", RegisterUnavailable, "read-only"),
        ("57P01", RegisterUnavailable, "starting or stopping"),
        ("57P03", RegisterUnavailable, "starting or stopping"),
        ("57014", RegisterUnavailable, "cancelled"),
        ("40001", RegisterUnavailable, "another change"),
        ("55P03", RegisterUnavailable, "another change"),
        ("22P05", RegisterRefused, "encoding"),
        ("XX000", RegisterRefused, "SQLSTATE XX000"),
    ],
)
def test_sqlstate(state: str, kind: type[Exception], reason: str) -> None:
    error = Exception("quotes a secret")
    error.sqlstate = state  # type: ignore[attr-defined]
    meant = postgresql_errors.register_error(error)
    assert type(meant) is kind
    assert reason in str(meant)


@pytest.mark.parametrize(
    ("words", "kind", "reason"),
    [
        (REFUSED, RegisterUnavailable, "connection refused"),
        (PASSWORD, RegisterRefused, "the password is wrong"),
        ("fe_sendauth: no password supplied", RegisterRefused, "the server wants a password"),
        (f"fe_sendauth: no password supplied\n{PASSWORD}", RegisterRefused, "the password is wrong"),
        (f"{REFUSED}\n{PASSWORD}", RegisterRefused, "the password is wrong"),
        ('FATAL:  too many connections for role "app"', RegisterUnavailable, "no connection"),
        ('FATAL:  database "nowhere" does not exist', RegisterRefused, "no such database"),
        ('FATAL:  role "app" is not permitted to log in', RegisterRefused, "refuses this user"),
        ("FATAL:  the database system is starting up", RegisterUnavailable, "starting or stopping"),
        ("session is read-only", RegisterUnavailable, "read-only"),
        ("SSL error: certificate verify failed", RegisterRefused, "TLS failed"),
        ("Verbindung fehlgeschlagen", RegisterUnavailable, "the connection failed"),
    ],
)
def test_words_of_libpq(words: str, kind: type[Exception], reason: str) -> None:
    meant = postgresql_errors.register_error(Exception(words))
    assert type(meant) is kind
    assert reason in str(meant)


@pytest.mark.parametrize("errors", [postgresql_errors, redis_errors])
@pytest.mark.parametrize(
    ("words", "next_step"),
    [
        (
            "could not translate host name [Errno -2] Name or service not known",
            "Check the host of the store's URL",
        ),
        ("Connection refused", ""),
    ],
)
def test_next_step_of_what_may_pass(errors: ModuleType, words: str, next_step: str) -> None:
    """A host that is mistyped never comes."""
    meant = errors.register_error(Exception(words))
    assert isinstance(meant, RegisterUnavailable)
    assert meant.next_step == next_step


def _of_class(*names: str) -> type[Exception]:
    kind: type[Exception] = Exception
    for name in names:
        kind = type(name, (kind,), {})
    return kind


@pytest.mark.parametrize(
    ("names", "words", "kind", "reason"),
    [
        (("ConnectionError", "BusyLoadingError"), "Redis is loading", RegisterUnavailable, "starting"),
        (("ResponseError", "ReadOnlyError"), "You can't write", RegisterUnavailable, "a replica"),
        (("ConnectionError", "AuthenticationError"), "invalid", RegisterRefused, "the password is wrong"),
        (("ConnectionError", "AuthenticationError"), "Authentication required.", RegisterRefused, "wants a"),
        (
            ("ConnectionError", "AuthenticationError"),
            "HELLO must be called with the client already authenticated, otherwise",
            RegisterRefused,
            "wants a password",
        ),
        (("ResponseError",), "NOAUTH Authentication required.", RegisterRefused, "wants a password"),
        (("ResponseError",), "MISCONF Redis is configured", RegisterRefused, "disk"),
        (("ResponseError",), "NOREPLICAS Not enough good", RegisterUnavailable, "too few replicas"),
        (
            ("ResponseError",),
            "Error running script: @user_script: 5: -OOM command not allowed",
            RegisterRefused,
            "memory is full",
        ),
        (
            ("ResponseError",),
            "The user executing the script can't run this command",
            RegisterRefused,
            "permission denied",
        ),
        (("ConnectionError",), "Connection closed by server.", RegisterUnavailable, "was lost"),
        (("ConnectionError", "MasterNotFoundError"), "No master", RegisterUnavailable, "no master"),
        (("TimeoutError",), "", RegisterUnavailable, "no answer in time"),
        (("ResponseError",), "DB index is out of range", RegisterRefused, "no such database"),
        (("ResponseError",), "ERR invalid DB index", RegisterRefused, "no such database"),
        (("DataError",), "Invalid input", RegisterRefused, "DataError"),
    ],
)
def test_errors_of_redis(names: tuple[str, ...], words: str, kind: type[Exception], reason: str) -> None:
    meant = redis_errors.register_error(_of_class(*names)(words))
    assert type(meant) is kind
    assert reason in str(meant)
