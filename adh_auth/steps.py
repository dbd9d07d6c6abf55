"""A rotation as a sequence of steps: lock, re-read, decide, reserve, send, write, unlock.

Each generator yields one `Step` at a time and is sent what the step gave; whoever drives it does the waiting. A worker thread drives it
through real files and sockets, and a simulation through every order in which two or three processes can take their steps.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

from . import endpoint
from .attempts import DONE, FAILED, REFUSED, SENDING, UNSAVED, Record
from .decide import Adopt, Refresh, Refuse, decide, failure, moment, refusal, unsaved
from .errors import AdhAuthError, ConfigurationError, LockTimeout, MalformedTokens, RefreshFailed, TokenFileError
from .settings import LOCK_TIMEOUT, REFRESH_DEADLINE
from .tokens import Secret, Stored, Tokens, fingerprint

__all__ = ["LOCK_TIMEOUT", "REFRESH_DEADLINE", "Plan", "Step", "Steps", "drive", "revoke_steps", "rotate_steps"]

#: Seconds between tries.
PAUSES = (0.5, 1.0, 2.0)
#: Seconds between looks at the token file while another process refreshes: soon at first, then without burning the processor.
FIRST_LOOK, LAST_LOOK = 0.004, 0.02
#: Seconds between tries for the lock, and looks at the record, meanwhile; they cost fifty times a look at the file.
LOCK_LOOK = 0.05
#: Seconds between tries to write a pair that could not be written.
SAVE_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)


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

    def discard(self) -> None:
        """Give the room back."""


class Store(Protocol):
    """Where a session lives. A token file today; a store shared by several machines could stand here."""

    def state(self) -> object: ...
    def read(self) -> Stored: ...
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


@dataclass
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


def drive(steps: Steps) -> Any:
    """Do each step for real."""
    value: Any = None
    trouble: Exception | None = None
    while True:
        try:
            step = steps.send(value) if trouble is None else steps.throw(trouble)
        except StopIteration as end:
            return end.value
        value, trouble = None, None
        try:
            value = step.work()
        except Exception as raised:  # noqa: BLE001 - the generator gets it, whatever it is
            trouble = raised


def rotate_steps(plan: Plan, rejected: Secret) -> Steps:
    """Rotate away from `rejected`; gives the pair to use, raises the outcome's error."""
    store = plan.store
    state = yield Step("state", store.state)
    stored = yield Step("load", store.read)
    record = yield Step("record", store.record)
    # An attempt under way counts as later than we are: we are about to wait for it, and its failure will be ours.
    since = record.number - (record.state == SENDING)
    early = decide(rejected, stored.tokens, record, plan.clock.now(), since=since, path=plan.name)
    if not isinstance(early, Refresh):
        return _carried_out(early)
    plan.lock = store.lock()
    adopted = yield from _await_lock(plan, rejected, state, since)
    if adopted is not None:
        return adopted
    try:
        outcome = yield from _rotate_locked(plan, rejected, since)
    except AdhAuthError as error:
        outcome = error
    yield Step("unlock", plan.lock.release)
    if isinstance(outcome, AdhAuthError):
        raise outcome
    return outcome


def _carried_out(decision: Adopt | Refuse) -> Tokens:
    if isinstance(decision, Refuse):
        raise decision.error
    return decision.tokens


def _await_lock(plan: Plan, rejected: Secret, state: object, since: int) -> Steps:
    """Take the lock (None), or have what its holder got (the pair, or the error of its attempt)."""
    store, clock, lock = plan.store, plan.clock, plan.lock
    assert lock is not None
    deadline = clock.monotonic() + plan.lock_timeout
    look, next_try = FIRST_LOOK, clock.monotonic()
    while True:
        if clock.monotonic() >= next_try:
            if (yield Step("lock", lock.take)):
                return None
            _share_outcome(plan, rejected, (yield Step("record", store.record)), (yield Step("load", store.read)).tokens, since)
            next_try = clock.monotonic() + LOCK_LOOK
        if clock.ending():
            raise RefreshFailed("the program is ending; another process is refreshing", token_file=plan.name)
        yield Step("wait", partial(clock.sleep, look))
        look = min(1.3 * look, LAST_LOOK)
        timed_out = clock.monotonic() > deadline
        if (yield Step("state", store.state)) != state or timed_out:
            stored = yield Step("load", store.read)
            if Secret(stored.tokens.access_token) != rejected:
                return stored.tokens
        if timed_out:
            raise store.lock_timeout(lock, plan.lock_timeout)


