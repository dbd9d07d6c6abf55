"""One attempt: send, try again, write what came, or record why nothing did.

Store, clock and endpoint are in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from adh_auth.common.limits import REFRESH_DEADLINE
from adh_auth.errors import (
    AdhAuthError,
    ConfigurationError,
    ReauthorizationRequired,
    RefreshFailed,
    TokenFileError,
)
from adh_auth.oauth import replies
from adh_auth.oauth.endpoint import Unreachable
from adh_auth.rotation.attempt import (
    IMMEDIATE_WRITES,
    LEAST_SECONDS,
    PAUSES,
    SAVE_PAUSES,
    Attempt,
)
from adh_auth.rotation.decision import MAX_RETRY_AFTER, Refresh
from adh_auth.store.base import Look
from adh_auth.store.record import DONE, FAILED, REFUSED, SENDING, UNSAVED, Record
from adh_auth.tokens import Tokens, fingerprint

from .memory import BUSY, INVALID_GRANT, NEW, OLD, PACE, PAIR, SIGNED_IN, Endpoint, World, reply, stored

BEFORE = Record(number=6, about="another", state=DONE, rotated_at=1_600_000_000.0, rotated_by=7)


def attempt_in(world: World, decision: Refresh | None = None) -> Attempt:
    """Return an attempt on the pair `OLD`."""
    look = Look(None, stored(OLD), BEFORE)
    return Attempt(world.context(), look, world.store.reserve(), decision or Refresh())


def run(attempt: Attempt, names: list[str] | None = None) -> Tokens:
    """Do all steps; collect their names. Return the pair to use; raise the attempt's error."""
    steps = attempt.steps()
    value: Any = None
    error: BaseException | None = None
    while True:
        try:
            step = steps.send(value) if error is None else steps.throw(error)
        except StopIteration as end:
            tokens: Tokens = end.value
            return tokens
        value, error = None, None
        if names is not None:
            names.append(step.name)
        try:
            value = step.work()
        except BaseException as raised:
            error = raised


def states(world: World) -> list[str]:
    """Return the states that were recorded, in order."""
    return [record.state for record in world.store.notes]


# A pair comes.


def test_a_pair_is_written_before_it_is_returned() -> None:
    """The record says SENDING before the token goes out, and DONE after the pair is written."""
    world, names = World(Endpoint(PAIR)), list[str]()
    attempt = attempt_in(world)
    assert run(attempt, names) == NEW
    assert names == ["note", "send", "write"]
    assert states(world) == [SENDING, DONE]
    assert world.store.content.tokens == NEW
    assert attempt.has_pair


def test_the_record_counts_and_names_the_attempt() -> None:
    """A waiter learns by number, process and fingerprint whose attempt it was, and about which token."""
    world = World(Endpoint(PAIR))
    run(attempt_in(world))
    sending, done = world.store.notes
    assert (sending.number, sending.pid, sending.host) == (7, 4242, "here")
    assert sending.about == done.about == fingerprint(OLD.refresh_token)
    assert (sending.rotated_at, sending.rotated_by) == (BEFORE.rotated_at, BEFORE.rotated_by)
    assert (done.rotated_at, done.rotated_by) == (world.clock.now(), 4242)


def test_a_success_forgets_the_lost_reply() -> None:
    """A reply that was lost before explains nothing once a pair has come."""
    world = World(Endpoint(PAIR))
    run(attempt_in(world, Refresh(5.0, "HTTP 502")))
    sending, done = world.store.notes
    assert (sending.lost_at, sending.lost_how) == (5.0, "HTTP 502")
    assert (done.lost_at, done.lost_how) == (None, None)


