"""The contract of a store: what a rotation asks of it, of its lock and of its reservation.

For type checkers only: making a Protocol takes time at each start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from ..common.fork_safety import OwnDescriptor
    from ..errors import LockTimeout, TokenFileError
    from ..tokens import Stored
    from .record import Record
    from .stat_cache import StatCache

__all__ = [
    "CachedStore",
    "InheritableLock",
    "InspectableStore",
    "LeaseLost",
    "Lock",
    "Look",
    "Pace",
    "Reservation",
    "Store",
    "StoreFacts",
]

T = TypeVar("T")


class Lock(Protocol):
    """A lock between processes. The end of its holder releases it."""

    path: str

    def take(self) -> bool:
        """Take the lock and return True, or return False where it is held. Raises `TokenFileError`."""

    def release(self) -> None:
        """Release the lock; nothing happens where it is not held."""


class InheritableLock(Lock, Protocol):
    """A lock that lives in a descriptor, as a file's: a helper process may inherit it."""

    def descriptor(self) -> OwnDescriptor | None:
        """Return a copy of the locked descriptor for a helper process; None where there is none."""

    def hand_over(self) -> None:
        """Forget the lock without unlocking it: a helper holds it. Raises `OSError`."""


class LeaseLost(Exception):
    """Another may hold the lock by now; nothing was sent. The rotation decides anew."""


class Look(NamedTuple):
    """A session at one moment. `state`: what `Store.has_changed` compares with."""

    state: object
    stored: Stored
    record: Record


class Pace(NamedTuple):
    """How often a waiter asks, and how long a pair that could not be written is tried. Seconds."""

    #: between two checks for a change while another process refreshes: short at first, then longer
    first_poll: float
    last_poll: float
    #: between two tries for the lock meanwhile
    lock_interval: float
    #: between the last tries to write, once the program is ending
    last_pauses: tuple[float, ...]
    #: whether `Store.has_changed` notices a new record, too. If not, one is read after each try for the lock
    notices_records: bool = False


class Reservation(Protocol):
    """Space for the next pair, reserved before the present one is spent."""

    def replace(self, fresh: Stored, spent: Stored | None = None) -> bool:
        """Write `fresh` durably and return True, or return False where `spent` is not stored any more."""

    def leave(self) -> None:
        """Leave what is reserved, with its content, to the next process."""

    def discard(self) -> None:
        """Free what is reserved."""


class Store(Protocol):
    """Where a session lives: a token file, or a store shared by several machines."""

    def state(self) -> object: ...
    def read(self) -> Stored: ...
    def read_patiently(self) -> Stored: ...
    def lock(self) -> Lock: ...
    def lock_timeout(self, lock: Any, waited: float) -> LockTimeout: ...
    def reserve(self) -> Reservation: ...
    def remove(self) -> None: ...
    def record(self) -> Record: ...
    def note(self, record: Record) -> None: ...
    def left_behind(self) -> Stored | None: ...
    def install_left_behind(self, spent: Stored) -> bool: ...
    def error(self, what: str, next_step: str) -> TokenFileError: ...


class CachedStore(Store, Protocol):
    """A store that can be asked cheaply whether the session is as it was when it was read."""

    def cached(self, state: object, made: T) -> StatCache[T]: ...


class StoreFacts(NamedTuple):
    """What can be seen of a session's place without changing anything; None where it can't be known.

    `name`: its name, for messages. `leads_to`: the target of a link. `mode`: octal digits. `problem`: why it
    can't be rewritten at the next rotation.
    """

    name: str
    leads_to: str | None = None
    mode: str | None = None
    owner: str | None = None
    problem: str | None = None


class InspectableStore(Protocol):
    """What ``status`` reads. Nothing here changes anything or sends anything."""

    def read(self) -> Stored: ...
    def record(self) -> Record: ...
    def left_behind(self) -> Stored | None: ...

    def facts(self) -> StoreFacts:
        """Return what can be seen of the store."""

    def is_locked(self) -> bool | None:
        """Return whether the lock is held; None where that can't be known without write access."""
