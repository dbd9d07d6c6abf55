"""The lease in a session's row, which stands for the lock of a token file between machines.

Rule 7: a lease that ran out while its holder may have sent the token is followed only after this process has
watched it do nothing, as Kubernetes' leader election does: clocks of two machines are never compared.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from typing import NamedTuple

from ..common.limits import REFRESH_DEADLINE
from ..tokens import Stored, fingerprint
from .base import LeaseLost
from .patience import WRITE_PATIENCE
from .record import SENDING, UNSAVED, Record, host_name
from .register import RegisterRefused, RegisterUnavailable
from .session_view import Known, Seen, SessionView, record_of

__all__ = ["OBSERVED_SECONDS", "SENDING_SECONDS", "Lease", "is_unfinished", "record_text"]

#: Seconds of a lease from its take to the first note.
TAKE_SECONDS = 10.0
#: Seconds of a lease from a note that the token is being sent: the refresh's deadline, and
#: `LATEST_NOTE` and a second for its way.
SENDING_SECONDS = REFRESH_DEADLINE + 5.0
#: Seconds for which a holder that may have sent the token has to be seen doing nothing after its lease.
OBSERVED_SECONDS = 8.0
#: Seconds between two reads of an observation. A longer gap (a stopped process, a suspended machine, a store
#: out of reach) begins it anew.
LONGEST_GAP = 2.0
#: Seconds since a note began after which it is repeated before the token is sent, and after which a
#: repeated one is too old as well. `SENDING_SECONDS` exceeds the refresh's deadline by more.
OLD_NOTE, LATEST_NOTE = 2.0, 4.0
#: Notes before one send.
MAX_NOTES = 4


class _Observation(NamedTuple):
    """A row that does not change. `since`: end of the first read; `last`, `wall`: of the last one."""

    version: int | None
    outages: int
    since: float
    last: float
    wall: float


class _Note(NamedTuple):
    record: Record
    began: float
    wall: float


class Lease:
    """The lease of one rotation. `me`: its name in the row, never used again."""

    def __init__(self, view: SessionView) -> None:
        self._view = view
        self._process = os.getpid()
        #: the name of the lease that a helper has got, and the same once the helper has ended
        self._handed_over: str | None = None
        self._left_by_helper: str | None = None
        self._begin()

    def _begin(self) -> None:
        self.me: str = f"{os.getpid()}@{host_name()}/{secrets.token_hex(8)}"
        #: what was read last under the lease
        self.known: Known | None = None
        self._held = False
        self._observation: _Observation | None = None
        self._note: _Note | None = None

    def take(self) -> bool:
        """Take the lease and return True, or return False where another may be at work.

        Raises `StoreError`, also where there is no session.
        """
        # What a waiter has just looked at is good enough: a change since then makes the take fail.
        known = self._view.just_looked() or self._view.fetch()
        stored = self._view.stored(known)
        self._held = self._is_ours(known.seen)
        if not self._held and self._is_free(known.seen, stored):
            self._held = True  # for all that is known where the answer gets lost: it is released then
            self._held = self._compare_and_set(known.seen)
        return self._held

    def is_of_this_process(self) -> bool:
        """Return whether it is no copy that a fork has made."""
        return os.getpid() == self._process

    def _is_ours(self, seen: Seen) -> bool:
        return seen.holder == self.me and seen.lease_left > 0

    def _compare_and_set(self, seen: Seen) -> bool:
        register, session = self._view.register, self._view.name.session
        assert seen.version is not None
        version = seen.version
        return self._view.write(
            lambda: register.take(session, version, self.me, TAKE_SECONDS), was_done=self._is_ours
        )

    # Whether it is free.

    def _is_free(self, seen: Seen, stored: Stored) -> bool:
        if seen.holder in ("", self.me, self._left_by_helper):
            return True
        if seen.lease_left > 0:
            return False
        return not is_unfinished(record_of(seen), stored) or self._has_observed(seen)

    def _has_observed(self, seen: Seen) -> bool:
        """Return whether this version has been seen for long enough, without a gap."""
        before = self._observation
        if before is None or not self._continues(before, seen):
            before = _Observation(seen.version, self._view.outages, seen.ended, seen.ended, seen.wall)
        self._observation = before._replace(last=seen.ended, wall=seen.wall)
        return seen.began - before.since >= OBSERVED_SECONDS

    def _continues(self, before: _Observation, seen: Seen) -> bool:
        return (
            (before.version, before.outages) == (seen.version, self._view.outages)
            and 0 <= seen.ended - before.last <= LONGEST_GAP
            # The monotonic clock of some systems stands still while they are suspended.
            and abs(seen.wall - before.wall) <= LONGEST_GAP
        )

    # Under it.

    def note(self, record: Record) -> None:
        """Record an attempt durably. Raises `StoreError`, and `LeaseLost` where another has the lease."""
        register, session, text = self._view.register, self._view.name.session, record_text(record)
        # With any other outcome the work is done: the lease ends in the same trip.
        seconds = SENDING_SECONDS if record.state in (SENDING, UNSAVED) else 0.0
        clock = self._view.clock
        began = [(clock.monotonic(), clock.wall())]

        def change() -> bool:
            began[0] = clock.monotonic(), clock.wall()
            return register.note(session, self.me, text, seconds)

        # A pair that could not be written has been waited for already.
        noted = self._view.write(change, seconds=0.0 if record.state == UNSAVED else WRITE_PATIENCE)
        self._held = noted and seconds > 0
        if not noted:
            raise LeaseLost
        self._note = _Note(record, *began[0])

    def before_send(self) -> None:
        """Note again if the note is no longer new: this process may have been stopped since.

        Raises as `note`.
        """
        if self._note is None:
            raise LeaseLost
        limit = OLD_NOTE
        for _ in range(MAX_NOTES):
            if self._is_newer_than(limit, self._note):
                return
            self.note(self._note.record)
            limit = LATEST_NOTE
        raise LeaseLost

    def _is_newer_than(self, seconds: float, note: _Note) -> bool:
        clock = self._view.clock
        return 0 <= clock.monotonic() - note.began <= seconds and 0 <= clock.wall() - note.wall <= seconds

    # In the hands of a helper process.

    @property
    def identity(self) -> str:
        """Return what a helper knows it by."""
        return self.me

    def descriptor(self) -> None:
        """Return None: it lives in a row."""

    def hand_over(self) -> None:
        """Forget the lease without ending it: a helper holds it. What is taken from now on is another one."""
        self._handed_over = self.me
        self._begin()

    def take_back(self) -> None:
        """Let `take` take the lease of a helper that has ended: nothing was sent, or its pair is here."""
        # Under the new name: a change of the helper's that arrives late finds that its lease is gone.
        self._left_by_helper = self._handed_over

    def inherit(self, me: str) -> None:
        """Hold the lease `me`, which another process has taken and forgotten."""
        self.me, self._held = me, True

    # Its end.

    def end(self) -> None:
        """Forget it: the register has ended it along with a change."""
        self._held = False

    def release(self) -> None:
        """Release the lease; nothing happens where it is not held. Tried once: it ends by itself."""
        held, self._held = self._held, False
        if held and self.is_of_this_process():
            with suppress(RegisterUnavailable, RegisterRefused):
                self._view.register.release(self._view.name.session, self.me)


def is_unfinished(record: Record, stored: Stored) -> bool:
    """Return whether the holder of the lease may have sent the token, and may bring the next pair."""
    return record.state in (SENDING, UNSAVED) and record.concerns(fingerprint(stored.tokens.refresh_token))


def record_text(record: Record) -> str:
    """Return a record as a row keeps it."""
    return record.to_bytes().decode("ascii").strip()
