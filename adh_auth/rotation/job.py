"""One rotation in a thread of its own: its outcome, those who wait for it, and the end of the program, which
waits for it too.

A caller waits for a job and never owns it: Ctrl-C, a cancelled task or a closed loop take the waiter away,
and the job still writes what it was given.
"""

from __future__ import annotations

import atexit
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, NamedTuple

from ..common.clock import JobClock
from ..common.notices import logger, warn_loudly
from ..common.secret import Secret
from ..common.threads import (
    OURS,
    is_anybody_else_alive,
    keeps_alive,
    signals_held,
    survive_an_interrupted_start,
)
from ..errors import AdhAuthError, RefreshFailed, fresh_copy
from ..tokens import Tokens, fingerprint
from .context import RotationContext, Step, Transaction

__all__ = ["Job", "OwnClock", "forget_jobs"]

#: Waiters that one turn of an event loop wakes. A thousand tasks that go on in one turn would block the loop
#: for tens of milliseconds.
WAKE_AT_ONCE = 8
NO_THREAD = "no thread can be started for the refresh (is there a limit on processes or threads?); nothing was sent, try again later"


class Waiter(NamedTuple):
    """Who waits for an outcome: its thread, how it is woken, and its event loop, if it has one."""

    thread: threading.Thread
    wake: Callable[[], None]
    loop: Any = None


