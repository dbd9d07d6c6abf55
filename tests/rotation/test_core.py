"""The core: which pair is in force, whether a rotation is due, and one job at a time.

Its clock is set by the tests.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from adh_auth.common.limits import LOCK_TIMEOUT, REFRESH_DEADLINE
from adh_auth.common.secret import Secret
from adh_auth.errors import RefreshFailed, TokenFileError
from adh_auth.oauth.endpoint import Unreachable
from adh_auth.rotation import core
from adh_auth.rotation.active_tokens import ActiveTokens
from adh_auth.rotation.core import BACKGROUND_PAUSE, HOT_INTERVAL, PATIENCE_MARGIN, RECORD_PAUSE, Rotation
from adh_auth.rotation.job import Job
from adh_auth.store.record import DONE, Record
from adh_auth.tokens import Stored, Tokens, fingerprint

from ..support.processes import PATIENCE
from .memory import CALLS, INVALID_GRANT, NEW, OLD, PAIR, SIGNED_IN, Endpoint, MemoryStore, reply

NOW = 1_700_000_000.0


class Clock:
    """The time that the core reads. The jobs have clocks of their own."""

    def __init__(self) -> None:
        self.epoch, self.passed = NOW, 1.0

    def time(self) -> float:
        return self.epoch

    def monotonic(self) -> float:
        return self.passed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that moves only where a test moves it."""
    clock = Clock()
    monkeypatch.setattr(core, "time", SimpleNamespace(time=clock.time, monotonic=clock.monotonic))
    return clock


def rotation_of(
    store: MemoryStore, endpoint: Endpoint, refresh_ahead: float | None = None, lock_timeout: float = 45.0
) -> Rotation:
    """Return a core on that store."""
    return Rotation(store, CALLS, lambda: endpoint, refresh_ahead=refresh_ahead, lock_timeout=lock_timeout)


def expiring(left: float) -> MemoryStore:
    """Return a store whose pair has so many seconds left."""
    return MemoryStore(replace(OLD, expires_at=NOW + left))


def finish(rotation: Rotation) -> None:
    """Wait for the job under way, if there is one."""
    if rotation._job is not None:
        rotation._job.join()


@pytest.mark.parametrize("lock_timeout", [LOCK_TIMEOUT, 100.0])
def test_a_waiter_outlasts_the_lock_and_the_refresh(lock_timeout: float) -> None:
    """It waits for another process's refresh, then for a whole one of its own, and a margin."""
    rotation = rotation_of(MemoryStore(), Endpoint(PAIR), lock_timeout=lock_timeout)
    assert rotation.patience == lock_timeout + REFRESH_DEADLINE + PATIENCE_MARGIN
    assert PATIENCE_MARGIN == 5.0


# Which pair is in force.


def test_the_file_is_read_once_for_each_of_its_states() -> None:
    """A file that has not changed is not read again; one that has is."""
    store = MemoryStore()
    rotation = rotation_of(store, Endpoint(PAIR))
    first = rotation.current()
    assert rotation.current() is first
    assert store.reads == 1
    store.sign_in(SIGNED_IN)
    assert rotation.current().tokens == SIGNED_IN
    assert store.reads == 2


def test_a_file_without_a_state_is_read_each_time() -> None:
    """What can't be checked is not trusted."""
    store = MemoryStore()
    store.has_state = False
    rotation = rotation_of(store, Endpoint(PAIR))
    assert rotation.current() is rotation.current()
    assert store.reads == 2


@pytest.mark.parametrize(("between", "kept_open"), [(HOT_INTERVAL / 2, True), (HOT_INTERVAL, False)])
def test_the_file_is_kept_open_for_frequent_requests(clock: Clock, between: float, kept_open: bool) -> None:
    """Two requests that follow each other soon make it worth while."""
    store = MemoryStore()
    rotation = rotation_of(store, Endpoint(PAIR))
    clock.passed = HOT_INTERVAL
    rotation.current_fast()
    clock.passed += between
    rotation.current_fast()
    assert bool(store.cached_for) is kept_open


def test_the_pair_in_memory_is_found_by_its_token() -> None:
    """A request that carried another one gets none."""
    rotation = rotation_of(MemoryStore(), Endpoint(PAIR))
    assert rotation.active_for(Secret(OLD.access_token)) is None
    active = rotation.current()
    assert rotation.active_for(Secret(OLD.access_token)) is active
    assert rotation.active_for(Secret(NEW.access_token)) is None


# Whether it is due.


