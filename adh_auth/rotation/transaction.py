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
from ..store.record import FAILED, REFUSED, SENDING, UNSAVED, Record
from ..tokens import Stored, Tokens, fingerprint
from .attempt import Attempt, attempted
from .context import RotationContext, Step, Transaction
from .decision import Adopt, Decision, Refresh, Refuse, decide
from .detached import hand_over
from .outcome import failure, refusal, unsaved

if TYPE_CHECKING:
    from .active_tokens import ActiveTokens
    from .detached import Helper

__all__ = ["check_transaction", "revocation_transaction", "rotate_locked", "rotation_transaction"]

#: Seconds for the call that shows whether the API takes a token. A request waits for it, and goes on without
#: an answer.
CHECK_TIMEOUT = 5.0
#: Seconds between checks of the token file while another process refreshes: short at first, then longer to
#: spare the processor.
FIRST_POLL, LAST_POLL = 0.004, 0.02
#: Seconds between tries for the lock meanwhile, each with a read of the record. They cost fifty times a check
#: of the file.
LOCK_INTERVAL = 0.05


def rotation_transaction(context: RotationContext, rejected: Secret) -> Transaction:
    """Rotate away from the access token `rejected`. Return the pair to use; raise the outcome's error."""
    store = context.store
    state = yield Step("state", store.state)
    stored = yield from _read(context, "load")
    record = yield Step("record", store.record)
    since = _last_ended_attempt(record)
    early = _decide(context, rejected, stored.tokens, record, since)
    if not isinstance(early, Refresh):
        return _carry_out(context, early, record)
    context.lock = store.lock()
    adopted = yield from _await_lock(context, rejected, state, since)
    if adopted is not None:
        return adopted
    return (yield from _then_unlock(context, rotate_locked(context, rejected, since)))


def _last_ended_attempt(record: Record) -> int:
    """Return the number of the last attempt that has ended.

    One under way counts as later than this caller, which is about to wait for it: its failure is shared.
    """
    return record.number - 1 if record.state == SENDING else record.number


def _decide(
    context: RotationContext, rejected: Secret, stored: Tokens, record: Record, since: int
) -> Decision:
    now, owner = context.clock.now(), context.owner.fingerprint
    return decide(rejected, stored, record, now, since=since, path=context.name, owner=owner)


def _read(context: RotationContext, name: str) -> Transaction:
    """Read the session, and refuse one of another server or client: nothing of it is sent."""
    stored = yield Step(name, context.store.read_patiently)
    context.owner.check(stored, context.name)
    return stored


def _carry_out(context: RotationContext, decision: Adopt | Refuse, record: Record) -> Tokens:
    if isinstance(decision, Refuse):
        context.failed_attempt = record
        raise decision.error
    return decision.tokens


def _then_unlock(context: RotationContext, steps: Transaction) -> Transaction:
    """Return what the steps return, or raise their error, after the lock was released."""
    assert context.lock is not None
    error = None
    try:
        outcome = yield from steps
    except AdhAuthError as raised:
        error = raised
    yield from attempted(Step("unlock", context.lock.release))  # where that fails, the job's end does it
    if error is not None:
        raise error
    return outcome


# Waiting for the lock.


def _await_lock(context: RotationContext, rejected: Secret, state: object, since: int) -> Transaction:
    """Take the lock and return None, or return the pair that its holder got; raise the holder's error."""
    began = context.clock.monotonic()
    try:
        return (yield from _poll_lock(context, rejected, state, since))
    finally:
        context.waited += context.clock.monotonic() - began


def _poll_lock(context: RotationContext, rejected: Secret, state: object, since: int) -> Transaction:
    store, clock, lock = context.store, context.clock, context.lock
    assert lock is not None
    deadline = clock.monotonic() + context.lock_timeout
    poll, next_try = FIRST_POLL, clock.monotonic()
    while True:
        if clock.monotonic() >= next_try:
            if (yield Step("lock", lock.take)):
                return None
            record = yield Step("record", store.record)
            stored = yield from _read(context, "load")
            _raise_shared_error(context, rejected, record, stored.tokens, since)
            next_try = clock.monotonic() + LOCK_INTERVAL
        _require_not_ending(context)
        yield Step("wait", partial(clock.sleep, poll))
        poll = min(1.3 * poll, LAST_POLL)
        timed_out = clock.monotonic() > deadline
        if (yield Step("state", store.state)) != state or timed_out:
            stored = yield from _read(context, "load")
            if Secret(stored.tokens.access_token) != rejected:
                return stored.tokens
        if timed_out:
            raise store.lock_timeout(lock, context.lock_timeout)


def _require_not_ending(context: RotationContext) -> None:
    if context.clock.ending():
        raise RefreshFailed("the program is ending; another process is refreshing", token_file=context.name)


