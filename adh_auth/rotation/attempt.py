"""The part of a rotation that spends the token: send, try again, write what came, or record why nothing did."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..common.guarded_logs import with_guarded_logs
from ..common.limits import REFRESH_DEADLINE
from ..common.secret import Secret
from ..common.text import format_time
from ..errors import AdhAuthError, ConfigurationError, MalformedTokens, RefreshFailed, TokenFileError
from ..oauth import endpoint, replies
from ..store.record import DONE, FAILED, REFUSED, SENDING, UNSAVED, Record
from ..tokens import Stored, fingerprint
from .context import RotationContext, Step, Transaction
from .decision import MAX_RETRY_AFTER, Refresh
from .outcome import failure, refusal

if TYPE_CHECKING:
    from ..store.base import Reservation

__all__ = ["Attempt", "attempted"]

#: Seconds between tries.
PAUSES = (0.5, 1.0, 2.0)
#: Seconds between tries to write a pair that could not be written.
SAVE_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)
#: Seconds between the last tries, once the program is ending: a full disk or a network mount is often back
#: after a moment.
LAST_PAUSES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.8, 1.0, 1.0)
#: Tries of a write that something else than the disk broke off, before anybody hears of it.
AT_ONCE = 3
#: Seconds of a longer pause after which the end of the program is noticed.
NAP = 0.1


def attempted(step: Step) -> Generator[Step, Any, tuple[Any, BaseException | None]]:
    """What a step gave, and what it raised, whatever that is: a log handler of the program's may raise
    SystemExit.
    """
    try:
        return (yield step), None
    except GeneratorExit:  # nobody drives this rotation any more
        raise
    except BaseException as raised:  # noqa: BLE001 - that is the point
        return None, raised


class Attempt:
    """The part of a rotation that spends the token. Under the lock, with room reserved."""

    def __init__(
        self, context: RotationContext, stored: Stored, room: Reservation, record: Record, decision: Refresh
    ) -> None:
        self._context = context
        self._stored = stored
        self._room = room
        pid, host = context.who
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
        self._where = ""
        #: whether the server has given a pair: from then on the reserved room is not given back
        self.has_pair = False

    def steps(self) -> Transaction:
        """Send until there is an answer, or no use in trying."""
        clock = self._context.clock
        deadline = clock.monotonic() + REFRESH_DEADLINE
        for pause in (*PAUSES, None):
            yield self._note(SENDING)
            verdict, fresh = yield from self._send(deadline - clock.monotonic())
            if fresh is not None:
                return (yield from self._take(fresh))
            if verdict.kind == "refused":
                return (yield from self._refused(verdict))
            if verdict.kind == "misconfigured":
                advice = "the server refuses this client; check ADH_CLIENT_ID and ADH_CLIENT_SECRET"
                raise (yield from self._failed(verdict, ConfigurationError, advice))
            if verdict.kind == "useless":
                raise (yield from self._failed(verdict, RefreshFailed, "the old pair was kept"))
            wait = max(pause or 0.0, verdict.retry_after or 0.0)
            if (
                verdict.kind == "failed"
                or pause is None
                or clock.monotonic() + wait >= deadline
                or clock.ending()
            ):
                break
            if (newer := (yield from self._pause(wait))) is not None:
                return newer
            if clock.ending():
                break
        raise (yield from self._failed(verdict, RefreshFailed, self._outlook(verdict)))

    def _send(self, seconds: float) -> Transaction:
        """What the reply means, and the pair if it brought one."""
        context = self._context
        sent_at = context.clock.now()
        call = context.refresh_call(Secret(self._stored.tokens.refresh_token))
        self._where = call.url.removesuffix(endpoint.REFRESH_PATH)
        reply, raised = yield from attempted(
            Step("send", partial(with_guarded_logs, context.post, call, max(seconds, 1.0)))
        )
        fresh = None
        if raised is None:
            verdict, fresh = yield from self._understood(reply, sent_at)
            uncertain = verdict.kind == "again" and verdict.status != 429
        elif isinstance(raised, endpoint.Unreachable):
            verdict, uncertain = replies.Verdict("again", raised.reason), raised.sent
        elif isinstance(raised, AdhAuthError):
            raise raised
        else:
            verdict, uncertain = (
                replies.Verdict("failed", f"the call broke off ({type(raised).__name__})"),
                True,
            )
        if uncertain:
            # A gateway's 502 or a dropped connection may hide that the token was spent. A refusal later on is
            # explained by it.
            self._record = replace(self._record, lost_at=context.clock.now(), lost_how=verdict.reason)
        return verdict, fresh

    def _understood(self, reply: endpoint.EndpointReply, sent_at: float) -> Transaction:
        """The same of a reply that has come; a lack of memory, for the moment, is no reason to drop a pair."""
        for pause in SAVE_PAUSES:
            try:
                return self._parsed(reply, sent_at)
            except BaseException as raised:  # noqa: BLE001 - whatever it was, the pair is in hand
                problem = type(raised).__name__
            yield from self._rest(pause)
        return replies.Verdict("again", f"its reply could not be read ({problem})"), None

    def _parsed(self, reply: endpoint.EndpointReply, sent_at: float) -> tuple[replies.Verdict, Stored | None]:
        verdict = replies.classify(reply, self._context.clock.now())
        if verdict.kind != "pair":
            return verdict, None
        try:
            return verdict, self._stored.rotated(verdict.mapping, sent_at)
        except MalformedTokens as malformed:
            return verdict._replace(
                kind="useless", reason=f"the endpoint's reply is of no use: {malformed.message}"
            ), None

    def _rest(self, seconds: float) -> Transaction:
        """A pause that the end of the program cuts short."""
        clock = self._context.clock
        while seconds > 0 and not clock.ending():
            yield Step("pause", partial(clock.sleep, min(seconds, NAP)))
            seconds -= NAP

    def _pause(self, seconds: float) -> Transaction:
        """Wait, then look whether somebody has signed in meanwhile."""
        yield from self._rest(seconds)
        return (yield from self._newer())

    def _newer(self) -> Transaction:
        stored = yield Step("reread", self._context.store.read_patiently)
        return None if stored.tokens.refresh_token == self._stored.tokens.refresh_token else stored.tokens

    def _take(self, fresh: Stored) -> Transaction:
        self.has_pair = self._context.refreshed = True
        for _ in range(AT_ONCE):
            written, refused = yield from attempted(
                Step("write", partial(self._room.replace, fresh, self._stored))
            )
            if refused is None or isinstance(refused, TokenFileError):
                break
        if refused is not None:
            return (yield from self._continue_unsaved(fresh, _said(refused)))
        if not written:
            return (yield Step("reread", self._context.store.read)).tokens
        yield from self._record_success()
        return fresh.tokens

    def _record_success(self) -> Transaction:
        now = self._context.clock.now()
        success = replace(
            self._record,
            state=DONE,
            at=now,
            rotated_at=now,
            rotated_by=self._record.pid,
            lost_at=None,
            lost_how=None,
        )
        yield from self._note_if_possible(success)

    def _continue_unsaved(self, fresh: Stored, why: str) -> Transaction:
        """The pair is in memory only.

        Go on with it, keep the lock so that nobody spends the dead one, and write it once that works.
        """
        context = self._context
        # Said and recorded first: `continue_unsaved` lets the caller go on.
        yield from self._note_if_possible(
            replace(self._record, state=UNSAVED, at=context.clock.now(), reason=why)
        )
        context.warn(
            f"the new pair could not be written: {why}. This process goes on with it and keeps trying; "
            "if it ends before that works, you will have to sign in again"
        )
        with suppress(Exception):  # a caller who is not let go on waits until it is written
            context.continue_unsaved(fresh.tokens)
        last_pauses = iter(LAST_PAUSES)
        for pause in _ever(SAVE_PAUSES):
            yield from self._rest(pause)
            last = next(last_pauses, None) if context.clock.ending() else 0.0
            if last:
                yield Step("pause", partial(context.clock.sleep, last))
            written, refused = yield from attempted(
                Step("write", partial(self._room.replace, fresh, self._stored))
            )
            if refused is None:
                break
            if last is None:
                context.warn(f"the program ends, and its new pair could not be written: {_said(refused)}")
                return fresh.tokens
        if not written:
            return (yield Step("reread", context.store.read)).tokens
        context.warn(f"token file {context.name} could be written again and holds the new pair")
        yield from self._record_success()
        return fresh.tokens

    def _refused(self, verdict: replies.Verdict) -> Transaction:
        if (newer := (yield from self._newer())) is not None:
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
        raise refusal(record, self._context.name)

    def _failed(self, verdict: replies.Verdict, kind: type[AdhAuthError], advice: str) -> Transaction:
        """Record the failure for whoever waits; gives the error."""
        now = self._context.clock.now()
        lost = ""
        if self._record.lost_at is not None:
            lost = f" A reply may have been lost at {format_time(self._record.lost_at)} ({self._record.lost_how})."
        record = replace(
            self._record,
            state=FAILED,
            at=now,
            error=kind.__name__,
            reason=f"the refresh for {self._context.name} at {self._where} failed: {verdict.reason}.{lost} {advice[0].upper()}{advice[1:]}.",
            status=verdict.status,
            code=verdict.code,
            request_id=verdict.request_id,
            retry_after=verdict.retry_after,
            not_before=None
            if verdict.retry_after is None
            else now + min(verdict.retry_after, MAX_RETRY_AFTER),
        )
        yield from self._note_if_possible(record)
        return failure(record, self._context.name)

    def _outlook(self, verdict: replies.Verdict) -> str:
        good = "the session is still good"
        if self._record.lost_at is not None:
            good = "the session is most likely still good; if that try has used up the token, the next one will ask for a new sign-in"
        if verdict.retry_after is None:
            return f"{good}; try again later"
        until = self._context.clock.now() + min(verdict.retry_after, MAX_RETRY_AFTER)
        return f"{good}; the server has asked for a pause, and nobody tries again before {format_time(until)}"

    def _note(self, state: str) -> Step:
        self._record = replace(self._record, state=state, at=self._context.clock.now())
        return Step("note", partial(self._context.store.note, self._record))

    def _note_if_possible(self, record: Record) -> Transaction:
        # The outcome stands whether or not others can be told.
        _, refused = yield from attempted(Step("note", partial(self._context.store.note, record)))
        if refused is not None:
            self._context.warn(_said(refused))


def _said(raised: BaseException) -> str:
    """What was raised, from facts that hold no secret."""
    return (
        raised.message
        if isinstance(raised, AdhAuthError)
        else f"{type(raised).__name__} while it was written"
    )


def _ever(pauses: tuple[float, ...]) -> Generator[float, None, None]:
    yield from pauses
    while True:
        yield pauses[-1]
