"""A rotation as a sequence of steps: lock, re-read, decide, reserve, send, write, unlock (rule 1).

Each generator yields one `Step` at a time and is sent what the step returned; its driver does the waiting.
A job's thread drives it through real files and sockets. A simulation drives it through every order in which
two or three processes can take their steps.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from ..common.fork_safety import exchange_under_way
from ..common.limits import REFRESH_DEADLINE
from ..common.secret import Secret
from ..errors import AdhAuthError, ConfigurationError, RefreshFailed
from ..oauth import endpoint, replies
from ..store.base import LeaseLost, Look
from ..store.record import FAILED, REFUSED, SENDING, UNSAVED, Record
from ..tokens import Tokens, fingerprint
from .attempt import Attempt, attempted
from .context import RotationContext, Step, Transaction
from .decision import Adopt, Decision, Refresh, Refuse, decide
from .detached import hand_over
from .outcome import failure, refusal, short_kind, unsaved
from .takeover import take_over

if TYPE_CHECKING:
    from .active_tokens import ActiveTokens
    from .helper_process import Helper

__all__ = [
    "check_transaction",
    "look_transaction",
    "revocation_transaction",
    "rotate_locked",
    "rotation_transaction",
]

#: Seconds for the call that shows whether the API takes a token. A request waits for it, and goes on without
#: an answer.
CHECK_TIMEOUT = 5.0
#: Each poll of a waiter is longer than the one before by this factor.
POLL_GROWTH = 1.3


def rotation_transaction(context: RotationContext, rejected: Secret) -> Transaction:
    """Rotate away from the access token `rejected`. Return the pair to use; raise the outcome's error."""
    look = yield from _look(context, "look")
    since = _last_ended_attempt(look.record)
    early = _decide(context, rejected, look, since)
    if not isinstance(early, Refresh):
        return _carry_out(context, early, look.record)
    deadline = context.clock.monotonic() + context.lock_timeout
    while True:
        context.lock = context.store.lock()
        adopted = yield from _await_lock(context, rejected, look.state, since, deadline)
        if adopted is not None:
            return adopted
        try:
            return (yield from _then_unlock(context, rotate_locked(context, rejected, since)))
        except LeaseLost:  # nothing was sent, and another decides by now
            yield from _wait(context, context.store.pace.lock_interval, deadline)
        look = yield from _look(context, "look")


def _last_ended_attempt(record: Record) -> int:
    """Return the number of the last attempt that has ended.

    One under way counts as later than this caller, which is about to wait for it: its failure is shared.
    """
    return record.number - 1 if record.state == SENDING else record.number


def _decide(context: RotationContext, rejected: Secret, look: Look, since: int) -> Decision:
    now, owner = context.clock.now(), context.owner.fingerprint
    return decide(
        rejected, look.stored.tokens, look.record, now, since=since, store=context.store, owner=owner
    )


def _look(context: RotationContext, name: str) -> Transaction:
    """Look at the session, and refuse one of another server or client: nothing of it is sent."""
    look = yield Step(name, context.store.look)
    context.owner.check(look.stored, context.store)
    return look


def _carry_out(context: RotationContext, decision: Adopt | Refuse, record: Record) -> Tokens:
    if isinstance(decision, Refuse):
        context.failed_attempt = record
        raise decision.error
    return decision.tokens


def _then_unlock(context: RotationContext, steps: Transaction) -> Transaction:
    """Return what the steps return, or raise their error, after the lock was released."""
    assert context.lock is not None
    error: Exception | None = None
    try:
        outcome = yield from steps
    except (AdhAuthError, LeaseLost) as raised:
        error = raised
    yield from attempted(Step("unlock", context.lock.release))  # where that fails, the job's end does it
    if error is not None:
        raise error
    return outcome


# Waiting for the lock.


def _await_lock(
    context: RotationContext, rejected: Secret, state: object, since: int, deadline: float
) -> Transaction:
    """Take the lock and return None, or return the pair that its holder got; raise the holder's error.

    `state`: of the last look. `deadline`: by the monotonic clock.
    """
    began = context.clock.monotonic()
    try:
        return (yield from _poll_lock(context, rejected, state, since, deadline))
    finally:
        context.waited += context.clock.monotonic() - began


