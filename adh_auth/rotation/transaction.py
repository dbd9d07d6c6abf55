"""A rotation as a sequence of steps: lock, re-read, decide, reserve, send, write, unlock.

Each generator yields one `Step` at a time and is sent what the step gave; whoever drives it does the waiting.
A worker thread drives it through real files and sockets, and a simulation through every order in which two or
three processes can take their steps.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from ..common.limits import LOCK_TIMEOUT, REFRESH_DEADLINE
from ..common.secret import Secret
from ..errors import AdhAuthError, ConfigurationError, RefreshFailed
from ..oauth import endpoint, replies
from ..store.record import FAILED, REFUSED, SENDING, UNSAVED, Record
from ..tokens import Stored, Tokens, fingerprint
from .attempt import Attempt, attempted
from .context import Plan, Step, Steps
from .decision import Adopt, Refresh, Refuse, decide
from .outcome import failure, refusal, unsaved

if TYPE_CHECKING:
    from .active_tokens import Pair

__all__ = ["LOCK_TIMEOUT", "REFRESH_DEADLINE", "ask_steps", "revoke_steps", "rotate_steps"]

#: Seconds for the question whether the API takes a token. A request waits for it, and goes on without an
#: answer.
ASK_SECONDS = 5.0

#: Seconds between looks at the token file while another process refreshes: soon at first, then without
#: burning the processor.
FIRST_LOOK, LAST_LOOK = 0.004, 0.02
#: Seconds between tries for the lock, and looks at the record, meanwhile; they cost fifty times a look at the
#: file.
LOCK_LOOK = 0.05


def rotate_steps(plan: Plan, rejected: Secret) -> Steps:
    """Rotate away from `rejected`; gives the pair to use, raises the outcome's error."""
    store = plan.store
    state = yield Step("state", store.state)
    stored = yield Step("load", store.read_patiently)
    record = yield Step("record", store.record)
    # An attempt under way counts as later than we are: we are about to wait for it, and its failure will be
    # ours.
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
    yield from attempted(Step("unlock", plan.lock.release))  # where that fails, the job's end does it
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
            record = yield Step("record", store.record)
            stored = yield Step("load", store.read_patiently)
            _share_outcome(plan, rejected, record, stored.tokens, since)
            next_try = clock.monotonic() + LOCK_LOOK
        if clock.ending():
            raise RefreshFailed("the program is ending; another process is refreshing", token_file=plan.name)
        yield Step("wait", partial(clock.sleep, look))
        look = min(1.3 * look, LAST_LOOK)
        timed_out = clock.monotonic() > deadline
        if (yield Step("state", store.state)) != state or timed_out:
            stored = yield Step("load", store.read_patiently)
            if Secret(stored.tokens.access_token) != rejected:
                return stored.tokens
        if timed_out:
            raise store.lock_timeout(lock, plan.lock_timeout)


def _share_outcome(plan: Plan, rejected: Secret, record: Record, stored: Tokens, since: int) -> None:
    """Raise what the holder's attempt came to, if it came to nothing."""
    concerned = record.concerns(fingerprint(stored.refresh_token))
    if (
        concerned and record.state == UNSAVED
    ):  # also where its own pair, known to that process alone, is the one that was rejected
        raise unsaved(record, plan.name)
    about_this = concerned and Secret(stored.access_token) == rejected
    if about_this and record.number > since and record.state == FAILED:
        raise failure(record, plan.name)
    if about_this and record.state == REFUSED:
        raise refusal(record, plan.name)


def _rotate_locked(plan: Plan, rejected: Secret, since: int) -> Steps:
    store = plan.store
    stored = yield Step("reread", store.read_patiently)
    record = yield Step("record", store.record)
    decision = decide(rejected, stored.tokens, record, plan.clock.now(), since=since, path=plan.name)
    if not isinstance(decision, Refresh):
        return _carried_out(decision)
    if (yield from _recover(plan, stored, record)):
        # What was found may have expired meanwhile: decide anew.
        return (yield from _rotate_locked(plan, rejected, since))
    room = yield Step("reserve", store.reserve)
    attempt = Attempt(plan, stored, room, record, decision)
    try:
        return (yield from attempt.steps())
    finally:
        if attempt.has_pair:
            room.leave()
        else:
            room.discard()


def _recover(plan: Plan, stored: Stored, record: Record) -> Steps:
    """The holder was killed after it had put the new pair on disk and before it was the file: finish that.

    True: decide anew.
    """
    left = yield Step("left behind", plan.store.left_behind)
    # The record may be lost, as it is not durable, or another's: only what an earlier version has left needs
    # its word.
    unfinished = record.state in (SENDING, UNSAVED) and record.concerns(
        fingerprint(stored.tokens.refresh_token)
    )
    follows = left is not None and left.follows(stored)
    if not (unfinished if follows is None else follows):
        return False
    if (yield Step("recover", partial(plan.store.install_left_behind, stored))):
        plan.tell(
            f"token file {plan.name}: a process ended while it replaced the file; its pair was found beside it and is in place now"
        )
    return True


def ask_steps(plan: Plan, call: endpoint.Call, pair: Pair) -> Steps:
    """Ask the API whether the access token of `pair` has expired.

    Only a clear yes counts: it will spend the refresh token.
    """
    expired = False
    with suppress(endpoint.Unreachable):
        expired = replies.says_expired((yield Step("ask", partial(plan.post, call, ASK_SECONDS))))
    if expired:
        pair.end()
    pair.doubtful = False


def revoke_steps(plan: Plan, revoke_call: Callable[[Secret], endpoint.Call]) -> Steps:
    """Tell the server, then remove the file, both under the lock."""
    plan.lock = plan.store.lock()
    deadline = plan.clock.monotonic() + plan.lock_timeout
    while not (yield Step("lock", plan.lock.take)):
        if plan.clock.ending():
            raise RefreshFailed("the program is ending; another process is refreshing", token_file=plan.name)
        if plan.clock.monotonic() > deadline:
            raise plan.store.lock_timeout(plan.lock, plan.lock_timeout)
        yield Step("wait", partial(plan.clock.sleep, LAST_LOOK))
    try:
        error = yield from _revoke_locked(plan, revoke_call)
    except AdhAuthError as raised:
        error = raised
    yield from attempted(Step("unlock", plan.lock.release))
    if error is not None:
        raise error


def _revoke_locked(plan: Plan, revoke_call: Callable[[Secret], endpoint.Call]) -> Steps:
    stored = yield Step("reread", plan.store.read_patiently)
    try:
        reply = yield Step(
            "send", partial(plan.post, revoke_call(Secret(stored.tokens.refresh_token)), REFRESH_DEADLINE)
        )
    except endpoint.Unreachable as unreachable:
        reason, facts = unreachable.reason, {}
    else:
        if replies.revoked(reply):
            yield Step("remove", plan.store.remove)
            return None
        verdict = replies.classify(reply, plan.clock.now())
        reason, facts = (
            verdict.reason,
            {"status": verdict.status, "code": verdict.code, "request_id": verdict.request_id},
        )
        if verdict.kind == "misconfigured":
            return ConfigurationError(
                f"the server refuses this client ({reason}); check ADH_CLIENT_ID and ADH_CLIENT_SECRET. {plan.name} was kept",
                token_file=plan.name,
                code=verdict.code,
                request_id=verdict.request_id,
            )
    return RefreshFailed(
        f"the session of {plan.name} could not be revoked: {reason}. The file was kept; try again later",
        token_file=plan.name,
        **facts,
    )
