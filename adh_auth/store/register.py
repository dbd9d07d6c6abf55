"""What a store for several machines stands on: a register with compare-and-set and a lease in its row.

A driver gives these operations, each one atomic round trip. The algorithm over them is `store.registry`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

__all__ = [
    "UNKNOWN_HOST",
    "Register",
    "RegisterRefused",
    "RegisterUnavailable",
    "Row",
    "TableMissing",
    "unavailable",
]

UNKNOWN_HOST = "the host is not known"
#: What to check, by the reason why a register is not in reach. A host that is mistyped never is.
NEXT_STEPS = {UNKNOWN_HOST: "Check the host of the store's URL"}


class Row(NamedTuple):
    """One session as the register holds it.

    `version` grows by 1 with every change, `generation` with every new pair; `stamp` is the random mark that
    came with the pair. `pair`: JSON as in a token file, or encrypted; None after a sign-out. `record`: JSON
    of the last attempt, or None. `holder`: who has the lease, "" for nobody. `lease_left`: seconds by the
    register's own clock, 0 or less once it is over.
    """

    version: int
    generation: int
    stamp: str
    pair: str | None
    record: str | None
    holder: str
    lease_left: float

    def __repr__(self) -> str:
        return f"Row(version={self.version}, generation={self.generation}, holder={self.holder!r})"


class RegisterUnavailable(Exception):
    """The register can't be reached, is starting or failing over: the same may work in a moment.

    Whether a change was made is not known. The message is the reason in a few words, without a secret.
    `next_step`: what to check if it never works.
    """

    def __init__(self, reason: str = "", next_step: str = "") -> None:
        super().__init__(reason)
        self.next_step = next_step


def unavailable(reason: str) -> RegisterUnavailable:
    """Return the error with the next step that belongs to this reason, if any."""
    return RegisterUnavailable(reason, NEXT_STEPS.get(reason, ""))


class RegisterRefused(Exception):
    """The register refuses: rights, a wrong password, no room. Nothing was changed; a second try won't help.

    The message is the reason in a few words, without a secret.
    """

    def __init__(self, reason: str, next_step: str) -> None:
        super().__init__(reason)
        self.next_step = next_step


class TableMissing(RegisterRefused):
    """The register has no table yet: ``adh-auth store init`` makes it."""


class Register(Protocol):
    """A register of sessions. Each operation is one atomic round trip, tried once.

    Each raises `RegisterUnavailable` and `RegisterRefused`. Threads share one.
    """

    #: its name for messages: scheme, host, port and database, no user and no password
    name: str
    #: whether a row can get lost: what is missing is then put back by a process that has seen it. Otherwise
    #: a missing row is a sign-out
    missing_is_lost: bool

    def get(self, session: str) -> Row | None:
        """Return the row, or None where there is none."""

    def take(self, session: str, version: int, me: str, seconds: float) -> bool:
        """Give the lease to `me` for `seconds` if the row is at `version` still. Return whether it was."""

    def note(self, session: str, me: str, record: str, seconds: float) -> bool:
        """Keep `record` durably and renew the lease, if `me` holds it (run out or not). Return whether.

        `seconds` 0 ends the lease.
        """

    def put(
        self, session: str, pair: str | None, stamp: str, spent_generation: int | None, record: str | None
    ) -> bool:
        """Keep a new pair and `record` durably, and end the lease, whoever has it: generation + 1.

        Only if the generation is `spent_generation` still; None: whatever it is, and also where there is no
        row (a sign-in, or with `pair` None a sign-out). Then the generation is the register's clock in
        milliseconds since 1970, if that is more: a sign-in on a register that had gone back comes after the
        pair that it has lost. Return whether it was done.
        """

    def heal(self, session: str, version: int | None, pair: str, stamp: str, generation: int) -> bool:
        """Put back a pair that the register had and lost, if the row is at `version` (None: is missing).

        The row gets this `generation`, and nobody has the lease. Return whether it was done.
        """

    def release(self, session: str, me: str) -> None:
        """End the lease of `me`; nothing happens where another has it."""

    def create(self) -> None:
        """Make the table, where one is needed and missing."""

    def check(self) -> list[str]:
        """Prove that writing works and lasts, with a session of its own that is removed again.

        Return warnings, each a sentence: what may be lost in a crash or a failover.
        """

    def sessions(self) -> list[str]:
        """Return the names of all sessions that are signed in, sorted."""

    def close(self) -> None:
        """Close idle connections."""
