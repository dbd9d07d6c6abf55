"""What a program does for a helper that was killed with a new pair it could not write yet.

Rule 16: the pair came over the pipe, and nothing lets go of it.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from ..errors import TokenStoreError
from ..store.base import LeaseLost, Look
from ..store.record import NOTHING, Record
from ..tokens import Stored, Tokens
from .attempt import Attempt, attempted
from .context import RotationContext, Step, Transaction
from .decision import Refresh

if TYPE_CHECKING:
    from ..store.base import Lock, Reservation, Store

__all__ = ["LateReservation", "take_over"]


def take_over(context: RotationContext, unsaved: Tokens, spent: Stored) -> Transaction:
    """Write the pair that replaces `spent` once that works. Return the pair in force."""
    if not (yield from _lock_taken(context)):
        context.warn("the program ends, and its new pair could not be written: the lock was not free")
        return unsaved
    look, raised = yield from attempted(Step("reread", context.store.look))
    if raised is None and look.stored.tokens.refresh_token != spent.tokens.refresh_token:
        return look.stored.tokens  # the helper wrote it at the last moment, or somebody signed in
    fresh = context.owner.mark(Stored.of(unsaved, spent.mapping, {}), spent)
    record = yield Step("record", context.store.record)
    attempt = Attempt(
        context, Look(None, spent, record), LateReservation(context.store, context.lock), Refresh()
    )
    return (yield from attempt.take_over(fresh))


def _lock_taken(context: RotationContext) -> Transaction:
    """Take the lock, however long that takes. Return False if the program ends before that works.

    Raises `TokenStoreError` where a store says that there is no session any more: a sign-out wins (rule 8).
    """
    store, lock = context.store, context.lock
    assert lock is not None
    last_pauses = iter(store.pace.last_pauses)
    while True:
        taken, raised = yield from attempted(Step("lock", lock.take))
        if taken:
            return True
        if raised is not None and store.reads_block and store.state() is None:
            raise raised
        pause = next(last_pauses, None) if context.clock.ending() else store.pace.lock_interval
        if pause is None:
            return False
        yield Step("pause", partial(context.clock.sleep, pause))


class LateReservation:
    """Space for a pair that has come already, reserved by each try to write it.

    `lock`: taken again where it was lost.
    """

    def __init__(self, store: Store, lock: Lock | None = None) -> None:
        self._store = store
        self._lock = lock

    def replace(self, fresh: Stored, spent: Stored, record: Record) -> bool:
        """Do as `Reservation.replace`. What lies beside the file is put in place where it is that pair.

        Nothing is reserved then: that would remove the only copy on disk.
        """
        left = self._store.left_behind()
        if left is not None and left.follows(spent):
            return self._install(spent, record)
        reservation = self._reserved()
        try:
            return reservation.replace(fresh, spent, record)
        finally:
            reservation.leave()

    def _reserved(self) -> Reservation:
        try:
            return self._store.reserve()
        except LeaseLost:
            # It ran out while the store was out of reach, or another thread goes on with the job.
            if self._lock is None or not self._lock.take():
                raise
            return self._store.reserve()

    def _install(self, spent: Stored, record: Record) -> bool:
        done = bool(self._store.recover(spent, NOTHING))
        if done:
            with suppress(TokenStoreError):  # the pair is in force, whether or not others learn who wrote it
                self._store.note(record)
        return done

    def leave(self) -> None:
        """Do nothing: each try leaves its own."""

    def discard(self) -> None:
        """Do nothing, either."""