def _share_outcome(plan: Plan, rejected: Secret, record: Record, stored: Tokens, since: int) -> None:
    """Raise what the holder's attempt came to, if it came to nothing."""
    concerned = record.concerns(fingerprint(stored.refresh_token))
    if concerned and record.state == UNSAVED:  # also where its own pair, known to that process alone, is the one that was rejected
        raise unsaved(record, plan.name)
    about_this = concerned and Secret(stored.access_token) == rejected
    if about_this and record.number > since and record.state == FAILED:
        raise failure(record, plan.name)
    if about_this and record.state == REFUSED:
        raise refusal(record, plan.name)


def _rotate_locked(plan: Plan, rejected: Secret, since: int) -> Steps:
    store = plan.store
    stored = yield Step("reread", store.read)
    record = yield Step("record", store.record)
    decision = decide(rejected, stored.tokens, record, plan.clock.now(), since=since, path=plan.name)
    if not isinstance(decision, Refresh):
        return _carried_out(decision)
    unfinished = record.state in (SENDING, UNSAVED) and record.concerns(fingerprint(stored.tokens.refresh_token))
    if unfinished and (yield from _recover(plan, stored)):
        # What was found may have expired meanwhile: decide anew.
        return (yield from _rotate_locked(plan, rejected, since))
    room = yield Step("reserve", store.reserve)
    attempt = Attempt(plan, stored, room, record, decision)
    try:
        return (yield from attempt.steps())
    finally:
        if not attempt.holds_the_only_copy:
            room.discard()


def _recover(plan: Plan, stored: Stored) -> Steps:
    """The holder was killed after it had put the new pair on disk and before it was the file: finish that. True: decide anew."""
    left = yield Step("left behind", plan.store.left_behind)
    if left is None or left.tokens.refresh_token == stored.tokens.refresh_token:
        return False
    if (yield Step("recover", partial(plan.store.install_left_behind, stored))):
        plan.tell(f"token file {plan.name}: a process ended while it replaced the file; its pair was found beside it and is in place now")
    return True


