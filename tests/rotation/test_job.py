"""A job: one outcome for all who wait, real threads, and what happens where no thread can be started."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from adh_auth.errors import AdhAuthError, ReauthorizationRequired, RefreshFailed
from adh_auth.rotation import program_end
from adh_auth.rotation.context import RotationContext, Step, Transaction
from adh_auth.rotation.job import Job
from adh_auth.rotation.program_end import OwnClock, unfinished_jobs
from adh_auth.rotation.waiters import WAKE_AT_ONCE, Waiter, Waiters, blocking_waiter

from ..support.processes import PATIENCE
from .memory import NEW, PAIR, Endpoint, World


class Gate:
    """Steps that stop in the middle until they are let on."""

    def __init__(self, outcome: Any = NEW) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self._outcome = outcome

    def steps(self, context: RotationContext) -> Transaction:
        yield Step("stop", self._stop)
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome

    def _stop(self) -> None:
        self.reached.set()
        assert self.opened.wait(PATIENCE)


def context() -> RotationContext:
    """Return a context that these steps need only the name of."""
    return World(Endpoint(PAIR)).context()


def returning(outcome: Any) -> Callable[[RotationContext], Transaction]:
    """Return steps with that outcome."""

    def steps(context: RotationContext) -> Transaction:
        yield Step("only", lambda: None)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return steps


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread can be started for a job: the last one has been waited for."""
    monkeypatch.setattr("adh_auth.rotation.job.has_ended", lambda: True)


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that is open at the end, whatever happens."""
    gate = Gate()
    yield gate
    gate.opened.set()


# One outcome.


def test_the_outcome_is_known_to_a_waiter() -> None:
    """A job runs in a thread of its own that is no daemon, and is forgotten once it has finished."""
    threads: list[threading.Thread] = []

    def steps(context: RotationContext) -> Transaction:
        yield Step("only", lambda: threads.append(threading.current_thread()))
        return NEW

    job = Job()
    assert job.start(context(), steps)
    job.wait(PATIENCE)
    job.join()
    assert job.outcome == NEW
    assert job.finished
    assert threads != [threading.current_thread()]
    assert not threads[0].daemon
    assert job not in unfinished_jobs


def test_each_waiter_gets_an_error_of_its_own() -> None:
    """One exception that is raised in many threads would mix their tracebacks."""
    gate, caught = Gate(ReauthorizationRequired("signed out", code="invalid_grant")), list[AdhAuthError]()
    job = Job()
    job.start(context(), gate.steps)

    def wait() -> None:
        try:
            job.wait(PATIENCE)
        except AdhAuthError as error:
            caught.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    gate.opened.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert [type(error) for error in caught] == [ReauthorizationRequired] * 3
    assert len({id(error) for error in caught}) == 3
    assert {getattr(error, "code", None) for error in caught} == {"invalid_grant"}


def test_an_outcome_is_known_once() -> None:
    """The first one counts."""
    job = Job()
    job.settle(NEW)
    job.settle(None)
    assert job.outcome == NEW


def test_a_waiter_that_gives_up_leaves_the_job_alone(gate: Gate) -> None:
    """It says that the refresh goes on, and for how long it has waited."""
    job = Job()
    job.start(context(), gate.steps)
    assert gate.reached.wait(PATIENCE)
    with pytest.raises(RefreshFailed, match=r"still under way after 0\.01 s; it goes on"):
        job.wait(0.01)
    gate.opened.set()
    job.wait(PATIENCE)
    assert job.outcome == NEW


@pytest.mark.parametrize("raised", [ZeroDivisionError("adh_secret"), SystemExit(), KeyboardInterrupt()])
def test_what_breaks_a_job_off_is_named_by_its_type(raised: BaseException) -> None:
    """No waiter waits for ever, and no secret of a frame is shown."""
    job = Job()
    job.start(context(), returning(raised))
    with pytest.raises(RefreshFailed, match=f"memory broke off: {type(raised).__name__}$"):
        job.wait(PATIENCE)


@pytest.mark.parametrize("release_fails", [False, True])
def test_a_lock_that_is_still_held_is_released(release_fails: bool) -> None:
    """Where the steps could not release it, the end of the job does; where that fails, waiters still wake."""
    released: list[bool] = []

    class Lock:
        path = "a lock"

        def take(self) -> bool:
            return True

        def release(self) -> None:
            released.append(True)
            if release_fails:
                raise SystemExit

    held = context()
    held.lock = Lock()
    job = Job()
    job.start(held, returning(NEW))
    job.wait(PATIENCE)
    assert released == [True]


# No thread.


def test_the_caller_can_run_it(no_threads: None) -> None:
    """`start` says that there is no thread, and nothing is left that the program's end would wait for."""
    job = Job()
    assert not job.start(context(), returning(NEW))
    assert job not in unfinished_jobs
    job.run_here()
    job.wait(0)
    assert job.outcome == NEW


