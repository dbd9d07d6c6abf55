"""Messages about a session in a store: which one, what is wrong, and the next step. None holds a secret."""

from __future__ import annotations

import os
from typing import NamedTuple

from ..common.text import capitalized, format_time
from ..errors import ConfigurationError, LockTimeout, StoreError
from .record import Record
from .register import RegisterRefused, TableMissing
from .remedies import shell_quoted
from .store_url import has_password

__all__ = ["Problem", "SessionName", "checked_session", "require_printable"]

#: Characters of a session's name.
MAX_SESSION = 200


class Problem(NamedTuple):
    """Why what a store holds can't be used, and the next step."""

    problem: str
    next_step: str


def checked_session(session: object) -> str:
    """Return the name of a session. Raises `ConfigurationError`."""
    if isinstance(session, str) and 0 < len(session) <= MAX_SESSION and session.isprintable():
        return session
    raise ConfigurationError(
        f"session must be 1 to {MAX_SESSION} printable characters; choose another name", setting="session"
    )


def require_printable(name: object) -> None:
    """Raise `ConfigurationError` for a store's name that would break the messages that hold it."""
    if not (isinstance(name, str) and name.isprintable()):
        raise ConfigurationError("name must be printable characters", setting="store")


class SessionName(NamedTuple):
    """A session in a store, and the errors about it. `store`: its name, without user and password."""

    store: str
    session: str

    def __str__(self) -> str:
        return f"{self.store}#{self.session}"

    def what(self) -> str:
        """Return it as a sentence begins."""
        return f"session store {self}"

    def sign_in_command(self) -> str:
        """Return the command that signs in, as the end of a sentence."""
        # The command line takes no password, and uses the variable without being told.
        store = "" if has_password(os.environ.get("ADH_STORE", "")) else '--store "$ADH_STORE" '
        return f"sign in with: adh-auth login {store}--session {shell_quoted(self.session)}"

    def error(self, problem: str, next_step: str) -> StoreError:
        """Return an error that names the session, the problem and the next step."""
        # No full stop: where the next step is a command, it would be copied along.
        return StoreError(f"{self.what()} {problem}. {next_step}", store=self.store, session=self.session)

    def read_error(self, error: Exception) -> StoreError:
        """Return the error for a read that failed."""
        return self._error("can't be read", error)

    def write_error(self, error: Exception) -> StoreError:
        """Return the error for a change that failed."""
        return self._error("can't be changed", error)

    def _error(self, problem: str, error: Exception) -> StoreError:
        if isinstance(error, TableMissing):
            return self.error("has no table yet", "Make it with: adh-auth store init")
        if isinstance(error, RegisterRefused):
            return self.error(f"{problem}: {error}", capitalized(error.next_step))
        check = getattr(error, "next_step", "")  # one to try while the same is tried again
        reason = f"{error}. {check}" if check else str(error)
        return self.error(f"{problem}: {reason}", "The session is as it was; try again later")

    def lock_timeout(self, record: Record, waited: float, lease_seconds: float) -> LockTimeout:
        """Return the error for a wait of so many seconds. `lease_seconds`: of a holder that sends."""
        holder = record.pid or None
        who = f"another process (pid {holder} on {record.host})" if holder else "another process"
        if record.at and record.state == "sending":
            message = (
                f"{who} may have sent the refresh token of {self} at {format_time(record.at)}; "
                f"nobody follows before {format_time(record.at + lease_seconds)}"
            )
        else:
            message = (
                f"{who} has held {self.what()} for more than {waited:g} s; "
                "see what it is doing, or raise lock_timeout"
            )
        return LockTimeout(message, waited=waited, holder=holder, store=self.store, session=self.session)

    # What a row may hold.

    def no_session(self) -> Problem:
        """Return the problem of a session that does not exist, or was signed out."""
        return Problem("holds no session", capitalized(self.sign_in_command()))

    def unusable(self, reason: str) -> Problem:
        """Return the problem of content that is no session."""
        return Problem(
            f"is not a usable session: {reason}",
            f"It was left as it is: repair it if you can, or {self.sign_in_command()}",
        )


NO_KEY = Problem("is encrypted, and there is no key", "Set ADH_STORE_KEY")
WRONG_KEY = Problem(
    "is encrypted with another key", "Add the key that it was written with to ADH_STORE_KEY, after a comma"
)
FOREIGN = Problem(
    "holds what was encrypted for a session of another name",
    "Put it back under its own name, or sign in anew",
)
