"""Shuts the socket of a connection that has not answered in time, so that its driver stops waiting.

libpq has no limit of its own for an answer. A server that is stopped, or a network that swallows packets,
would hold a thread for as long as the kernel tries: minutes, or for ever.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..common.threads import THREAD_NAME_PREFIX

__all__ = ["Watch", "watching"]

#: Seconds between two looks at what is watched: an answer may be late by as much more.
INTERVAL = 0.25
#: Looks without anything to watch, after which the thread ends.
IDLE_LOOKS = 40


class Watch:
    """One answer that is waited for. `shut`: it did not come in time."""

    __slots__ = ("deadline", "descriptor", "shut")

    def __init__(self, descriptor: int, seconds: float) -> None:
        self.descriptor: int = descriptor
        self.deadline: float = time.monotonic() + seconds
        self.shut: bool = False

    def shut_if_late(self) -> None:
        """Shut the socket once the deadline has passed. It stays the driver's to close."""
        if self.shut or time.monotonic() < self.deadline:
            return
        self.shut = True
        with suppress(OSError):
            watched = socket.socket(fileno=self.descriptor)
            try:
                watched.shutdown(socket.SHUT_RDWR)
            finally:
                watched.detach()


class _Watchdog:
    """What is watched in this process; a forked child starts anew."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._lock = threading.Lock()
        self._watched: set[Watch] = set()
        self._thread_runs = False

    def add(self, watch: Watch) -> None:
        with self._lock:
            self._watched.add(watch)
            starts = not self._thread_runs
            self._thread_runs = True
        if starts:
            self._start()

    def discard(self, watch: Watch) -> None:
        with self._lock:  # from here on the number may be another file's
            self._watched.discard(watch)

    def _start(self) -> None:
        name = f"{THREAD_NAME_PREFIX}watchdog"
        try:
            threading.Thread(target=self._run, name=name, daemon=True).start()
        except RuntimeError:  # no thread starts any more while the interpreter ends, from Python 3.12 on
            self._thread_runs = False

    def _run(self) -> None:
        looks_left = IDLE_LOOKS
        while looks_left:
            time.sleep(INTERVAL)
            with self._lock:
                looks_left = IDLE_LOOKS if self._watched else looks_left - 1
                self._thread_runs = looks_left > 0
                for watch in self._watched:
                    watch.shut_if_late()


_watchdog = _Watchdog()


@contextmanager
def watching(descriptor: int, seconds: float) -> Iterator[Watch]:
    """Shut the socket `descriptor` if this block takes longer than `seconds`."""
    watch = Watch(descriptor, seconds)
    _watchdog.add(watch)
    try:
        yield watch
    finally:
        _watchdog.discard(watch)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_watchdog.reset)