def test_giving_up_is_an_outcome(no_threads: None) -> None:
    """It says that nothing was sent, and that the session is as it was."""
    job = Job()
    job.start(context(), returning(NEW))
    job.give_up()
    with pytest.raises(RefreshFailed, match=r"nothing was sent.*The session of memory is as it was"):
        job.wait(0)
    assert job.finished


def test_the_first_that_waits_runs_an_idle_job(no_threads: None) -> None:
    """It is left alone until then, and runs once."""
    runs: list[int] = []

    def steps(context: RotationContext) -> Transaction:
        yield Step("only", lambda: runs.append(1))
        return NEW

    job = Job()
    job.start(context(), steps)
    job.run_in_a_task()
    assert runs == []
    job.wait(0)
    job.wait(0)
    assert runs == [1]


@pytest.mark.anyio
async def test_a_task_runs_an_idle_job_in_a_worker(no_threads: None) -> None:
    """The loop's own thread stays free."""
    threads: list[threading.Thread] = []

    def steps(context: RotationContext) -> Transaction:
        yield Step("only", lambda: threads.append(threading.current_thread()))
        return NEW

    job = Job()
    job.start(context(), steps)
    job.run_in_a_task()
    await job.wait_async(PATIENCE)
    assert job.outcome == NEW
    assert threads
    assert threads[0] is not threading.current_thread()


class Paused:
    """Steps that know their outcome early, pause twice, and then end."""

    def __init__(self) -> None:
        self.job = Job()
        self.paused = 0
        self.ended = False

    def steps(self, context: RotationContext) -> Transaction:
        self.job.settle(NEW)
        yield Step("pause", self._pause)
        yield Step("work", lambda: None)
        yield Step("pause", self._pause)
        self.ended = True
        return NEW

    def _pause(self) -> None:
        self.paused += 1


def test_a_caller_without_a_thread_waits_for_no_pause(no_threads: None) -> None:
    """A job that knows its outcome stops at a pause; each caller goes on with it, up to the next one."""
    work = Paused()
    work.job.start(context(), work.steps)
    work.job.run_here()
    assert (work.job.paused, work.job.finished, work.job in unfinished_jobs) == (True, False, True)
    work.job.go_on()
    assert (work.job.paused, work.ended) == (True, False)
    work.job.go_on()
    assert (work.job.paused, work.ended, work.job.finished) == (False, True, True)
    assert work.paused == 0
    assert work.job not in unfinished_jobs


def test_a_caller_without_a_thread_pauses_for_its_own_outcome(no_threads: None) -> None:
    """Before the outcome is known, pauses between two tries are kept."""
    pauses: list[int] = []

    def steps(context: RotationContext) -> Transaction:
        yield Step("pause", lambda: pauses.append(1))
        return NEW

    job = Job()
    job.start(context(), steps)
    job.run_here()
    assert (job.paused, job.outcome, pauses) == (False, NEW, [1])


