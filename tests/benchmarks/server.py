"""The sandbox in a process of its own: its work must not count for the interpreter that is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from adh_auth.testing import Counts, Sandbox

#: A new interpreter: a fork would share the memory that is measured, and copy locks that threads hold.
SPAWN = get_context("spawn")


class Remote:
    """The sandbox as seen from the benchmark's process."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.url: str = pipe.recv()

    def ask(self, name: str, *arguments: Any) -> Any:
        """Call a method of the sandbox, and return its result."""
        self._pipe.send((name, arguments))
        return self._pipe.recv()

    @property
    def counts(self) -> Counts:
        """The sandbox's counts."""
        counts: Counts = self.ask("__getattribute__", "counts")
        return counts


@contextmanager
def sandbox_elsewhere(**settings: Any) -> Iterator[Remote]:
    """Start a sandbox in a process of its own, which is reaped at the end."""
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
