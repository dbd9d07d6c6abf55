"""The part of a rotation that spends the token: send, try again, write what came, or record why nothing did."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from functools import partial

from . import endpoint
from .attempts import DONE, FAILED, REFUSED, SENDING, UNSAVED, Record
from .decide import LONGEST_RESPECT, Refresh, failure, moment, refusal
from .errors import AdhAuthError, ConfigurationError, MalformedTokens, RefreshFailed, TokenFileError
from .plan import Plan, Reserved, Step, Steps
from .settings import REFRESH_DEADLINE
from .tokens import Secret, Stored, fingerprint

__all__ = ["Attempt"]

#: Seconds between tries.
PAUSES = (0.5, 1.0, 2.0)
#: Seconds between tries to write a pair that could not be written.
SAVE_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)


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
        self._where = ""
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
        raise (yield from self._failed(verdict, RefreshFailed, self._outlook(verdict)))

    def _send(self, seconds: float) -> Steps:
        plan = self._plan
        call = plan.refresh_call(Secret(self._stored.tokens.refresh_token))
        self._where = call.url.removesuffix(endpoint.REFRESH_PATH)
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
        self._plan.refreshed = True
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
            reason=f"the refresh for {self._plan.name} at {self._where} failed: {verdict.reason}.{lost} {advice[0].upper()}{advice[1:]}.",
            status=verdict.status,
            code=verdict.code,
            request_id=verdict.request_id,
            retry_after=verdict.retry_after,
            not_before=None if verdict.retry_after is None else now + verdict.retry_after,
        )
        yield from self._note_if_possible(record)
        return failure(record, self._plan.name)

    def _outlook(self, verdict: endpoint.Verdict) -> str:
        good = "the session is still good"
        if self._record.lost_at is not None:
            good = "the session is most likely still good; if that try has used up the token, the next one will ask for a new sign-in"
        if verdict.retry_after is None:
            return f"{good}; try again later"
        until = self._plan.clock.now() + min(verdict.retry_after, LONGEST_RESPECT)
        return f"{good}; the server has asked for a pause, and nobody tries again before {moment(until)}"

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