class Job:
    """One rotation in a thread of its own, and its outcome.

    `settled`: the outcome is known; `finished`: the thread has let go.
    """

    def __init__(self, rejected: Secret | None = None, *, in_background: bool = False) -> None:
        #: the access token that it rotates away from
        self.rejected = rejected
        self.settled = False
        self.finished = False
        #: whether the outcome came straight from the server, instead of from another process
        self.refreshed = False
        #: whether it waits for somebody to go on with it: the pair is known, could not be written yet, and
        #: there is no thread to be had
        self.paused = False
        self.outcome: Tokens | AdhAuthError | None = None
        # No lock guards these: `settled` is set before they are looked through, and looked at after one was
        # added. By their ids: a thousand tasks that leave a list, in any order, would block their loop for
        # tens of milliseconds.
        self._waiters: dict[int, Waiter] = {}
        #: who has made it and is about to wait
        self._maker = None if in_background else threading.current_thread()
        self._thread: threading.Thread | None = None
        self._context: RotationContext | None = None
        self._work: Generator[Step, bool, Any] | None = None
        self._turn = threading.Lock()
        self._is_idle = False

    def start(self, context: RotationContext, steps: Callable[[RotationContext], Transaction]) -> bool:
        """Run in a thread that the interpreter waits for at its end (not a daemon: those are cut off in
        mid-write).

        False where there are no new threads, or no more of them; then the caller decides: `run_here`,
        `run_in_a_task` or `give_up`.
        """
        self._context = context
        self._work = carried_out(steps(context))
        return self._started()

    def _started(self) -> bool:
        thread = threading.Thread(target=self._run, name=OURS + "rotation", daemon=False)
        survive_an_interrupted_start(thread)
        self._thread = thread
        _jobs.add(self)
        try:
            if _exit.over:
                raise RuntimeError("nobody would wait for it")
            thread.start()
        except RuntimeError:
            self._thread = None
            _jobs.discard(self)
            return False
        return True

    def run_here(self) -> None:
        """Run in the caller's thread, until the outcome is known."""
        me = Waiter(threading.current_thread(), _nothing)
        self._waiters[id(me)] = me
        try:
            with signals_held():
                self._run(until_settled=True)
        finally:
            self._leave(me)
            if not self.settled:
                self.settle(RefreshFailed("the refresh was interrupted before it began; try again"))

    def run_in_a_task(self) -> None:
        """Leave it to the first task that waits: an event loop must not be kept busy with it."""
        self._is_idle = True

    def give_up(self) -> None:
        """Say that there is no thread for it."""
        assert self._context is not None
        name = self._context.name
        self.finished = True
        self.settle(RefreshFailed(f"{NO_THREAD}. The session of {name} is as it was", token_file=name))

    def go_on(self) -> None:
        """Go on with a paused job: in a thread if there is one by now, else with what needs no waiting."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            if self.paused:
                self.paused = False
                if not self._started():
                    self._run(until_settled=True)
        finally:
            self._turn.release()

    def _run(self, *, until_settled: bool = False) -> None:
        context = self._context
        assert context is not None
        outcome: Tokens | AdhAuthError | None
        try:
            self._advance(until_settled=until_settled)
            _jobs.add(self)
            self.paused = True
            return
        except StopIteration as end:
            outcome = end.value
        except AdhAuthError as error:
            outcome = fresh_copy(error)
        except BaseException as error:  # noqa: BLE001 - nobody may wait for ever; the cause's frames hold tokens, so only its kind is told
            outcome = RefreshFailed(
                f"the refresh for {context.name} broke off: {type(error).__name__}", token_file=context.name
            )
        # What they refer to would otherwise live as long as whoever keeps this job.
        self._work = self._context = None
        if context.lock is not None:
            with suppress(BaseException):  # or those who wait would wait for ever
                context.lock.release()
        self.refreshed = self.refreshed or context.refreshed
        self.finished = True
        self.settle(outcome)
        _jobs.discard(self)
        with suppress(BaseException):  # last: it runs a handler of the program's
            _log(context.name, outcome)

    def _advance(self, *, until_settled: bool) -> None:
        """Do the steps up to the next pause, or to their end; that raises StopIteration with the outcome."""
        work = self._work
        assert work is not None
        step = next(work)  # the first one; or the next after the pause that was left out
        while not (until_settled and self.settled and step.name == "pause"):
            step = work.send(True)

    def settle(self, outcome: Tokens | AdhAuthError | None) -> None:
        """Make the outcome known, once."""
        if self.settled:
            return
        self.outcome = outcome
        self.settled = True
        loops: dict[Any, list[Callable[[], None]]] = {}
        for waiter in list(self._waiters.values()):
            if waiter.loop is None:
                waiter.wake()
            else:
                loops.setdefault(waiter.loop, []).append(waiter.wake)
        for loop, waiting in loops.items():
            _wake(loop, waiting)

    def wait(self, seconds: float) -> None:
        """Wait for the outcome. Raises its error; leaves the job alone when interrupted."""
        if self._is_idle and self._turn.acquire(blocking=False):
            self._is_idle = False
            try:
                self.run_here()
            finally:
                self._turn.release()
        # A lock of its own, waited for in C: threading.Event is Python code, and an interrupt between its
        # lock's taking and its `with` leaves that lock taken, and the thread of the job waiting for it for
        # ever.
        asleep = threading.Lock()
        asleep.acquire()
        me = Waiter(threading.current_thread(), lambda: asleep.release() if asleep.locked() else None)
        try:
            self._waiters[id(me)] = me
            if not self.settled:
                asleep.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))
        finally:
            self._leave(me)
        self._raise_trouble(seconds)

    async def wait_async(self, seconds: float) -> None:
        """The same on any event loop, without a thread for each waiter."""
        import anyio

        if self._is_idle and self._turn.acquire(blocking=False):
            await self._run_in_a_worker()
        event = anyio.Event()
        me = Waiter(threading.current_thread(), event.set, _native_token())
        try:
            self._waiters[id(me)] = me
            if not self.settled:
                with anyio.move_on_after(seconds):
                    await event.wait()
        finally:
            self._leave(me)
        self._raise_trouble(seconds)

    async def _run_in_a_worker(self) -> None:
        """Run in a thread that the event loop has already; it can't be told to start no new one."""
        from anyio.to_thread import run_sync

        self._is_idle = False
        try:
            await run_sync(self.run_here)
        except RuntimeError:
            # Python 3.12 starts no thread once main has returned. Then a loop that stands still is better
            # than a request that fails.
            if threading.main_thread().is_alive():
                self.give_up()
            else:
                self.run_here()
        finally:
            self._turn.release()

    def _leave(self, waiter: Waiter) -> None:
        if waiter.thread is self._maker:
            self._maker = None
        self._waiters.pop(id(waiter), None)  # an interrupt may have come before it was there

    def is_waited_for(self) -> bool:
        """Whether a thread that keeps the program alive waits for the outcome."""
        waiting = [waiter.thread for waiter in list(self._waiters.values())]
        maker = self._maker
        if maker is not None:
            waiting.append(maker)
        return not self.settled and any(map(keeps_alive, waiting))

    def join(self) -> None:
        """Wait for the thread; what has none goes on here."""
        thread = self._thread
        if self.paused:
            self.paused = False
            self._run()
        elif thread is None or thread.ident is None:  # an interrupt came before it was started
            self.finished = True
        elif thread is not threading.current_thread():
            thread.join()

    def _raise_trouble(self, seconds: float) -> None:
        if not self.settled:
            raise RefreshFailed(
                f"a refresh is still under way after {seconds:g} s; it goes on, try again later"
            )
        if isinstance(self.outcome, AdhAuthError):
            # One outcome is raised in many threads: each gets an exception of its own.
            raise fresh_copy(self.outcome)


