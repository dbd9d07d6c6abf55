"""The one rotation core: the pair in memory, one rotation at a time, the worker thread, the outcome that all who wait share.

A caller waits for a job and never owns it: Ctrl-C, a cancelled task or a closed loop take the waiter away, and the job still writes
what it was given. It knows neither client: each plugin hands it a plain callable that posts JSON.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from . import endpoint
from .errors import AdhAuthError, RefreshFailed, fresh_copy
from .secret import Secret
from .settings import LOCK_TIMEOUT, REFRESH_DEADLINE
from .token_file import host_name, tell
from .watch import Watch

if TYPE_CHECKING:
    from typing import Protocol

    from .steps import Plan, Steps, Store
    from .tokens import Tokens

    class WatchedStore(Store, Protocol):
        """Where a session lives, and a cheap way to ask whether it is as it was when it was read."""

        def watch(self, state: object, pair: Pair) -> Watch[Pair]: ...


__all__ = ["LOCK_TIMEOUT", "Job", "Pair", "Post", "Rotation"]

Post = Callable[[endpoint.Call, float], endpoint.Reply]

#: Seconds without a background refresh after one that failed; until then the old token is good, or a request finds out.
BACKGROUND_PAUSE = 15.0
#: Seconds between two requests that make it worth while to keep the file open.
SOON = 0.02
#: Waiters that one turn of an event loop wakes. A thousand tasks that go on in one turn would block the loop for tens of milliseconds.
WAKE_AT_ONCE = 8


class Pair:
    """The pair in memory, with what each request needs of it made once."""

    __slots__ = ("dead", "expires_at", "header", "secret", "tokens")

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self.header = "Bearer " + tokens.access_token
        self.secret = Secret(tokens.access_token)
        self.expires_at = tokens.expires_at
        #: the API has said that the access token is expired
        self.dead = False

    def __repr__(self) -> str:
        return f"Pair({self.tokens!r})"


#: What is known of a file that nobody watches: nothing.
UNWATCHED: Watch[Any] = Watch()


class SystemClock:
    """Time as it passes."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)

    @staticmethod
    def ending() -> bool:
        """Whether the program is on its way out: the interpreter joins our thread after it has marked the main one as done."""
        return not threading.main_thread().is_alive()


