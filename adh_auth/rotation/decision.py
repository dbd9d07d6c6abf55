"""What to do about an access token that may not be used any more.

Rule 2: the decision is a pure function of the rejected token, the pair on disk, the record of earlier
attempts and the time. No clock, no disk, no network here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Union

from ..common.secret import Secret
from ..errors import AdhAuthError
from ..oauth.replies import EXPIRED
from ..store.record import FAILED, REFUSED, SENDING, UNSAVED, Record
from ..tokens import Tokens, fingerprint
from .outcome import failure, refusal

if TYPE_CHECKING:
    from ..store.base import NamedStore
    from .active_tokens import ActiveTokens

__all__ = [
    "HAND_OVER",
    "MAX_RETRY_AFTER",
    "RESEND",
    "ROTATE",
    "Adopt",
    "Decision",
    "Refresh",
    "Refuse",
    "after_401",
    "decide",
    "is_due_ahead",
    "is_in_first_half",
    "pause_ends",
]

#: Seconds for which a ``Retry-After`` of an earlier attempt keeps others from calling, at most: a mistaken
#: hour must not lock every process out.
MAX_RETRY_AFTER = 60.0
#: Seconds by which the clock of the job that made a record may be ahead of the system's: it counts by the
#: monotonic clock, and another program may adjust the other one. Further ahead, the system's was set back.
CLOCK_LEAD = 1.0


class Adopt(NamedTuple):
    """Use the pair that another process got."""

    tokens: Tokens


class Refresh(NamedTuple):
    """Spend the stored refresh token.

    `lost_at`, `lost_how`: an earlier reply to this very token never arrived.
    """

    lost_at: float | None = None
    lost_how: str | None = None


class Refuse(NamedTuple):
    """Send nothing; this error is the outcome."""

    error: AdhAuthError


Decision = Union[Adopt, Refresh, Refuse]


def decide(
    rejected: Secret,
    stored: Tokens,
    record: Record,
    now: float,
    *,
    since: int,
    store: NamedStore,
    owner: str | None = None,
) -> Decision:
    """Return whether to adopt, refresh or refuse.

    `rejected`: the access token that the failed request carried. `stored`: the pair on disk. `record`: the
    last attempt of any process. `now`: epoch seconds. `since`: the number of the last attempt when this
    caller began; a later failure is its failure too. `store`: for messages.
    `owner`: the server and the client that ask, as the record has them.
    """
    concerned = record.concerns(fingerprint(stored.refresh_token), owner)
    if Secret(stored.access_token) != rejected and _is_usable(stored, record, now):
        return Adopt(stored)
    if not concerned:
        return Refresh()
    if record.state == REFUSED:
        return Refuse(refusal(record, store))
    if record.state == FAILED and (record.number > since or pause_ends(record, now) is not None):
        return Refuse(failure(record, store))
    if record.state in (SENDING, UNSAVED):
        ended = f"process {record.pid} on {record.host} ended before it had saved the reply"
        return Refresh(record.at, record.lost_how or ended)
    return Refresh(record.lost_at, record.lost_how)


def _is_usable(stored: Tokens, record: Record, now: float) -> bool:
    """Return whether the stored access token may work: it has not expired and its pair is not spent."""
    if stored.expires_at is not None and stored.expires_at <= now:
        return False
    # While a record says UNSAVED, the pair that replaces this one is only in another process's memory.
    return not (record.state == UNSAVED and record.concerns(fingerprint(stored.refresh_token)))


#: What to do with a 401: hand it to the caller, send again with the pair in force, or rotate first.
HAND_OVER, RESEND, ROTATE = "hand over", "resend", "rotate"


def after_401(
    code: str | None,
    rejected: Secret,
    pair: ActiveTokens,
    now: float,
    *,
    is_bare: bool = False,
    refreshed: bool = False,
) -> str:
    """Return what follows from a 401 of the API: `HAND_OVER`, `RESEND` or `ROTATE`.

    `code`: the error code of the 401. `rejected`: the access token that its request carried. `pair`: the one
    in force now. `now`: epoch seconds. `is_bare`: the 401 has neither a body nor a code, as the answer to a
    HEAD request has; then the stored expiry decides.
    `refreshed`: the request has had a pair straight from the server before.
    """
    # A server may kill old access tokens when it rotates: any 401 to an older pair than the file's is
    # answered with that one (rule 9).
    if pair.secret != rejected and not pair.expired:
        return RESEND
    is_past = pair.expires_at is not None and pair.expires_at <= now
    if refreshed and not is_past:
        return HAND_OVER  # another refresh would be answered by another 401
    if code == EXPIRED:
        return ROTATE
    # This rotates once for a pair: the pair that follows has its expiry ahead of it.
    expired = pair.expired or is_past
    return ROTATE if is_bare and code is None and pair.secret == rejected and expired else HAND_OVER


def is_due_ahead(
    stored: Tokens, record: Record, now: float, *, pause: float, longest: float, owner: str | None = None
) -> bool:
    """Return whether to refresh in the background a pair that has less left than `refresh_ahead` asks for.

    No in the first half of a token's life, as far as the record knows when it began: an access token may
    live shorter than `refresh_ahead`. No beside another process's attempt, which takes `longest` seconds at
    most. No after an attempt that was refused, or that failed less than `pause` seconds ago.
    """
    if record.concerns(fingerprint(stored.refresh_token), owner):
        recent = 0 <= now - record.at < (longest if record.state == SENDING else pause)
        return record.state not in (REFUSED, UNSAVED) and not (recent and record.state in (SENDING, FAILED))
    return not is_in_first_half(stored, record, now)


def is_in_first_half(stored: Tokens, record: Record, now: float) -> bool:
    """Return whether less than half of the token's life has passed, as far as the record knows its begin.

    A pair that lives shorter than what is asked for would else be rotated away again and again.
    """
    began, end = record.rotated_at, stored.expires_at
    if began is None or end is None:
        return False
    return began - CLOCK_LEAD <= now < began + (end - began) / 2


def pause_ends(record: Record, now: float) -> float | None:
    """Return until when nothing is sent after a failed attempt, as the server asked, in epoch seconds.

    None where the server asked for no pause, or the pause is over.
    """
    if record.state != FAILED or record.not_before is None:
        return None
    end = min(record.not_before, record.at + MAX_RETRY_AFTER)
    return end if record.at <= now < end else None
