"""The second half of a sign-in: trade the code for the first pair, and save it.

Nothing of the old session is touched before the new pair is there (rule 8).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from ..clients.requests_transport import post
from ..common.secret import Secret
from ..common.threads import THREAD_NAME_PREFIX
from ..errors import AdhAuthError, MalformedTokens, RefreshFailed, fresh_copy
from ..oauth import endpoint, replies
from ..rotation.owner import Owner
from ..rotation.waiters import Waiters, task_waiter
from ..tokens import Stored, Tokens, fingerprint
from .authorization import FILE_UNCHANGED, Authorization, state_mismatch

if TYPE_CHECKING:
    import requests

    from ..store.base import SessionStore

__all__ = ["complete", "in_its_own_thread"]

#: Seconds for the exchange. The code lives 60, and the browser has used up some of them.
EXCHANGE_DEADLINE = 30.0
#: Key of a token file: the fingerprint of the state of the sign-in that began its session.
SIGN_IN = "sign_in"


def complete(
    authorization: Authorization, code: Secret, target: SessionStore, client: requests.Session | None
) -> Tokens:
    """Trade the code, save the pair, and return it. Raises `AdhAuthError`, without frames that hold them."""
    failure = None
    try:
        target.require_writable()  # a code that was spent is lost with what it would have brought
        mark = fingerprint(authorization.pending.state.reveal())
        _check_not_finished(target, mark)
        fresh = _exchange(authorization, code, target, client)
        owner = Owner(authorization.app.base_url, authorization.app.client_id)
        target.save_mapping({**owner.name_in(fresh.mapping), SIGN_IN: mark}, fresh.tokens)
        return fresh.tokens
    except AdhAuthError as error:
        failure = fresh_copy(error)
    raise failure


def _check_not_finished(target: SessionStore, mark: str) -> None:
    """Raise for an answer that was loaded again in another process.

    A code that comes twice ends the session that it began (RFC 6749 section 4.1.2).
    """
    known = None
    with suppress(AdhAuthError):  # no session yet
        known = target.read().mapping.get(SIGN_IN)
    if known == mark:
        raise state_mismatch("this sign-in was finished before")


def _exchange(
    authorization: Authorization, code: Secret, target: SessionStore, client: requests.Session | None
) -> Stored:
    sent_at = time.time()
    verdict = replies.classify(_post(authorization, code, client), sent_at)
    if verdict.kind != "pair":
        raise authorization.error_for(verdict, target.facts_for_errors())
    problem = None
    try:
        return Stored(Tokens.from_response(verdict.mapping, now=sent_at), verdict.mapping)
    except MalformedTokens as malformed:
        problem = malformed.message
    raise RefreshFailed(
        f"the reply to the exchange is unusable: {problem}. {FILE_UNCHANGED}; try again later",
        status=verdict.status,
    )


def _post(
    authorization: Authorization, code: Secret, client: requests.Session | None
) -> endpoint.EndpointReply:
    problem = None
    try:
        # Once: the server takes a second use of a code for theft, and may end the session that the first one
        # started.
        return post(authorization.exchange(code), EXCHANGE_DEADLINE, client, {})
    except endpoint.Unreachable as unreachable:
        problem = unreachable.reason
    raise authorization.unreachable(problem)


async def in_its_own_thread(work: Callable[[], Tokens]) -> Tokens:
    """Run `work` in a thread of its own and await it, on any event loop.

    A task that is cancelled leaves it, and the pair is saved all the same (rule 5). Raises what it raises.
    """
    import anyio

    event, waiters = anyio.Event(), Waiters()
    outcome: list[Tokens | AdhAuthError] = []
    me = task_waiter(event.set)
    waiters.add(me)

    def run() -> None:
        outcome.append(_outcome_of(work))
        waiters.wake()

    _start(run)
    try:
        await event.wait()
    finally:
        waiters.remove(me)
    result = outcome[0]
    if isinstance(result, AdhAuthError):
        raise result
    return result


def _outcome_of(work: Callable[[], Tokens]) -> Tokens | AdhAuthError:
    try:
        return work()
    except AdhAuthError as error:
        return fresh_copy(error)
    # Its frames hold tokens, so only its type is kept.
    except BaseException as error:  # noqa: BLE001 - the task must not wait for ever
        return RefreshFailed(f"the exchange of the code broke off: {type(error).__name__}; start again")


def _start(run: Callable[[], None]) -> None:
    # Not a daemon: the interpreter joins it at its end, and it is not cut off in mid-write.
    thread = threading.Thread(target=run, name=THREAD_NAME_PREFIX + "sign-in", daemon=False)
    problem = None
    try:
        thread.start()
    except RuntimeError:
        problem = "no thread can be started for the exchange of the code; nothing was sent, start again"
    if problem is not None:
        raise RefreshFailed(problem)