class Rotation:
    """The core of one auth object. May be shared by threads, loops and clients, and survives a fork."""

    def __init__(
        self, store: WatchedStore, calls: Calls, post: Post, *, refresh_ahead: float | None = None, lock_timeout: float = LOCK_TIMEOUT
    ) -> None:
        self._store = store
        self._calls = calls
        self._post = post
        self._ahead = refresh_ahead
        #: whether `due` has to be asked on every request
        self.always_asks = refresh_ahead is not None
        self._lock_timeout = lock_timeout
        self._state: object = None
        self._pair: Pair | None = None
        #: asked by the plugins, without another call in between; then `glance`
        self.watch: Watch[Pair] = UNWATCHED
        self._looked = 0.0
        self._no_background_before = 0.0
        self._reset()
        _rotations.add(self)

    def _reset(self) -> None:
        # After a fork: the lock may have been held by, and the job belongs to, a thread that the child does not have.
        # Re-entrant, for a signal handler that sends a request while this thread is in here.
        self._guard = threading.RLock()
        self._job: Job | None = None

    @property
    def patience(self) -> float:
        """Seconds after which a waiter gives up on a job: a wait for the lock and a whole refresh, and then some."""
        return self._lock_timeout + REFRESH_DEADLINE + 5.0

    def current(self) -> Pair:
        """The pair to use, re-read when the file has changed. Raises `TokenFileError`."""
        state = self._store.state()
        pair = self._pair
        if state == self._state and state is not None and pair is not None:
            return pair
        return self._reload(state)

    def glance(self) -> Pair:
        """`current` for the way of every request. Where one soon follows the other, the open file is asked first: `watch.unchanged()`."""
        pair = self.current()
        now = time.monotonic()
        if now - self._looked < SOON:
            self._watch_the_file()
        self._looked = now
        return pair

    def _watch_the_file(self) -> None:
        with self._guard:
            if self._pair is not None and self.watch.state != self._state:
                self.watch = self._store.watch(self._state, self._pair)
            self.watch.renew()

    def _reload(self, state: object) -> Pair:
        # The state was taken first: if the file changes in between, the next look sees it.
        tokens = self._store.read().tokens
        with self._guard:
            if self._pair is None or self._pair.tokens != tokens:
                self._pair = Pair(tokens)
                self._shorten_pause(tokens)
            self._state, self.watch = state, UNWATCHED
            return self._pair

    def _shorten_pause(self, tokens: Tokens) -> None:
        # A pair that lives shorter than the pause is refreshed half-way; without that, some request would find it expired and wait.
        if tokens.expires_at is not None:
            half = (tokens.expires_at - time.time()) / 2
            self._no_background_before = min(self._no_background_before, time.monotonic() + half)

    def due(self, pair: Pair, *, one_shot: bool = False) -> bool:
        """Whether to rotate before a request is sent with `pair`. Starts a background refresh where one is due."""
        if pair.dead:
            return True
        if pair.expires_at is None or (self._ahead is None and not one_shot):
            return False
        left = pair.expires_at - time.time()
        if left <= 0:
            return True
        if self._ahead is not None and left <= self._ahead and time.monotonic() >= self._no_background_before:
            self._refresh_in_background(pair)
        return False

    def _refresh_in_background(self, pair: Pair) -> None:
        with self._guard:
            if self._job is not None and not self._job.finished:
                return
            # At once, so that a failure to start is not tried again by every request; a success brings another pair.
            self._no_background_before = time.monotonic() + BACKGROUND_PAUSE
            self._start(pair.secret, self._post)

    def rotate(self, rejected: Secret, post: Post | None = None) -> Job | None:
        """The job that rotates away from `rejected`; None where that has happened already. Raises `TokenFileError`."""
        pair = self.current()
        if pair.secret != rejected and not pair.dead:
            return None
        if pair.secret == rejected:
            pair.dead = True
        with self._guard:
            job = self._job
            if job is None or job.settled:
                job = self._start(pair.secret, post or self._post)
            return job

    def force(self) -> Job:
        """A job that refreshes now, whatever the clock says."""
        pair = self.current()
        with self._guard:
            job = self._job
            return job if job is not None and not job.settled else self._start(pair.secret, self._post)

    def revoke(self) -> Job:
        """A job that tells the server, then removes the file."""
        job = Job()
        from .steps import revoke_steps

        return job.start(self._plan(job, self._post), lambda plan: revoke_steps(plan, self._calls.revoke))

    def _start(self, rejected: Secret, post: Post) -> Job:
        from .steps import rotate_steps  # what only a rotation needs is imported by it

        job = Job()
        # Started before it is entered: an interrupt in between costs a second job that finds the work done, never a job that nobody runs.
        job.start(self._plan(job, post), lambda plan: rotate_steps(plan, rejected))
        self._job = job
        return job

    def _plan(self, job: Job, post: Post) -> Plan:
        from .steps import Plan

        return Plan(
            store=self._store,
            clock=SystemClock(),
            post=post,
            refresh_call=self._calls.refresh,
            name=self._calls.name,
            who=(os.getpid(), host_name()),
            lock_timeout=self._lock_timeout,
            keep=lambda tokens: self._keep(job, tokens),
            tell=tell,
        )

    def _keep(self, job: Job, tokens: Tokens) -> None:
        """Go on with a pair that could not be written, until the file changes."""
        with self._guard:
            self._state, self.watch = self._store.state(), UNWATCHED
            self._pair = Pair(tokens)
        job.settle(tokens)


class Calls:
    """What this client says to the auth endpoints."""

    def __init__(self, name: str, base_url: str, client_id: str, client_secret: Secret) -> None:
        self.name = name
        self._base_url = base_url
        self._client_id = client_id
        self._client_secret = client_secret

    def refresh(self, refresh_token: Secret) -> endpoint.Call:
        """The refresh."""
        return endpoint.refresh_call(self._base_url, refresh_token, self._client_id, self._client_secret)

    def revoke(self, refresh_token: Secret) -> endpoint.Call:
        """The revocation."""
        return endpoint.revoke_call(self._base_url, refresh_token, self._client_id, self._client_secret)


class Job:
    """One rotation in a thread of its own, and its outcome. `settled`: the outcome is known; `finished`: the thread has let go."""

    def __init__(self) -> None:
        self._outcome: Tokens | AdhAuthError | None = None
        self._event = threading.Event()
        self._guard = threading.Lock()
        self._wakers: dict[Any, list[Callable[[], None]]] = {}
        self._thread: threading.Thread | None = None
        self.finished = False

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
            from .steps import drive

            outcome = drive(steps(plan))
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


#: every core, for the child of a fork; and every job whose thread has not let go
_rotations: weakref.WeakSet[Rotation] = weakref.WeakSet()
_jobs: set[Job] = set()


def _after_fork() -> None:
    _jobs.clear()
    for rotation in list(_rotations):
        rotation._reset()  # noqa: SLF001 - the module owns its cores


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


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
    import signal

    # A handler that raises would break off this wait, or the message that explains it.
    with suppress(ValueError):  # not in the main thread, which alone gets signals
        signal.signal(signal.SIGINT, _explain_the_wait)


def _explain_the_wait(*_: object) -> None:
    tell("a token refresh is being finished; ending this process now would sign you out")
