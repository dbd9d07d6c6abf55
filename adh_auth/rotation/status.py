"""The state of a session as facts, read from the store, the record beside it and the lock.

Rule 14: reading changes nothing. No file is made, none is opened for writing, nothing is sent.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..common.limits import LOCK_TIMEOUT
from ..common.text import format_clock, format_time_relative
from ..errors import ConfigurationError
from ..store.record import FAILED, REFUSED, SENDING, UNSAVED, Record
from ..tokens import OWNER_KEYS, Stored, Tokens, fingerprint
from .decision import pause_ends
from .outcome import short_kind
from .owner import owner_facts, owner_in

if TYPE_CHECKING:
    from ..store.base import InspectableStore, StoreFacts

__all__ = [
    "InFlight",
    "LastFailure",
    "LastRotation",
    "PairFacts",
    "Status",
    "describe",
    "pair_facts",
    "status_of",
]

#: Reads of pair, record and lock until all are of the same moment: a rotation in between changes two of them.
MAX_READS = 5


@dataclass(frozen=True)
class PairFacts:
    """What can be shown of a pair: nothing of a token but its fingerprint.

    `expires_at`: epoch seconds. `seconds_left`: negative after the expiry. Both None where none is stored.
    """

    access_token_fingerprint: str
    refresh_token_fingerprint: str
    scope: str | None
    expires_at: float | None
    seconds_left: float | None


@dataclass(frozen=True)
class LastRotation:
    """The last rotation that brought a pair. `at`: epoch seconds."""

    at: float
    pid: int | None


@dataclass(frozen=True)
class InFlight:
    """A refresh under way, or a new pair that its process has yet to write. `since`: epoch seconds."""

    since: float
    pid: int
    host: str


@dataclass(frozen=True)
class LastFailure:
    """What failed last with the refresh token that the store holds, and what to do.

    `final`: only a new sign-in helps. `not_before`: epoch seconds until which nothing is sent, as the server
    asked. `at`: epoch seconds.
    """

    what: str
    next_step: str
    final: bool
    not_before: float | None
    at: float
    pid: int
    host: str
    status: int | None
    code: str | None
    request_id: str | None


@dataclass(frozen=True)
class Status:
    """The state of a session.

    `signed_in`: the session is good, as far as is known here. `last_attempt`: the state on record of the last
    attempt with the refresh token that the store holds, empty if there was none.
    """

    signed_in: bool
    store: StoreFacts
    pair: PairFacts
    last_rotation: LastRotation | None
    refresh_in_flight: InFlight | None
    last_failure: LastFailure | None
    last_attempt: str
    #: what the store is, "token file" or "session store"
    kind: str
    #: how `--json` names it, as errors do: `token_file`, or `store` and `session`
    named_by: dict[str, str]
    #: the server, the client and the user that the store names, None where it does not
    base_url: str | None
    client_id: str | None
    signed_in_as: str | None

    def as_json(self) -> dict[str, Any]:
        """Return the facts as ``adh-auth status --json`` prints them."""
        return {
            "signed_in": self.signed_in,
            **self.named_by,
            "leads_to": self.store.leads_to,
            "mode": self.store.mode,
            "owner": self.store.owner,
            "rewriting": self.store.problem,
            **asdict(self.pair),
            "last_rotation": self.last_rotation and asdict(self.last_rotation),
            "refresh_in_flight": self.refresh_in_flight and asdict(self.refresh_in_flight),
            "trouble": self.last_failure and asdict(self.last_failure),
            "base_url": self.base_url,
            "client_id": self.client_id,
            "signed_in_as": self.signed_in_as,
        }


def status_of(store: InspectableStore, now: float) -> Status:
    """Return the state of the session in `store`. `now`: epoch seconds. Raises `TokenStoreError`."""
    stored, record, in_flight = _consistent_read(store, now)
    facts = store.facts()
    failure = None
    if not (in_flight and record.state == SENDING):
        failure = _last_failure(store, stored, record, in_flight, now)
    return Status(
        signed_in=failure is None or not failure.final,
        store=facts,
        pair=_pair_facts(stored.tokens, now),
        last_rotation=None
        if record.rotated_at is None
        else LastRotation(record.rotated_at, record.rotated_by),
        refresh_in_flight=InFlight(record.at, record.pid, record.host) if in_flight else None,
        last_failure=failure,
        last_attempt=record.state if _is_about(record, stored) else "",
        kind=store.kind,
        named_by=store.facts_for_errors(),
        **_belongs_to(stored),
    )


def _belongs_to(stored: Stored) -> dict[str, str | None]:
    facts = owner_facts(stored.mapping)
    return {name: facts.get(name) for name in OWNER_KEYS}


def pair_facts(tokens: Tokens, now: float) -> dict[str, Any]:
    """Return the `PairFacts` of a pair as JSON takes them. `now`: epoch seconds."""
    return asdict(_pair_facts(tokens, now))


def _pair_facts(tokens: Tokens, now: float) -> PairFacts:
    return PairFacts(
        access_token_fingerprint=fingerprint(tokens.access_token),
        refresh_token_fingerprint=fingerprint(tokens.refresh_token),
        scope=tokens.scope,
        expires_at=tokens.expires_at,
        seconds_left=None if tokens.expires_at is None else round(tokens.expires_at - now, 3),
    )


def describe(tokens: Tokens, now: float) -> str:
    """Return a pair in one line, without a secret. `now`: epoch seconds."""
    expiry = "with no known expiry"
    if tokens.expires_at is not None:
        expiry = f"expires {format_time_relative(tokens.expires_at, now)}"
    access, refresh = fingerprint(tokens.access_token), fingerprint(tokens.refresh_token)
    return f"access token {access}, {expiry}; refresh token {refresh}"


def _consistent_read(store: InspectableStore, now: float) -> tuple[Stored, Record, bool]:
    """Return the pair, the record, and whether a refresh is in flight, all of one moment."""
    for _ in range(MAX_READS):
        stored, record = store.read(), store.record()
        unfinished = record.state in (SENDING, UNSAVED) and _is_about(record, stored)
        held = unfinished and _is_held(store, record, now)
        if held or not unfinished or store.record() == record:
            break
    return stored, record, held


def _is_about(record: Record, stored: Stored) -> bool:
    owner = owner_in(stored.mapping)
    return record.concerns(
        fingerprint(stored.tokens.refresh_token), None if owner is None else owner.fingerprint
    )


def _is_held(store: InspectableStore, record: Record, now: float) -> bool:
    """Return whether the lock is held; where that can't be known, whether the record is recent."""
    locked = store.is_locked()
    # A record from the future is not recent.
    return abs(now - record.at) < LOCK_TIMEOUT if locked is None else locked