def carried_out(steps: Transaction) -> Generator[Step, bool, Any]:
    """Do each step for real, once it was shown. Sent False, it is taken as done."""
    value: Any = None
    trouble: BaseException | None = None
    while True:
        try:
            step = steps.send(value) if trouble is None else steps.throw(trouble)
        except StopIteration as end:
            return end.value
        value, trouble = None, None
        if (yield step):
            try:
                value = step.work()
            except BaseException as raised:  # noqa: BLE001 - the generator gets it, whatever it is
                trouble = raised


class OwnClock(JobClock):
    """The time of one job, and whether the program is about to end."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def ending(self) -> bool:
        """Whether nothing but jobs of ours is left to run: the interpreter joins them after it has marked the
        main thread as done.

        In an exit handler, the main thread is marked as done and waits all the same. In a sub-interpreter it
        may be any thread, or none.
        """
        if sys.is_finalizing():
            return True
        if threading.main_thread().is_alive() or self._job.is_waited_for():
            return False
        return not is_anybody_else_alive()


def _nothing() -> None:
    """Wake nobody."""


def _log(name: str, outcome: Tokens | AdhAuthError | None) -> None:
    """For whoever asks later what happened: the programs that met the expiry are told by return or error."""
    if isinstance(outcome, AdhAuthError):
        logger.info("%s", outcome.message)
    elif outcome is not None:
        logger.info("token file %s: the access token is now <%s>", name, fingerprint(outcome.access_token))


def _native_token() -> Any:
    from anyio.lowlevel import current_token

    token = current_token()
    return getattr(token, "native_token", token)


def _wake(loop: Any, waiting: list[Callable[[], None]]) -> None:
    """Wake the waiters of one event loop, a few in each of its turns, so that the rest of the program gets
    its own.
    """
    call_soon = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon

    def some() -> None:
        for wake in waiting[:WAKE_AT_ONCE]:
            wake()
        del waiting[:WAKE_AT_ONCE]
        if waiting:
            call_soon(some)

    with suppress(
        Exception
    ):  # a loop that is closed has no waiters any more: RuntimeError, trio.RunFinishedError
        call_soon(some)


#: every job whose thread has not let go
_jobs: set[Job] = set()


class _Exit:
    #: whether the last one has been waited for: a thread that is started now is cut off
    over = False


_exit = _Exit()


def forget_jobs() -> None:
    """After a fork: their threads are the parent's."""
    _jobs.clear()


def _finish_jobs() -> None:
    """The interpreter has joined the threads already, unless a second Ctrl-C cut that short: then wait for
    what is being written.
    """
    while not all(job.finished for job in list(_jobs)):
        # One more Ctrl-C may have been on its way before the handler was in place.
        with suppress(KeyboardInterrupt):
            _let_interrupts_explain()
            for job in list(_jobs):
                job.join()


def _finish_the_last() -> None:
    _finish_jobs()
    _exit.over = True


# Twice: an interrupt that strikes as the first call begins ends that call alone.
atexit.register(_finish_the_last)
atexit.register(_finish_jobs)


def _let_interrupts_explain() -> None:
    # A handler that raises would break off this wait, or the message that explains it.
    with suppress(ValueError):  # not in the main thread, which alone gets signals
        signal.signal(signal.SIGINT, _explain_the_wait)


def _explain_the_wait(*_: object) -> None:
    warn_loudly("a token refresh is being finished; ending this process now would sign you out")
