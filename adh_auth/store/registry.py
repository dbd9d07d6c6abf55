"""A store for several machines, over a register with compare-and-set and a lease in its row.

Nothing is locked in the register while the endpoint answers. These keep a token from being sent twice:

- The lease decides who may send. It is over by the register's own clock, see `store.lease`.
- The note that the token is being sent is durable before it is sent. It is what `reserve` is for a file: a
  register that is full or read-only refuses it, and nothing is spent.
- A new pair is written only over the generation that was spent, whoever has the lease by then.
"""

from __future__ import annotations

import secrets
import threading
from functools import partial
from random import uniform
from typing import TYPE_CHECKING, Any, TypeVar

from ..common.limits import LOCK_TIMEOUT, MAX_READ_BYTES, SAVE_LIMIT
from ..common.secret import Secret
from ..errors import LockTimeout, StoreError
from ..tokens import OWNER_KEYS, Stored, Tokens, file_mapping
from .base import LeaseLost, Look, Pace, StoreFacts
from .lease import SENDING_SECONDS, Lease, is_unfinished, record_text
from .patience import READ_PATIENCE, WRITE_PATIENCE, StoreClock, SystemClock
from .record import DONE, NOTHING, Record
from .session_view import Known, Seen, SessionView, is_loss, record_of
from .store_messages import NO_KEY, checked_session

if TYPE_CHECKING:
    from .cipher import Cipher
    from .register import Register
    from .stat_cache import StatCache

__all__ = ["RegistryStore"]

T = TypeVar("T")

#: Seconds between two looks of a waiter. Each is a round trip to a register that many share.
FIRST_POLL, LAST_POLL = 0.03, 0.25
#: Seconds between the last tries to write at the end of the program, 10 in all: a failover takes as long.
LAST_PAUSES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 1.0, 1.0, 1.5, 2.0, 2.5)
#: Tries of a write that found the generation that it replaces, and then found it gone.
MAX_WRITES = 5
#: Keys that describe one pair, and are dropped with it.
PAIR_FACTS = ("expires_in", "expires_at", "scope")