def test_a_paused_job_gets_a_thread_once_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it pauses for real: only the pause at which it had stopped is left out."""
    work = Paused()
    with monkeypatch.context() as without:
        without.setattr("adh_auth.rotation.job.has_ended", lambda: True)
        work.job.start(context(), work.steps)
        work.job.run_here()
    work.job.go_on()
    work.job.join()
    assert work.ended
    assert work.paused == 1


def test_the_end_of_the_program_goes_on_with_a_paused_job(no_threads: None) -> None:
    """The thread that joins it does the rest, pauses included."""
    work = Paused()
    work.job.start(context(), work.steps)
    work.job.run_here()
    work.job.join()
    assert work.ended
    assert work.paused == 1


def test_a_job_whose_thread_never_began_is_finished_by_join() -> None:
    """An interrupt came before its thread was started: the end of the program waits for nothing."""
    job = Job()
    job.join()
    assert job.finished


# Who waits.


def test_a_maker_is_waited_for_until_it_has_waited(gate: Gate) -> None:
    """Between the making and the wait of a job its thread counts already; afterwards it does not."""
    job = Job()
    job.start(context(), gate.steps)
    assert job.is_waited_for()
    with pytest.raises(RefreshFailed):
        job.wait(0)
    assert not job.is_waited_for()


def test_nothing_waits_for_a_job_in_the_background(gate: Gate) -> None:
    """So the end of the program ends its tries."""
    job = Job(in_background=True)
    job.start(context(), gate.steps)
    assert not job.is_waited_for()


def test_a_settled_job_is_not_waited_for() -> None:
    """Who has its outcome needs it no more."""
    job = Job()
    job.settle(NEW)
    assert not job.is_waited_for()


def test_a_daemon_that_waits_keeps_no_program_alive(gate: Gate) -> None:
    """The interpreter cuts daemons off."""
    job = Job(in_background=True)
    job.start(context(), gate.steps)
    waits, done = threading.Event(), threading.Event()
    waiter = blocking_waiter(done.set)

    def wait() -> None:
        job._waiters.add(Waiter(threading.current_thread(), done.set))
        waits.set()
        done.wait(PATIENCE)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert waits.wait(PATIENCE)
    assert not job.is_waited_for()
    job._waiters.add(waiter)
    assert job.is_waited_for()
    gate.opened.set()
    thread.join(PATIENCE)


@pytest.mark.parametrize(("is_waited_for", "ending"), [(True, False), (False, True)])
def test_a_program_ends_when_nothing_waits_and_works(
    monkeypatch: pytest.MonkeyPatch, is_waited_for: bool, ending: bool
) -> None:
    """After the main thread has returned, a waiter of the program's or a thread of its own keeps it going."""
    clock = OwnClock(lambda: is_waited_for)
    assert not clock.ending()
    monkeypatch.setattr(threading.main_thread(), "is_alive", lambda: False)
    monkeypatch.setattr(program_end, "has_other_live_threads", lambda: False)
    assert clock.ending() is ending
    monkeypatch.setattr(program_end, "has_other_live_threads", lambda: True)
    assert not clock.ending()


# Waking.


class Loop:
    """An event loop whose turns a test takes."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def call_soon_threadsafe(self, call: Callable[[], None]) -> None:
        self.due.append(call)

    def turn(self) -> None:
        due, self.due = self.due, []
        for call in due:
            call()


class ClosedLoop:
    """An event loop that takes nothing any more."""

    def call_soon_threadsafe(self, call: Callable[[], None]) -> None:
        raise RuntimeError("Event loop is closed")


def test_a_loop_wakes_a_few_tasks_in_each_turn() -> None:
    """A thousand at once would block it. The last turn wakes the rest, and asks for no other."""
    loop, waiters, woken = Loop(), Waiters(), list[int]()
    me = threading.current_thread()
    for number in range(2 * WAKE_AT_ONCE + 1):
        waiters.add(Waiter(me, partial(woken.append, number), loop))
    waiters.wake()
    counts = []
    while loop.due:
        loop.turn()
        counts.append(len(woken))
    assert counts == [WAKE_AT_ONCE, 2 * WAKE_AT_ONCE, 2 * WAKE_AT_ONCE + 1]
    assert sorted(woken) == list(range(2 * WAKE_AT_ONCE + 1))


def test_a_closed_loop_keeps_no_other_waiter_asleep() -> None:
    """Its tasks are gone; a thread and another loop's task are woken all the same."""
    loop, waiters, woken = Loop(), Waiters(), list[str]()
    me = threading.current_thread()
    waiters.add(Waiter(me, partial(woken.append, "gone"), ClosedLoop()))
    waiters.add(Waiter(me, partial(woken.append, "thread")))
    waiters.add(Waiter(me, partial(woken.append, "task"), loop))
    waiters.wake()
    loop.turn()
    assert woken == ["thread", "task"]


def test_a_waiter_that_was_never_added_can_leave() -> None:
    """An interrupt may have come before it was."""
    waiters = Waiters()
    waiters.remove(blocking_waiter(lambda: None))
    assert len(waiters) == 0