@pytest.mark.parametrize(("left", "due"), [(0.001, False), (0.0, True), (-0.001, True)])
@pytest.mark.parametrize("reason", ["one_shot", "refresh_ahead", "go_by_expiry"])
def test_the_instant_of_expiry_is_expired(clock: Clock, reason: str, left: float, due: bool) -> None:
    """Where the stored expiry counts at all, a token is dead at that very instant."""
    rotation = rotation_of(
        expiring(left), Endpoint(PAIR), refresh_ahead=0.0001 if reason == "refresh_ahead" else None
    )
    if reason == "go_by_expiry":
        rotation.go_by_expiry()
    assert rotation.needs_rotation(rotation.current(), one_shot=reason == "one_shot") is due


def test_without_a_reason_the_api_decides(clock: Clock) -> None:
    """A stored expiry that is past does not rotate a request that can be sent again."""
    rotation = rotation_of(expiring(-3600), Endpoint(PAIR))
    assert not rotation.needs_rotation(rotation.current())


def test_an_unknown_expiry_is_no_expiry(clock: Clock) -> None:
    """The API's word is waited for."""
    rotation = rotation_of(MemoryStore(), Endpoint(PAIR), refresh_ahead=60)
    assert not rotation.needs_rotation(rotation.current(), one_shot=True)


def test_what_the_api_calls_expired_is_due(clock: Clock) -> None:
    """Whatever the stored expiry says."""
    rotation = rotation_of(expiring(3600), Endpoint(PAIR))
    active = rotation.current()
    active.mark_expired()
    assert rotation.needs_rotation(active)


@pytest.mark.parametrize(("left", "starts"), [(60.001, False), (60.0, True)])
def test_a_background_refresh_starts_on_time(clock: Clock, left: float, starts: bool) -> None:
    """With exactly `refresh_ahead` seconds left, and the request goes on with the old token."""
    store, endpoint = expiring(left), Endpoint(PAIR)
    rotation = rotation_of(store, endpoint, refresh_ahead=60)
    assert not rotation.needs_rotation(rotation.current())
    finish(rotation)
    assert len(endpoint.calls) == starts
    assert rotation.current().tokens.access_token == (NEW if starts else OLD).access_token


@pytest.mark.parametrize(("later", "again"), [(BACKGROUND_PAUSE - 0.001, False), (BACKGROUND_PAUSE, True)])
def test_a_failed_background_refresh_is_followed_by_a_pause(clock: Clock, later: float, again: bool) -> None:
    """Requests don't try again one by one; after the pause one does."""
    store, endpoint = expiring(30), Endpoint(reply(400))
    rotation = rotation_of(store, endpoint, refresh_ahead=60)
    active = rotation.current()
    rotation.needs_rotation(active)
    finish(rotation)
    store.last_record = Record()  # the pause by the record is another one
    clock.passed += later
    rotation.needs_rotation(active)
    finish(rotation)
    assert len(endpoint.calls) == 1 + again


@pytest.mark.parametrize(("later", "reads"), [(RECORD_PAUSE - 0.001, 1), (RECORD_PAUSE, 2)])
def test_the_record_is_not_read_for_each_request(clock: Clock, later: float, reads: int) -> None:
    """Where it says that nothing is due yet, it is asked again after a moment."""
    store, endpoint = expiring(30), Endpoint(PAIR)
    store.last_record = Record(number=1, about="another", state=DONE, rotated_at=NOW - 1)
    seen: list[Record] = []
    real = store.record
    store.record = lambda: seen.append(real()) or real()  # type: ignore[func-returns-value,method-assign]
    rotation = rotation_of(store, endpoint, refresh_ahead=60)
    active = rotation.current()
    rotation.needs_rotation(active)
    clock.passed += later
    rotation.needs_rotation(active)
    assert (len(seen), endpoint.calls) == (reads, [])


def test_a_clock_that_is_set_back_ends_the_pause(clock: Clock) -> None:
    """Or nothing would be refreshed in the background until it has caught up."""
    store, endpoint = expiring(30), Endpoint(reply(400))
    rotation = rotation_of(store, endpoint, refresh_ahead=60)
    active = rotation.current()
    rotation.needs_rotation(active)
    finish(rotation)
    store.last_record = Record()
    clock.passed -= 0.001
    rotation.needs_rotation(active)
    finish(rotation)
    assert len(endpoint.calls) == 2


def test_another_pair_ends_the_pause(clock: Clock) -> None:
    """The pause was about the token that failed."""
    store, endpoint = expiring(30), Endpoint(reply(400))
    rotation = rotation_of(store, endpoint, refresh_ahead=60)
    rotation.needs_rotation(rotation.current())
    finish(rotation)
    store.sign_in(replace(SIGNED_IN, expires_at=NOW + 30))
    rotation.needs_rotation(rotation.current())
    finish(rotation)
    assert [call.payload["refresh_token"] for call in endpoint.calls] == [
        OLD.refresh_token,
        SIGNED_IN.refresh_token,
    ]


