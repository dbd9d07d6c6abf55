"""What the core asks of a store, a lock, a clock and a pair: for type checkers alone, as making a Protocol
takes time at each start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ..common.fork_safety import OwnDescriptor
    from ..errors import LockTimeout, TokenFileError
    from ..rotation.active_tokens import ActiveTokens
    from ..tokens import Stored
    from .record import Record
    from .stat_cache import StatCache

__all__ = ["CachedStore", "InheritableLock", "Lock", "Reservation", "Store"]


class Lock(Protocol):
    """A lock between processes that the death of its holder frees."""

    path: str

    def take(self) -> bool:
        """Take it if it is free."""

    def release(self) -> None:
        """Release it; nothing happens where it is not held."""


class InheritableLock(Lock, Protocol):
    """A lock that lives in a descriptor, as a file's: a helper process may inherit it."""

    def descriptor(self) -> OwnDescriptor | None:
        """Return a copy of the locked descriptor for a helper process; None where there is none."""

    def hand_over(self) -> None:
        """Forget the lock without unlocking it: a helper holds it. Raises `OSError`."""


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

    def cached(self, state: object, pair: ActiveTokens) -> StatCache[ActiveTokens]: ...