def _raise_shared_error(
    context: RotationContext, rejected: Secret, record: Record, stored: Tokens, since: int
) -> None:
    """Raise the error of the holder's attempt, if it has failed (rule 6)."""
    concerned = record.concerns(fingerprint(stored.refresh_token), context.owner.fingerprint)
    about_this = concerned and Secret(stored.access_token) == rejected
    error: AdhAuthError | None = None
    # Also where the rejected token is the holder's own, of a pair that is in that process's memory only.
    if concerned and record.state == UNSAVED:
        error = unsaved(record, context.name)
    elif about_this and record.number > since and record.state == FAILED:
        error = failure(record, context.name)
    elif about_this and record.state == REFUSED:
        error = refusal(record, context.name)
    if error is not None:
        context.failed_attempt = record
        raise error


# Under the lock.


def rotate_locked(context: RotationContext, rejected: Secret, since: int) -> Transaction:
    """Re-read, decide and refresh, with the lock held. `since`: number of the last attempt that had ended.

    Return the pair to use; raise the outcome's error.
    """
    store = context.store
    stored = yield from _read(context, "reread")
    record = yield Step("record", store.record)
    decision = _decide(context, rejected, stored.tokens, record, since)
    if not isinstance(decision, Refresh):
        return _carry_out(context, decision, record)
    if (yield from _recover(context, stored, record)):
        # What was found may have expired meanwhile: decide anew.
        return (yield from rotate_locked(context, rejected, since))
    if context.launch_helper is not None:
        state = yield Step("state", store.state)
        helper = yield from hand_over(context, rejected, since)
        if helper is not None:
            return (yield from _after_helper(context, helper, stored, rejected, state, since))
    reservation = yield Step("reserve", store.reserve)
    attempt = Attempt(context, stored, reservation, record, decision)
    try:
        with exchange_under_way():
            return (yield from attempt.steps())
    finally:
        if attempt.has_pair:
            reservation.leave()
        else:
            reservation.discard()


def _after_helper(
    context: RotationContext, helper: Helper, spent: Stored, rejected: Secret, state: object, since: int
) -> Transaction:
    """Adopt what a helper got, or decide anew like any waiter: the lock tells that it is gone."""
    stored = yield from _read(context, "reread")
    if helper.unsaved is not None and stored.tokens.refresh_token == spent.tokens.refresh_token:
        # It gave up as the program ends. What it left beside the file is installed below. A token that is
        # known to be spent is not sent.
        left = yield Step("left behind", context.store.left_behind)
        if left is None or not left.follows(stored):
            return helper.unsaved
    adopted = yield from _await_lock(context, rejected, state, since)
    if adopted is not None:
        return adopted
    return (yield from rotate_locked(context, rejected, since))


def _recover(context: RotationContext, stored: Stored, record: Record) -> Transaction:
    """Finish the write of a holder that was killed before its new pair, on disk already, was the file.

    Return whether there was one (rule 16).
    """
    left = yield Step("left behind", context.store.left_behind)
    # The record is not durable and may be lost, or another's. Only a pair that an earlier version of this
    # library has left needs its word.
    unfinished = record.state in (SENDING, UNSAVED) and record.concerns(
        fingerprint(stored.tokens.refresh_token)
    )
    follows = left is not None and left.follows(stored)
    if not (unfinished if follows is None else follows):
        return False
    if (yield Step("recover", partial(context.store.install_left_behind, stored))):
        context.warn(
            f"token file {context.name}: a process ended while it replaced the file;"
            " its pair was found beside it and is in place now"
        )
    return True


# The two other jobs.


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
    """Tell the server to end the session, then remove the file, both under the lock."""
    context.lock = lock = context.store.lock()
    deadline = context.clock.monotonic() + context.lock_timeout
    while not (yield Step("lock", lock.take)):
        _require_not_ending(context)
        if context.clock.monotonic() > deadline:
            raise context.store.lock_timeout(lock, context.lock_timeout)
        yield Step("wait", partial(context.clock.sleep, LAST_POLL))
    yield from _then_unlock(context, _revoke_locked(context, revoke_call))


def _revoke_locked(
    context: RotationContext, revoke_call: Callable[[Secret], endpoint.EndpointCall]
) -> Transaction:
    stored = yield from _read(context, "reread")
    call = revoke_call(Secret(stored.tokens.refresh_token))
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
            f" {context.name} was kept",
            token_file=context.name,
            code=verdict.code,
            request_id=verdict.request_id,
        )
    return _not_revoked(
        context, verdict.reason, status=verdict.status, code=verdict.code, request_id=verdict.request_id
    )


def _not_revoked(context: RotationContext, reason: str, **facts: Any) -> RefreshFailed:
    return RefreshFailed(
        f"the session of {context.name} could not be revoked: {reason}. The file was kept; try again later",
        token_file=context.name,
        **facts,
    )
