"""The end of the program, which waits for the jobs that are under way.

Rule 5: once the program is ending, an exchange in flight is finished and written, and no further try begins.
Rule 18: a program whose main thread has returned and whose other threads work on is not ending.
"""

from __future__ import annotations

import atexit
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

from ..common.clock import JobClock
from ..common.notices import warn_loudly
from ..common.threads import has_other_live_threads

__all__ = ["OwnClock", "forget_jobs", "has_ended", "unfinished_jobs"]

if TYPE_CHECKING:

    class Unfinished(Protocol):
        """A job, as far as the end of the program is concerned."""

        finished: bool

        def join(self) -> None:
            """Wait for its thread."""


#: Waits that may be broken off before the program ends all the same: an error that no signal brings recurs.
MAX_BREAKS = 100

#: every job whose thread is still at work
unfinished_jobs: set[Unfinished] = set()


class _Exit:
    #: whether the last job has been waited for: a thread that is started now is cut off
    over = False


def has_ended() -> bool:
    """Return whether the last job has been waited for; a new thread would be cut off at any moment."""
    return _Exit.over


def forget_jobs() -> None:
    """Forget all jobs, after a fork: their threads are the parent's."""
    unfinished_jobs.clear()


class OwnClock(JobClock):
    """The time of one job, and whether the program is about to end.

    `is_waited_for`: whether a thread that keeps the program alive waits for the job.
    """

    def __init__(self, is_waited_for: Callable[[], bool]) -> None:
        super().__init__()
        self._is_waited_for = is_waited_for

    def ending(self) -> bool:
        """Return whether nothing but jobs of ours is left to run.

        The interpreter joins their threads after it has marked the main thread as done. In an exit handler
        the main thread is marked as done and waits all the same. In a sub-interpreter it may be any thread,
        or none.
        """
        if sys.is_finalizing():
            return True
        if threading.main_thread().is_alive() or self._is_waited_for():
            return False
        return not has_other_live_threads()


def _finish_jobs() -> None:
    """Wait for what is being written.

    The interpreter has joined the threads already, unless a signal's handler raised and cut that short.
    """
    breaks = 0
    while breaks < MAX_BREAKS and not all(job.finished for job in list(unfinished_jobs)):
        breaks += 1
        # One more signal may have been on its way before the handlers were replaced.
        with suppress(BaseException), _handlers_that_do_not_raise():
            for job in list(unfinished_jobs):
                job.join()


def _finish_last_jobs() -> None:
    _finish_jobs()
    _Exit.over = True


# Twice: an interrupt that strikes as the first call begins ends that call alone.
atexit.register(_finish_last_jobs)
atexit.register(_finish_jobs)


@contextmanager
def _handlers_that_do_not_raise() -> Iterator[None]:
    """Around the wait, which a handler that raises would break off. Ctrl-C explains what is waited for."""
    replaced: dict[Any, Any] = {}
    with suppress(ValueError):  # not in the main thread, which alone gets signals
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if callable(handler) or (number == signal.SIGINT and handler is not None):
                replaced[number] = handler
                signal.signal(number, _explain_wait if number == signal.SIGINT else _without_error(handler))
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


def _without_error(handler: Any) -> Callable[..., None]:
    def handle(*arguments: object) -> None:
        with suppress(BaseException):
            handler(*arguments)

    return handle


def _explain_wait(*_: object) -> None:
    warn_loudly("a token refresh is being finished; ending this process now would sign you out")
