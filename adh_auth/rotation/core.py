"""The rotation core of one auth object: which pair is in force, whether it is due, one rotation at a time.

Rule 6: all threads and tasks that need a rotation share one job. Rule 14: reading needs no lock. The core
imports no client: each auth class gives it a plain callable that posts JSON.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ..common.limits import LOCK_TIMEOUT, REFRESH_DEADLINE
from ..common.notices import warn_loudly
from ..common.secret import Secret
from ..store.record import host_name
from ..store.stat_cache import StatCache
from ..tokens import Tokens
from .active_tokens import ActiveTokens
from .context import Calls, Launch, Post, RotationContext
from .decision import is_due_ahead, is_in_first_half
from .detached import (
    Launcher,
    TransportSpec,
    begins_in_background,
    forget_helpers,
    insist,
    is_daemonic,
    wants_helper,
)
from .job import Job
from .program_end import OwnClock, forget_jobs
from .transaction import (
    check_transaction,
    look_transaction,
    revocation_transaction,
    rotation_transaction,
)

if TYPE_CHECKING:
    from ..store.base import Store
    from .reporting import OnEvent, Reporter

__all__ = ["DescribeTransport", "Fallback", "Rotation"]

#: What to do with a job for which no thread can be started: `Job.run_here`, `Job.run_in_a_task` or
#: `Job.give_up`.
Fallback = Callable[[Job], None]

#: Describes what carries a refresh; None where that is no client as it was installed.
DescribeTransport = Callable[[], TransportSpec | None]

#: Seconds without a background refresh after one that failed. The old token works until then, or a request
#: meets its expiry.
BACKGROUND_PAUSE = 15.0
#: Seconds between two reads of the record, where it says that no background refresh is due yet.
RECORD_PAUSE = 0.25
#: Seconds between two requests below which it pays to keep the file open.
HOT_INTERVAL = 0.02
#: Seconds that a waiter adds to the lock's time-out and the refresh's deadline, for a busy machine.
PATIENCE_MARGIN = 5.0

#: The cache where no file is kept open: it never answers.
EMPTY_CACHE: StatCache[Any] = StatCache()


class Rotation:
    """The core of one auth object. May be shared by threads, loops and clients, and survives a fork.

    `find_post`: returns what posts a call. `refresh_ahead`, `lock_timeout`: seconds.
    """

    def __init__(
        self,
        store: Store,
        calls: Calls,
        find_post: Callable[[], Post | None],
        *,
        refresh_ahead: float | None = None,
        lock_timeout: float = LOCK_TIMEOUT,
        launcher: Launcher | None = None,
        find_transport: Callable[[], DescribeTransport | None] = lambda: None,
        on_event: OnEvent | None = None,
    ) -> None:
        self._store = store
        #: whether `current` may wait for a network, see `must_look_first`
        self.reads_block: bool = store.reads_block
        self._calls = calls
        # Found when it is needed: it is a method of the object that owns this core, and a reference circle
        # of the two would wait for the garbage collector.
        self._find_post = find_post
        self._launcher = launcher or Launcher(False, {})
        self._find_transport = find_transport
        self._refresh_ahead = refresh_ahead
        self._lock_timeout = lock_timeout
        self._reporter = None if on_event is None else _reporter(on_event, store.facts_for_errors())
        #: the pair in memory, and the state of the file it was read from
        self._active: ActiveTokens | None = None
        self._file_state: object = None
        #: holds the same pair for as long as the open file is unchanged. Clients ask it first on each
        #: request, without a call in between; then `current_fast`
        self.cache: StatCache[ActiveTokens] = EMPTY_CACHE
        #: when `current_fast` was last called, by the monotonic clock
        self._last_request = 0.0
        #: start by the monotonic clock, and seconds without a background refresh from then on. An end in the
        #: future would outlast a clock that is set back
        self._background_pause = (0.0, 0.0)
        #: whether the stored expiry is reason enough to rotate; otherwise the API's word is waited for
        self._by_expiry = False
        self._reset()
        _rotations.add(self)

    def _reset(self) -> None:
        # After a fork the lock may be held by, and the job belongs to, a thread that the child does not
        # have. Re-entrant, for a signal handler that sends a request while this thread is in here.
        self._guard = threading.RLock()
        self._job: Job | None = None
        self._check_job: Job | None = None
        self._look_job: Job | None = None

    @property
    def patience(self) -> float:
        """Seconds after which a waiter gives up on a job: longer than a wait for the lock and a refresh."""
        return self._lock_timeout + REFRESH_DEADLINE + PATIENCE_MARGIN

    # Which pair is in force.

    def current(self) -> ActiveTokens:
        """Return the pair to use, re-read if the store has changed. Raises `TokenStoreError`."""
        state = self._store.state()
        active = self._active
        if state == self._file_state and state is not None and active is not None:
            return active
        return self._reload(state)

    def must_look_first(self) -> bool:
        """Return whether `current` would wait for a network. A task awaits the job of `look` before."""
        return self.reads_block and self._store.state() is None

    def look(self, *, without_thread: Fallback = Job.run_here) -> tuple[Job, bool]:
        """Return the job that reads the session as it is now, and whether it begins only now.

        `current` knows the session afterwards. A job that is under way may have read before this call.
        """
        with self._guard:
            job = self._look_job
            if job is not None and not job.settled:
                return job, False
            job = Job()
            started = job.start(self._context(job), look_transaction)
            self._look_job = job
        if not started:
            without_thread(job)
        return job, True

    def current_fast(self) -> ActiveTokens:
        """Return what `current` does, and keep a file open where one request soon follows another.

        Raises `TokenStoreError`.
        """
        active = self.current()
        now = time.monotonic()
        if now - self._last_request < HOT_INTERVAL:
            self._keep_file_open()
        self._last_request = now
        return active

    def _keep_file_open(self) -> None:
        with self._guard:
            if self._active is not None and self.cache.state != self._file_state:
                self.cache = self._store.cached(self._file_state, self._active) or EMPTY_CACHE
            self.cache.revalidate()

    def _reload(self, state: object) -> ActiveTokens:
        # The state was taken before the read: if the file changes in between, the next check sees it.
        stored = self._store.read()
        self._calls.owner.check(stored, self._store)
        tokens = stored.tokens
        with self._guard:
            if self._active is None or self._active.tokens != tokens:
                self._active = self._activated(tokens)
                self._background_pause = (0.0, 0.0)
            self._file_state, self.cache = state, EMPTY_CACHE
            return self._active

    def _activated(self, tokens: Tokens) -> ActiveTokens:
        return ActiveTokens(tokens, needs_check=self._refresh_ahead is not None or self._by_expiry)

    def active_for(self, secret: Secret) -> ActiveTokens | None:
        """Return the pair in memory if `secret` is its access token."""
        active = self._active
        return active if active is not None and active.secret == secret else None

    # Whether it is due.

    def go_by_expiry(self) -> None:
        """Rotate by the stored expiry from now on: a hook of the program's hides what the API answers."""
        self._by_expiry = True

    def needs_rotation(self, pair: ActiveTokens, *, one_shot: bool = False) -> bool:
        """Return whether to rotate before a request is sent with `pair`; start a background refresh if due.

        `one_shot`: the request can't be sent again after a 401.
        """
        job = self._job
        if job is not None and job.paused:
            job.go_on()
        if pair.expired:
            return True
        if pair.expires_at is None or not (self._refresh_ahead is not None or one_shot or self._by_expiry):
            return False
        now = time.time()
        left = pair.expires_at - now
        if left <= 0:
            return True
        if self._refresh_ahead is not None and left <= self._refresh_ahead and not self._pauses_background():
            self._refresh_in_background(pair, now)
        return False

    def lasts(self, pair: ActiveTokens, seconds: float) -> bool:
        """Return whether the access token of `pair` has so many seconds left, as far as its expiry is known.

        A pair whose whole life is shorter does in the first half of it.
        """
        if self.needs_rotation(pair):
            return False
        now = time.time()
        if pair.expires_at is None or pair.expires_at - now >= seconds:
            return True
        return is_in_first_half(pair.tokens, self._store.record(), now)

    def _pauses_background(self) -> bool:
        since, seconds = self._background_pause
        return 0 <= time.monotonic() - since < seconds

    def _refresh_in_background(self, pair: ActiveTokens, now: float) -> None:
        with self._guard:
            if self._pauses_background() or (self._job is not None and not self._job.finished):
                return
            due = is_due_ahead(
                pair.tokens,
                self._store.record(),
                now,
                pause=BACKGROUND_PAUSE,
                longest=REFRESH_DEADLINE,
                owner=self._calls.owner.fingerprint,
            )
            # Before the start: or each request would try again where it fails. A success brings another
            # pair, which ends the pause.
            self._background_pause = (time.monotonic(), BACKGROUND_PAUSE if due else RECORD_PAUSE)
        if due:
            helper = self._helper_for(None, in_background=True)
            daemonic = is_daemonic()
            if begins_in_background(
                self._launcher.detached, has_helper=helper is not None, is_daemonic=daemonic
            ):
                # What a thread did there, the end of the parent would cut off.
                launch = partial(insist, helper) if daemonic and helper is not None else helper
                self._start(pair.secret, None, Job.give_up, lambda: launch)

    # One job at a time. `without_thread`: what to do with it where no thread can be started.

    def rotate(
        self,
        rejected: Secret,
        post: Post | None = None,
        *,
        without_thread: Fallback = Job.run_here,
        transport: DescribeTransport | None = None,
    ) -> Job | None:
        """Return the job that rotates away from `rejected`; None if that has happened already.

        Raises `TokenStoreError`.

        `without_thread`: what to do where no thread can be started for it. `transport`: describes what
        `post` carries a call with.
        """
        active = self.current()
        if active.secret != rejected and not active.expired:
            return None
        if active.secret == rejected:
            active.mark_expired()
        in_background = without_thread is Job.give_up
        find_helper = partial(self._helper_for, transport, in_background=in_background)
        return self._start(active.secret, post, without_thread, find_helper)

    def refresh_now(self, away_from: Secret | None = None, *, without_thread: Fallback = Job.run_here) -> Job:
        """Return a job that refreshes now, whatever the expiry. Raises `TokenStoreError`.

        `away_from`: the access token to replace, that in force now by default. What another process has
        replaced it with meanwhile is adopted.
        """
        job = self._job
        if job is not None and job.paused:
            job.go_on()
            if job.paused:  # it has the pair in force, and the lock
                return job
        find_helper = partial(self._helper_for, None, in_background=False)
        return self._start(away_from or self.current().secret, None, without_thread, find_helper)

    def _helper_for(self, transport: DescribeTransport | None, *, in_background: bool) -> Launch | None:
        """Return what starts a helper for a job; None where the job's thread does everything itself."""
        launcher = self._launcher
        if not wants_helper(launcher.detached, in_background=in_background, is_daemonic=is_daemonic()):
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
        find_helper: Callable[[], Launch | None],
    ) -> Job:
        """Return the job under way, or start a new one.

        `find_helper` is called for a new one only: it takes a third of a millisecond, and many may wait.
        """
        with self._guard:
            job = self._job
            if job is not None and not job.settled:
                return job
            job = Job(rejected, in_background=without_thread is Job.give_up)
            # Started before it is entered: an interrupt in between costs a second job that finds the work
            # done, never one that no thread runs.
            context = self._context(job, post)
            context.launch_helper = find_helper()
            if self._reporter is not None:
                context.report, context.began = self._reporter.report, context.clock.monotonic()
            started = job.start(context, lambda context: rotation_transaction(context, rejected))
            self._job = job
        if not started:
            # Not under the guard, which every other request of the program may need meanwhile.
            without_thread(job)
        return job

    def use_outcome(self, job: Job) -> Tokens:
        """Return the pair that the job brought; use it where a file's times are too coarse to show it.

        It counts even if somebody has signed out since: the refresh went well.
        """
        outcome = job.outcome
        if not isinstance(outcome, Tokens):
            return self.current().tokens
        with self._guard:
            active = self._active
            if active is not None and active.secret == job.rejected and outcome != active.tokens:
                self._active, self.cache = self._activated(outcome), EMPTY_CACHE
        return outcome

    def ask(self, pair: ActiveTokens, *, without_thread: Fallback = Job.run_here) -> Job | None:
        """Return the job that asks the API whether the token of a doubtful `pair` has expired.

        None if that is known by now.
        """
        with self._guard:
            # A job ends the doubt before it is settled: a request that has seen the doubt just before must
            # not ask anew.
            if not pair.doubtful:
                return None
            job = self._check_job
            if job is not None and not job.settled:
                return job
            job = Job()
            call = self._calls.me(pair.secret)
            started = job.start(self._context(job), lambda context: check_transaction(context, call, pair))
            self._check_job = job
        if not started:
            without_thread(job)
        return job

    def revoke(self, *, without_thread: Fallback = Job.run_here) -> Job:
        """Return a job that tells the server to end the session, then removes it here."""
        job = Job()
        if not job.start(
            self._context(job), lambda context: revocation_transaction(context, self._calls.revoke)
        ):
            without_thread(job)
        return job

    def _context(self, job: Job, post: Post | None = None) -> RotationContext:
        post = post or self._find_post()
        assert post is not None, "the object that owns this core is alive while it is called"
        context = RotationContext(
            store=self._store,
            clock=OwnClock(job.is_waited_for),
            post=post,
            refresh_call=self._calls.refresh,
            owner=self._calls.owner,
            who=(os.getpid(), host_name()),
            lock_timeout=self._lock_timeout,
            continue_unsaved=lambda tokens: self._continue_unsaved(itself(), job, tokens),
            warn=warn_loudly,
        )
        # Weakly: a context that holds itself would keep the auth object until the garbage collector comes.
        itself = weakref.ref(context)
        return context

    def _continue_unsaved(self, context: RotationContext | None, job: Job, tokens: Tokens) -> None:
        """Go on with a pair that could not be written, until the store changes (rule 3)."""
        with self._guard:
            self._file_state, self.cache = self._store.state(), EMPTY_CACHE
            # Checked before each request, which may have to go on with the job.
            self._active = ActiveTokens(tokens, needs_check=True)
        job.refreshed = True
        job.settle(tokens)
        if self._reporter is not None and context is not None and context.report is not None:
            self._reporter.report_unsaved(context)


def _reporter(on_event: OnEvent, store: Mapping[str, str]) -> Reporter:
    # Imported here, not in the thread of a rotation (rule 17); few programs use it.
    from .reporting import Reporter

    return Reporter(on_event, store)


#: every core, for the child of a fork
_rotations: weakref.WeakSet[Rotation] = weakref.WeakSet()


def _after_fork() -> None:
    forget_jobs()
    forget_helpers()
    for rotation in list(_rotations):
        rotation._reset()  # noqa: SLF001 - the module owns its cores


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