class RegistryStore:
    """One session in a register (`adh_auth.store.base.Store`). Threads share it; it survives a fork.

    `cipher`: encrypts the pair at rest. `url`, `keys`: what another process opens it by; without a URL none
    can. `patience`: seconds for which a read is tried again. Raises `ConfigurationError` for an unusable name
    of a session.
    """

    #: how messages call it
    kind = "session store"
    #: a register is asked over a network
    reads_block = True

    def __init__(
        self,
        register: Register,
        session: str,
        *,
        cipher: Cipher | None = None,
        clock: StoreClock | None = None,
        url: Secret | None = None,
        keys: Secret | None = None,
        patience: float = READ_PATIENCE,
    ) -> None:
        self._url, self._keys = url, keys
        self._view = SessionView(
            register, checked_session(session), cipher, clock or SystemClock(), patience=patience
        )
        #: the leases of this process, by the thread that works under each
        self._leases: dict[int, RotationLease] = {}
        #: the success that was written along with its pair
        self._success = NOTHING

    @property
    def name(self) -> str:
        """Return the store's name and the session's, without user and password."""
        return str(self._view.name)

    def __repr__(self) -> str:
        return f"RegistryStore({self.name!r})"

    # For messages.

    def what(self) -> str:
        """Return what it is with its name, as a sentence begins."""
        return self._view.name.what()

    def facts_for_errors(self) -> dict[str, str]:
        """Return the attributes by which an error names it."""
        return self._view.name._asdict()

    def sign_in_command(self) -> str:
        """Return the command that signs in, as the end of a sentence."""
        return self._view.name.sign_in_command()

    def error(self, problem: str, next_step: str) -> StoreError:
        """Return an error that names the session, the problem and the next step."""
        return self._view.name.error(problem, next_step)

    def lock_timeout(self, lock: Any, waited: float) -> LockTimeout:  # noqa: ARG002 - the contract's
        """Return the error for a wait of so many seconds that was too long. Asks nobody."""
        return self._view.name.lock_timeout(self._view.remembered_record(), waited, SENDING_SECONDS)

    @property
    def pace(self) -> Pace:
        """Return how often a waiter asks: at random, so that many machines don't ask at once."""
        first = uniform(FIRST_POLL, 1.5 * FIRST_POLL)  # noqa: S311 - no secret
        last = uniform(0.7 * LAST_POLL, LAST_POLL)  # noqa: S311
        return Pace(first, last, last, LAST_PAUSES, notices_records=True)

    # In a request.

    def state(self) -> object:
        """Return a value that changes with the session, None where none is known. Never raises or waits.

        After 5 seconds, 1 where the access token has expired, the register is read in the background.
        """
        return self._view.state()

    def read(self) -> Stored:
        """Return the session as it is remembered, or else as it is. Raises `StoreError`."""
        return self._view.stored(self._view.known())

    def record(self) -> Record:
        """Return what is recorded of earlier attempts, as far as `read` knows. Never raises or waits."""
        return self._view.remembered_record()

    def cached(self, state: object, made: T) -> StatCache[T] | None:  # noqa: ARG002 - the contract's
        """Return None: memory is asked already."""
        return None

    # In a job.

    def look(self) -> Look:
        """Return the session as it is now. Raises `StoreError`."""
        known = self._view.fetch()
        stored = self._view.stored(known)
        self._view.looked = known
        lease = self._leases.get(threading.get_ident())
        if lease is not None:
            lease.known = known
        return Look(_version(known), stored, record_of(known.seen))

    def has_changed(self, state: object) -> bool:
        """Return whether anything in the row has changed since that look. Never raises.

        False where that can't be known now.
        """
        self._view.looked = known = self._view.fetch_if_possible()
        return known is not None and _version(known) != state

    def lock(self) -> RotationLease:
        """Return a lease for one rotation, which may be lost (`LeaseLost`)."""
        return RotationLease(self._view, self._leases)

    def inherited_lock(self, identity: str) -> RotationLease:
        """Return the lease that another process has taken and handed over to this one."""
        lease = self.lock()
        lease.inherit(identity)
        return lease

    def for_helper(self) -> dict[str, Secret] | None:
        """Return what a helper process opens it by; None for a store that is an object of the program's."""
        if self._url is None:
            return None
        session, keys = Secret(self._view.name.session), self._keys or Secret("")
        return {"store": self._url, "session": session, "store_key": keys}

    def note(self, record: Record) -> None:
        """Record an attempt durably. Raises `StoreError`, and `LeaseLost` where another has the lease by now.

        The success that `Reservation.replace` has written along with its pair is recorded already.
        """
        success = self._success
        if record.state == DONE and (record.number, record.about) == (success.number, success.about):
            return
        self._lease().note(record)

    def before_send(self) -> None:
        """Note again if this process may have been stopped since. Raises as `note`."""
        self._lease().before_send()

    def _lease(self) -> RotationLease:
        lease = self._leases.get(threading.get_ident())
        if lease is None or not lease.is_of_this_process():
            raise LeaseLost
        return lease

    def reserve(self) -> RegistryReservation:
        """Return the place of the next pair, which is that of the last look under the lease."""
        lease = self._lease()
        if lease.known is None:
            lease.known = self._view.fetch()
        return RegistryReservation(self._view, lease.known, lease, self._succeeded)

    def _succeeded(self, record: Record) -> None:
        self._success = record

    def recover(self, stored: Stored, record: Record) -> None:  # noqa: ARG002 - the contract's
        """Return None: a pair is written whole or not at all."""
        return

    def left_behind(self) -> Stored | None:
        """Return None, see `recover`."""
        return None

    def remove(self) -> None:
        """Sign out here. Rule 8: a sign-in since the last look under the lease wins. Raises `StoreError`."""
        lease = self._leases.get(threading.get_ident())
        known = None if lease is None else lease.known
        self._put(None, None if known is None else known.seen.generation)

    # What a sign-in and `TokenStore` need (`adh_auth.store.base.SessionStore`).

    def load(self) -> Tokens:
        """Return the pair as it is now. Raises `StoreError`."""
        return self.look().stored.tokens

    def save(self, tokens: Tokens) -> None:
        """Make `tokens` the session, whoever works on the old one. Unknown keys stay. Raises `StoreError`."""
        if not isinstance(tokens, Tokens):
            del tokens  # type: ignore[unreachable]  # a traceback with locals would show them
            raise TypeError("save() takes Tokens; Tokens.from_response(reply) makes them from a token reply")
        self.save_mapping(file_mapping(tokens, {}), tokens)

    def save_mapping(self, mapping: dict[str, Any], tokens: Tokens) -> None:
        """Do as `save`, and keep every key of the reply `mapping`."""
        session = Stored(tokens, mapping)
        del mapping  # a traceback with locals shows the arguments of every frame; a Stored shows no token
        kept = Stored(tokens, self._kept())
        self._put(self._encoded(Stored.of(tokens, kept.mapping, session.mapping), SAVE_LIMIT))

    def annotate(self, tokens: Tokens, **facts: str) -> None:
        """Add `facts` to the keys, if `tokens` are still the session, once a refresh in flight has ended.

        Raises `StoreError`, and `LockTimeout` after 45 seconds.
        """
        lock = self.lock()
        self._wait_for(lock)
        try:
            known = self._view.fetch()
            stored = self._view.stored(known)
            # A holder that is late may bring the next pair still: it must find the generation that it spent.
            is_idle = not is_unfinished(record_of(known.seen), stored)
            if is_idle and stored.tokens.refresh_token == tokens.refresh_token:
                annotated = Stored(stored.tokens, {**stored.mapping, **facts})
                self._put(self._encoded(annotated), known.seen.generation, known.seen.record)
        finally:
            lock.release()

    def _wait_for(self, lock: RotationLease) -> None:
        waited = 0.0
        while not lock.take():
            if waited >= LOCK_TIMEOUT:
                raise self.lock_timeout(lock, LOCK_TIMEOUT)
            self._view.clock.sleep(LAST_POLL)
            waited += LAST_POLL

    def require_writable(self) -> None:
        """Raise `StoreError` if the session can't be changed, before a person signs in for nothing."""
        register, session = self._view.register, self._view.name.session
        self._fetch_for_sign_in()
        # No row is at this version: nothing changes, and who may not change anything is refused.
        self._view.write(lambda: register.take(session, -1, "nobody", 0.0))

    def make_ready(self) -> None:
        """Make the register's table, where it needs one that is missing. Raises `StoreError`."""

        def create() -> bool:
            self._view.register.create()
            return True

        self._view.write(create)

    def exists(self) -> bool:
        """Return whether a session is there, usable or not. Raises `StoreError`."""
        return self._view.fetch().seen.pair is not None

    def take_over(self, session: Stored, record: Record) -> None:
        """Make a `session` of another place this one's, with its record, once a refresh here has ended.

        Raises `StoreError`, and `LockTimeout` after 45 seconds.
        """
        lock = self.lock()
        if self.exists():  # otherwise there is nothing to refresh
            self._wait_for(lock)
        try:
            self._put(self._encoded(session), record=record_text(record) if record.state else None)
        finally:
            lock.release()

    def delete(self) -> None:
        """Sign out on every machine. A missing session is no error. Raises `StoreError`."""
        if self._view.fetch().seen.pair is not None:
            self._put(None)

    def _kept(self) -> dict[str, Any]:
        content = self._fetch_for_sign_in().content
        if not isinstance(content, Stored):
            return {}
        return {
            name: value for name, value in content.mapping.items() if name not in (*PAIR_FACTS, *OWNER_KEYS)
        }

    def _fetch_for_sign_in(self) -> Known:
        """Read; refuse to follow an encrypted session by one that is not."""
        known = self._view.fetch()
        if known.content == NO_KEY:
            raise self._view.name.error(*NO_KEY)
        return known

    def _encoded(self, session: Stored, limit: int = MAX_READ_BYTES) -> Secret:
        """Return it as the register keeps it. Raises `StoreError` where it is larger than `limit` bytes.

        A rotation does not ask: its pair is written whatever the size, for the one before is spent.
        """
        text = self._view.encoded(session)
        # Encrypted it is longer than that, and twice as long at most.
        if len(session.to_bytes()) > limit or len(text.reveal()) > 2 * limit:
            raise self.error(
                f"can't be changed: the new session would be larger than {limit} bytes",
                "The session is as it was; save one with a shorter scope and without unknown keys",
            )
        return text

    def _put(self, pair: Secret | None, generation: int | None = None, record: str | None = None) -> None:
        register, session, stamp = self._view.register, self._view.name.session, _new_stamp()

        def change() -> bool:
            text = None if pair is None else pair.reveal()
            return register.put(session, text, stamp, generation, record)

        self._view.write(change, was_done=lambda seen: seen.stamp == stamp)
        self._view.forget()
        self._view.fetch_if_possible()  # from here on this process can put it back

    # What `status` asks for.

    def facts(self) -> StoreFacts:
        """Return its name: a register has no mode and no owner."""
        return StoreFacts(name=self.name)

    def is_locked(self) -> bool | None:
        """Return whether a process has the lease; None where that can't be known."""
        known = self._view.fetch_if_possible()
        return None if known is None else known.seen.holder != "" and known.seen.lease_left > 0


