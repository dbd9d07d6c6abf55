"""The threads and tasks that wait for one outcome, and how each is woken.

Rule 5: a waiter can go away at any moment, by Ctrl-C, a cancelled task or a closed loop; the job goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

__all__ = ["WAKE_AT_ONCE", "Waiter", "Waiters", "blocking_waiter", "task_waiter"]

#: Waiters that one turn of an event loop wakes. A thousand tasks that go on in one turn would block the loop
#: for tens of milliseconds.
WAKE_AT_ONCE = 8


class Waiter(NamedTuple):
    """One waiter: its thread, how to wake it, and its event loop, if it has one."""

    thread: threading.Thread
    wake: Callable[[], None]
    loop: Any = None


def blocking_waiter(wake: Callable[[], None]) -> Waiter:
    """Return a waiter for this thread."""
    return Waiter(threading.current_thread(), wake)


def task_waiter(wake: Callable[[], None]) -> Waiter:
    """Return a waiter for this task; `wake` is called in its event loop."""
    from anyio.lowlevel import current_token

    token = current_token()
    return Waiter(threading.current_thread(), wake, getattr(token, "native_token", token))


class Waiters:
    """All that wait for one outcome. No lock guards them: single operations on a dict are atomic."""

    def __init__(self) -> None:
        # By their ids: a thousand tasks that leave a list, in any order, would block their loop for tens of
        # milliseconds.
        self._by_id: dict[int, Waiter] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, waiter: Waiter) -> None:
        """Wake this one, too. Check afterwards whether the outcome is known: it may be since just before."""
        self._by_id[id(waiter)] = waiter

    def remove(self, waiter: Waiter) -> None:
        """Forget this one; an interrupt may have come before it was added."""
        self._by_id.pop(id(waiter), None)

    def threads(self) -> list[threading.Thread]:
        """Return the threads that wait, or whose tasks do."""
        return [waiter.thread for waiter in list(self._by_id.values())]

    def wake(self) -> None:
        """Wake all."""
        loops: dict[Any, list[Callable[[], None]]] = {}
        for waiter in list(self._by_id.values()):
            if waiter.loop is None:
                waiter.wake()
            else:
                loops.setdefault(waiter.loop, []).append(waiter.wake)
        for loop, waiting in loops.items():
            _wake_in_loop(loop, waiting)


def _wake_in_loop(loop: Any, waiting: list[Callable[[], None]]) -> None:
    """Wake the waiters of one event loop, `WAKE_AT_ONCE` in each of its turns."""
    call_soon = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon

    def wake_some() -> None:
        for wake in waiting[:WAKE_AT_ONCE]:
            wake()
        del waiting[:WAKE_AT_ONCE]
        if waiting:
            call_soon(wake_some)

    # A closed loop raises RuntimeError (asyncio) or RunFinishedError (trio), and has no waiters any more.
    with suppress(Exception):
        call_soon(wake_some)
