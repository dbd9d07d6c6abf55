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

from ..common.fork_safety import exchange_under_way
from ..common.limits import LOCK_TIMEOUT, REFRESH_DEADLINE
from ..common.secret import Secret
from ..errors import AdhAuthError, ConfigurationError, RefreshFailed
from ..oauth import endpoint, replies
from ..store.record import FAILED, REFUSED, SENDING, UNSAVED, Record
from ..tokens import Stored, Tokens, fingerprint
from .attempt import Attempt, attempted
from .context import RotationContext, Step, Transaction
from .decision import Adopt, Refresh, Refuse, decide
from .detached import hand_over
from .outcome import failure, refusal, unsaved

if TYPE_CHECKING:
    from .active_tokens import ActiveTokens
    from .detached import Helper

__all__ = [
    "LOCK_TIMEOUT",
    "REFRESH_DEADLINE",
    "check_transaction",
    "revocation_transaction",
    "rotate_locked",
    "rotation_transaction",
]

#: Seconds for the question whether the API takes a token. A request waits for it, and goes on without an
#: answer.
ASK_SECONDS = 5.0

#: Seconds between looks at the token file while another process refreshes: soon at first, then without
#: burning the processor.
FIRST_LOOK, LAST_LOOK = 0.004, 0.02
#: Seconds between tries for the lock, and looks at the record, meanwhile; they cost fifty times a look at the
#: file.
LOCK_LOOK = 0.05


def rotation_transaction(context: RotationContext, rejected: Secret) -> Transaction:
    """Rotate away from `rejected`; gives the pair to use, raises the outcome's error."""
    store = context.store
    state = yield Step("state", store.state)
    stored = yield Step("load", store.read_patiently)
    record = yield Step("record", store.record)
    # An attempt under way counts as later than we are: we are about to wait for it, and its failure will be
    # ours.
    since = record.number - (record.state == SENDING)
    early = decide(rejected, stored.tokens, record, context.clock.now(), since=since, path=context.name)
    if not isinstance(early, Refresh):
        return _carried_out(early)
    context.lock = store.lock()
    adopted = yield from _await_lock(context, rejected, state, since)
    if adopted is not None:
        return adopted
    try:
        outcome = yield from rotate_locked(context, rejected, since)
    except AdhAuthError as error:
        outcome = error
    yield from attempted(Step("unlock", context.lock.release))  # where that fails, the job's end does it
    if isinstance(outcome, AdhAuthError):
        raise outcome
    return outcome


def _carried_out(decision: Adopt | Refuse) -> Tokens:
    if isinstance(decision, Refuse):
        raise decision.error
    return decision.tokens


def _await_lock(context: RotationContext, rejected: Secret, state: object, since: int) -> Transaction:
    """Take the lock (None), or have what its holder got (the pair, or the error of its attempt)."""
    store, clock, lock = context.store, context.clock, context.lock
    assert lock is not None
    deadline = clock.monotonic() + context.lock_timeout
    look, next_try = FIRST_LOOK, clock.monotonic()
    while True:
        if clock.monotonic() >= next_try:
            if (yield Step("lock", lock.take)):
                return None
            record = yield Step("record", store.record)
            stored = yield Step("load", store.read_patiently)
            _share_outcome(context, rejected, record, stored.tokens, since)
            next_try = clock.monotonic() + LOCK_LOOK
        if clock.ending():
            raise RefreshFailed(
                "the program is ending; another process is refreshing", token_file=context.name
            )
        yield Step("wait", partial(clock.sleep, look))
        look = min(1.3 * look, LAST_LOOK)
        timed_out = clock.monotonic() > deadline
        if (yield Step("state", store.state)) != state or timed_out:
            stored = yield Step("load", store.read_patiently)
            if Secret(stored.tokens.access_token) != rejected:
                return stored.tokens
        if timed_out:
            raise store.lock_timeout(lock, context.lock_timeout)


def _share_outcome(
    context: RotationContext, rejected: Secret, record: Record, stored: Tokens, since: int
) -> None:
    """Raise what the holder's attempt came to, if it came to nothing."""
    concerned = record.concerns(fingerprint(stored.refresh_token))
    if (
        concerned and record.state == UNSAVED
    ):  # also where its own pair, known to that process alone, is the one that was rejected
        raise unsaved(record, context.name)
    about_this = concerned and Secret(stored.access_token) == rejected
    if about_this and record.number > since and record.state == FAILED:
        raise failure(record, context.name)
    if about_this and record.state == REFUSED:
        raise refusal(record, context.name)


