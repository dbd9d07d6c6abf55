"""A sequence of steps written once runs alike in a thread and in a task."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from adh_auth.clients.waits import Wait, Waits, run_async, run_sync, wait_for

RUN: dict[str, Callable[[Waits], Any]] = {
    "thread": run_sync,
    "asyncio": lambda waits: anyio.run(run_async, waits, backend="asyncio"),
    "trio": lambda waits: anyio.run(run_async, waits, backend="trio"),
}

each_way = pytest.mark.parametrize("run", RUN.values(), ids=RUN)


def raising(error: BaseException) -> Callable[[], Any]:
    def call() -> Any:
        raise error

    return call


async def later(value: Any) -> Any:
    await anyio.sleep(0)
    return value


@each_way
def test_each_step_gets_its_result(run: Callable[[Waits], Any]) -> None:
    """The generator is sent what came of each wait, and its own result is returned."""

    def waits() -> Waits:
        first = yield wait_for(lambda: 1)
        second = yield Wait(lambda: "blocking", lambda: later("awaited"))
        return first, second

    assert run(waits()) == (1, "blocking" if run is run_sync else "awaited")


@each_way
def test_an_error_is_raised_where_it_was_waited_for(run: Callable[[Waits], Any]) -> None:
    """The generator may go on after it; what it does not catch is raised."""

    def waits() -> Waits:
        with pytest.raises(KeyError):
            yield wait_for(raising(KeyError("first")))
        yield wait_for(raising(ValueError("second")))

    with pytest.raises(ValueError, match="second"):
        run(waits())


@each_way
def test_an_interrupt_ends_the_generator_at_once(run: Callable[[Waits], Any]) -> None:
    """Its `finally` blocks have run when the caller sees the interrupt, while the traceback is held."""
    seen: list[str] = []

    def waits() -> Waits:
        try:
            yield wait_for(raising(SystemExit()))
        except Exception:
            seen.append("caught")
        finally:
            seen.append("ended")

    with pytest.raises(SystemExit) as held:
        run(waits())
    assert seen == ["ended"]
    assert held.tb is not None


@pytest.mark.anyio
async def test_a_cancelled_task_ends_the_generator() -> None:
    """A cancellation passes the generator's `except Exception`, and runs its `finally` blocks."""
    seen: list[str] = []

    def waits() -> Waits:
        try:
            yield Wait(lambda: None, anyio.sleep_forever)
        finally:
            seen.append("ended")

    with anyio.move_on_after(0.01) as scope:
        await run_async(waits())
    assert scope.cancelled_caught
    assert seen == ["ended"]


def test_an_awaitable_in_a_thread_is_refused() -> None:
    """An asynchronous file in a synchronous client: the step gets a `TypeError`, and no coroutine is left."""

    def waits() -> Waits:
        call: Callable[[], Awaitable[Any]] = lambda: later(1)  # noqa: E731
        with pytest.raises(TypeError, match="cannot be awaited"):
            yield wait_for(call)

    run_sync(waits())
