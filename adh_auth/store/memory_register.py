"""A register in memory, for tests: of this library, of a store of your own, and of a program that uses one.

It can stop, be cut off from one machine, lose the answer to a change that it has made, and go back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from .register import RegisterRefused, RegisterUnavailable, Row

__all__ = ["MemoryRegister"]


@dataclass(frozen=True)
class _Entry:
    """A row, with the end of its lease by the register's clock in epoch seconds."""

    version: int = 0
    generation: int = 0
    stamp: str = ""
    pair: str | None = None
    record: str | None = None
    holder: str = ""
    lease_until: float = 0.0


class _Shared:
    """What all machines share."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.guard = threading.Lock()
        self.rows: dict[str, _Entry] = {}
        self.clock = clock
        self.passed = 0.0
        self.is_running = True

    def now(self) -> float:
        return self.clock() + self.passed


class MemoryRegister:
    """A register in memory (`adh_auth.store.register.Register`). Threads share it.

    `clock`: the register's own clock, epoch seconds. `missing_is_lost`: as for Redis; False is as for
    PostgreSQL.
    """

    def __init__(
        self,
        *,
        name: str = "memory://test",
        missing_is_lost: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.missing_is_lost = missing_is_lost
        #: whether this machine can't reach it
        self.is_cut_off = False
        #: answers to the next changes that get lost after the change was made
        self.lost_answers: int = 0
        #: whether this machine may only read
        self.is_read_only = False
        #: operations that were asked for from this machine, in order
        self.calls: list[str] = []
        self._shared = _Shared(clock)

    def __repr__(self) -> str:
        if "name" not in vars(self):  # in a traceback of an `__init__` that raised
            return "<MemoryRegister>"
        return f"MemoryRegister({self.name!r})"

    # What a test does to it.

    def for_another_machine(self) -> MemoryRegister:
        """Return the same register as another machine reaches it."""
        other = MemoryRegister(name=self.name, missing_is_lost=self.missing_is_lost)
        other._shared = self._shared
        return other

    def stop(self) -> None:
        """Be out of reach of every machine, until `start`."""
        self._shared.is_running = False

    def start(self) -> None:
        """Be in reach again."""
        self._shared.is_running = True

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass by the register's clock."""
        self._shared.passed += seconds

    def snapshot(self) -> object:
        """Return everything that it holds, for `go_back`."""
        with self._shared.guard:
            return dict(self._shared.rows)

    def go_back(self, snapshot: object) -> None:
        """Hold what it held then, as after a failover that has lost writes."""
        assert isinstance(snapshot, dict)
        with self._shared.guard:
            self._shared.rows = dict(snapshot)

    def remove(self, session: str) -> None:
        """Remove a row by hand."""
        with self._shared.guard:
            self._shared.rows.pop(session, None)

    # The operations.

    def get(self, session: str) -> Row | None:
        """Return the row, or None where there is none."""
        self._require_reach("get")
        with self._shared.guard:
            entry = self._shared.rows.get(session)
            now = self._shared.now()
        if entry is None:
            return None
        return Row(
            entry.version,
            entry.generation,
            entry.stamp,
            entry.pair,
            entry.record,
            entry.holder,
            entry.lease_until - now if entry.holder else 0.0,
        )

    def take(self, session: str, version: int, me: str, seconds: float) -> bool:
        """Give the lease to `me` if the row is at `version` still."""
        return self._change("take", session, lambda entry: self._taken(entry, version, me, seconds))

    def _taken(self, entry: _Entry | None, version: int, me: str, seconds: float) -> _Entry | None:
        if entry is None or entry.version != version:
            return None
        return replace(entry, holder=me, lease_until=self._shared.now() + seconds)

    def note(self, session: str, me: str, record: str, seconds: float) -> bool:
        """Keep `record` and renew the lease, if `me` holds it."""
        return self._change("note", session, lambda entry: self._noted(entry, me, record, seconds))

    def _noted(self, entry: _Entry | None, me: str, record: str, seconds: float) -> _Entry | None:
        if entry is None or entry.holder != me:
            return None
        return replace(entry, record=record, lease_until=self._shared.now() + seconds)

    def put(
        self, session: str, pair: str | None, stamp: str, spent_generation: int | None, record: str | None
    ) -> bool:
        """Keep a new pair and `record`, and end the lease."""
        return self._change(
            "put", session, lambda entry: self._with(entry, pair, stamp, spent_generation, record)
        )

    def _with(
        self, entry: _Entry | None, pair: str | None, stamp: str, spent: int | None, record: str | None
    ) -> _Entry | None:
        if spent is not None and (entry is None or entry.generation != spent):
            return None
        entry = entry or _Entry()
        generation = entry.generation + 1
        if spent is None:
            generation = max(generation, int(self._shared.now() * 1000))
        return _Entry(entry.version, generation, stamp, pair, record)

    def heal(self, session: str, version: int | None, pair: str, stamp: str, generation: int) -> bool:
        """Put back a pair that was lost, if the row is at `version`; None: if it is missing."""
        return self._change(
            "heal", session, lambda entry: self._healed(entry, version, pair, stamp, generation)
        )

    def _healed(
        self, entry: _Entry | None, version: int | None, pair: str, stamp: str, generation: int
    ) -> _Entry | None:
        if (None if entry is None else entry.version) != version:
            return None
        entry = entry or _Entry()
        return replace(entry, generation=generation, stamp=stamp, pair=pair, holder="", lease_until=0.0)

    def release(self, session: str, me: str) -> None:
        """End the lease of `me`."""
        self._change("release", session, lambda entry: _released(entry, me))

    def create(self) -> None:
        """Do nothing: there is no table."""
        self._require_reach("create")

    def check(self) -> list[str]:
        """Return the one warning that is due."""
        self._require_reach("check")
        return ["everything in this register is gone when the program ends."]

    def sessions(self) -> list[str]:
        """Return the names of all sessions that are signed in, sorted."""
        self._require_reach("sessions")
        with self._shared.guard:
            return sorted(name for name, entry in self._shared.rows.items() if entry.pair is not None)

    def close(self) -> None:
        """Do nothing: there is no connection."""

    def _change(self, name: str, session: str, changed: Callable[[_Entry | None], _Entry | None]) -> bool:
        self._require_reach(name)
        if self.is_read_only:
            raise RegisterRefused("permission denied", "grant this user the right to change it")
        with self._shared.guard:
            entry = changed(self._shared.rows.get(session))
            if entry is not None:
                self._shared.rows[session] = replace(entry, version=entry.version + 1)
        if self.lost_answers:
            self.lost_answers -= 1
            raise RegisterUnavailable("the connection was lost")
        return entry is not None

    def _require_reach(self, name: str) -> None:
        self.calls.append(name)
        if self.is_cut_off or not self._shared.is_running:
            raise RegisterUnavailable("connection refused")


def _released(entry: _Entry | None, me: str) -> _Entry | None:
    if entry is None or entry.holder != me:
        return None
    return replace(entry, holder="", lease_until=0.0)
