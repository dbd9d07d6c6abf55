"""What to do about an access token that is not to be used any more. Pure: no clock, no disk, no network."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Union

from ..common.secret import Secret
from ..errors import AdhAuthError
from ..oauth.replies import EXPIRED
from ..store.record import FAILED, REFUSED, SENDING, UNSAVED, Record
from ..tokens import Tokens, fingerprint

if TYPE_CHECKING:
    from .active_tokens import ActiveTokens

from .outcome import failure, refusal

__all__ = [
    "HAND_OVER",
    "RESEND",
    "ROTATE",
    "Adopt",
    "Decision",
    "Refresh",
    "Refuse",
    "after_401",
    "decide",
    "pause_ends",
]

#: Seconds. A ``Retry-After`` of an earlier attempt keeps others from calling this long at most: a mistaken
#: hour must not lock anybody out.
MAX_RETRY_AFTER = 60.0


class Adopt(NamedTuple):
    """Another process has got a pair: use it."""

    tokens: Tokens


class Refresh(NamedTuple):
    """Spend the stored refresh token.

    `lost_at`, `lost_how`: an earlier reply to this very token never arrived.
    """

    lost_at: float | None = None
    lost_how: str | None = None


class Refuse(NamedTuple):
    """Call nobody; this is the outcome."""

    error: AdhAuthError


Decision = Union[Adopt, Refresh, Refuse]


def decide(
    rejected: Secret, stored: Tokens, record: Record, now: float, *, since: int, path: str
) -> Decision:
    """Adopt, refresh or refuse.

    `rejected`: the access token that the failed request carried. `stored`: the pair on disk. `record`: the
    last attempt by anyone.
    `now`: epoch seconds. `since`: the number of the last attempt when this caller began to ask; a later
    failure is its failure too.
    """
    concerned = record.concerns(fingerprint(stored.refresh_token))
    # The pair that took its place is in another process's memory, or is the very one that was rejected.
    spent = concerned and record.state == UNSAVED
    if (
        Secret(stored.access_token) != rejected
        and not spent
        and not (stored.expires_at is not None and stored.expires_at <= now)
    ):
        return Adopt(stored)
    if not concerned:
        return Refresh()
    if record.state == REFUSED:
        return Refuse(refusal(record, path))
    if record.state == FAILED and (record.number > since or pause_ends(record, now) is not None):
        return Refuse(failure(record, path))
    if record.state in (SENDING, UNSAVED):
        return Refresh(
            record.at,
            record.lost_how or f"process {record.pid} on {record.host} ended before it had saved the reply",
        )
    return Refresh(record.lost_at, record.lost_how)


#: What to do with a 401: hand it to the caller, send again with the pair at hand, or rotate first.
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
    """What follows from a 401 of the API: `HAND_OVER`, `RESEND` or `ROTATE`.

    `code`: the error code that it gave. `rejected`: the access token that it answers. `pair`: the one in
    force now. `now`: epoch seconds.
    `is_bare`: it has neither a body nor a code, as an answer to HEAD; then the stored expiry tells.
    `refreshed`: the request has had a pair straight from the server before.
    """
    # A server may kill old access tokens when it rotates: any 401 to an older pair than the file's is
    # answered with that one.
    if pair.secret != rejected and not pair.expired:
        return RESEND
    is_past = pair.expires_at is not None and pair.expires_at <= now
    if refreshed and not is_past:
        return HAND_OVER  # another refresh would be answered by another 401
    if code == EXPIRED:
        return ROTATE
    # Once for a pair: the one that follows has its expiry ahead of it.
    expired = pair.expired or is_past
    return ROTATE if is_bare and code is None and pair.secret == rejected and expired else HAND_OVER


def is_due_ahead(stored: Tokens, record: Record, now: float, *, pause: float, longest: float) -> bool:
    """Whether a refresh in the background makes sense, for a pair that has less left than `refresh_ahead`
    asks for.

    Not in the first half of a life, as far as the record knows when it began: an access token may live
    shorter than that. Not beside another process's attempt, which takes `longest` seconds at most, nor after
    one that was refused, or that failed less than `pause` seconds ago.
    """
    if record.concerns(fingerprint(stored.refresh_token)):
        recent = 0 <= now - record.at < (longest if record.state == SENDING else pause)
        return record.state not in (REFUSED, UNSAVED) and not (recent and record.state in (SENDING, FAILED))
    began, end = record.rotated_at, stored.expires_at
    return began is None or end is None or not began <= now < began + (end - began) / 2


def pause_ends(record: Record, now: float) -> float | None:
    """The moment until which an attempt that failed keeps everybody from trying, as the server asked; None
    where it doesn't.
    """
    if record.state != FAILED or record.not_before is None:
        return None
    end = min(record.not_before, record.at + MAX_RETRY_AFTER)
    return end if record.at <= now < end else None