def _poll_lock(
    context: RotationContext, rejected: Secret, state: object, since: int, deadline: float
) -> Transaction:
    store, clock, lock = context.store, context.clock, context.lock
    assert lock is not None
    poll, next_try = store.pace.first_poll, clock.monotonic()
    while True:
        if clock.monotonic() >= next_try:
            if (yield Step("lock", lock.take)):
                return None
            if not store.pace.notices_records:
                _raise_shared_error(context, rejected, (yield from _look(context, "look")), since)
            next_try = clock.monotonic() + store.pace.lock_interval
        _require_not_ending(context)
        yield Step("wait", partial(clock.sleep, poll))
        poll = min(POLL_GROWTH * poll, store.pace.last_poll)
        timed_out = clock.monotonic() > deadline
        if (yield Step("state", partial(store.has_changed, state))) or timed_out:
            look = yield from _look(context, "look")
            if Secret(look.stored.tokens.access_token) != rejected:
                return look.stored.tokens
            _raise_shared_error(context, rejected, look, since)
            state = look.state
        if timed_out:
            raise store.lock_timeout(lock, context.lock_timeout)


def _wait(context: RotationContext, seconds: float, deadline: float) -> Transaction:
    """Wait, and raise the error for a wait that was too long."""
    _require_not_ending(context)
    if context.clock.monotonic() > deadline:
        raise context.store.lock_timeout(context.lock, context.lock_timeout)
    yield Step("wait", partial(context.clock.sleep, seconds))


def _require_not_ending(context: RotationContext) -> None:
    if context.clock.ending():
        raise RefreshFailed(
            "the program is ending; another process is refreshing", **context.store.facts_for_errors()
        )


def _raise_shared_error(context: RotationContext, rejected: Secret, look: Look, since: int) -> None:
    """Raise the error of the holder's attempt, if it has failed (rule 6)."""
    record, stored = look.record, look.stored.tokens
    concerned = record.concerns(fingerprint(stored.refresh_token), context.owner.fingerprint)
    about_this = concerned and Secret(stored.access_token) == rejected
    error: AdhAuthError | None = None
    # Also where the rejected token is the holder's own, of a pair that is in that process's memory only.
    if concerned and record.state == UNSAVED:
        error = unsaved(record, context.store)
    elif about_this and record.number > since and record.state == FAILED:
        error = failure(record, context.store)
    elif about_this and record.state == REFUSED:
        error = refusal(record, context.store)
    if error is not None:
        context.failed_attempt = record
        raise error


# Under the lock.


def rotate_locked(context: RotationContext, rejected: Secret, since: int) -> Transaction:
    """Re-read, decide and refresh, with the lock held. `since`: number of the last attempt that had ended.

    Return the pair to use; raise the outcome's error. Raises `LeaseLost` where nothing was sent and another
    may have the lock.
    """
    store = context.store
    look = yield from _look(context, "reread")
    decision = _decide(context, rejected, look, since)
    if not isinstance(decision, Refresh):
        return _carry_out(context, decision, look.record)
    if (yield from _recover(context, look)):
        # What was found may have expired meanwhile: decide anew.
        return (yield from rotate_locked(context, rejected, since))
    if context.launch_helper is not None:
        helper = yield from hand_over(context, rejected, since)
        if helper is not None:
            return (yield from _after_helper(context, helper, look, rejected, since))
    reservation = yield Step("reserve", store.reserve)
    attempt = Attempt(context, look, reservation, decision)
    try:
        with exchange_under_way():
            return (yield from attempt.steps())
    finally:
        with suppress(Exception):  # the outcome counts, and with it a pair that only this process has
            if attempt.has_pair:
                reservation.leave()
            else:
                reservation.discard()


