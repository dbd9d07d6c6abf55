"""One rotation as a job: a thread of its own, one outcome, and those who wait for it.

Rule 5: a caller waits for a job and never owns it. Ctrl-C, a cancelled task or a closed loop take the waiter
away, and the job still writes what it was given. Rule 6: one attempt, one outcome, shared.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any

from ..common.notices import logger
from ..common.secret import Secret
from ..common.threads import (
    THREAD_NAME_PREFIX,
    keeps_program_alive,
    make_start_interruptible,
    signals_deferred,
)
from ..errors import AdhAuthError, RefreshFailed, fresh_copy
from ..tokens import Tokens, fingerprint
from .context import RotationContext, Step, Transaction
from .program_end import has_ended, unfinished_jobs
from .waiters import Waiter, Waiters, blocking_waiter, task_waiter

__all__ = ["Job"]

NO_THREAD = (
    "no thread can be started for the refresh (is there a limit on processes or threads?);"
    " nothing was sent, try again later"
)


class Job:
    """One rotation in a thread of its own, and its outcome.

    `rejected`: the access token that it rotates away from. `in_background`: its maker will not wait for it.
    """

    def __init__(self, rejected: Secret | None = None, *, in_background: bool = False) -> None:
        self.rejected = rejected
        #: the outcome is known
        self.settled: bool = False
        #: the thread has done its last step
        self.finished: bool = False
        #: the outcome came straight from the server, instead of from another process
        self.refreshed: bool = False
        #: it waits for a caller to go on with it: the new pair is known, could not be written yet, and no
        #: thread can be started
        self.paused: bool = False
        self.outcome: Tokens | AdhAuthError | None = None
        # No lock guards the two together: `settle` sets `settled` before it wakes the waiters, and a waiter
        # reads `settled` after it was added.
        self._waiters = Waiters()
        #: the thread that made it and is about to wait
        self._maker = None if in_background else threading.current_thread()
        self._thread: threading.Thread | None = None
        self._context: RotationContext | None = None
        self._work: Generator[Step, bool, Any] | None = None
        #: held by the thread that goes on with a job that has no thread of its own
        self._turn = threading.Lock()
        #: left to the first task that waits
        self._is_idle = False

    # Starting it, and what to do where no thread can be started.

    def start(self, context: RotationContext, steps: Callable[[RotationContext], Transaction]) -> bool:
        """Run in a thread that the interpreter joins at its end: a daemon is cut off in mid-write.

        Return False where no thread can be started. Then the caller decides: `run_here`, `run_in_a_task` or
        `give_up`.
        """
        self._context = context
        self._work = do_steps(steps(context))
        return self._start_thread()

    def _start_thread(self) -> bool:
        thread = threading.Thread(target=self._run, name=THREAD_NAME_PREFIX + "rotation", daemon=False)
        make_start_interruptible(thread)
        self._thread = thread
        unfinished_jobs.add(self)
        try:
            if has_ended():
                raise RuntimeError("nothing waits for a thread any more")
            thread.start()
        except RuntimeError:
            self._thread = None
            unfinished_jobs.discard(self)
            return False
        return True

    def run_here(self) -> None:
        """Run in the caller's thread, until the outcome is known."""
        me = blocking_waiter(_wake_nothing)
        self._waiters.add(me)
        try:
            with signals_deferred():
                self._run(until_settled=True)
        finally:
            self._leave(me)
            if not self.settled:
                self.settle(RefreshFailed("the refresh was interrupted before it began; try again"))

    def run_in_a_task(self) -> None:
        """Leave it to the first task that waits: run here, it would block the event loop."""
        self._is_idle = True

    def give_up(self) -> None:
        """Settle with the error that no thread can be started for it."""
        assert self._context is not None
        store = self._context.store
        self.finished = True
        error = f"{NO_THREAD}. The session of {store.name} is as it was"
        self.settle(RefreshFailed(error, **store.facts_for_errors()))

    def go_on(self) -> None:
        """Go on with a paused job: in a thread if one can be started now, else here, up to the next pause."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            if self.paused:
                self.paused = False
                if not self._start_thread():
                    self._run(until_settled=True)
        finally:
            self._turn.release()

    # Running it.

    def _run(self, *, until_settled: bool = False) -> None:
        context = self._context
        assert context is not None
        outcome: Tokens | AdhAuthError | None
        try:
            self._advance(until_settled=until_settled)
            unfinished_jobs.add(self)
            self.paused = True
            return
        except StopIteration as end:
            outcome = end.value
        except AdhAuthError as error:
            outcome = fresh_copy(error)
        # Whatever it is: a waiter must not wait for ever. Its frames hold tokens, so only its type is kept.
        except BaseException as error:  # noqa: BLE001 - see above
            outcome = RefreshFailed(
                f"the refresh for {context.store.name} broke off: {type(error).__name__}",
                **context.store.facts_for_errors(),
            )
        self._finish(context, outcome)

    def _advance(self, *, until_settled: bool) -> None:
        """Do the steps up to the next pause, or to their end; that raises StopIteration with the outcome."""
        work = self._work
        assert work is not None
        step = next(work)  # the first one, or the one after the pause at which it stopped
        while not (until_settled and self.settled and step.name == "pause"):
            step = work.send(True)

    def _finish(self, context: RotationContext, outcome: Tokens | AdhAuthError | None) -> None:
        # What these refer to would otherwise live as long as this job.
        self._work = self._context = None
        if context.lock is not None:
            with suppress(BaseException):  # raised here, it would leave the waiters waiting for ever
                context.lock.release()
        self.refreshed = self.refreshed or context.refreshed
        self.finished = True
        self.settle(outcome)
        unfinished_jobs.discard(self)
        with suppress(BaseException):  # last: it runs a log handler of the program's
            _log(context.store.what(), outcome)
        if context.report is not None:
            with suppress(BaseException):
                context.report(context, outcome)

    def settle(self, outcome: Tokens | AdhAuthError | None) -> None:
        """Make the outcome known, once."""
        if self.settled:
            return
        self.outcome = outcome
        self.settled = True
        self._waiters.wake()

    # Waiting for it.

    def wait(self, seconds: float) -> None:
        """Wait for the outcome. Raises its error, or `RefreshFailed` after so many seconds."""
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
        me = blocking_waiter(lambda: asleep.release() if asleep.locked() else None)
        try:
            self._waiters.add(me)
            if not self.settled:
                asleep.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))
        finally:
            self._leave(me)
        self._raise_error(seconds)

    async def wait_async(self, seconds: float) -> None:
        """Wait as `wait` does, on any event loop and without a thread for each waiter."""
        import anyio

        if self._is_idle and self._turn.acquire(blocking=False):
            await self._run_in_worker_thread()
        event = anyio.Event()
        me = task_waiter(event.set)
        try:
            self._waiters.add(me)
            if not self.settled:
                with anyio.move_on_after(seconds):
                    await event.wait()
        finally:
            self._leave(me)
        self._raise_error(seconds)

    async def _run_in_worker_thread(self) -> None:
        """Run in a worker thread of the event loop's: it may have an idle one where no new one can start."""
        from anyio.to_thread import run_sync

        self._is_idle = False
        try:
            await run_sync(self.run_here)
        except RuntimeError:
            # Python 3.12 starts no thread once the main thread has returned. Then a loop that is blocked is
            # better than a request that fails.
            if threading.main_thread().is_alive():
                self.give_up()
            else:
                self.run_here()
        finally:
            self._turn.release()

    def _leave(self, waiter: Waiter) -> None:
        if waiter.thread is self._maker:
            self._maker = None
        self._waiters.remove(waiter)

    def _raise_error(self, seconds: float) -> None:
        if not self.settled:
            raise RefreshFailed(
                f"a refresh is still under way after {seconds:g} s; it goes on, try again later"
            )
        if isinstance(self.outcome, AdhAuthError):
            # One outcome is raised in many threads: each gets an exception of its own.
            raise fresh_copy(self.outcome)

    def is_waited_for(self) -> bool:
        """Return whether a thread that keeps the program alive waits for the outcome."""
        waiting = self._waiters.threads()
        maker = self._maker
        if maker is not None:
            waiting.append(maker)
        return not self.settled and any(map(keeps_program_alive, waiting))

    def join(self) -> None:
        """Wait for its thread; a paused job goes on here."""
        thread = self._thread
        if self.paused:
            self.paused = False
            self._run()
        elif thread is None or thread.ident is None:  # an interrupt came before it was started
            self.finished = True
        elif thread is not threading.current_thread():
            thread.join()


def do_steps(steps: Transaction) -> Generator[Step, bool, Any]:
    """Yield each step and do it once True was sent. Return what the steps return.

    Gone on with by `next()`, it leaves the step out: that is the pause at which a job had stopped.
    """
    value: Any = None
    error: BaseException | None = None
    while True:
        try:
            step = steps.send(value) if error is None else steps.throw(error)
        except StopIteration as end:
            return end.value
        value, error = None, None
        if (yield step):
            try:
                value = step.work()
            except BaseException as raised:  # noqa: BLE001 - the steps get it, whatever it is
                error = raised


def _wake_nothing() -> None:
    """Do nothing: the thread that waits is the one that runs."""


def _log(store: str, outcome: Tokens | AdhAuthError | None) -> None:
    """Log the outcome: the requests that met the expiry show it by a reply or an error only."""
    if isinstance(outcome, AdhAuthError):
        logger.info("%s", outcome.message)
    elif outcome is not None:
        logger.info("%s: the access token is now <%s>", store, fingerprint(outcome.access_token))