def rotate_locked(context: RotationContext, rejected: Secret, since: int) -> Transaction:
    """Re-read, decide and refresh, with the lock held. `since`: number of the last attempt that had ended.

    Return the pair to use; raise the outcome's error.
    """
    store = context.store
    stored = yield Step("reread", store.read_patiently)
    record = yield Step("record", store.record)
    decision = decide(rejected, stored.tokens, record, context.clock.now(), since=since, path=context.name)
    if not isinstance(decision, Refresh):
        return _carried_out(decision)
    if (yield from _recover(context, stored, record)):
        # What was found may have expired meanwhile: decide anew.
        return (yield from rotate_locked(context, rejected, since))
    if context.launch_helper is not None:
        state = yield Step("state", store.state)
        helper = yield from hand_over(context, rejected, since)
        if helper is not None:
            return (yield from _after_helper(context, helper, stored, rejected, state, since))
    room = yield Step("reserve", store.reserve)
    attempt = Attempt(context, stored, room, record, decision)
    try:
        with exchange_under_way():
            return (yield from attempt.steps())
    finally:
        if attempt.has_pair:
            room.leave()
        else:
            room.discard()


def _after_helper(
    context: RotationContext, helper: Helper, spent: Stored, rejected: Secret, state: object, since: int
) -> Transaction:
    """Adopt what a helper got, or decide anew like any waiter: the lock tells that it is gone."""
    stored = yield Step("reread", context.store.read_patiently)
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
    """The holder was killed after it had put the new pair on disk and before it was the file: finish that.

    True: decide anew.
    """
    left = yield Step("left behind", context.store.left_behind)
    # The record may be lost, as it is not durable, or another's: only what an earlier version has left needs
    # its word.
    unfinished = record.state in (SENDING, UNSAVED) and record.concerns(
        fingerprint(stored.tokens.refresh_token)
    )
    follows = left is not None and left.follows(stored)
    if not (unfinished if follows is None else follows):
        return False
    if (yield Step("recover", partial(context.store.install_left_behind, stored))):
        context.warn(
            f"token file {context.name}: a process ended while it replaced the file; its pair was found beside it and is in place now"
        )
    return True


def check_transaction(
    context: RotationContext, call: endpoint.EndpointCall, pair: ActiveTokens
) -> Transaction:
    """Ask the API whether the access token of `pair` has expired.

    Only a clear yes counts: it will spend the refresh token.
    """
    expired = False
    with suppress(endpoint.Unreachable):
        expired = replies.says_expired((yield Step("ask", partial(context.post, call, ASK_SECONDS))))
    if expired:
        pair.mark_expired()
    pair.doubtful = False


def revocation_transaction(
    context: RotationContext, revoke_call: Callable[[Secret], endpoint.EndpointCall]
) -> Transaction:
    """Tell the server, then remove the file, both under the lock."""
    context.lock = context.store.lock()
    deadline = context.clock.monotonic() + context.lock_timeout
    while not (yield Step("lock", context.lock.take)):
        if context.clock.ending():
            raise RefreshFailed(
                "the program is ending; another process is refreshing", token_file=context.name
            )
        if context.clock.monotonic() > deadline:
            raise context.store.lock_timeout(context.lock, context.lock_timeout)
        yield Step("wait", partial(context.clock.sleep, LAST_LOOK))
    try:
        error = yield from _revoke_locked(context, revoke_call)
    except AdhAuthError as raised:
        error = raised
    yield from attempted(Step("unlock", context.lock.release))
    if error is not None:
        raise error


def _revoke_locked(
    context: RotationContext, revoke_call: Callable[[Secret], endpoint.EndpointCall]
) -> Transaction:
    stored = yield Step("reread", context.store.read_patiently)
    try:
        reply = yield Step(
            "send", partial(context.post, revoke_call(Secret(stored.tokens.refresh_token)), REFRESH_DEADLINE)
        )
    except endpoint.Unreachable as unreachable:
        reason, facts = unreachable.reason, {}
    else:
        if replies.revoked(reply):
            yield Step("remove", context.store.remove)
            return None
        verdict = replies.classify(reply, context.clock.now())
        reason, facts = (
            verdict.reason,
            {"status": verdict.status, "code": verdict.code, "request_id": verdict.request_id},
        )
        if verdict.kind == "misconfigured":
            return ConfigurationError(
                f"the server refuses this client ({reason}); check ADH_CLIENT_ID and ADH_CLIENT_SECRET. {context.name} was kept",
                token_file=context.name,
                code=verdict.code,
                request_id=verdict.request_id,
            )
    return RefreshFailed(
        f"the session of {context.name} could not be revoked: {reason}. The file was kept; try again later",
        token_file=context.name,
        **facts,
    )