def _after_helper(
    context: RotationContext, helper: Helper, before: Look, rejected: Secret, since: int
) -> Transaction:
    """Adopt what a helper got, or decide anew like any waiter: the lock tells that it is gone."""
    spent = before.stored
    if helper.unsaved is not None and not helper.has_finished:
        helper.give_back_lock()
        return (yield from take_over(context, helper.unsaved, spent))
    look = yield from _look(context, "reread")
    if look.record.state not in (SENDING, UNSAVED):  # else what it sent, or wrote, may still arrive
        helper.give_back_lock()
    stored = look.stored
    if stored.tokens.refresh_token != spent.tokens.refresh_token:
        if Secret(stored.tokens.access_token) != rejected:
            return stored.tokens  # whether or not the lock can be taken
    elif helper.unsaved is not None:
        # It gave up as the program ends. What it left beside the file is installed below. A token that is
        # known to be spent is not sent.
        left = yield Step("left behind", context.store.left_behind)
        if left is None or not left.follows(stored):
            return helper.unsaved
    deadline = context.clock.monotonic() + context.lock_timeout
    adopted = yield from _await_lock(context, rejected, before.state, since, deadline)
    if adopted is not None:
        return adopted
    return (yield from rotate_locked(context, rejected, since))


def _recover(context: RotationContext, look: Look) -> Transaction:
    """Finish the write of a holder that was killed in the midst of it (rule 16).

    Return whether to look again and decide anew.
    """
    done = yield Step("recover", partial(context.store.recover, look.stored, look.record))
    if done:
        context.warn(done)
    return done is not None


# The other jobs.


def look_transaction(context: RotationContext) -> Transaction:
    """Return the pair as it is now, for callers that must not wait for a network themselves."""
    return (yield from _look(context, "look")).stored.tokens


def check_transaction(
    context: RotationContext, call: endpoint.EndpointCall, pair: ActiveTokens
) -> Transaction:
    """Ask the API whether the access token of `pair` has expired.

    Only a clear yes counts: it will spend the refresh token.
    """
    expired = False
    with suppress(endpoint.Unreachable):
        reply = yield Step("ask", partial(context.post, call, CHECK_TIMEOUT))
        expired = replies.says_expired(reply)
    if expired:
        pair.mark_expired()
    pair.doubtful = False


def revocation_transaction(
    context: RotationContext, revoke_call: Callable[[Secret], endpoint.EndpointCall]
) -> Transaction:
    """Tell the server to end the session, then remove it here, both under the lock."""
    context.lock = lock = context.store.lock()
    deadline = context.clock.monotonic() + context.lock_timeout
    while not (yield Step("lock", lock.take)):
        yield from _wait(context, context.store.pace.last_poll, deadline)
    yield from _then_unlock(context, _revoke_locked(context, revoke_call))


def _revoke_locked(
    context: RotationContext, revoke_call: Callable[[Secret], endpoint.EndpointCall]
) -> Transaction:
    look = yield from _look(context, "reread")
    call = revoke_call(Secret(look.stored.tokens.refresh_token))
    try:
        reply = yield Step("send", partial(context.post, call, REFRESH_DEADLINE))
    except endpoint.Unreachable as unreachable:
        error: AdhAuthError = _not_revoked(context, unreachable.reason)
    else:
        if replies.revoked(reply):
            yield Step("remove", context.store.remove)
            return
        error = _revocation_error(context, replies.classify(reply, context.clock.now()))
    raise error


def _revocation_error(context: RotationContext, verdict: replies.Verdict) -> AdhAuthError:
    """Return the error for a reply that is not that of a revocation."""
    if verdict.kind == "misconfigured":
        return ConfigurationError(
            f"the server refuses this client ({verdict.reason}); check ADH_CLIENT_ID and ADH_CLIENT_SECRET."
            f" {context.store.name} was kept",
            code=verdict.code,
            request_id=verdict.request_id,
            **context.store.facts_for_errors(),
        )
    return _not_revoked(
        context, verdict.reason, status=verdict.status, code=verdict.code, request_id=verdict.request_id
    )


def _not_revoked(context: RotationContext, reason: str, **facts: Any) -> RefreshFailed:
    store = context.store
    return RefreshFailed(
        f"the session of {store.name} could not be revoked: {reason}. The {short_kind(store)} was kept;"
        " try again later",
        **store.facts_for_errors(),
        **facts,
    )
