"""What PostgreSQL's errors mean for a register. Nothing of their text is kept: it quotes hosts and users."""

from __future__ import annotations

from .register import UNKNOWN_HOST, RegisterRefused, RegisterUnavailable, TableMissing, unavailable

__all__ = ["GRANT", "NO_ANSWER", "PERMISSION_DENIED", "register_error"]

GRANT = "Grant this user SELECT, INSERT and UPDATE on it"
CHECK_URL = "Check the user and the password of the store's URL"
PERMISSION_DENIED = "permission denied"
NO_ANSWER = "no answer in time"

#: Reason and next step by SQLSTATE (PostgreSQL's manual, appendix A): a second try won't help. The first is
#: libpq's own, without one.
REFUSALS = {
    "no password": ("the server wants a password", "Put it into the URL in ADH_STORE, or into ~/.pgpass"),
    "28P01": ("the password is wrong", CHECK_URL),
    "28000": ("the server refuses this user", CHECK_URL),
    "3D000": ("there is no such database", "Check the database in the store's URL"),
    "42501": (PERMISSION_DENIED, GRANT),
    "42703": ("its table has other columns", "Compare it with: adh-auth store init --print"),
    "42P10": ("its table has no primary key", "Compare it with: adh-auth store init --print"),
    "53100": ("its disk is full", "Make room on it"),
    "53400": ("a limit of its configuration is reached", "Look into the server's log"),
    "22021": ("a character doesn't fit the database's encoding", "Use a database in UTF8"),
    "22P05": ("a character doesn't fit the database's encoding", "Use a database in UTF8"),
}

#: Reasons by SQLSTATE, or by its class: the same may work in a moment.
PASSING = {
    "08": "the connection was lost",
    "25006": "the server is read-only, a standby perhaps",
    "40": "another change was in the way",
    "53": "the server has no connection or memory left",
    "55": "another change was in the way",
    "57014": "the server cancelled the statement",
    "57": "the server is starting or stopping",
    "58": "the server has a problem with its disk",
}

#: libpq keeps no SQLSTATE of a connection that was refused, so that its words have to do, the first of these
#: that they have. Of several hosts one may refuse the password and the others be down: that is the password.
#: A server that speaks another language than English ends up at the last line.
BUSY_WORDS = (
    ("too many", PASSING["53"]),
    ("connection slots", PASSING["53"]),
)
REFUSED_WORDS = (
    ("authentication failed", "28P01"),
    ("no password supplied", "no password"),
    ("no pg_hba.conf entry", "28000"),
    ("is not permitted to log in", "28000"),
    ("permission denied for database", "28000"),
    ('role "', "28000"),
    ("no such user", "28000"),
    ("no such database", "3D000"),
    ('database "', "3D000"),
)
PASSING_WORDS = (
    ("Connection refused", "connection refused"),
    ("timeout expired", "no answer to a new connection"),
    ("session is read-only", PASSING["25006"]),
    ("is in hot standby", PASSING["25006"]),
    ("starting up", PASSING["57"]),
    ("shutting down", PASSING["57"]),
    ("No such file", "there is no server at this socket"),
    ("ould not translate host", UNKNOWN_HOST),
    ("failed to resolve host", UNKNOWN_HOST),
    ("[Errno -", UNKNOWN_HOST),  # psycopg 3.2: only what getaddrinfo says
    ("ould not send", "the connection was lost"),
    ("closed the connection", "the connection was lost"),
)
TLS = ("TLS failed", "Check sslmode and sslrootcert of the store's URL")


def register_error(error: BaseException) -> Exception:
    """Return the register's error for one of psycopg's, without anything that hangs on it."""
    state = getattr(error, "sqlstate", None)
    if isinstance(state, str):
        return _by_state(state)
    return _by_words(str(error))


def _by_state(state: str) -> Exception:
    if state == "42P01":
        return TableMissing("it has no table yet", "Make it with: adh-auth store init")
    if state in REFUSALS:
        return RegisterRefused(*REFUSALS[state])
    for known in (state, state[:2]):
        if known in PASSING:
            return RegisterUnavailable(PASSING[known])
    return RegisterRefused(f"SQLSTATE {state}", "Look into the server's log")


def _by_words(words: str) -> Exception:
    found = _first(BUSY_WORDS, words)
    if found:
        return RegisterUnavailable(found)
    state = _first(REFUSED_WORDS, words)
    if state:
        return RegisterRefused(*REFUSALS[state])
    if "certificate" in words or "does not support SSL" in words:
        return RegisterRefused(*TLS)
    return unavailable(_first(PASSING_WORDS, words) or "the connection failed")


def _first(table: tuple[tuple[str, str], ...], words: str) -> str:
    return next((meaning for known, meaning in table if known in words), "")
