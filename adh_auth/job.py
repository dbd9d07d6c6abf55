"""One rotation in a thread of its own: its outcome, those who wait for it, and the end of the program, which waits for it too.

A caller waits for a job and never owns it: Ctrl-C, a cancelled task or a closed loop take the waiter away, and the job still writes
what it was given.
"""

from __future__ import annotations

import atexit
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .errors import AdhAuthError, RefreshFailed, fresh_copy
from .plan import Plan, Steps
from .steps import drive
from .token_file import logger, tell
from .tokens import Tokens, fingerprint

__all__ = ["Job", "forget_jobs"]

#: Waiters that one turn of an event loop wakes. A thousand tasks that go on in one turn would block the loop for tens of milliseconds.
WAKE_AT_ONCE = 8


class Job:
    """One rotation in a thread of its own, and its outcome. `settled`: the outcome is known; `finished`: the thread has let go."""

    def __init__(self) -> None:
        self._outcome: Tokens | AdhAuthError | None = None
        self._event = threading.Event()
        self._guard = threading.Lock()
        self._wakers: dict[Any, list[Callable[[], None]]] = {}
        self._thread: threading.Thread | None = None
        self.finished = False
        #: whether the outcome came straight from the server, instead of from another process
        self.refreshed = False

    @property
    def settled(self) -> bool:
        """Whether the outcome is known."""
        return self._event.is_set()

    def start(self, plan: Plan, steps: Callable[[Plan], Steps]) -> Job:
        """Run in a thread that the interpreter waits for at its end (not a daemon: those are cut off in mid-write)."""
        thread = threading.Thread(target=self._run, args=(plan, steps), name="adh-auth rotation", daemon=False)
        self._thread = thread
        _jobs.add(self)
        try:
            thread.start()
        except RuntimeError:  # no new threads while the interpreter shuts down, or none left
            self._run(plan, steps)
        return self

    def _run(self, plan: Plan, steps: Callable[[Plan], Steps]) -> None:
        outcome: Tokens | AdhAuthError | None
        try:
            outcome = drive(steps(plan))
            self.refreshed = plan.refreshed
        except AdhAuthError as error:
            outcome = fresh_copy(error)
        except BaseException as error:  # noqa: BLE001 - nobody may wait for ever; the cause's frames hold tokens, so only its kind is told
            outcome = RefreshFailed(f"the refresh for {plan.name} broke off: {type(error).__name__}", token_file=plan.name)
        finally:
            self.finished = True
            if plan.lock is not None:
                with suppress(Exception):
                    plan.lock.release()
        self.settle(outcome)
        _jobs.discard(self)
        with suppress(Exception):  # last: it runs a handler of the program's
            _log(plan.name, outcome)

    def settle(self, outcome: Tokens | AdhAuthError | None) -> None:
        """Make the outcome known, once."""
        with self._guard:
            if self._event.is_set():
                return
            self._outcome = outcome
            self._event.set()
            wakers, self._wakers = self._wakers, {}
        for token, waiting in wakers.items():
            _wake(token, waiting)

    def wait(self, seconds: float) -> None:
        """Wait for the outcome. Raises its error; leaves the job alone when interrupted."""
        self._event.wait(seconds)
        self._raise_trouble(seconds)

    async def wait_async(self, seconds: float) -> None:
        """The same on any event loop, without a thread for each waiter."""
        import anyio

        event = anyio.Event()
        if self._call_back(_native_token(), event.set):
            with anyio.move_on_after(seconds):
                await event.wait()
        self._raise_trouble(seconds)

    def join(self) -> None:
        """Wait for the thread."""
        thread = self._thread
        if thread is None or thread.ident is None:  # an interrupt came before it was started
            self.finished = True
        elif thread is not threading.current_thread():
            thread.join()

    def _call_back(self, token: Any, wake: Callable[[], None]) -> bool:
        with self._guard:
            if self._event.is_set():
                return False
            self._wakers.setdefault(token, []).append(wake)
            return True

    def _raise_trouble(self, seconds: float) -> None:
        outcome = self._outcome
        if isinstance(outcome, AdhAuthError):
            # One outcome is raised in many threads: each gets an exception of its own.
            raise fresh_copy(outcome)
        if not self._event.is_set():
            raise RefreshFailed(f"a refresh is still under way after {seconds:g} s; it goes on, try again later")


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


def _wake(token: Any, waiting: list[Callable[[], None]]) -> None:
    """Wake the waiters of one event loop, a few in each of its turns, so that the rest of the program gets its own."""
    call_soon = getattr(token, "call_soon_threadsafe", None) or token.run_sync_soon

    def some() -> None:
        for wake in waiting[:WAKE_AT_ONCE]:
            wake()
        del waiting[:WAKE_AT_ONCE]
        if waiting:
            call_soon(some)

    with suppress(Exception):  # a loop that is closed has no waiters any more: RuntimeError, trio.RunFinishedError
        call_soon(some)


#: every job whose thread has not let go
_jobs: set[Job] = set()


def forget_jobs() -> None:
    """After a fork: their threads are the parent's."""
    _jobs.clear()


def _finish_jobs() -> None:
    """The interpreter has joined the threads already, unless a second Ctrl-C cut that short: then wait for what is being written."""
    while not all(job.finished for job in list(_jobs)):
        # One more Ctrl-C may have been on its way before the handler was in place.
        with suppress(KeyboardInterrupt):
            _let_interrupts_explain()
            for job in list(_jobs):
                job.join()


# Twice: an interrupt that strikes as the first call begins ends that call alone.
atexit.register(_finish_jobs)
atexit.register(_finish_jobs)


def _let_interrupts_explain() -> None:
    # A handler that raises would break off this wait, or the message that explains it.
    with suppress(ValueError):  # not in the main thread, which alone gets signals
        signal.signal(signal.SIGINT, _explain_the_wait)


def _explain_the_wait(*_: object) -> None:
    tell("a token refresh is being finished; ending this process now would sign you out")
