"""The sandbox in a process of its own: its work must not be done by the interpreter that is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from adh_auth.testing import Counts, Sandbox

#: A fresh interpreter: a fork would share the memory that is tabled, and whatever threads are there.
SPAWN = get_context("spawn")


class Remote:
    """What a benchmark asks of the sandbox over there."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.url: str = pipe.recv()

    def ask(self, name: str, *arguments: Any) -> Any:
        """Call a method of the sandbox."""
        self._pipe.send((name, arguments))
        return self._pipe.recv()

    @property
    def counts(self) -> Counts:
        """What it has seen."""
        counts: Counts = self.ask("__getattribute__", "counts")
        return counts


@contextmanager
def sandbox_elsewhere(**settings: Any) -> Iterator[Remote]:
    """A sandbox in a process of its own, reaped at the end."""
    here, there = SPAWN.Pipe()
    process = SPAWN.Process(target=_serve, args=(there, settings), daemon=True)
    process.start()
    try:
        yield Remote(here)
    finally:
        here.send(None)
        process.join(10)
        process.kill()
        process.join()


def _serve(pipe: Connection, settings: dict[str, Any]) -> None:
    with Sandbox(**settings) as sandbox:
        pipe.send(sandbox.url)
        while (order := pipe.recv()) is not None:
            name, arguments = order
            pipe.send(getattr(sandbox, name)(*arguments))
