"""A sequence of steps written once, for synchronous and for asynchronous callers.

A generator yields a `Wait` for whatever takes time, and is sent its result. `run_sync` blocks for it in this
thread, `run_async` awaits it in this task. No lock is held across a `yield` (rule 1).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from inspect import isawaitable
from typing import Any, NamedTuple

__all__ = ["Wait", "Waits", "run_async", "run_sync", "wait_for"]


class Wait(NamedTuple):
    """One thing that takes time: as a call that blocks, and as a call whose result a task awaits."""

    blocking: Callable[[], Any]
    awaited: Callable[[], Any]


Waits = Generator[Wait, Any, Any]


def wait_for(call: Callable[[], Any]) -> Wait:
    """Return the wait for a call that may be of either kind, such as a method of a file."""
    return Wait(call, call)


def run_sync(waits: Waits) -> Any:
    """Run the generator in this thread, and return its result. Raises what the generator raises."""
    value: Any = None
    error: Exception | None = None
    with closing(waits):  # an interrupt ends the generator at once, its `finally` blocks included
        while True:
            try:
                wait = waits.send(value) if error is None else waits.throw(error)
            except StopIteration as end:
                return end.value
            value, error = None, None
            try:
                value = _blocking(wait)
            except Exception as raised:  # noqa: BLE001 - the generator gets it, whatever it is
                error = raised


def _blocking(wait: Wait) -> Any:
    value = wait.blocking()
    if isawaitable(value):
        # An asynchronous file in a synchronous client, which refuses it itself. Python warns of a coroutine
        # that is neither awaited nor closed.
        getattr(value, "close", lambda: None)()
        raise TypeError("an asynchronous file cannot be awaited in a thread")
    return value


async def run_async(waits: Waits) -> Any:
    """Run the generator in this task, and return its result. Raises what the generator raises."""
    value: Any = None
    error: Exception | None = None
    with closing(waits):  # as above, for a task that is cancelled
        while True:
            try:
                wait = waits.send(value) if error is None else waits.throw(error)
            except StopIteration as end:
                return end.value
            value, error = None, None
            try:
                value = wait.awaited()
                if isawaitable(value):
                    value = await value
            except Exception as raised:  # noqa: BLE001 - the generator gets it, whatever it is
                error = raised
