"""What `on_event` is called with: one outcome of one rotation.

Rule 13: an event holds no secret, and neither does its error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .errors import AdhAuthError

__all__ = ["Event", "EventKind"]

EventKind = Literal["rotated", "adopted", "refused", "failed", "unsaved"]


@dataclass(frozen=True)
class Event:
    """The outcome of one rotation, as this process sees it.

    `kind`: ``rotated`` (a new pair, saved), ``adopted`` (another process's pair), ``refused`` (the user must
    sign in again), ``failed`` (try again later), or ``unsaved`` (a new pair that could not be written yet).
    `at`: epoch seconds. `store`: the token file, or the name of the store. `session`: its session, None for a
    token file. `duration`: seconds of the whole job. `waited`: seconds of it for the lock. `error`: what
    those who waited got, or why a pair is unsaved; None where there is none. `request_id`: ``X-Request-Id``
    of the endpoint's last reply. `pid`: this process.
    """

    kind: EventKind
    at: float
    store: str
    session: str | None
    duration: float
    waited: float
    error: AdhAuthError | None
    request_id: str | None
    pid: int