class RotationLease(Lease):
    """A lease that its store finds by the thread that took it."""

    def __init__(self, view: SessionView, leases: dict[int, RotationLease]) -> None:
        super().__init__(view)
        self._leases = leases

    def take(self) -> bool:
        """Take the lease and return True, or return False where another may be at work.

        Raises `StoreError`.
        """
        taken = super().take()
        if taken:
            self._enter()
        return taken

    def inherit(self, me: str) -> None:
        """Hold the lease `me`, which another process has taken and forgotten."""
        super().inherit(me)
        self._enter()

    def _enter(self) -> None:
        # By thread: two rotations of one process must not work under one lease.
        self._leases[threading.get_ident()] = self

    def hand_over(self) -> None:
        """Forget the lease without ending it: a helper holds it."""
        self._leave()
        super().hand_over()

    def release(self) -> None:
        """Release the lease; nothing happens where it is not held."""
        self._leave()
        super().release()

    def _leave(self) -> None:
        for thread, lease in list(self._leases.items()):
            if lease is self:
                self._leases.pop(thread, None)


class RegistryReservation:
    """The place of the next pair: over the generation that is being spent, and no other.

    `known`: what was read under the lease. `succeeded`: called with the record that was written along.
    """

    def __init__(self, view: SessionView, known: Known, lease: Lease, succeeded: Any) -> None:
        self._view = view
        self._before = known.content
        self._generation = known.seen.generation
        # One mark for all tries: an answer may be lost, and its write may arrive late.
        self._stamp = _new_stamp()
        self._lease = lease
        self._succeeded = succeeded
        self._patience = WRITE_PATIENCE

    def replace(self, fresh: Stored, spent: Stored, record: Record) -> bool:
        """Write `fresh` durably with its record and return True; the lease ends with it.

        Return False where another generation is there: a newer state wins. One that the register has lost
        does not. Raises `StoreError`.
        """
        # Read long after the token was spent, it may be another session already.
        before = self._before
        if not isinstance(before, Stored) or before.tokens.refresh_token != spent.tokens.refresh_token:
            return False
        written = self._seen(self._view.encoded(fresh), record_text(record))
        # The caller has pauses of its own between further tries.
        seconds, self._patience = self._patience, 0.0
        for _ in range(MAX_WRITES):
            if self._view.write(partial(self._put, written), was_done=self._is_written, seconds=seconds):
                return self._done(written, record)
            seen = self._view.fetch_unhealed()
            if self._is_written(seen):
                return self._done(written, record)
            if is_loss(self._view.register, seen, written._replace(generation=self._generation)):
                if self._view.write(partial(self._view.put_back, seen, written), seconds=seconds):
                    self._view.warn_of_loss()
                    return self._done(written, record)
            elif seen.generation != self._generation:
                self._view.remember(seen)
                return False
        raise self._view.name.error("can't be changed: it keeps changing", "Try again later")

    def _seen(self, pair: Secret, record: str) -> Seen:
        now, wall = self._view.clock.monotonic(), self._view.clock.wall()
        return Seen(0, self._generation + 1, self._stamp, pair, record, "", 0.0, now, now, wall)

    def _put(self, written: Seen) -> bool:
        assert written.pair is not None
        return self._view.register.put(
            self._view.name.session, written.pair.reveal(), self._stamp, self._generation, written.record
        )

    def _is_written(self, seen: Seen) -> bool:
        return seen.stamp == self._stamp

    def _done(self, written: Seen, record: Record) -> bool:
        self._lease.end()
        self._succeeded(record)
        self._view.remember(written)
        return True

    def leave(self) -> None:
        """Do nothing: what the row says is for the next process."""

    def discard(self) -> None:
        """Do nothing: nothing was taken up."""


def _version(known: Known) -> object:
    # All three: a register that has gone back may come to the same version another way.
    return known.seen.version, known.seen.generation, known.seen.stamp


def _new_stamp() -> str:
    return secrets.token_hex(8)
