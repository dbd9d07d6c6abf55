"""Threads as this library needs them: started so that no interrupt can strand them, told from the program's,
undisturbed by its signals.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["OURS", "is_anybody_else_alive", "keeps_alive", "signals_held", "survive_an_interrupted_start"]

#: What the names of this library's threads begin with.
OURS = "adh-auth "


def is_anybody_else_alive() -> bool:
    """Whether a thread that is neither ours nor the main one keeps the program running."""
    others = (
        thread
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and not thread.name.startswith(OURS)
    )
    return any(thread.is_alive() and not thread.daemon for thread in others)


def keeps_alive(thread: threading.Thread) -> bool:
    """Whether it is no daemon.

    A thread that Python did not start looks like one, and is none: a server's, that runs this interpreter.
    """
    return not thread.daemon or _is_dummy(thread)


def _is_dummy(thread: threading.Thread) -> bool:
    return type(thread).__name__ == "_DummyThread"


def survive_an_interrupted_start(thread: threading.Thread) -> None:
    """`Thread.start` waits for an Event until the thread runs, see `adh_auth.rotation.job.Job.wait`.

    CPython 3.10 to 3.15 call it `_started`.
    """
    if "_started" in vars(thread):
        vars(thread)["_started"] = _Started()


class _Started:
    """As much of an Event as a thread needs to tell that it runs, without a lock that an interrupt can leave
    taken.
    """

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
def signals_held() -> Iterator[None]:
    """Let no signal handler of the program's raise in here, for there may be a spent token in hand; they run
    afterwards.
    """
    came: list[tuple[Any, Any]] = []
    handlers: dict[Any, Any] = {}
    with suppress(ValueError):  # not in the main thread, which alone gets signals
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if callable(handler):
                signal.signal(number, lambda *arguments: came.append(arguments))
                handlers[number] = handler
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for arguments in came:
            handlers[arguments[0]](*arguments)