def test_a_moment_without_memory_loses_no_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply is read again after a pause, and the token is not sent a second time."""
    errors: list[BaseException] = [MemoryError(), SystemExit()]
    real = replies.classify

    def classify(*arguments: Any) -> replies.Verdict:
        if errors:
            raise errors.pop()
        return real(*arguments)

    monkeypatch.setattr(replies, "classify", classify)
    world = World(Endpoint(PAIR))
    assert run(attempt_in(world)) == NEW
    assert len(world.endpoint.calls) == 1
    assert world.clock.passed == pytest.approx(sum(SAVE_PAUSES[:2]))


def test_a_sign_in_during_the_refresh_wins() -> None:
    """A file that holds another token than the spent one is left alone, and its pair is used."""
    world = World(Endpoint(PAIR))
    world.endpoint.when_called = lambda: world.store.sign_in(SIGNED_IN)
    assert run(attempt_in(world)) == SIGNED_IN
    assert states(world) == [SENDING]


# No answer, or an error that may pass.


def test_an_outage_is_tried_for_as_often_as_there_are_pauses() -> None:
    """Then the failure is recorded for those who wait, and the pair is as it was."""
    world = World(Endpoint(BUSY))
    attempt = attempt_in(world)
    with pytest.raises(RefreshFailed, match=r"at https://api\.example failed: HTTP 503") as caught:
        run(attempt)
    assert len(world.endpoint.calls) == len(PAUSES) + 1
    assert world.clock.passed == pytest.approx(sum(PAUSES))
    assert states(world) == [SENDING] * (len(PAUSES) + 1) + [FAILED]
    assert world.store.notes[-1].reason == caught.value.message
    assert (world.store.content.tokens, attempt.has_pair) == (OLD, False)


def test_the_second_try_may_succeed() -> None:
    """An endpoint that recovers is met by the same token."""
    world = World(Endpoint(BUSY, PAIR))
    assert run(attempt_in(world)) == NEW
    assert [call.payload["refresh_token"] for call in world.endpoint.calls] == [OLD.refresh_token] * 2


def test_a_pause_that_the_server_asks_for_is_kept() -> None:
    """Retry-After counts where it is longer than the pause would be, and only there."""
    world = World(Endpoint(reply(429, {"Retry-After": "4"}), reply(429, {"Retry-After": "0.25"}), PAIR))
    assert run(attempt_in(world)) == NEW
    assert world.clock.passed == pytest.approx(4 + PAUSES[1])


@pytest.mark.parametrize(("asked", "calls"), [(REFRESH_DEADLINE, 1), (REFRESH_DEADLINE - 0.5, 2)])
def test_a_pause_beyond_the_deadline_ends_the_attempt(asked: float, calls: int) -> None:
    """A try that would begin at the deadline is none; one that begins just before it is made."""
    world = World(Endpoint(reply(429, {"Retry-After": f"{asked}"})))
    with pytest.raises(RefreshFailed, match="the server has asked for a pause") as caught:
        run(attempt_in(world))
    assert len(world.endpoint.calls) == calls
    assert caught.value.retry_after == asked


@pytest.mark.parametrize("asked", [MAX_RETRY_AFTER - 1, MAX_RETRY_AFTER + 1, 3600.0])
def test_others_keep_the_pause_for_a_minute_at_most(asked: float) -> None:
    """A mistaken hour locks no process out."""
    world = World(Endpoint(reply(429, {"Retry-After": f"{asked}"})))
    with pytest.raises(RefreshFailed):
        run(attempt_in(world))
    assert world.store.last_record.not_before == world.clock.now() + min(asked, MAX_RETRY_AFTER)


def test_a_try_gets_what_is_left_of_the_deadline() -> None:
    """The first gets all of it; one that begins late gets a second at least."""
    world = World(Endpoint(reply(429, {"Retry-After": f"{REFRESH_DEADLINE - 0.5}"}), PAIR))
    run(attempt_in(world))
    assert world.endpoint.seconds == [REFRESH_DEADLINE, LEAST_SECONDS]


def test_no_further_try_once_the_program_is_ending() -> None:
    """A script does not hang on its way out for an endpoint that is down."""
    world = World(Endpoint(BUSY))
    world.clock.is_ending = True
    with pytest.raises(RefreshFailed):
        run(attempt_in(world))
    assert (len(world.endpoint.calls), world.clock.slept) == (1, [])


def test_the_end_of_the_program_cuts_a_pause_short() -> None:
    """It is noticed within a fraction of a second."""
    world = World(Endpoint(BUSY))
    world.clock.when_slept = lambda: setattr(world.clock, "is_ending", True)
    with pytest.raises(RefreshFailed):
        run(attempt_in(world))
    assert len(world.endpoint.calls) == len(world.clock.slept) == 1
    assert world.clock.passed < PAUSES[0]


def test_a_sign_in_during_a_pause_is_used() -> None:
    """The old token is not sent again."""
    world = World(Endpoint(BUSY))
    world.clock.when_slept = lambda: world.store.sign_in(SIGNED_IN)
    assert run(attempt_in(world)) == SIGNED_IN
    assert len(world.endpoint.calls) == 1


# Refused.


def test_a_refusal_is_final_and_recorded() -> None:
    """``invalid_grant`` ends the attempt, with the facts for every process that comes later."""
    world = World(Endpoint(INVALID_GRANT))
    with pytest.raises(ReauthorizationRequired, match="You must sign in again") as caught:
        run(attempt_in(world))
    assert len(world.endpoint.calls) == 1
    assert (caught.value.code, caught.value.request_id) == ("invalid_grant", "req_1")
    record = world.store.last_record
    assert (record.state, record.code, record.status, record.request_id) == (
        REFUSED,
        "invalid_grant",
        400,
        "req_1",
    )


def test_a_refusal_after_a_new_sign_in_is_not_raised() -> None:
    """The new session is used, and nothing is recorded against the old one."""
    world = World(Endpoint(INVALID_GRANT))
    world.endpoint.when_called = lambda: world.store.sign_in(SIGNED_IN)
    assert run(attempt_in(world)) == SIGNED_IN
    assert states(world) == [SENDING]


LOST = (
    (BUSY, True),
    (reply(200, nothing="of use"), True),
    (Unreachable("ReadTimeout", sent=True), True),
    (Unreachable("ConnectTimeout", sent=False), False),
    (reply(429), False),
)


@pytest.mark.parametrize(("answer", "may_be_spent"), LOST)
def test_a_refusal_is_explained_by_a_lost_reply(answer: Any, may_be_spent: bool) -> None:
    """Only an answer that may hide a spent token counts as a lost reply: a 429 and a failed connect don't."""
    world = World(Endpoint(answer, INVALID_GRANT))
    with pytest.raises(ReauthorizationRequired) as caught:
        run(attempt_in(world))
    assert (caught.value.reply_lost_at is not None) is may_be_spent
    assert ("was lost at" in caught.value.message) is may_be_spent


