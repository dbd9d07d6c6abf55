"""This library's threads: named, started so that no interrupt leaves a lock taken, undisturbed by signals.

Rule 18: a program whose main thread has returned and whose other threads work on is not ending.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = [
    "THREAD_NAME_PREFIX",
    "has_other_live_threads",
    "keeps_program_alive",
    "make_start_interruptible",
    "signals_deferred",
]

#: What the names of this library's threads begin with.
THREAD_NAME_PREFIX = "adh-auth "


def has_other_live_threads() -> bool:
    """Return whether a thread that is neither ours nor the main one keeps the program running."""
    others = (
        thread
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and not thread.name.startswith(THREAD_NAME_PREFIX)
    )
    return any(thread.is_alive() and not thread.daemon for thread in others)


def keeps_program_alive(thread: threading.Thread) -> bool:
    """Return whether the thread keeps the program alive.

    A thread that Python did not start (a server's that embeds this interpreter) says it is a daemon, and is
    none.
    """
    return not thread.daemon or _is_dummy(thread)


def _is_dummy(thread: threading.Thread) -> bool:
    return type(thread).__name__ == "_DummyThread"


def make_start_interruptible(thread: threading.Thread) -> None:
    """Replace the event that `Thread.start` waits for by one that an interrupt can't break.

    An interrupt inside `threading.Event` can leave its lock taken: see `adh_auth.rotation.job.Job.wait`.
    CPython 3.10 to 3.15 call the event `_started`.
    """
    if "_started" in vars(thread):
        vars(thread)["_started"] = _Started()


class _Started:
    """What `Thread` uses of `threading.Event`, without a lock that an interrupt can leave taken."""

    def __init__(self) -> None:
        self._set = False
        self._asleep = threading.Lock()
        self._asleep.acquire()

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        if self._asleep.locked():
            self._asleep.release()

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set:
            self._asleep.acquire(timeout=-1 if timeout is None else timeout)
        return self._set

    def _at_fork_reinit(self) -> None:
        self._asleep = threading.Lock()
        if not self._set:
            self._asleep.acquire()


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Around work with a spent token in hand: signal handlers run after it, as they may raise."""
    arrived: list[tuple[Any, Any]] = []
    handlers: dict[Any, Any] = {}
    with suppress(ValueError):  # not in the main thread, where alone handlers run
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if callable(handler):
                signal.signal(number, lambda *arguments: arrived.append(arguments))
                handlers[number] = handler
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for arguments in arrived:
            handlers[arguments[0]](*arguments)
