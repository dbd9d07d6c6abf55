"""The one rotation core: the pair in memory, and one rotation at a time, as a job that all who wait share.

It knows neither client: each plugin hands it a plain callable that posts JSON.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import endpoint
from .job import Job, forget_jobs
from .plan import Plan, Store
from .secret import Secret
from .settings import LOCK_TIMEOUT, REFRESH_DEADLINE
from .steps import revoke_steps, rotate_steps
from .token_file import host_name, tell
from .watch import Watch

if TYPE_CHECKING:
    from typing import Protocol

    from .tokens import Tokens

    class WatchedStore(Store, Protocol):
        """Where a session lives, and a cheap way to ask whether it is as it was when it was read."""

        def watch(self, state: object, pair: Pair) -> Watch[Pair]: ...


__all__ = ["LOCK_TIMEOUT", "Pair", "Post", "Rotation"]

Post = Callable[[endpoint.Call, float], endpoint.Reply]

#: Seconds without a background refresh after one that failed; until then the old token is good, or a request finds out.
BACKGROUND_PAUSE = 15.0
#: Seconds between two requests that make it worth while to keep the file open.
SOON = 0.02


class Pair:
    """The pair in memory, with what each request needs of it made once."""

    __slots__ = ("ask", "dead", "expires_at", "header", "secret", "tokens")

    def __init__(self, tokens: Tokens, *, ask: bool) -> None:
        self.tokens = tokens
        self.header = "Bearer " + tokens.access_token
        self.secret = Secret(tokens.access_token)
        self.expires_at = tokens.expires_at
        #: the API has said that the access token is expired
        self.dead = False
        #: whether `Rotation.due` has to be asked before each request
        self.ask = ask

    def end(self) -> None:
        """The API has said that it is expired."""
        self.dead = self.ask = True

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
                self._pair = Pair(tokens, ask=self._ahead is not None)
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
            pair.end()
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
        return job.start(self._plan(job, self._post), lambda plan: revoke_steps(plan, self._calls.revoke))

    def _start(self, rejected: Secret, post: Post) -> Job:
        job = Job()
        # Started before it is entered: an interrupt in between costs a second job that finds the work done, never a job that nobody runs.
        job.start(self._plan(job, post), lambda plan: rotate_steps(plan, rejected))
        self._job = job
        return job

    def _plan(self, job: Job, post: Post) -> Plan:
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
            self._pair = Pair(tokens, ask=self._ahead is not None)
        job.refreshed = True
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


#: every core, for the child of a fork
_rotations: weakref.WeakSet[Rotation] = weakref.WeakSet()


def _after_fork() -> None:
    forget_jobs()
    for rotation in list(_rotations):
        rotation._reset()  # noqa: SLF001 - the module owns its cores


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