def test_a_refused_client_is_an_error_of_its_own() -> None:
    """The session is as good as before, and no second call is made."""
    world = World(Endpoint(reply(401, error="invalid_client")))
    with pytest.raises(ConfigurationError, match=r"failed: HTTP 401 invalid_client\. The server refuses"):
        run(attempt_in(world))
    assert len(world.endpoint.calls) == 1
    assert (world.store.last_record.state, world.store.last_record.error) == (FAILED, "ConfigurationError")


def test_a_pair_of_no_use_keeps_the_old_one() -> None:
    """A token that may not go into a header is not written, and its endpoint not asked again."""
    world = World(Endpoint(reply(200, access_token="a\nb", refresh_token="r")))
    attempt = attempt_in(world)
    with pytest.raises(RefreshFailed, match=r"The old pair was kept\.$"):
        run(attempt)
    assert (len(world.endpoint.calls), attempt.has_pair) == (1, False)


@pytest.mark.parametrize("raised", [ConfigurationError("no such proxy"), ZeroDivisionError("adh_secret")])
def test_what_a_call_raises_ends_the_attempt(raised: Exception) -> None:
    """An error of this library is raised as it is. Of any other only the type is shown, and the doubt."""
    world = World(Endpoint(raised))
    with pytest.raises(AdhAuthError) as caught:
        run(attempt_in(world))
    assert len(world.endpoint.calls) == 1
    assert "adh_secret" not in caught.value.message
    if not isinstance(raised, AdhAuthError):
        assert "ZeroDivisionError" in caught.value.message
        assert "A reply may have been lost" in caught.value.message


# A pair that can't be written.


