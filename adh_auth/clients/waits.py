"""A sequence of steps that is told once, for a thread and for a task: it yields what takes time, and is sent
what came of it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from inspect import isawaitable
from typing import Any, NamedTuple

__all__ = ["Wait", "Waits", "either", "run", "run_async"]


class Wait(NamedTuple):
    """One thing that takes time: as a call that blocks, and as one whose result a task awaits."""

    blocking: Callable[[], Any]
    awaited: Callable[[], Any]


Waits = Generator[Wait, Any, Any]


def either(call: Callable[[], Any]) -> Wait:
    """A call of an object that may be of either kind, such as a file."""
    return Wait(call, call)


def run(steps: Waits) -> Any:
    """Take the steps in this thread."""
    value: Any = None
    error: Exception | None = None
    while True:
        try:
            step = steps.send(value) if error is None else steps.throw(error)
        except StopIteration as end:
            return end.value
        value, error = None, None
        try:
            value = _blocking(step)
        except Exception as raised:  # noqa: BLE001 - the steps get it, whatever it is
            error = raised


def _blocking(step: Wait) -> Any:
    value = step.blocking()
    if isawaitable(value):
        # An asynchronous file in a synchronous client, which will refuse it. A coroutine that is dropped
        # warns.
        getattr(value, "close", lambda: None)()
        raise TypeError("an asynchronous file can't be waited for in a thread")
    return value


async def run_async(steps: Waits) -> Any:
    """Take the steps in this task."""
    value: Any = None
    error: Exception | None = None
    while True:
        try:
            step = steps.send(value) if error is None else steps.throw(error)
        except StopIteration as end:
            return end.value
        value, error = None, None
        try:
            value = step.awaited()
            if isawaitable(value):
                value = await value
        except Exception as raised:  # noqa: BLE001 - the steps get it, whatever it is
            error = raised
