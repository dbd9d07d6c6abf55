"""What one job needs, as values and protocols: the store, the clock, the carrier, and the steps that it is made of."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from . import endpoint
from .attempts import Record
from .errors import LockTimeout, TokenFileError
from .tokens import Secret, Stored, Tokens

__all__ = ["Plan", "Step", "Steps"]


class Step(NamedTuple):
    """One thing to do: its name, for whoever watches, and the work."""

    name: str
    work: Callable[[], Any]


Steps = Generator[Step, Any, Any]


class Lock(Protocol):
    """A lock between processes that the death of its holder frees."""

    path: str

    def take(self) -> bool:
        """Take it if it is free."""

    def release(self) -> None:
        """Release it; nothing happens where it is not held."""


class Reserved(Protocol):
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
    def reserve(self) -> Reserved: ...
    def remove(self) -> None: ...
    def record(self) -> Record: ...
    def note(self, record: Record) -> None: ...
    def left_behind(self) -> Stored | None: ...
    def install_left_behind(self, spent: Stored) -> bool: ...
    def error(self, what: str, next_step: str) -> TokenFileError: ...


class Clock(Protocol):
    """Time, and whether the program is about to end."""

    def now(self) -> float: ...
    def monotonic(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...
    def ending(self) -> bool: ...


@dataclass(eq=False, repr=False)
class Plan:
    """What one job needs. `name`: the store's, for messages; `who`: process and host, for the record."""

    store: Store
    clock: Clock
    #: posts a call; gives up after so many seconds. Raises `Unreachable`
    post: Callable[[endpoint.Call, float], endpoint.Reply]
    refresh_call: Callable[[Secret], endpoint.Call]
    name: str
    who: tuple[int, str]
    lock_timeout: float
    #: called with the pair when it could not be written, while the job goes on trying
    keep: Callable[[Tokens], None]
    tell: Callable[[str], None]
    lock: Lock | None = None
    #: whether this very job has had the pair from the server, instead of adopting what another process got
    refreshed: bool = False