def test_no_background_refresh_without_a_thread(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up, nothing is sent, and no request pays for another try."""
    monkeypatch.setattr("adh_auth.rotation.job.has_ended", lambda: True)
    endpoint = Endpoint(PAIR)
    rotation = rotation_of(expiring(30), endpoint, refresh_ahead=60)
    active = rotation.current()
    assert not rotation.needs_rotation(active)
    first = rotation._job
    assert not rotation.needs_rotation(active)
    assert rotation._job is first
    assert first is not None
    assert isinstance(first.outcome, RefreshFailed)
    assert endpoint.calls == []


# One job at a time.


def held(endpoint: Endpoint) -> tuple[threading.Event, threading.Event]:
    """Hold the next call. Return the events of its arrival, and of its answer."""
    arrived, answered = threading.Event(), threading.Event()

    def hold() -> None:
        arrived.set()
        assert answered.wait(PATIENCE)

    endpoint.when_called = hold
    return arrived, answered


def test_all_share_the_job_under_way() -> None:
    """A second request for a rotation gets the same job, and one call is made."""
    endpoint = Endpoint(PAIR)
    arrived, answered = held(endpoint)
    rotation = rotation_of(MemoryStore(), endpoint)
    job = rotation.rotate(Secret(OLD.access_token))
    assert job is not None
    assert arrived.wait(PATIENCE)
    assert rotation.rotate(Secret(OLD.access_token)) is job
    assert rotation.refresh_now() is job
    answered.set()
    job.wait(PATIENCE)
    assert rotation.current().tokens == NEW
    assert len(endpoint.calls) == 1
    assert job.refreshed


def test_a_settled_job_is_not_shared() -> None:
    """The next expiry gets a job of its own."""
    rotation = rotation_of(MemoryStore(), Endpoint(reply(400)))
    jobs = []
    for _ in range(2):
        job = rotation.rotate(Secret(OLD.access_token))
        assert job is not None
        with pytest.raises(RefreshFailed):
            job.wait(PATIENCE)
        jobs.append(job)
    assert jobs[0] is not jobs[1]


def test_nothing_is_done_where_it_has_happened_already() -> None:
    """A rejected token that the file no longer holds needs no rotation."""
    endpoint = Endpoint(PAIR)
    rotation = rotation_of(MemoryStore(NEW), endpoint)
    assert rotation.rotate(Secret(OLD.access_token)) is None
    assert endpoint.calls == []


def test_a_newer_pair_that_is_expired_is_rotated_away_from() -> None:
    """The API has called the file's pair expired, too."""
    endpoint = Endpoint(PAIR)
    rotation = rotation_of(MemoryStore(SIGNED_IN), endpoint)
    rotation.current().mark_expired()
    job = rotation.rotate(Secret(OLD.access_token))
    assert job is not None
    job.wait(PATIENCE)
    assert endpoint.calls[0].payload["refresh_token"] == SIGNED_IN.refresh_token


def test_the_callers_own_post_carries_the_refresh() -> None:
    """It is preferred to the one that the object would find."""
    mine, found = Endpoint(PAIR), Endpoint(PAIR)
    job = rotation_of(MemoryStore(), found).rotate(Secret(OLD.access_token), mine)
    assert job is not None
    job.wait(PATIENCE)
    assert (len(mine.calls), found.calls) == (1, [])


def test_without_a_thread_the_caller_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default it runs the job itself."""
    monkeypatch.setattr("adh_auth.rotation.job.has_ended", lambda: True)
    rotation = rotation_of(MemoryStore(), Endpoint(PAIR))
    job = rotation.rotate(Secret(OLD.access_token))
    assert job is not None
    assert job.finished
    assert rotation.current().tokens == NEW
    given_up = rotation.refresh_now(without_thread=Job.give_up)
    assert isinstance(given_up.outcome, RefreshFailed)


def test_coarse_file_times_hide_no_new_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of the file is the same after the rotation: the job's outcome is used all the same."""
    store = MemoryStore()
    monkeypatch.setattr(store, "state", lambda: "the same")
    rotation = rotation_of(store, Endpoint(PAIR))
    rotation.current()
    job = rotation.rotate(Secret(OLD.access_token))
    assert job is not None
    job.wait(PATIENCE)
    assert rotation.current().tokens == OLD
    rotation.use_outcome(job)
    assert rotation.current().tokens == NEW


@pytest.mark.parametrize(
    ("rejected", "outcome", "used"),
    [
        (OLD.access_token, NEW, True),
        (NEW.access_token, NEW, False),
        (OLD.access_token, RefreshFailed("no"), False),
        (OLD.access_token, OLD, False),
    ],
)
def test_an_outcome_is_used_in_place_of_what_it_is_about(rejected: str, outcome: Any, used: bool) -> None:
    """Only a pair, only in place of the one that was rejected, and only if it is another one."""
    rotation = rotation_of(MemoryStore(), Endpoint(PAIR))
    before = rotation.current()
    job = Job(Secret(rejected))
    job.settle(outcome)
    rotation.use_outcome(job)
    assert (rotation.current() is not before) is used


def test_a_refresh_has_its_pair_though_somebody_signs_out_at_once() -> None:
    """It went well, and what comes after it is another story. `refresh` returns this pair."""
    store = MemoryStore()
    rotation = rotation_of(store, Endpoint(PAIR))
    job = rotation.refresh_now()
    job.wait(PATIENCE)

    def read() -> Stored:
        raise TokenFileError("signed out")

    store.sign_in(SIGNED_IN)
    store.read = read  # type: ignore[method-assign]
    with pytest.raises(TokenFileError):
        rotation.current()
    assert rotation.use_outcome(job) == NEW


# Asking the API.


@pytest.mark.parametrize(
    ("answer", "expired"),
    [
        (reply(401, error="token_expired"), True),
        (reply(401, error="forbidden"), False),
        (reply(200), False),
        (Unreachable("ReadTimeout", sent=True), False),
    ],
)
def test_only_a_clear_yes_expires_a_token(answer: Any, expired: bool) -> None:
    """Anything else ends the doubt, and spends no refresh token."""
    endpoint = Endpoint(answer)
    rotation = rotation_of(MemoryStore(), endpoint)
    active = rotation.current()
    active.mark_doubtful()
    job = rotation.ask(active)
    assert job is not None
    job.wait(PATIENCE)
    assert (active.expired, active.doubtful) == (expired, False)
    assert endpoint.calls[0].method == "GET"
    assert rotation.ask(active) is None


def test_a_question_is_asked_once() -> None:
    """All who doubt the same pair share its job."""
    endpoint = Endpoint(reply(200))
    arrived, answered = held(endpoint)
    rotation = rotation_of(MemoryStore(), endpoint)
    active = rotation.current()
    active.mark_doubtful()
    job = rotation.ask(active)
    assert arrived.wait(PATIENCE)
    assert rotation.ask(active) is job
    answered.set()
    assert job is not None
    job.wait(PATIENCE)
    assert len(endpoint.calls) == 1


def test_a_question_waits_five_seconds_for_an_answer() -> None:
    """A request waits for it, and goes on without."""
    endpoint = Endpoint(reply(200))
    rotation = rotation_of(MemoryStore(), endpoint)
    active = rotation.current()
    active.mark_doubtful()
    job = rotation.ask(active)
    assert job is not None
    job.wait(PATIENCE)
    assert endpoint.seconds == [5.0]


# A pair that could not be written.


def test_an_unsaved_pair_is_used_until_the_file_changes() -> None:
    """It needs a check before each request, which may have to go on with the job."""
    store = MemoryStore()
    store.refusals = [OSError()] * 4
    rotation = rotation_of(store, Endpoint(PAIR))
    job = rotation.rotate(Secret(OLD.access_token))
    assert job is not None
    job.wait(PATIENCE)
    active = rotation.current()
    assert (active.tokens, active.needs_check, job.refreshed) == (NEW, True, True)
    job.join()
    store.sign_in(SIGNED_IN)
    assert rotation.current().tokens == SIGNED_IN


def test_a_refresh_token_that_was_refused_is_sent_once() -> None:
    """The record answers for the server from then on."""
    endpoint = Endpoint(INVALID_GRANT)
    rotation = rotation_of(MemoryStore(), endpoint)
    for _ in range(2):
        job = rotation.rotate(Secret(OLD.access_token))
        assert job is not None
        with pytest.raises(Exception, match="invalid_grant"):
            job.wait(PATIENCE)
    assert len(endpoint.calls) == 1


def test_a_pair_shows_no_secret() -> None:
    """Neither does its header."""
    shown = repr(ActiveTokens(Tokens("adh_secret", "adh_rt_secret"), needs_check=False))
    assert "secret" not in shown
    assert fingerprint("adh_secret") in shown