def _last_failure(
    store: InspectableStore, stored: Stored, record: Record, in_flight: bool, now: float
) -> LastFailure | None:
    if not _is_about(record, stored) or record.state not in (SENDING, UNSAVED, FAILED, REFUSED):
        return None
    not_before = pause_ends(record, now)
    if record.state == REFUSED:
        what, next_step = _after_refusal(store, record)
    elif record.state == FAILED:
        what, next_step = record.reason or "the refresh failed", _after_failure(record, not_before)
    elif in_flight:
        what, next_step = _while_unsaved(store, record)
    else:
        what, next_step = _after_kill(store, stored, record)
    return LastFailure(
        what=what,
        next_step=next_step,
        final=record.state == REFUSED,
        not_before=not_before,
        at=record.at,
        pid=record.pid,
        host=record.host,
        status=record.status,
        code=record.code,
        request_id=record.request_id,
    )


# What happened, and what to do.


def _after_refusal(store: InspectableStore, record: Record) -> tuple[str, str]:
    what = "the refresh token was refused (invalid_grant: revoked, expired or already used)"
    if record.lost_at is not None:
        what += f", most likely because the reply to an earlier try was lost ({record.lost_how})"
    return what, store.sign_in_command()


def _after_failure(record: Record, not_before: float | None) -> str:
    good = "the session is still good" if record.lost_at is None else "the session is most likely still good"
    if not_before is not None:
        pause = f"the server is not asked again before {format_clock(not_before)} (it asked to wait)"
        return f"{good}; {pause}: until then, a request that meets an expired token fails"
    again = f"{good}: the next request that meets an expired token tries again"
    # The one cause that is recorded by this name: the server refused the client (`invalid_client`).
    if record.error == ConfigurationError.__name__:
        return f"check ADH_CLIENT_ID and ADH_CLIENT_SECRET; {again}"
    return again


def _while_unsaved(store: InspectableStore, record: Record) -> tuple[str, str]:
    what = (
        f"process {record.pid} on {record.host} holds the only copy of the new pair and can't write it:"
        f" {record.reason}"
    )
    return what, (
        f"make the {short_kind(store)} writable again;"
        f" don't end process {record.pid} before it has written the pair"
    )


def _after_kill(store: InspectableStore, stored: Stored, record: Record) -> tuple[str, str]:
    what = f"process {record.pid} on {record.host} ended before it had saved the reply to its refresh"
    left = store.left_behind()
    if left is not None and left.follows(Stored(stored.tokens, {})) is not False:
        return what, "nothing: its new pair was found beside the file, and the next refresh puts it in place"
    again = store.sign_in_command()
    return what, f"the next refresh tries the same token once more; if that is refused, {again}"
