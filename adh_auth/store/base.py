"""What the core asks of a store, a lock, a clock and a pair: for type checkers alone, as making a Protocol
takes time at each start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from ..errors import LockTimeout, TokenFileError
    from ..tokens import Stored
    from .record import Record
    from .stat_cache import StatCache

__all__ = ["CachedStore", "InspectableStore", "Lock", "Reservation", "Store", "StoreFacts"]

T = TypeVar("T")


class Lock(Protocol):
    """A lock between processes that the death of its holder frees."""

    path: str

    def take(self) -> bool:
        """Take it if it is free."""

    def release(self) -> None:
        """Release it; nothing happens where it is not held."""


class Reservation(Protocol):
    """Room for the next pair."""

    def replace(self, fresh: Stored, spent: Stored | None = None) -> bool:
        """Write `fresh` durably, unless what was `spent` is not there any more."""

    def leave(self) -> None:
        """Leave the room with what is in it to whoever comes next."""

    def discard(self) -> None:
        """Give the room back."""


class Store(Protocol):
    """Where a session lives. A token file today; a store shared by several machines could stand here."""

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
    """Where a session lives, and a cheap way to ask whether it is as it was when it was read."""

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