class Attempt:
    """The part of a rotation that spends the token. Under the lock, with room reserved."""

    def __init__(self, plan: Plan, stored: Stored, room: Reserved, record: Record, decision: Refresh) -> None:
        self._plan = plan
        self._stored = stored
        self._room = room
        pid, host = plan.who
        self._record = Record(
            number=record.number + 1,
            about=fingerprint(stored.tokens.refresh_token),
            pid=pid,
            host=host,
            lost_at=decision.lost_at,
            lost_how=decision.lost_how,
            rotated_at=record.rotated_at,
            rotated_by=record.rotated_by,
        )
        self.holds_the_only_copy = False

    def steps(self) -> Steps:
        """Send until there is an answer, or no use in trying."""
        clock = self._plan.clock
        deadline = clock.monotonic() + REFRESH_DEADLINE
        for pause in (*PAUSES, None):
            yield self._note(SENDING)
            sent_at = clock.now()
            verdict = yield from self._send(deadline - clock.monotonic())
            if verdict.kind == "pair":
                return (yield from self._take(verdict, sent_at))
            if verdict.kind == "refused":
                return (yield from self._refused(verdict))
            if verdict.kind == "misconfigured":
                advice = "the server refuses this client; check ADH_CLIENT_ID and ADH_CLIENT_SECRET"
                raise (yield from self._failed(verdict, ConfigurationError, advice))
            wait = max(pause or 0.0, verdict.retry_after or 0.0)
            if verdict.kind == "failed" or pause is None or clock.monotonic() + wait >= deadline or clock.ending():
                break
            if (newer := (yield from self._pause(wait))) is not None:
                return newer
            if clock.ending():
                break
        raise (yield from self._failed(verdict, RefreshFailed, "the session is still good; try again later"))

    def _send(self, seconds: float) -> Steps:
        plan = self._plan
        call = plan.refresh_call(Secret(self._stored.tokens.refresh_token))
        try:
            reply = yield Step("send", partial(plan.post, call, max(seconds, 1.0)))
        except endpoint.Unreachable as unreachable:
            verdict = endpoint.Verdict("again", unreachable.reason)
            uncertain = unreachable.sent
        else:
            verdict = endpoint.classify(reply, plan.clock.now())
            uncertain = verdict.kind == "again" and verdict.status != 429
        if uncertain:
            # A gateway's 502 or a dropped connection may hide that the token was spent. A refusal later on is explained by it.
            self._record = replace(self._record, lost_at=plan.clock.now(), lost_how=verdict.reason)
        return verdict

    def _pause(self, seconds: float) -> Steps:
        """Wait, then look whether somebody has signed in meanwhile."""
        clock = self._plan.clock
        until = clock.monotonic() + seconds
        while (left := until - clock.monotonic()) > 0 and not clock.ending():
            yield Step("pause", partial(clock.sleep, min(left, 0.1)))
        return (yield from self._newer())

    def _newer(self) -> Steps:
        stored = yield Step("reread", self._plan.store.read)
        return None if stored.tokens.refresh_token == self._stored.tokens.refresh_token else stored.tokens

    def _take(self, verdict: endpoint.Verdict, sent_at: float) -> Steps:
        trouble = None
        try:
            fresh = self._stored.rotated(verdict.mapping, sent_at)
        except MalformedTokens as malformed:
            trouble = malformed.message
        if trouble is not None:
            useless = verdict._replace(reason=f"the endpoint's reply is of no use: {trouble}")
            raise (yield from self._failed(useless, RefreshFailed, "the old pair was kept"))
        try:
            written = yield Step("write", partial(self._room.replace, fresh, self._stored))
        except TokenFileError as refused:
            return (yield from self._keep(fresh, refused.message))
        if not written:
            return (yield Step("reread", self._plan.store.read)).tokens
        yield from self._record_success()
        return fresh.tokens

    def _record_success(self) -> Steps:
        now = self._plan.clock.now()
        success = replace(self._record, state=DONE, at=now, rotated_at=now, rotated_by=self._record.pid, lost_at=None, lost_how=None)
        yield from self._note_if_possible(success)

    def _keep(self, fresh: Stored, why: str) -> Steps:
        """The pair is in memory only. Go on with it, keep the lock so that nobody spends the dead one, and write it once that works."""
        plan = self._plan
        self.holds_the_only_copy = True
        # Said and recorded first: `keep` lets the caller go on.
        yield from self._note_if_possible(replace(self._record, state=UNSAVED, at=plan.clock.now(), reason=why))
        plan.tell(
            f"the new pair could not be written: {why}. This process goes on with it and keeps trying; "
            "if it ends before that works, you will have to sign in again"
        )
        plan.keep(fresh.tokens)
        for pause in _ever(SAVE_PAUSES):
            until = plan.clock.monotonic() + pause
            while plan.clock.monotonic() < until and not plan.clock.ending():
                yield Step("pause", partial(plan.clock.sleep, 0.1))
            ending = plan.clock.ending()
            try:
                written = yield Step("write", partial(self._room.replace, fresh, self._stored))
            except TokenFileError as refused:
                why = refused.message
                if ending:
                    plan.tell(f"the program ends, and its new pair could not be written: {why}")
                    return fresh.tokens
                continue
            self.holds_the_only_copy = False
            if written:
                plan.tell(f"token file {plan.name} could be written again and holds the new pair")
                yield from self._record_success()
            return fresh.tokens
        return fresh.tokens

    def _refused(self, verdict: endpoint.Verdict) -> Steps:
        if (newer := (yield from self._newer())) is not None:
            return newer
        record = replace(
            self._record, state=REFUSED, at=self._plan.clock.now(), code=verdict.code, status=verdict.status, request_id=verdict.request_id
        )
        yield from self._note_if_possible(record)
        raise refusal(record, self._plan.name)

    def _failed(self, verdict: endpoint.Verdict, kind: type[AdhAuthError], advice: str) -> Steps:
        """Record the failure for whoever waits; gives the error."""
        now = self._plan.clock.now()
        lost = ""
        if self._record.lost_at is not None:
            lost = f" A reply may have been lost at {moment(self._record.lost_at)} ({self._record.lost_how})."
        record = replace(
            self._record,
            state=FAILED,
            at=now,
            error=kind.__name__,
            reason=f"the refresh for {self._plan.name} failed: {verdict.reason}.{lost} {advice[0].upper()}{advice[1:]}.",
            status=verdict.status,
            code=verdict.code,
            request_id=verdict.request_id,
            retry_after=verdict.retry_after,
            not_before=None if verdict.retry_after is None else now + verdict.retry_after,
        )
        yield from self._note_if_possible(record)
        return failure(record, self._plan.name)

    def _note(self, state: str) -> Step:
        self._record = replace(self._record, state=state, at=self._plan.clock.now())
        return Step("note", partial(self._plan.store.note, self._record))

    def _note_if_possible(self, record: Record) -> Steps:
        # The outcome stands whether or not others can be told.
        try:
            yield Step("note", partial(self._plan.store.note, record))
        except TokenFileError as refused:
            self._plan.tell(refused.message)


