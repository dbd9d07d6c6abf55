"""What one job needs, as values: the store, the clock, the call that posts, and the steps it is made of.

Rule 1: a rotation is a generator of steps inside one job; no lock is held across a caller's own ``yield``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..common.secret import Secret
from ..oauth import endpoint
from ..tokens import Tokens
from .owner import Owner

if TYPE_CHECKING:
    from threading import Thread

    from ..errors import AdhAuthError
    from ..store.base import Lock, Store
    from ..store.record import Record

__all__ = ["Calls", "Clock", "Post", "RotationContext", "Step", "Transaction"]

#: Posts a call and gives up after that many seconds. Raises `Unreachable`.
Post = Callable[[endpoint.EndpointCall, float], endpoint.EndpointReply]


class Step(NamedTuple):
    """One thing to do: its name, for tests and simulations, and the work."""

    name: str
    work: Callable[[], Any]


Transaction = Generator[Step, Any, Any]


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


@dataclass(eq=False, repr=False)
class RotationContext:
    """What one job needs.

    `who`: process id and host, for the record. `lock_timeout`: seconds to
    wait for another process's refresh.
    """

    store: Store
    clock: Clock
    post: Post
    refresh_call: Callable[[Secret], endpoint.EndpointCall]
    #: the server and the client that the session has to belong to
    owner: Owner
    who: tuple[int, str]
    lock_timeout: float
    #: called with the pair when it could not be written, while the job goes on trying
    continue_unsaved: Callable[[Tokens], None]
    warn: Callable[[str], None]
    lock: Lock | None = None
    #: starts a process that does the rest and takes the lock along. Given this, what was rejected, and the
    #: number of the last attempt. None: this job's thread does it
    launch_helper: Launch | None = None
    #: whether this very job got the pair from the server, instead of adopting another process's
    refreshed: bool = False
    #: called with the outcome once it is known (`reporting.Reporter.report`); None without an `on_event`
    report: Callable[[RotationContext, Tokens | AdhAuthError | None], None] | None = None
    #: the clock's seconds at the start, and the seconds of waiting for the lock
    began: float = 0.0
    waited: float = 0.0
    #: ``X-Request-Id`` of the endpoint's last reply
    request_id: str | None = None
    #: why the new pair could not be written
    problem: str | None = None
    #: the record of the attempt, of any process, whose failure is the outcome
    failed_attempt: Record | None = None
    #: the thread that reports a pair that could not be written
    unsaved_report: Thread | None = None


#: Starts a helper process and returns it, or None (`detached.Launcher.launch`).
Launch = Callable[[RotationContext, Secret, int], Any]


class Calls:
    """The calls of one client to the auth endpoints."""

    def __init__(self, base_url: str, client_id: str, client_secret: Secret) -> None:
        self.owner: Owner = Owner(base_url, client_id)
        self._base_url = base_url
        self._client_id = client_id
        self._client_secret = client_secret

    def refresh(self, refresh_token: Secret) -> endpoint.EndpointCall:
        """Return the call that trades a refresh token for a new pair."""
        return endpoint.refresh_call(self._base_url, refresh_token, self._client_id, self._client_secret)

    def revoke(self, refresh_token: Secret) -> endpoint.EndpointCall:
        """Return the call that ends the session of a refresh token."""
        return endpoint.revoke_call(self._base_url, refresh_token, self._client_id, self._client_secret)

    def me(self, access_token: Secret) -> endpoint.EndpointCall:
        """Return the call that shows whether the API takes an access token."""
        return endpoint.me_call(self._base_url, access_token)
