"""TokenFile: the one place where a session lives.

Rule 8: no failure empties, deletes or rewrites the pair. Rule 14: reading needs no lock and no write access.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..common.clock import JobClock
from ..common.limits import MAX_READ_BYTES, REPLY_LIMIT, SAVE_LIMIT
from ..common.secret import Secret
from ..common.text import capitalized
from ..errors import LockTimeout, MalformedTokens, TokenFileError, replaced_errors
from ..tokens import MOVING_TO, OWNER_KEYS, Stored, Tokens, file_mapping, fingerprint
from . import disk, file_checks, reservation
from .base import Look, Pace
from .file_lock import LockUnavailable, RotationLock
from .location import absolute, default_path
from .messages import lock_error, reading, token_file_error, unusable_content, writing
from .record import NOTHING, SENDING, UNSAVED, Record
from .remedies import login_command_line
from .reservation import Reservation
from .stat_cache import StatCache, state_of

if TYPE_CHECKING:
    from .base import StoreFacts

__all__ = ["TokenFile", "is_successor"]

T = TypeVar("T")

#: Seconds that `save` and `delete` wait for a refresh in flight. Longer than one whole refresh with its
#: retries (`adh_auth.common.limits.REFRESH_DEADLINE`).
SAVE_TIMEOUT = 45.0
#: Seconds between reads of a file that is missing or torn: an editor, or ``cp`` onto it, makes it so for a
#: moment. Short, for a request waits for it, perhaps in an event loop.
READ_PAUSES = (0.004,) * 3
#: The same for a rotation, which no event loop waits for.
LONG_READ_PAUSES = (0.05,) * 20
#: The same before a new pair is written, which is lost if the file comes back afterwards: a copy over a slow
#: network takes seconds.
LAST_READ_PAUSES = LONG_READ_PAUSES + (0.1,) * 50
#: A check of the file takes microseconds, a try for the lock fifty times that. Once the program is ending, a
#: full disk or a network mount is often back after a moment.
PACE = Pace(
    first_poll=0.004,
    last_poll=0.02,
    lock_interval=0.05,
    last_pauses=(0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.8, 1.0, 1.0),
)
#: Keys of a file that describe one pair, and are dropped with it.
PAIR_FACTS = ("expires_in", "expires_at", "scope")


class TokenFileLock(RotationLock):
    """The lock of a token file: an error names the file and the next step."""

    def __init__(self, target: str, token_file: str) -> None:
        super().__init__(target)
        self._token_file = token_file

    def take(self) -> bool:
        """Take the lock and return True, or return False where it is held. Raises `TokenFileError`."""
        with replaced_errors(LockUnavailable, by=self._error):
            return super().take()

    def _error(self, unavailable: LockUnavailable) -> TokenFileError:
        return lock_error(self._token_file, self.path, unavailable.cause)


class TokenFile:
    """The JSON file that holds one session, shared by any number of processes.

    Reading takes no lock and needs no write access. Writing is atomic, durable, 0600 from birth, and keeps a
    symlink and unknown keys. Each method raises `TokenFileError`, which names the file, the problem and the
    next step. A failure changes nothing.

    `path` None: ``$ADH_TOKEN_FILE``, else ``$XDG_CONFIG_HOME/adh/tokens.json`` (``~/.config/adh``; on Windows
    ``%APPDATA%``).
    """

    # What a rotation needs (`adh_auth.store.base.Store`) is no part of the public interface.
    kind = "token file"
    pace = PACE
    reads_block = False

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = default_path() if path is None else absolute(path)
        # os.stat encodes a string anew at each call, which is a quarter of what a request's check costs.
        self._encoded = os.fsencode(self._path)

    @property
    def path(self) -> Path:
        """Return the path of the file, made absolute when this object was built."""
        return Path(self._path)

    def __repr__(self) -> str:
        return f"TokenFile({self._path!r})"

    def load(self) -> Tokens:
        """Return the pair in the file. Raises `TokenFileError`."""
        return self.read().tokens

    def save(self, tokens: Tokens) -> None:
        """Make `tokens` the session, once a refresh in flight has ended.

        Unknown keys of the file stay. Raises `TokenFileError`, and `LockTimeout` after 45 seconds.
        """
        if not isinstance(tokens, Tokens):
            del tokens  # type: ignore[unreachable]  # a traceback with locals would show them
            raise TypeError("save() takes Tokens; Tokens.from_response(reply) makes them from a token reply")
        self.save_mapping(file_mapping(tokens, {}), tokens)

    def save_mapping(self, mapping: dict[str, Any], tokens: Tokens) -> None:
        """Do as `save`, and keep every key of the reply `mapping`."""
        session = Stored(tokens, mapping)
        del mapping  # a traceback with locals shows the arguments of every frame; a Stored shows no token
        with writing(self._path, "can't be made"):
            disk.make_folder(self._target())
        with self.locked(SAVE_TIMEOUT):
            self._replace(Stored.of(tokens, self._kept(), session.mapping), SAVE_LIMIT)

    def annotate(self, tokens: Tokens, **facts: str) -> None:
        """Add `facts` to the keys of the file, if `tokens` are still its session. Raises as `save`."""
        with self.locked(SAVE_TIMEOUT):
            stored = self.read()
            if stored.tokens.refresh_token == tokens.refresh_token:
                self._replace(Stored(stored.tokens, {**stored.mapping, **facts}))

    def _replace(self, session: Stored, limit: int = MAX_READ_BYTES) -> None:
        # A rotation does not come here: its pair is written whatever the size, for the one before is spent.
        if len(session.to_bytes()) > limit:
            raise self.error(
                f"can't be written: the new session would be larger than {limit} bytes",
                "The file is as it was; save one with a shorter scope and without unknown keys",
            )
        reserved = self.reserve()
        try:
            reserved.write(session)
        finally:
            reserved.discard()

    def delete(self) -> None:
        """Sign out on this machine: remove the file, once a refresh in flight has ended.

        A missing file is no error. Raises `TokenFileError`, and `LockTimeout` after 45 seconds.
        """
        if not os.path.isdir(os.path.dirname(self._target())):
            return
        with self.locked(SAVE_TIMEOUT):
            self.remove()

    def require_writable(self) -> None:
        """Raise `TokenFileError` if the file can't be written, before a person signs in for nothing."""
        with writing(self._path, "can't be written"):
            obstacle = self._obstacle()
        if obstacle:
            raise self.error(f"can't be written: {obstacle}", "Make it writable, or name another one")

    def make_ready(self) -> None:
        """Do nothing: `save` makes the folder."""

    def exists(self) -> bool:
        """Return whether the file is there."""
        return os.path.lexists(self._path)

    def take_over(self, session: Stored, record: Record) -> None:
        """Make a `session` of another place this one's, with its record, once a refresh here has ended.

        Raises `TokenFileError`, and `LockTimeout` after 45 seconds.
        """
        with writing(self._path, "can't be made"):
            disk.make_folder(self._target())
        with self.locked(SAVE_TIMEOUT):
            self._replace(session)
            if record.state:
                self.note(record)

    def mark_moving(self, session: Stored, destination: str | None) -> None:
        """Keep others from refreshing, under the lock: `session` is moving there. None: it is not any more.

        Raises `TokenFileError`.
        """
        mapping = {name: value for name, value in session.mapping.items() if name != MOVING_TO}
        if destination is not None:
            mapping[MOVING_TO] = destination
        self._replace(Stored(session.tokens, mapping))

    def retire(self, note: bytes) -> None:
        """Replace the file, under the lock, by a note that holds no session. Raises `TokenFileError`."""
        with writing(self._path, "can't be rewritten"):
            reserved = reservation.ReservedFile(self._target(), len(note))
            try:
                reserved.fill(note)
                reserved.install()
            finally:
                reserved.discard()

    def _obstacle(self) -> str | None:
        target = self._target()
        disk.make_folder(target)
        try:
            disk.read_regular(self._path)
        except file_checks.UnsafeFile:  # a folder, a device, a file of another user's
            raise
        except OSError:
            pass  # a file that is missing or unreadable can be replaced all the same
        return file_checks.problem_with_rewriting(target)

    # What a rotation needs. Nothing below is part of the public interface.

    @property
    def name(self) -> str:
        """Return the path, for messages."""
        return self._path

    def what(self) -> str:
        """Return "token file" and the path."""
        return f"{self.kind} {self._path}"

    def facts_for_errors(self) -> dict[str, str]:
        """Return the attributes by which an error names this file."""
        return {"token_file": self._path}

    def sign_in_command(self) -> str:
        """Return the command that makes the file, as the end of a sentence."""
        return login_command_line(self._path)

    def state(self) -> object:
        """Return a value that changes when the file does, None for no file."""
        try:
            return state_of(os.stat(self._encoded))
        except OSError:
            return None

    def cached(self, state: object, made: T) -> StatCache[T]:
        """Return a cache of what was `made` of the file in that `state`, cheaper to ask than `state`."""
        return StatCache(self._encoded, state, made)

    def read(self) -> Stored:
        """Return the pair and the other keys. Raises `TokenFileError`."""
        return self._usable(READ_PAUSES)

    def read_patiently(self) -> Stored:
        """Return the same for a rotation, which can wait until an editor has written the file."""
        return self._usable(LONG_READ_PAUSES)

    def look(self) -> Look:
        """Return state, pair and record, in this order. Raises `TokenFileError`."""
        # If the file changes in between, `has_changed` shows it. A record read first could be older than the
        # pair, and miss a refusal of it.
        state = self.state()
        stored = self.read_patiently()
        if MOVING_TO in stored.mapping:
            from .moved import half_moved

            raise half_moved(self._path, stored)
        return Look(state, stored, self.record())

    def has_changed(self, state: object) -> bool:
        """Return whether the file is not in that state any more."""
        return self.state() != state

    def before_send(self) -> None:
        """Do nothing: the kernel's lock does not run out."""

    def lock(self) -> TokenFileLock:
        """Return a lock for one rotation."""
        return TokenFileLock(self._target(), self._path)

    @contextmanager
    def locked(self, timeout: float) -> Iterator[None]:
        """Hold the lock; wait `timeout` seconds for it. Raises `LockTimeout` and `TokenFileError`."""
        lock = self.lock()
        clock = JobClock()
        while not lock.take():
            if clock.monotonic() > timeout:
                raise self.lock_timeout(lock, timeout)
            clock.sleep(0.02)
        try:
            yield
        finally:
            lock.release()

    def lock_timeout(self, lock: RotationLock, waited: float) -> LockTimeout:
        """Return the error for a wait of so many seconds that was too long."""
        record = self.record()
        holder = record.pid or None
        who = f" (the last one recorded is process {holder} on {record.host})" if holder else ""
        return LockTimeout(
            f"another process has held {lock.path} for more than {waited:g} s{who}; "
            "see what it is doing, or raise lock_timeout",
            lock_file=lock.path,
            waited=waited,
            holder=holder,
            token_file=self._path,
        )

    def reserve(self) -> Reservation:
        """Reserve the space for the next pair, before the present one is spent. Raises `TokenFileError`."""
        target = self._target()
        if problem := file_checks.problem_with_replacing(target):
            raise self.error(
                f"can't be rewritten: {problem}", "Make it writable, or sign in with another token file"
            )
        with writing(self._path, "can't be rewritten"):
            reserved = reservation.ReservedFile(target, self._size_to_reserve(target))
        return Reservation(self._path, reserved, self.still_holds, self.note)

    def remove(self) -> None:
        """Remove the file and those beside it, but the lock file. Raises `TokenFileError`."""
        target = self._target()
        # Processes that wait for a lock file that was unlinked, and those that make a new one, hold two
        # locks.
        for path in (target, reservation.reserved_path(target), target + ".record"):
            with writing(self._path, "can't be removed"):
                _unlink(path)

    def record(self) -> Record:
        """Return what is recorded of earlier attempts."""
        try:
            return Record.from_bytes(disk.read_regular(self._target() + ".record")[0])
        except OSError:
            return NOTHING

    def note(self, record: Record) -> None:
        """Record an attempt. Raises `TokenFileError`."""
        with writing(self._path, "can't be accompanied by its record"):
            disk.write_block(self._target() + ".record", record.to_bytes())

    def left_behind(self) -> Stored | None:
        """Return the pair that a killed process had written beside the file, None where there is no whole
        one.

        Raises `TokenFileError`.
        """
        with reading(self._path):
            data = reservation.left_behind(self._target())
        if not data:
            return None
        try:
            return Stored.from_bytes(data)
        except MalformedTokens:
            return None

    def recover(self, stored: Stored, record: Record) -> str | None:
        """Finish the replacement that a kill cut short, under the lock (rule 16). Raises `TokenFileError`.

        Return None where there is nothing to finish, a warning where it was finished, and "" where the file
        no longer holds the token of `stored`: the newer state wins (rule 8).
        """
        left = self.left_behind()
        if left is None or not is_successor(left, stored, record):
            return None
        with reading(self._path):
            held = self.still_holds(stored)
        if not held:
            return ""
        with writing(self._path, "can't be rewritten"):
            reservation.install_left_behind(self._target())
        return (
            f"{self.what()}: a process ended while it replaced the file;"
            " its pair was found beside it and is in place now"
        )

    def still_holds(self, spent: Stored) -> bool | None:
        """Return whether the file still holds the refresh token of `spent`.

        None where its content is not a token file's. Raises `OSError`.
        """
        # A file that can't be read for the moment (too many open files) may be unchanged: that is an error,
        # not a newer state.
        try:
            return self._read_again(LAST_READ_PAUSES).tokens.refresh_token == spent.tokens.refresh_token
        except FileNotFoundError:
            return False
        except (file_checks.UnsafeFile, MalformedTokens):
            return None

    def _read_again(self, pauses: tuple[float, ...]) -> Stored:
        """Return the pair and the other keys, read again where the file is missing or torn.

        Raises `OSError` and `MalformedTokens`.
        """
        # Counted pauses, no deadline: freezegun stops the clock of a user's test.
        for pause in pauses:
            with suppress(FileNotFoundError, MalformedTokens):
                return Stored.from_bytes(disk.read_regular(self._path)[0])
            time.sleep(pause)
        return Stored.from_bytes(disk.read_regular(self._path)[0])

    def _usable(self, pauses: tuple[float, ...]) -> Stored:
        with (
            reading(self._path),
            replaced_errors(MalformedTokens, by=self._unusable),
            replaced_errors(FileNotFoundError, by=self._missing),
        ):
            return self._checked(self._read_again(pauses))

    def _missing(self, _: FileNotFoundError) -> TokenFileError:
        return self.error("is missing", capitalized(self.sign_in_command()))

    def _checked(self, stored: Stored) -> Stored:
        """Return what the file holds; a subclass may refuse it."""
        return stored

    def _unusable(self, malformed: MalformedTokens) -> TokenFileError:
        from .moved import moved

        return moved(self._path) or unusable_content(self._path, malformed.message)

    def error(self, problem: str, next_step: str) -> TokenFileError:
        """Return an error that names the file, the problem and the next step."""
        return token_file_error(self._path, problem, next_step)

    # What `status` asks for. Imported late: no rotation needs it.

    def facts(self) -> StoreFacts:
        """Return the file's name, mode and owner, and why it could not be rewritten, if so."""
        from .inspection import facts_of

        return facts_of(str(self.path))

    def for_helper(self) -> dict[str, Secret]:
        """Return what a helper process opens it by."""
        return {"token_file": Secret(self._path)}

    def is_locked(self) -> bool | None:
        """Return whether a process holds the lock; None where that can't be known."""
        from .inspection import is_locked

        return is_locked(self.lock().path)

    def _target(self) -> str:
        # os.replace onto a symlink replaces the link. The lock is there, too: two links may lead to one file.
        return os.path.realpath(self._path)

    def _kept(self) -> dict[str, Any]:
        """Return the keys of the file that outlive its pair."""
        if not os.path.exists(self._path):
            return {}
        with replaced_errors(file_checks.UnsafeFile, by=self._refused):
            try:
                mapping = self._read_again(LONG_READ_PAUSES).mapping
            except file_checks.UnsafeFile:
                raise
            except (OSError, MalformedTokens):
                return {}
        dropped = (*PAIR_FACTS, *OWNER_KEYS, MOVING_TO)
        return {name: value for name, value in mapping.items() if name not in dropped}

    def _refused(self, unfit: file_checks.UnsafeFile) -> TokenFileError:
        return self.error(f"is refused: {unfit}", "Move it away and sign in again")

    def _size_to_reserve(self, target: str) -> int:
        size = 0
        with suppress(OSError):
            size = os.stat(target).st_size
        # JSON escapes make three bytes at most of one byte of UTF-8.
        return REPLY_LIMIT + 3 * min(size, MAX_READ_BYTES)


def is_successor(left: Stored, stored: Stored, record: Record) -> bool:
    """Return whether the pair that was `left` beside a file replaces the one that is `stored` in it."""
    # The record is not durable and may be lost, or another's. Only a pair that an earlier version of this
    # library has left needs its word.
    follows = left.follows(stored)
    if follows is not None:
        return follows
    return record.state in (SENDING, UNSAVED) and record.concerns(fingerprint(stored.tokens.refresh_token))


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        disk.retry_while_busy(lambda: os.unlink(path))
