"""What one process knows of a session in a register. It is put back where the register has lost it.

Rule 8 in a register: a sign-out or a new sign-in has a higher generation than any pair before it. So what is
lower than what this process has seen is a loss (a failover, a restored backup), and never somebody's wish.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, TypeVar

from ..common.limits import MAX_READ_BYTES
from ..common.notices import logger, warn_loudly
from ..common.secret import Secret
from ..common.threads import THREAD_NAME_PREFIX, has_other_live_threads, make_start_interruptible
from ..errors import MalformedTokens, replaced_errors
from ..tokens import Stored
from .cipher import Cipher, ForeignContent, KeyUnfit, is_encrypted
from .patience import READ_PATIENCE, WRITE_PATIENCE, StoreClock, patiently
from .record import NOTHING, Record
from .register import Register, RegisterRefused, RegisterUnavailable, Row
from .store_messages import FOREIGN, NO_KEY, WRONG_KEY, Problem, SessionName

__all__ = ["Seen", "SessionView", "record_of"]

T = TypeVar("T")

#: Seconds for which a request believes what was read last, and the same once the access token has expired,
#: or where there is no session: another process has most likely changed it by now.
TRUST_SECONDS, SHORT_TRUST_SECONDS = 5.0, 1.0
#: Seconds for which a take of the lease may go by what its thread has just read.
JUST_LOOKED_SECONDS = 0.05
#: Reads in a row that found a loss, and another process's change in the way of putting it right.
HEAL_TRIES = 5
#: Bytes of a pair as it is stored: base64 makes four of three.
MAX_STORED_BYTES = 2 * MAX_READ_BYTES


class Seen(NamedTuple):
    """One session as it was read. `version` None: there is no row. `pair` None: signed out.

    `began`, `ended`: when the read began and ended, `wall`: when it ended, by the clocks of `StoreClock`.
    """

    version: int | None
    generation: int
    stamp: str
    pair: Secret | None
    record: str | None
    holder: str
    lease_left: float
    began: float
    ended: float
    wall: float


class Known(NamedTuple):
    """What a read has shown, parsed. `state`: what changes with the pair; None where there is none to use."""

    seen: Seen
    content: Stored | Problem
    state: object


def record_of(seen: Seen) -> Record:
    """Return the record in the row; `NOTHING` where there is none."""
    return NOTHING if seen.record is None else Record.from_bytes(seen.record.encode("utf-8", "replace"))


class SessionView:
    """One session in a register, as one process knows it. Threads share it; it survives a fork."""

    def __init__(
        self,
        register: Register,
        session: str,
        cipher: Cipher | None,
        clock: StoreClock,
        *,
        patience: float = READ_PATIENCE,
    ) -> None:
        self._patience = patience
        self.register = register
        self.name: SessionName = SessionName(register.name, session)
        self.clock = clock
        #: counts reads that failed: an observation has a gap there
        self.outages: int = 0
        self._cipher = cipher
        #: what was read last, and is the newest that was ever there
        self._known: Known | None = None
        #: the same, where that was a waiter's look, until a take of the lease has used it
        self.looked: Known | None = None
        #: when a read in the background was last begun
        self._asked_at = float("-inf")
        #: the thread that reads in the background, by its process
        self._readers: dict[int, object] = {}

    # In a request: no wait, no error.

    def state(self) -> object:
        """Return what changes with the pair, as far as it is known here. A read in the background follows."""
        known = self._known
        if known is None:
            return None
        age = self.clock.monotonic() - known.seen.ended
        if not 0 <= age < SHORT_TRUST_SECONDS:
            if self._is_doubtful(known):
                self._refresh_soon(SHORT_TRUST_SECONDS)
            elif not 0 <= age < TRUST_SECONDS:
                self._refresh_soon(TRUST_SECONDS)
        return known.state

    def _is_doubtful(self, known: Known) -> bool:
        """Return whether there is no session, or its access token has expired."""
        if isinstance(known.content, Problem):
            return True
        expires_at = known.content.tokens.expires_at
        return expires_at is not None and expires_at <= self.clock.wall()

    def _refresh_soon(self, pause: float) -> None:
        """Read in another thread, `pause` seconds after the last such read began at the earliest."""
        now = self.clock.monotonic()
        if 0 <= now - self._asked_at < pause:
            return
        process, mine = os.getpid(), object()
        # A child of a fork has another number, and no thread yet.
        if self._readers.setdefault(process, mine) is not mine:
            return
        self._asked_at = now
        if _is_program_ending() or not self._start_reader(process):
            self._readers.pop(process, None)
            if not _is_in_event_loop():
                self._reread()

    def _start_reader(self, process: int) -> bool:
        thread = threading.Thread(
            target=self._read_in_background, args=(process,), name=f"{THREAD_NAME_PREFIX}store", daemon=True
        )
        make_start_interruptible(thread)
        try:
            thread.start()
        except (RuntimeError, MemoryError):  # no thread can be started: a limit, or the interpreter's end
            return False
        return True

    def _read_in_background(self, process: int) -> None:
        try:
            self._reread()
        finally:
            self._readers.pop(process, None)

    def _reread(self) -> None:
        try:
            self.fetch_once()
        except (RegisterUnavailable, RegisterRefused) as error:
            logger.debug("%s can't be read for now: %s", self.name.what(), error)
        except Exception as error:  # noqa: BLE001 - a request goes on with what is known
            logger.debug("%s can't be read for now: %s", self.name.what(), type(error).__name__)

    def known(self) -> Known:
        """Return what is remembered, or else what one read shows. Raises `StoreError`."""
        known = self._known
        if known is not None and known.state is None:
            known = self.recent()
        return self.fetch() if known is None else known

    def recent(self) -> Known | None:
        """Return what was read less than a second ago."""
        known = self._known
        if known is None or not 0 <= self.clock.monotonic() - known.seen.ended < SHORT_TRUST_SECONDS:
            return None
        return known

    def just_looked(self) -> Known | None:
        """Return what a waiter has looked at a moment ago, once; None where that was longer ago."""
        known, self.looked = self.looked, None
        if known is None or not 0 <= self.clock.monotonic() - known.seen.ended < JUST_LOOKED_SECONDS:
            return None
        return known

    def remembered_record(self) -> Record:
        """Return the last record that was seen here, for messages."""
        return NOTHING if self._known is None else record_of(self._known.seen)

    # Reading.

    def fetch(self) -> Known:
        """Read, for 10 seconds if need be (a helper for less). Raises `StoreError`."""
        return self._read_patiently(self.fetch_once)

    def fetch_if_possible(self) -> Known | None:
        """Read once; None where that fails."""
        try:
            return self.fetch_once()
        except (RegisterUnavailable, RegisterRefused):
            return None

    def fetch_unhealed(self) -> Seen:
        """Read, and leave a register that has gone back as it is. Raises `StoreError`."""
        return self._read_patiently(self._get)

    def _read_patiently(self, read: Callable[[], T]) -> T:
        with replaced_errors((RegisterUnavailable, RegisterRefused), by=self.name.read_error):
            return patiently(lambda _: read(), self._patience, self.clock)

    def fetch_once(self) -> Known:
        """Read, put right what the register has lost, and remember what it holds.

        Raises `RegisterUnavailable` and `RegisterRefused`.
        """
        for _ in range(HEAL_TRIES):
            found = self._get()
            seen = self._put_back(found) if self._is_loss(found) else found
            if seen is not None:
                return self.remember(seen)
        raise RegisterUnavailable("it keeps changing")

    def _get(self) -> Seen:
        began = self.clock.monotonic()
        try:
            row = self.register.get(self.name.session)
        except (RegisterUnavailable, RegisterRefused):
            self.outages += 1
            raise
        return _seen(row, began, self.clock)

    def remember(self, seen: Seen) -> Known:
        """Remember what was read or written, and return it parsed."""
        known = self._known
        if known is not None and _identity(known.seen) == _identity(seen):
            known = known._replace(seen=seen)
        else:
            content = self._parsed(seen)
            state = None if isinstance(content, Problem) else (seen.generation, seen.stamp)
            known = Known(seen, content, state)
        self._known, self.looked = known, None
        return known

    def forget(self) -> None:
        """Forget what was read: it was changed since."""
        self._known = self.looked = None

    # What a failover has lost.

    def _is_loss(self, seen: Seen) -> bool:
        known = self._known
        return known is not None and is_loss(self.register, seen, known.seen)

    def _put_back(self, seen: Seen) -> Seen | None:
        """Put back the newest that this process has seen; read again then.

        Return it where the register may not be changed from here: what it holds is spent.
        """
        known = self._known
        if known is None:
            return None
        try:
            done = self.put_back(seen, known.seen)
        except RegisterRefused:
            return known.seen._replace(
                version=seen.version, began=seen.began, ended=seen.ended, wall=seen.wall
            )
        if done:
            self.warn_of_loss()
        return None

    def put_back(self, seen: Seen, newest: Seen) -> bool:
        """Put back `newest` if the register is as `seen` still. Return whether it was."""
        session = self.name.session
        if newest.pair is not None:
            return self.register.heal(
                session, seen.version, newest.pair.reveal(), newest.stamp, newest.generation
            )
        return self.register.put(session, None, newest.stamp, seen.generation, None)

    def warn_of_loss(self) -> None:
        """Warn that the register had lost what this process has put back."""
        warn_loudly(
            f"{self.name.what()} had lost its newest pair (a failover, or a crash); "
            "this process has put it back"
        )

    # Writing.

    def write(
        self,
        change: Callable[[], bool],
        was_done: Callable[[Seen], bool] | None = None,
        seconds: float = WRITE_PATIENCE,
    ) -> bool:
        """Return what `change` returns; try again for so many seconds. Raises `StoreError`.

        `was_done`: whether a row shows that an earlier try, whose answer was lost, has done it.
        """

        def attempt(number: int) -> bool:
            if number and was_done is not None and was_done(self._get()):
                return True
            return change()

        with replaced_errors((RegisterUnavailable, RegisterRefused), by=self.name.write_error):
            return patiently(attempt, seconds, self.clock)

    def encoded(self, stored: Stored) -> Secret:
        """Return a session as the register keeps it."""
        text = Secret(stored.to_bytes().decode("ascii"))
        return text if self._cipher is None else self._cipher.encrypt(self.name.session, text)

    # Parsing.

    def stored(self, known: Known) -> Stored:
        """Return the session. Raises `StoreError` where there is none to use."""
        if isinstance(known.content, Problem):
            raise self.name.error(*known.content)
        return known.content

    def _parsed(self, seen: Seen) -> Stored | Problem:
        if seen.pair is None:
            return self.name.no_session()
        if len(seen.pair.reveal()) > MAX_STORED_BYTES:
            return self.name.unusable(f"it is larger than {MAX_READ_BYTES} bytes")
        content = self._decrypted(seen.pair)
        return content if isinstance(content, Problem) else self._session_in(content)

    def _decrypted(self, text: Secret) -> Secret | Problem:
        if not is_encrypted(text):
            return text
        if self._cipher is None:
            return NO_KEY
        try:
            return self._cipher.decrypt(self.name.session, text)
        except KeyUnfit:
            return WRONG_KEY
        except ForeignContent:
            return FOREIGN

    def _session_in(self, text: Secret) -> Stored | Problem:
        if len(text.reveal()) > MAX_READ_BYTES:
            return self.name.unusable(f"it is larger than {MAX_READ_BYTES} bytes")
        try:
            return Stored.from_bytes(text.reveal().encode("utf-8", "surrogatepass"))
        except MalformedTokens as malformed:
            return self.name.unusable(malformed.message)


def _identity(seen: Seen) -> tuple[object, ...]:
    return seen.generation, seen.stamp, seen.pair


def is_loss(register: Register, seen: Seen, newest: Seen) -> bool:
    """Return whether the register has lost `newest`, and what it shows is older.

    The same generation with another stamp is no loss: that pair was written after it, on what was left.
    """
    if seen.version is None:
        return register.missing_is_lost and newest.pair is not None
    return seen.generation < newest.generation and not (seen.pair is None and newest.pair is None)


def _seen(row: Row | None, began: float, clock: StoreClock) -> Seen:
    # From here on no frame has the row itself: a traceback with locals shows the items of a tuple.
    if row is None:
        return Seen(None, -1, "", None, None, "", 0.0, began, clock.monotonic(), clock.wall())
    return Seen(
        row.version,
        row.generation,
        row.stamp,
        None if row.pair is None else Secret(row.pair),
        row.record,
        row.holder,
        row.lease_left,
        began,
        clock.monotonic(),
        clock.wall(),
    )


def _is_program_ending() -> bool:
    return not threading.main_thread().is_alive() and not has_other_live_threads()


def _is_in_event_loop() -> bool:
    """Return whether this thread runs a task: a read would block all others. Imports neither library."""
    for library, current_task in (("asyncio", "current_task"), ("trio.lowlevel", "current_task")):
        module = sys.modules.get(library)
        with suppress(RuntimeError):  # no event loop runs here
            if module is not None and getattr(module, current_task)() is not None:
                return True
    return False
