"""What one job needs, as values: the store, the clock, the carrier, and the steps that it is made of."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from . import endpoint
from .tokens import Secret, Tokens

if TYPE_CHECKING:
    from .protocols import Clock, Lock, Store

__all__ = ["Plan", "Step", "Steps"]


class Step(NamedTuple):
    """One thing to do: its name, for whoever watches, and the work."""

    name: str
    work: Callable[[], Any]


Steps = Generator[Step, Any, Any]


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
