"""TokenFile: the one place where a session lives.

Read, lock, reserve, replace; what the disk says becomes a `TokenFileError`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..common import limits
from ..common.clock import JobClock
from ..common.limits import REPLY_LIMIT
from ..common.text import capitalized
from ..errors import LockTimeout, MalformedTokens, TokenFileError
from ..tokens import Stored, Tokens, file_mapping
from . import disk, file_checks, reservation
from .file_lock import RotationLock
from .location import absolute, default_path
from .record import NOTHING, Record
from .remedies import login_command_line, remedy_for, system_reason
from .reservation import Reservation
from .stat_cache import StatCache, state_of

if TYPE_CHECKING:
    from .base import StoreFacts

__all__ = ["TokenFile"]

T = TypeVar("T")

#: Seconds that `save` and `delete` wait for a refresh in flight. Longer than one whole refresh with its
#: retries.
SAVE_TIMEOUT = 45.0
#: Seconds between reads of a file that is missing or torn: an editor, or ``cp`` onto it, makes it so for a
#: moment. A request, perhaps in an event loop, waits shorter for it than a rotation does, which may have the
#: only copy of a pair in its hand.
MOMENT = (0.004,) * 3
LONG_MOMENT = (0.05,) * 20
#: The same with a new pair in hand, which is lost if the file comes back afterwards: a copy over a slow
#: network takes seconds.
IN_HAND = LONG_MOMENT + (0.1,) * 50


class TokenFile:
    """The JSON file that holds one session, shared by any number of processes.

    Reading takes no lock and needs no write access. Writing is atomic, durable, 0600 from birth, keeps a
    symlink and unknown keys. Each method raises `TokenFileError` saying which file, what is wrong and what to
    do next; nothing is changed by a failure.

    `path` None: ``$ADH_TOKEN_FILE``, else ``$XDG_CONFIG_HOME/adh/tokens.json`` (``~/.config/adh``; on Windows
    ``%APPDATA%``).
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = default_path() if path is None else absolute(path)
        # As the system takes it: encoding it anew for each request would cost a quarter of the look at the
        # file.
        self._encoded = os.fsencode(self._path)

    @property
    def path(self) -> Path:
        """The file, absolute since this object was built."""
        return Path(self._path)

    def __repr__(self) -> str:
        return f"TokenFile({self._path!r})"

    def load(self) -> Tokens:
        """The pair as it stands in the file."""
        return self.read().tokens

    def save(self, tokens: Tokens) -> None:
        """Make `tokens` the session, after a refresh in flight has ended. Unknown keys of the file stay."""
        if not isinstance(tokens, Tokens):
            del tokens  # type: ignore[unreachable]  # a traceback with locals would show it
            raise TypeError("save() takes Tokens; Tokens.from_response(reply) makes them from a token reply")
        self.save_mapping(file_mapping(tokens, {}), tokens)

    def save_mapping(self, mapping: dict[str, Any], tokens: Tokens) -> None:
        """As `save`, with every key of a reply."""
        session = Stored(tokens, mapping)
        del mapping  # a traceback with locals shows the arguments of every frame; a Stored shows no token
        self.on_disk(lambda: disk.make_folder(self._target()), "made")
        with self.locked(SAVE_TIMEOUT):
            session = Stored.of(tokens, self._kept(), session.mapping)
            room = self.reserve()
            try:
                room.replace(session)
            finally:
                room.discard()

    def delete(self) -> None:
        """Sign out on this machine: remove the file, after a refresh in flight has ended.

        A missing file is fine.
        """
        if not os.path.isdir(os.path.dirname(self._target())):
            return
        with self.locked(SAVE_TIMEOUT):
            self.remove()

    # What the rotation core asks for. Nothing below is part of the public interface.

    def state(self) -> object:
        """A value that changes when the file does; None for no file."""
        try:
            return state_of(os.stat(self._encoded))
        except OSError:
            return None

    def cached(self, state: object, made: T) -> StatCache[T]:
        """A cheaper way to ask whether the file is still in that state, in which this was made of it."""
        return StatCache(self._encoded, state, made)

    def read(self) -> Stored:
        """The pair and the other keys."""
        return self._usable(MOMENT)

    def read_patiently(self) -> Stored:
        """The same for a rotation, which can wait until an editor has done with the file."""
        return self._usable(LONG_MOMENT)

    def lock(self) -> RotationLock:
        """A lock for one rotation."""
        return RotationLock(self._target(), self)

    @contextmanager
    def locked(self, timeout: float) -> Iterator[None]:
        """Hold the lock; `timeout` in seconds. Raises `LockTimeout`."""
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
        """The error for a wait that was too long."""
        record = self.record()
        holder = record.pid or None
        who = f" (the last one recorded is process {holder} on {record.host})" if holder else ""
        return LockTimeout(
            f"another process has held {lock.path} for more than {waited:g} s{who}; see what it is doing, or raise lock_timeout",
            lock_file=lock.path,
            waited=waited,
            holder=holder,
            token_file=self._path,
        )

    def reserve(self) -> Reservation:
        """Make sure of room for the next pair, before the present one is spent."""
        target = self._target()
        if trouble := file_checks.problem_with_replacing(target):
            raise self.error(
                f"can't be rewritten: {trouble}", "Make it writable, or sign in with another --token-file"
            )
        return Reservation(
            self,
            self.on_disk(lambda: reservation.ReservedFile(target, self._room_needed(target)), "rewritten"),
        )

    def remove(self) -> None:
        """Remove the file and what goes with it; the lock file stays, for unlinking it would split those who
        wait.
        """
        target = self._target()
        for path in (target, reservation.reserved_path(target), target + ".record"):
            self.on_disk(lambda path=path: _unlink(path), "removed")  # type: ignore[misc]

    def record(self) -> Record:
        """What is recorded of earlier attempts."""
        try:
            return Record.from_bytes(disk.read_regular(self._target() + ".record")[0])
        except OSError:
            return NOTHING

    def note(self, record: Record) -> None:
        """Record an attempt."""
        self.on_disk(
            lambda: disk.write_block(self._target() + ".record", record.to_bytes()),
            "accompanied by its record",
        )

    def left_behind(self) -> Stored | None:
        """The pair that a process was killed over while it replaced the file; None where there is none that
        is whole.
        """
        data = self.on_disk(lambda: reservation.left_behind(self._target()), "read")
        if not data:
            return None
        try:
            return Stored.from_bytes(data)
        except MalformedTokens:
            return None

    def install_left_behind(self, spent: Stored) -> bool:
        """Finish that replacement; False where the file no longer holds the token that was `spent`: the newer
        state wins.
        """
        if not self.on_disk(lambda: self.still_holds(spent), "read"):
            return False
        self.on_disk(lambda: reservation.install_left_behind(self._target()), "rewritten")
        return True

    def still_holds(self, spent: Stored) -> bool | None:
        """Whether the refresh token is still that one; None where the file can't be read as one.

        Raises `OSError`.
        """
        # A file that can't be read for the moment (too many open files) may still be the one: that is an
        # error, not a newer state.
        try:
            return self._read_again(IN_HAND).tokens.refresh_token == spent.tokens.refresh_token
        except FileNotFoundError:
            return False
        except (file_checks.Unfit, MalformedTokens):
            return None

    def _read_again(self, pauses: tuple[float, ...]) -> Stored:
        """The pair and the other keys, read again where the file is missing or torn.

        Raises `OSError`, `MalformedTokens`.
        """
        # Counted pauses, no deadline: a test may have stopped the clock.
        for pause in pauses:
            with suppress(FileNotFoundError, MalformedTokens):
                return Stored.from_bytes(disk.read_regular(self._path)[0])
            time.sleep(pause)
        return Stored.from_bytes(disk.read_regular(self._path)[0])

    def _usable(self, pauses: tuple[float, ...]) -> Stored:
        try:
            return self.on_disk(lambda: self._read_again(pauses), "read")
        except MalformedTokens as malformed:
            reason = malformed.message
        raise self.error(
            f"is no usable token file: {reason}",
            f"It was left as it is: repair it if you can, or {login_command_line(self._path)}",
        )

    def error(self, what: str, next_step: str) -> TokenFileError:
        """An error that names the file and the next step."""
        # No full stop: where the next step is a command, it would be copied along.
        return TokenFileError(f"token file {self._path} {what}. {next_step}", token_file=self._path)

    # What `status` asks for. Imported late: no rotation needs it.

    def facts(self) -> StoreFacts:
        """Return the file's name, mode and owner, and why it could not be rewritten, if so."""
        from .inspection import facts_of

        return facts_of(str(self.path))

    def is_locked(self) -> bool | None:
        """Return whether a process holds the lock; None where that can't be known."""
        from .inspection import is_locked

        return is_locked(self.lock().path)

    def _target(self) -> str:
        # os.replace onto a symlink replaces the link: write where it leads, and lock there, for links may
        # differ.
        return os.path.realpath(self._path)

    def _kept(self) -> dict[str, Any]:
        if not os.path.exists(self._path):
            return {}
        try:
            mapping = self._read_again(LONG_MOMENT).mapping
            return {
                name: value
                for name, value in mapping.items()
                if name not in ("expires_in", "expires_at", "scope")
            }
        except file_checks.Unfit as unfit:
            raise self.error(f"is refused: {unfit}", "Move it away and sign in again") from None
        except (OSError, MalformedTokens):
            return {}

    def _room_needed(self, target: str) -> int:
        size = 0
        with suppress(OSError):
            size = os.stat(target).st_size
        # JSON escapes make three bytes at most of one byte of UTF-8.
        return REPLY_LIMIT + 3 * min(size, limits.MAX_READ_BYTES)

    def on_disk(self, work: Callable[[], T], verb: str) -> T:
        """What the disk refuses, as an error that says which file and what to do."""
        what = None
        try:
            return work()
        except FileNotFoundError:
            what = "is missing" if verb == "read" else f"can't be {verb}: its folder is missing"
            step = capitalized(login_command_line(self._path))
        except file_checks.Unfit as unfit:
            what, step = f"is refused: {unfit}", "Move it away and sign in again, or name another file"
        except file_checks.NoModes as refused:
            what = f"can't be {verb}: its file system can't make it private ({refused})"
            step = "Keep it on one that can, or mount this one so that only you can read it (umask=077)"
        except OSError as refused:
            what, step = f"can't be {verb}: {system_reason(refused)}", remedy_for(refused)
        raise self.error(what, step)


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        disk.patiently(lambda: os.unlink(path))
