"""The contract of a store: what a rotation asks of it, of its lock and of its reservation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Protocol

    from ..common.fork_safety import OwnDescriptor
    from ..common.secret import Secret
    from ..errors import LockTimeout, TokenStoreError
    from ..tokens import Stored, Tokens
    from .record import Record
    from .stat_cache import StatCache
else:
    Protocol = object  # making a Protocol takes time at each start

__all__ = [
    "InheritableLock",
    "InspectableStore",
    "LeaseLost",
    "Lock",
    "Look",
    "NamedStore",
    "Pace",
    "Reservation",
    "SessionStore",
    "Store",
    "StoreFacts",
]

T = TypeVar("T")


class Lock(Protocol):
    """A lock between processes. The end of its holder releases it, or the end of its lease."""

    def take(self) -> bool:
        """Take the lock and return True, or return False where it is held. Raises `TokenStoreError`."""

    def release(self) -> None:
        """Release the lock; nothing happens where it is not held."""


class InheritableLock(Lock, Protocol):
    """A lock that a helper process goes on with.

    `identity`: what the helper knows it by, the path of the lock file or the name of a lease.
    """

    identity: str

    def descriptor(self) -> OwnDescriptor | None:
        """Return a copy of the locked descriptor for a helper to inherit; None for a lock that has none.

        Raises `OSError`.
        """

    def hand_over(self) -> None:
        """Forget the lock without unlocking it: a helper holds it. Raises `OSError`."""

    def take_back(self) -> None:
        """Let `take` take what the helper held, which has ended with nothing sent, or with its pair here."""


class LeaseLost(Exception):
    """Another may hold the lock by now; nothing was sent. The rotation decides anew."""


class Reservation(Protocol):
    """Space for the next pair, reserved before the present one is spent."""

    def replace(self, fresh: Stored, spent: Stored, record: Record) -> bool:
        """Write `fresh` durably and return True, or return False where `spent` is not stored any more.

        `record`: the success. It is kept along with the pair, or right after it where that can fail without
        any harm. `Store.state` and `read` know the pair from then on. Raises `TokenStoreError`: then the pair
        was perhaps written, and a second call is right.
        """

    def leave(self) -> None:
        """Leave what is reserved, with its content, to the next process."""

    def discard(self) -> None:
        """Free what is reserved."""


class Look(NamedTuple):
    """A session at one moment.

    `state`: what `Store.has_changed` compares with; no `Store.state`. It is as old as the rest, or older.
    """

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


class NamedStore(Protocol):
    """How messages call a store.

    `name`: its path, or its URL without user and password. `kind`: "token file" or "session store"; the last
    word alone is what it is called for short.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...

    def what(self) -> str:
        """Return what it is with its name, as a sentence begins: "token file /x/tokens.json"."""

    def facts_for_errors(self) -> dict[str, str]:
        """Return the attributes by which an error names it: `token_file`, or `store` and `session`."""

    def sign_in_command(self) -> str:
        """Return the command that signs in, as the end of a sentence."""

    def error(self, problem: str, next_step: str) -> TokenStoreError:
        """Return an error that names the store, the problem and the next step."""

    def lock_timeout(self, lock: Any, waited: float) -> LockTimeout:
        """Return the error for a wait of so many seconds that was too long."""


class Store(NamedStore, Protocol):
    """Where a session lives: a token file, or a register shared by several machines.

    `pace`: see there. `reads_block`: whether `read` waits for a network where `state` is None, and `look`
    does: then no event loop's thread calls them.
    """

    @property
    def pace(self) -> Pace: ...
    @property
    def reads_block(self) -> bool: ...

    # In a request.

    def state(self) -> object:
        """Return a value that changes with the session, None where none is known. Never raises or waits."""

    def read(self) -> Stored:
        """Return the session; from memory, where that is believed. Raises `TokenStoreError`."""

    def record(self) -> Record:
        """Return what is recorded of earlier attempts, as far as `read` knows. Never raises or waits."""

    def cached(self, state: object, made: T) -> StatCache[T] | None:
        """Return a cache that is cheaper to ask than `state`; None where there is none."""

    # In a job.

    def look(self) -> Look:
        """Return the session as it is now, which `state` and `read` know from then on.

        Raises `TokenStoreError`.
        """

    def has_changed(self, state: object) -> bool:
        """Return whether it is not as in the `state` of a look any more. Never raises.

        False where that can't be known now.
        """

    def lock(self) -> Lock:
        """Return a lock for one rotation. With a register it is a lease, which may be lost (`LeaseLost`).

        One lock at a time is taken through one store object in each process.
        """

    def note(self, record: Record) -> None:
        """Record an attempt. Raises `TokenStoreError`, and `LeaseLost` where another has the lock by now."""

    def before_send(self) -> None:
        """Make sure, just before the token is sent, that nobody else will. Raises as `note`."""

    def reserve(self) -> Reservation:
        """Reserve the place of the next pair, before the present one is spent. Raises `TokenStoreError`."""

    def recover(self, stored: Stored, record: Record) -> str | None:
        """Finish the write of a holder that was killed in the midst of it.

        `stored`, `record`: what a look has shown, under the lock. Return None where there was nothing to do.
        Otherwise what was done, for a warning ("" for none): the rotation looks and decides anew.
        Raises `TokenStoreError`.
        """

    def left_behind(self) -> Stored | None:
        """Return the pair of such a holder without changing anything. Raises `TokenStoreError`."""

    def remove(self) -> None:
        """Sign out here, under the lock. Raises `TokenStoreError`."""


class SessionStore(Store, Protocol):
    """A store as a sign-in and `TokenStore` need it, too. Each method raises `TokenStoreError`.

    What changes it waits for a refresh in flight, and raises `LockTimeout` after 45 seconds.
    """

    def load(self) -> Tokens:
        """Return the pair."""

    def save(self, tokens: Tokens) -> None:
        """Make `tokens` the session; keep unknown keys."""

    def save_mapping(self, mapping: dict[str, Any], tokens: Tokens) -> None:
        """Do as `save`, and keep every key of the reply `mapping`."""

    def annotate(self, tokens: Tokens, **facts: str) -> None:
        """Add `facts` to the keys, if `tokens` are still the session."""

    def delete(self) -> None:
        """Sign out here."""

    def require_writable(self) -> None:
        """Raise if the session can't be written, before a person signs in for nothing."""

    def make_ready(self) -> None:
        """Make what a first session needs and is missing: a table. For commands; auth objects never do."""

    def exists(self) -> bool:
        """Return whether a session is there, usable or not."""

    def take_over(self, session: Stored, record: Record) -> None:
        """Make a `session` of another place this one's, with the `record` of its last attempt."""

    def for_helper(self) -> Mapping[str, Secret] | None:
        """Return what a helper process opens it by; None where another process can't."""

    def facts(self) -> StoreFacts:
        """Return what can be seen of the store, for ``status``."""

    def is_locked(self) -> bool | None:
        """Return whether the lock is held; None where that can't be known without write access."""


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


class InspectableStore(NamedStore, Protocol):
    """What ``status`` reads. Nothing here changes anything or sends anything."""

    def read(self) -> Stored: ...
    def record(self) -> Record: ...
    def left_behind(self) -> Stored | None: ...

    def facts(self) -> StoreFacts:
        """Return what can be seen of the store."""

    def is_locked(self) -> bool | None:
        """Return whether the lock is held; None where that can't be known without write access."""
