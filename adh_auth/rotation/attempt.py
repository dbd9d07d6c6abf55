"""The part of a rotation that spends the token: send, try again, write the new pair, or record the failure.

Rule 3: a reservation on disk is there before this begins. Rule 4: the pair is written before it is used.
Rule 7: only ``invalid_grant`` is final. Rule 16: once a pair has come, nothing that is raised loses it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

from ..common.guarded_logs import with_guarded_logs
from ..common.limits import REFRESH_DEADLINE
from ..common.secret import Secret
from ..common.text import capitalized, format_time
from ..errors import AdhAuthError, ConfigurationError, MalformedTokens, RefreshFailed, TokenStoreError
from ..oauth import endpoint, replies
from ..store.base import LeaseLost, Look
from ..store.record import DONE, FAILED, REFUSED, SENDING, UNSAVED, Record
from ..tokens import Stored, fingerprint
from .context import RotationContext, Step, Transaction
from .decision import MAX_RETRY_AFTER, Refresh
from .outcome import failure, refusal

if TYPE_CHECKING:
    from ..store.base import Reservation

__all__ = ["Attempt", "attempted"]

#: Seconds between tries to send.
PAUSES = (0.5, 1.0, 2.0)
#: Seconds that the last try has at least, however late it begins.
LEAST_SECONDS = 1.0
#: Seconds between tries to write a pair that could not be written; the last one again and again.
SAVE_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)
#: Tries of a write that something else than the disk broke off, before the user is warned of it.
IMMEDIATE_WRITES = 3
#: Seconds of a longer pause after which the end of the program is noticed.
PAUSE_SLICE = 0.1


def attempted(step: Step) -> Generator[Step, Any, tuple[Any, BaseException | None]]:
    """Return what a step returned, and what it raised, whatever that is.

    A log handler of the program's may raise even SystemExit.
    """
    try:
        return (yield step), None
    except GeneratorExit:  # nothing drives this rotation any more
        raise
    except BaseException as raised:  # noqa: BLE001 - that is the point
        return None, raised


class Attempt:
    """One attempt to refresh, under the lock.

    `look`: what the store holds, and what is recorded of the attempt before. `reservation`: the place of the
    next pair. `decision`: what is known of a lost reply.
    """

    def __init__(
        self, context: RotationContext, look: Look, reservation: Reservation, decision: Refresh
    ) -> None:
        self._context = context
        self._stored = stored = look.stored
        self._reservation = reservation
        pid, host = context.who
        record = look.record
        self._record = Record(
            number=record.number + 1,
            about=fingerprint(stored.tokens.refresh_token),
            owner=context.owner.fingerprint,
            pid=pid,
            host=host,
            lost_at=decision.lost_at,
            lost_how=decision.lost_how,
            rotated_at=record.rotated_at,
            rotated_by=record.rotated_by,
        )
        self._base_url = ""
        #: whether the server has given a pair: from then on the reservation is kept
        self.has_pair: bool = False

    def steps(self) -> Transaction:
        """Send until there is an answer, or another try makes no sense.

        Return the pair to use; raise the outcome's error. Raises `LeaseLost` where another may send by now.
        """
        clock = self._context.clock
        deadline = clock.monotonic() + REFRESH_DEADLINE
        for pause in (*PAUSES, None):
            yield self._note(SENDING)
            verdict, fresh = yield from self._send(deadline - clock.monotonic())
            if fresh is not None:
                return (yield from self._save(fresh))
            wait = max(pause or 0.0, verdict.retry_after or 0.0)
            is_last = pause is None or clock.monotonic() + wait >= deadline
            if verdict.kind != "again" or is_last or clock.ending():
                break
            newer = yield from self._pause(wait)
            if newer is not None:
                return newer
            if clock.ending():
                break
        return (yield from self._conclude(verdict))

    # Sending.

    def _send(self, seconds: float) -> Transaction:
        """Return what the reply means, and the pair if it brought one."""
        context = self._context
        sent_at = context.clock.now()
        call = context.refresh_call(Secret(self._stored.tokens.refresh_token))
        self._base_url = call.url.removesuffix(endpoint.REFRESH_PATH)
        send = partial(with_guarded_logs, self._post_call, call, max(seconds, LEAST_SECONDS))
        reply, raised = yield from attempted(Step("send", send))
        fresh = None
        if raised is None:
            verdict, fresh = yield from self._understood(reply, sent_at)
            context.request_id = verdict.request_id
            uncertain = verdict.kind == "again" and verdict.status != 429
        else:
            verdict, uncertain = _verdict_without_reply(raised)
        if uncertain:
            # A gateway's 502 or a dropped connection may hide that the token was spent. A refusal later on is
            # explained by it.
            self._record = replace(self._record, lost_at=context.clock.now(), lost_how=verdict.reason)
        return verdict, fresh

    def _post_call(self, call: endpoint.EndpointCall, seconds: float) -> endpoint.EndpointReply:
        """Post, if the lock is ours still."""
        # In one step: between two, this process may be suspended for longer than a lease.
        self._context.store.before_send()
        return self._context.post(call, seconds)

    def _understood(self, reply: endpoint.EndpointReply, sent_at: float) -> Transaction:
        """Return what a reply means, and the pair if it brought one.

        Tried again after any exception: a moment without memory is no reason to lose the pair in it.
        """
        for pause in SAVE_PAUSES:
            try:
                return self._parsed(reply, sent_at)
            except BaseException as raised:  # noqa: BLE001 - whatever it was, the pair has come
                problem = type(raised).__name__
            yield from self._rest(pause)
        return replies.Verdict("again", f"its reply could not be read ({problem})"), None

    def _parsed(self, reply: endpoint.EndpointReply, sent_at: float) -> tuple[replies.Verdict, Stored | None]:
        verdict = replies.classify(reply, self._context.clock.now())
        if verdict.kind != "pair":
            return verdict, None
        try:
            fresh = self._stored.rotated(verdict.mapping, sent_at)
            return verdict, self._context.owner.mark(fresh, self._stored)
        except MalformedTokens as malformed:
            problem = f"the endpoint's reply is of no use: {malformed.message}"
            return verdict._replace(kind="useless", reason=problem), None

    # Pausing.

    def _rest(self, seconds: float) -> Transaction:
        """Pause, until the program is ending at the latest."""
        clock = self._context.clock
        while seconds > 0 and not clock.ending():
            yield Step("pause", partial(clock.sleep, min(seconds, PAUSE_SLICE)))
            seconds -= PAUSE_SLICE

    def _pause(self, seconds: float) -> Transaction:
        """Pause; then return the pair of a new sign-in, if there was one meanwhile."""
        yield from self._rest(seconds)
        return (yield from self._newer())

    def _newer(self) -> Transaction:
        """Return the stored pair if it is not the one that is being spent (rule 8)."""
        stored = (yield Step("reread", self._context.store.look)).stored
        return None if stored.tokens.refresh_token == self._stored.tokens.refresh_token else stored.tokens

    # A pair has come.

    def _save(self, fresh: Stored) -> Transaction:
        """Write the new pair. Return the pair in force."""
        self.has_pair = self._context.refreshed = True
        for _ in range(IMMEDIATE_WRITES):
            written, raised = yield from self._write(fresh)
            if raised is None or isinstance(raised, TokenStoreError):
                break
        if raised is not None:
            return (yield from self._continue_unsaved(fresh, _described(raised)))
        return (yield from self._saved(fresh, written))

    def take_over(self, fresh: Stored) -> Transaction:
        """Write a pair that another process got and could not write. Return the pair in force."""
        self.has_pair = self._context.refreshed = True
        return (yield from self._continue_unsaved(fresh, "the process that was to write it has ended"))

    def _write(self, fresh: Stored) -> Transaction:
        """Try to write. Return whether it was done, False if the store is newer, and what was raised."""
        now, pid = self._context.clock.now(), self._record.pid
        success = replace(
            self._record, state=DONE, at=now, rotated_at=now, rotated_by=pid, lost_at=None, lost_how=None
        )
        write = partial(self._reservation.replace, fresh, self._stored, success)
        return (yield from attempted(Step("write", write)))

    def _saved(self, fresh: Stored, written: bool) -> Transaction:
        if written:
            return fresh.tokens
        return (yield Step("reread", self._context.store.look)).stored.tokens

    def _continue_unsaved(self, fresh: Stored, why: str) -> Transaction:
        """Go on with a pair that is in memory only, and write it once that works. Return the pair in force.

        The lock stays held meanwhile, so that no process spends the dead pair (rule 3).
        """
        context = self._context
        context.problem = why
        # Recorded and warned of first: `continue_unsaved` lets the caller go on.
        yield from self._warn_unsaved(why)
        with suppress(Exception):  # a caller that can't go on waits until the pair is written
            context.continue_unsaved(fresh.tokens)
        written, raised = yield from self._write_later(fresh)
        if raised is not None:
            context.warn(f"the program ends, and its new pair could not be written: {_described(raised)}")
            return fresh.tokens
        if written:
            context.warn(f"{context.store.what()} could be written again and holds the new pair")
        return (yield from self._saved(fresh, written))

    def _warn_unsaved(self, why: str) -> Transaction:
        record = replace(self._record, state=UNSAVED, at=self._context.clock.now(), reason=why)
        yield from self._note_if_possible(record)
        self._context.warn(
            f"the new pair could not be written: {why}. This process goes on with it and keeps trying; "
            "if it ends before that works, you will have to sign in again"
        )

    def _write_later(self, fresh: Stored) -> Transaction:
        """Try to write until that works, or the program ends. Return what the last `_write` returned."""
        pauses = chain(SAVE_PAUSES, repeat(SAVE_PAUSES[-1]))
        last_pauses = iter(self._context.store.pace.last_pauses)
        while True:
            may_try_again = yield from self._pause_before_write(next(pauses), last_pauses)
            written, raised = yield from self._write(fresh)
            if raised is None or not may_try_again:
                return written, raised

    def _pause_before_write(self, seconds: float, last_pauses: Iterator[float]) -> Transaction:
        """Pause; once the program is ending, by `last_pauses`. Return False if none of these is left."""
        clock = self._context.clock
        yield from self._rest(seconds)
        if not clock.ending():
            return True
        last = next(last_pauses, None)
        if last is None:
            return False
        yield Step("pause", partial(clock.sleep, last))
        return True

    # No pair has come.

    def _conclude(self, verdict: replies.Verdict) -> Transaction:
        """Record why no pair has come, and raise the error; return the pair of a new sign-in instead."""
        if verdict.kind == "refused":
            return (yield from self._refused(verdict))
        if verdict.kind == "misconfigured":
            next_step = "the server refuses this client; check ADH_CLIENT_ID and ADH_CLIENT_SECRET"
            error = yield from self._failed(verdict, ConfigurationError, next_step)
        elif verdict.kind == "useless":
            error = yield from self._failed(verdict, RefreshFailed, "the old pair was kept")
        else:
            error = yield from self._failed(verdict, RefreshFailed, self._outlook(verdict))
        raise error

    def _refused(self, verdict: replies.Verdict) -> Transaction:
        newer = yield from self._newer()
        if newer is not None:
            return newer
        record = replace(
            self._record,
            state=REFUSED,
            at=self._context.clock.now(),
            code=verdict.code,
            status=verdict.status,
            request_id=verdict.request_id,
        )
        yield from self._note_if_possible(record)
        self._context.failed_attempt = record
        raise refusal(record, self._context.store)

    def _failed(self, verdict: replies.Verdict, kind: type[AdhAuthError], next_step: str) -> Transaction:
        """Record the failure for every process that waits. Return its error, of the class `kind`."""
        record = replace(
            self._record,
            state=FAILED,
            at=self._context.clock.now(),
            error=kind.__name__,
            reason=(
                f"the refresh for {self._context.store.name} at {self._base_url} failed: {verdict.reason}."
                f"{self._lost_reply()} {capitalized(next_step)}."
            ),
            status=verdict.status,
            code=verdict.code,
            request_id=verdict.request_id,
            retry_after=verdict.retry_after,
            not_before=self._pause_end(verdict),
        )
        yield from self._note_if_possible(record)
        self._context.failed_attempt = record
        return failure(record, self._context.store)

    def _lost_reply(self) -> str:
        if self._record.lost_at is None:
            return ""
        lost_at = format_time(self._record.lost_at)
        return f" A reply may have been lost at {lost_at} ({self._record.lost_how})."

    def _pause_end(self, verdict: replies.Verdict) -> float | None:
        """Return until when the server wants no other try, in epoch seconds; None if it does not say."""
        if verdict.retry_after is None:
            return None
        return self._context.clock.now() + min(verdict.retry_after, MAX_RETRY_AFTER)

    def _outlook(self, verdict: replies.Verdict) -> str:
        good = "the session is still good"
        if self._record.lost_at is not None:
            good = (
                "the session is most likely still good; if that try has used up the token,"
                " the next one will ask for a new sign-in"
            )
        until = self._pause_end(verdict)
        if until is None:
            return f"{good}; try again later"
        return f"{good}; the server has asked for a pause, and nobody tries again before {format_time(until)}"

    # The record.

    def _note(self, state: str) -> Step:
        self._record = replace(self._record, state=state, at=self._context.clock.now())
        return Step("note", partial(self._context.store.note, self._record))

    def _note_if_possible(self, record: Record) -> Transaction:
        # The outcome is the same whether or not other processes learn of it.
        _, raised = yield from attempted(Step("note", partial(self._context.store.note, record)))
        if raised is not None and not isinstance(raised, LeaseLost):
            self._context.warn(_described(raised))


def _verdict_without_reply(raised: BaseException) -> tuple[replies.Verdict, bool]:
    """Return what follows from a call that raised, and whether the token may be spent."""
    if isinstance(raised, endpoint.Unreachable):
        return replies.Verdict("again", raised.reason), raised.sent
    if isinstance(raised, (AdhAuthError, LeaseLost)):
        raise raised
    return replies.Verdict("failed", f"the call broke off ({type(raised).__name__})"), True


def _described(raised: BaseException) -> str:
    """Return what was raised, in words that hold no secret."""
    if isinstance(raised, AdhAuthError):
        return raised.message
    return f"{type(raised).__name__} while it was written"