def _ever(pauses: tuple[float, ...]) -> Generator[float, None, None]:
    yield from pauses
    while True:
        yield pauses[-1]


def revoke_steps(plan: Plan, revoke_call: Callable[[Secret], endpoint.Call]) -> Steps:
    """Tell the server, then remove the file, both under the lock."""
    plan.lock = plan.store.lock()
    deadline = plan.clock.monotonic() + plan.lock_timeout
    while not (yield Step("lock", plan.lock.take)):
        if plan.clock.monotonic() > deadline:
            raise plan.store.lock_timeout(plan.lock, plan.lock_timeout)
        yield Step("wait", partial(plan.clock.sleep, LAST_LOOK))
    try:
        error = yield from _revoke_locked(plan, revoke_call)
    except AdhAuthError as raised:
        error = raised
    yield Step("unlock", plan.lock.release)
    if error is not None:
        raise error


def _revoke_locked(plan: Plan, revoke_call: Callable[[Secret], endpoint.Call]) -> Steps:
    stored = yield Step("reread", plan.store.read)
    try:
        reply = yield Step("send", partial(plan.post, revoke_call(Secret(stored.tokens.refresh_token)), REFRESH_DEADLINE))
    except endpoint.Unreachable as unreachable:
        reason, facts = unreachable.reason, {}
    else:
        if endpoint.revoked(reply):
            yield Step("remove", plan.store.remove)
            return None
        verdict = endpoint.classify(reply, plan.clock.now())
        reason, facts = verdict.reason, {"status": verdict.status, "code": verdict.code, "request_id": verdict.request_id}
        if verdict.kind == "misconfigured":
            return ConfigurationError(
                f"the server refuses this client ({reason}); check ADH_CLIENT_ID and ADH_CLIENT_SECRET. {plan.name} was kept",
                token_file=plan.name,
                code=verdict.code,
                request_id=verdict.request_id,
            )
    return RefreshFailed(
        f"the session of {plan.name} could not be revoked: {reason}. The file was kept; try again later", token_file=plan.name, **facts
    )
