"""What one job needs, as values: the store, the clock, the carrier, and the steps that it is made of."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ..common.secret import Secret
from ..oauth import endpoint
from ..tokens import Tokens

if TYPE_CHECKING:
    from ..store.base import Lock, Store


from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..common.secret import Secret


from typing import TYPE_CHECKING

from ..common.secret import Secret

if TYPE_CHECKING:
    pass

__all__ = ["Clock", "Post", "RotationContext", "Step", "Transaction"]


class Step(NamedTuple):
    """One thing to do: its name, for whoever watches, and the work."""

    name: str
    work: Callable[[], Any]


Transaction = Generator[Step, Any, Any]


@dataclass(eq=False, repr=False)
class RotationContext:
    """What one job needs. `name`: the store's, for messages; `who`: process and host, for the record."""

    store: Store
    clock: Clock
    #: posts a call; gives up after so many seconds. Raises `Unreachable`
    post: Callable[[endpoint.EndpointCall, float], endpoint.EndpointReply]
    refresh_call: Callable[[Secret], endpoint.EndpointCall]
    name: str
    who: tuple[int, str]
    lock_timeout: float
    #: called with the pair when it could not be written, while the job goes on trying
    continue_unsaved: Callable[[Tokens], None]
    warn: Callable[[str], None]
    lock: Lock | None = None
    #: starts a process that does the rest and takes the lock along. Given this, what was rejected, and the
    #: number of the last attempt. None: this job's thread does it
    launch_helper: Launch | None = None
    #: whether this very job has had the pair from the server, instead of adopting what another process got
    refreshed: bool = False


class Clock(Protocol):
    """Time, and whether the program is about to end."""

    def now(self) -> float:
        """Return the time in epoch seconds."""

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start."""

    def sleep(self, seconds: float) -> None:
        """Sleep."""

    def ending(self) -> bool:
        """Return whether the program is about to end."""


Post = Callable[[endpoint.EndpointCall, float], endpoint.EndpointReply]
#: Starts a helper process and returns it, or None (`detached.Launcher.launch`).
Launch = Callable[[RotationContext, Secret, int], Any]


class Calls:
    """What this client says to the auth endpoints."""

    def __init__(self, name: str, base_url: str, client_id: str, client_secret: Secret) -> None:
        self.name = name
        self._base_url = base_url
        self._client_id = client_id
        self._client_secret = client_secret

    def refresh(self, refresh_token: Secret) -> endpoint.EndpointCall:
        """The refresh."""
        return endpoint.refresh_call(self._base_url, refresh_token, self._client_id, self._client_secret)

    def revoke(self, refresh_token: Secret) -> endpoint.EndpointCall:
        """The revocation."""
        return endpoint.revoke_call(self._base_url, refresh_token, self._client_id, self._client_secret)

    def me(self, access_token: Secret) -> endpoint.EndpointCall:
        """The question whether the API takes an access token."""
        return endpoint.me_call(self._base_url, access_token)
