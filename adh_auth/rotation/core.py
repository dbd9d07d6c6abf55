"""The one rotation core: the pair in memory, and one rotation at a time, as a job that all who wait share.

It knows neither client: each plugin hands it a plain callable that posts JSON.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..common.limits import LOCK_TIMEOUT, REFRESH_DEADLINE
from ..common.notices import warn_loudly
from ..common.secret import Secret
from ..common.text import host_name
from ..store.stat_cache import StatCache
from ..tokens import Tokens
from .context import RotationContext
from .decision import is_due_ahead
from .detached import Launcher, TransportSpec, begins_in_background, is_daemonic, wants_helper
from .job import Job, OwnClock, forget_jobs
from .transaction import check_transaction, revocation_transaction, rotation_transaction

if TYPE_CHECKING:
    from ..store.base import CachedStore

from .active_tokens import ActiveTokens
from .context import Calls, Launch, Post

__all__ = ["LOCK_TIMEOUT", "Rotation"]

#: What to do with a job for which no thread can be started: `Job.run_here`, `Job.run_in_a_task` or
#: `Job.give_up`.
Fallback = Callable[[Job], None]

#: Describes what carries a refresh; None where that is no client as it was installed.
DescribeTransport = Callable[[], TransportSpec | None]

#: Seconds without a background refresh after one that failed; until then the old token is good, or a request
#: finds out.
BACKGROUND_PAUSE = 15.0
#: Seconds between two looks at the record, where that says that no background refresh is due yet.
RECORD_PAUSE = 0.25
#: Seconds between two requests that make it worth while to keep the file open.
HOT_INTERVAL = 0.02


#: What is known of a file that nobody watches: nothing.
NO_CACHE: StatCache[Any] = StatCache()


class Rotation:
    """The core of one auth object. May be shared by threads, loops and clients, and survives a fork."""

    def __init__(
        self,
        store: CachedStore,
        calls: Calls,
        find_post: Callable[[], Post | None],
        *,
        refresh_ahead: float | None = None,
        lock_timeout: float = LOCK_TIMEOUT,
        launcher: Launcher | None = None,
        find_transport: Callable[[], DescribeTransport | None] = lambda: None,
    ) -> None:
        self._store = store
        self._calls = calls
        # Found when it is needed: it is a method of the object that owns this core, and a circle of the two
        # waits for the collector.
        self._find_post = find_post
        self._launcher = launcher or Launcher(False, {})
        self._find_transport = find_transport
        self._ahead = refresh_ahead
        self._lock_timeout = lock_timeout
        self._state: object = None
        self._pair: ActiveTokens | None = None
        #: asked by the plugins, without another call in between; then `current_fast`
        self.cache: StatCache[ActiveTokens] = NO_CACHE
        self._looked = 0.0
        #: no background refresh for so many seconds from then on; a bound in the future would outlast a clock
        #: that is set back
        self._background_pause = (0.0, 0.0)
        #: whether the stored expiry is reason enough to rotate; otherwise the API's word is waited for
        self._by_expiry = False
        self._reset()
        _rotations.add(self)

    def _reset(self) -> None:
        # After a fork: the lock may have been held by, and the job belongs to, a thread that the child does
        # not have. Re-entrant, for a signal handler that sends a request while this thread is in here.
        self._guard = threading.RLock()
        self._job: Job | None = None
        self._question: Job | None = None

    @property
    def patience(self) -> float:
        """Seconds after which a waiter gives up on a job: a wait for the lock and a whole refresh, and then
        some.
        """
        return self._lock_timeout + REFRESH_DEADLINE + 5.0

    def current(self) -> ActiveTokens:
        """The pair to use, re-read when the file has changed. Raises `TokenFileError`."""
        state = self._store.state()
        pair = self._pair
        if state == self._state and state is not None and pair is not None:
            return pair
        return self._reload(state)

    def current_fast(self) -> ActiveTokens:
        """`current` for the way of every request.

        Where one soon follows the other, the open file is asked first: `watch.unchanged()`.
        """
        pair = self.current()
        now = time.monotonic()
        if now - self._looked < HOT_INTERVAL:
            self._keep_file_open()
        self._looked = now
        return pair

    def _keep_file_open(self) -> None:
        with self._guard:
            if self._pair is not None and self.cache.state != self._state:
                self.cache = self._store.cached(self._state, self._pair)
            self.cache.revalidate()

    def _reload(self, state: object) -> ActiveTokens:
        # The state was taken first: if the file changes in between, the next look sees it.
        tokens = self._store.read().tokens
        with self._guard:
            if self._pair is None or self._pair.tokens != tokens:
                self._pair = self._pair_of(tokens)
                self._background_pause = (0.0, 0.0)
            self._state, self.cache = state, NO_CACHE
            return self._pair

    def _pair_of(self, tokens: Tokens) -> ActiveTokens:
        return ActiveTokens(tokens, needs_check=self._ahead is not None or self._by_expiry)

    def needs_rotation(self, pair: ActiveTokens, *, one_shot: bool = False) -> bool:
        """Whether to rotate before a request is sent with `pair`.

        Starts a background refresh where one is due.
        """
        job = self._job
        if job is not None and job.paused:
            job.go_on()
        if pair.expired:
            return True
        if pair.expires_at is None or not (self._ahead is not None or one_shot or self._by_expiry):
            return False
        now = time.time()
        left = pair.expires_at - now
        if left <= 0:
            return True
        if self._ahead is not None and left <= self._ahead and not self._pauses_background():
            self._refresh_in_background(pair, now)
        return False

    def _pauses_background(self) -> bool:
        since, seconds = self._background_pause
        return 0 <= time.monotonic() - since < seconds

    def _refresh_in_background(self, pair: ActiveTokens, now: float) -> None:
        with self._guard:
            if self._pauses_background() or (self._job is not None and not self._job.finished):
                return
            due = is_due_ahead(
                pair.tokens, self._store.record(), now, pause=BACKGROUND_PAUSE, longest=REFRESH_DEADLINE
            )
            # At once, so that a failure to start is not tried again by every request; a success brings
            # another pair.
            self._background_pause = (time.monotonic(), BACKGROUND_PAUSE if due else RECORD_PAUSE)
        if due:
            helper = self._helper_for(None, in_background=True)
            if begins_in_background(
                self._launcher.detached, has_helper=helper is not None, is_daemonic=is_daemonic()
            ):
                self._start(pair.secret, None, Job.give_up, helper)

    def rotate(
        self,
        rejected: Secret,
        post: Post | None = None,
        *,
        without_thread: Fallback = Job.run_here,
        transport: DescribeTransport | None = None,
    ) -> Job | None:
        """The job that rotates away from `rejected`; None where that has happened already.

        Raises `TokenFileError`.

        `without_thread`: what to do where no thread can be started for it. `transport`: describes what
        `post` carries a call with.
        """
        pair = self.current()
        if pair.secret != rejected and not pair.expired:
            return None
        if pair.secret == rejected:
            pair.mark_expired()
        in_background = without_thread is Job.give_up
        return self._start(
            pair.secret, post, without_thread, self._helper_for(transport, in_background=in_background)
        )

    def active_for(self, secret: Secret) -> ActiveTokens | None:
        """The pair in memory, where `secret` is its access token."""
        pair = self._pair
        return pair if pair is not None and pair.secret == secret else None

    def go_by_expiry(self) -> None:
        """From now on the stored expiry is reason enough to rotate: a hook keeps from us what the API says."""
        self._by_expiry = True

    def ask(self, pair: ActiveTokens, *, without_thread: Fallback = Job.run_here) -> Job | None:
        """The job that asks the API whether the token of a doubtful `pair` has expired; None where that is
        known by now.
        """
        with self._guard:
            # A job clears the doubt before it is settled: a request that has seen the doubt just before must
            # not ask anew.
            if not pair.doubtful:
                return None
            job = self._question
            if job is not None and not job.settled:
                return job
            job = Job()
            call = self._calls.me(pair.secret)
            started = job.start(self._context(job), lambda context: check_transaction(context, call, pair))
            self._question = job
        if not started:
            without_thread(job)
        return job

    def refresh_now(self, *, without_thread: Fallback = Job.run_here) -> Job:
        """A job that refreshes now, whatever the clock says."""
        job = self._job
        if job is not None and job.paused:
            job.go_on()
            if job.paused:  # it has the pair in force, and the lock
                return job
        helper = self._helper_for(None, in_background=False)
        return self._start(self.current().secret, None, without_thread, helper)

    def revoke(self, *, without_thread: Fallback = Job.run_here) -> Job:
        """A job that tells the server, then removes the file."""
        job = Job()
        if not job.start(
            self._context(job), lambda context: revocation_transaction(context, self._calls.revoke)
        ):
            without_thread(job)
        return job

    def _helper_for(self, transport: DescribeTransport | None, *, in_background: bool) -> Launch | None:
        """Return what starts a helper for a job; None where the job's thread does everything itself."""
        launcher = self._launcher
        if not wants_helper(launcher.detached, in_background=in_background):
            return None
        describe = transport or self._find_transport()
        spec = None if describe is None else describe()
        if not launcher.is_possible(spec):
            return None
        assert spec is not None
        return partial(launcher.launch, spec)

    def _start(
        self,
        rejected: Secret,
        post: Post | None,
        without_thread: Fallback,
        launch_helper: Launch | None = None,
    ) -> Job:
        """The job under way, or a new one."""
        with self._guard:
            job = self._job
            if job is not None and not job.settled:
                return job
            job = Job(rejected, in_background=without_thread is Job.give_up)
            # Started before it is entered: an interrupt in between costs a second job that finds the work
            # done, never one that nobody runs.
            context = self._context(job, post)
            context.launch_helper = launch_helper
            started = job.start(context, lambda context: rotation_transaction(context, rejected))
            self._job = job
        if not started:
            # Not under the guard, which every other request of the program may need meanwhile.
            without_thread(job)
        return job

    def take(self, job: Job) -> None:
        """Go on with what the job came to, where a file's times are so coarse that they don't show that it
        has changed.
        """
        outcome = job.outcome
        with self._guard:
            pair = self._pair
            if (
                pair is not None
                and pair.secret == job.rejected
                and isinstance(outcome, Tokens)
                and outcome != pair.tokens
            ):
                self._pair, self.cache = self._pair_of(outcome), NO_CACHE

    def _context(self, job: Job, post: Post | None = None) -> RotationContext:
        post = post or self._find_post()
        assert post is not None, "whoever calls this core is alive"
        return RotationContext(
            store=self._store,
            clock=OwnClock(job),
            post=post,
            refresh_call=self._calls.refresh,
            name=self._calls.name,
            who=(os.getpid(), host_name()),
            lock_timeout=self._lock_timeout,
            continue_unsaved=lambda tokens: self._continue_unsaved(job, tokens),
            warn=warn_loudly,
        )

    def _continue_unsaved(self, job: Job, tokens: Tokens) -> None:
        """Go on with a pair that could not be written, until the file changes."""
        with self._guard:
            self._state, self.cache = self._store.state(), NO_CACHE
            # Asked before each request, which may have to go on with the job.
            self._pair = ActiveTokens(tokens, needs_check=True)
        job.refreshed = True
        job.settle(tokens)


#: every core, for the child of a fork
_rotations: weakref.WeakSet[Rotation] = weakref.WeakSet()


def _after_fork() -> None:
    forget_jobs()
    for rotation in list(_rotations):
        rotation._reset()  # noqa: SLF001 - the module owns its cores


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