def test_a_write_that_broke_off_is_tried_again_at_once() -> None:
    """Nothing is warned of while another try may still work."""
    world = World(Endpoint(PAIR))
    world.store.refusals = [MemoryError()] * (IMMEDIATE_WRITES - 1)
    assert run(attempt_in(world)) == NEW
    assert (world.store.writes, world.warnings, world.clock.slept) == (IMMEDIATE_WRITES, [], [])


def test_the_caller_goes_on_with_an_unsaved_pair() -> None:
    """It is recorded and warned of before the caller goes on, and written once that works."""
    world = World(Endpoint(PAIR))
    world.store.refusals = [TokenFileError("the disk is full")] * 3
    seen: list[tuple[str, int]] = []
    attempt = attempt_in(world)
    attempt._context.continue_unsaved = lambda tokens: seen.append(
        (world.store.last_record.state, len(world.warnings))
    )
    assert run(attempt) == NEW
    assert seen == [(UNSAVED, 1)]
    assert world.clock.passed == pytest.approx(sum(SAVE_PAUSES[:3]))
    assert "the disk is full" in world.warnings[0]
    assert "could be written again" in world.warnings[1]
    assert states(world) == [SENDING, UNSAVED, DONE]
    assert world.store.content.tokens == NEW


def test_it_goes_on_trying_with_the_longest_pause() -> None:
    """A disk that stays full for minutes loses nothing."""
    world = World(Endpoint(PAIR))
    world.store.refusals = [TokenFileError("the disk is full")] * (len(SAVE_PAUSES) + 3)
    assert run(attempt_in(world)) == NEW
    assert world.clock.passed == pytest.approx(sum(SAVE_PAUSES) + 3 * SAVE_PAUSES[-1])


def test_a_caller_that_can_not_go_on_waits() -> None:
    """What `continue_unsaved` raises does not keep the pair from being written."""
    world = World(Endpoint(PAIR))
    world.store.refusals = [TokenFileError("the disk is full")]
    attempt = attempt_in(world)
    attempt._context.continue_unsaved = lambda tokens: 1 / 0  # type: ignore[assignment]
    assert run(attempt) == NEW
    assert world.store.content.tokens == NEW


def test_the_end_of_the_program_leaves_a_few_seconds() -> None:
    """The last tries follow each other faster; then the pair is given up, loudly."""
    world = World(Endpoint(PAIR))
    world.clock.is_ending = True
    world.store.refusals = [TokenFileError("the disk is full")] * 99
    assert run(attempt_in(world)) == NEW
    assert world.clock.slept == list(PACE.last_pauses)
    assert world.store.writes == 1 + len(PACE.last_pauses) + 1
    assert "the program ends" in world.warnings[-1]
    assert states(world)[-1] == UNSAVED


def test_a_program_that_goes_on_after_all_goes_on_trying() -> None:
    """A thread that began meanwhile keeps it alive: none of the last tries is used up then."""
    world = World(Endpoint(PAIR))
    world.clock.is_ending = True
    world.store.refusals = [TokenFileError("the disk is full")] * (1 + len(PACE.last_pauses) + 5)
    goes_on: Callable[[], None] = lambda: setattr(world.clock, "is_ending", False)  # noqa: E731
    world.clock.when_slept = goes_on
    assert run(attempt_in(world)) == NEW
    assert world.store.content.tokens == NEW


def test_a_newer_state_of_the_file_beats_an_unsaved_pair() -> None:
    """A sign-in while the disk was full is not undone."""
    world = World(Endpoint(PAIR))
    world.store.refusals = [TokenFileError("the disk is full")]
    world.clock.when_slept = lambda: world.store.sign_in(SIGNED_IN)
    assert run(attempt_in(world)) == SIGNED_IN
    assert world.store.content.tokens == SIGNED_IN
    assert len(world.warnings) == 1


def test_a_record_that_can_not_be_written_changes_no_outcome() -> None:
    """The record is a courtesy: its failure is warned of."""
    world = World(Endpoint(INVALID_GRANT))
    attempt = attempt_in(world)
    world.endpoint.when_called = lambda: setattr(world.store, "note", _refuse)
    with pytest.raises(ReauthorizationRequired):
        run(attempt)
    assert world.warnings == ["no record today"]


def _refuse(record: Record) -> None:
    raise TokenFileError("no record today")
