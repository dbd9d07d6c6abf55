"""A token file that is read as if it lay behind a network: from memory, until it is looked at again."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

from adh_auth import TokenFile
from adh_auth.errors import StoreError
from adh_auth.store.base import Look
from adh_auth.store.record import NOTHING, Record
from adh_auth.tokens import Stored

__all__ = ["RemoteStore"]


class RemoteStore:
    """A store for several machines. It refuses to be asked in the thread of an event loop."""

    kind = "session store"
    reads_block = True

    def __init__(self, path: str | os.PathLike[str], session: str = "default") -> None:
        self._file = TokenFile(path)
        self.session = session
        self.name = f"remote://store#{session}"
        self.pace = TokenFile.pace
        self._known: Look | None = None
        #: how often it was looked at, and whether it can't be reached
        self.looks = 0
        self.down = False
        #: called with each look, before it is taken
        self.when_looked: Callable[[], None] = lambda: None

    def what(self) -> str:
        return f"{self.kind} {self.name}"

    def facts_for_errors(self) -> dict[str, str]:
        return {"store": "remote://store", "session": self.session}

    def error(self, problem: str, next_step: str) -> StoreError:
        return StoreError(f"{self.what()} {problem}. {next_step}", **self.facts_for_errors())

    def state(self) -> object:
        return None if self._known is None else self._known.stored.tokens

    def read(self) -> Stored:
        return (self._known or self.look()).stored

    def record(self) -> Record:
        return NOTHING if self._known is None else self._known.record

    def cached(self, state: object, made: Any) -> None:
        """Return none: memory is cheap to ask."""

    def look(self) -> Look:
        self._use_network()
        self.looks += 1
        self.when_looked()
        self._known = self._file.look()
        return self._known

    def _use_network(self) -> None:
        assert not _in_event_loop(), f"a network is waited for in {threading.current_thread().name}"
        if self.down:
            raise self.error("can't be reached: connection refused", "Try again later")

    def for_helper(self) -> None:
        """Return none: it lives in this process."""

    def lock(self) -> Any:
        return _PlainLock(self._file.lock())

    def reserve(self) -> Any:
        return _Remembered(self, self._file.reserve())

    def remember(self) -> None:
        """Know what was just written."""
        self._known = self._file.look()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Remembered:
    """A reservation: what is written through it is in memory, too."""

    def __init__(self, store: RemoteStore, inner: Any) -> None:
        self._store, self._inner = store, inner
        self.leave, self.discard = inner.leave, inner.discard

    def replace(self, fresh: Stored, spent: Stored, record: Record) -> bool:
        written: bool = self._inner.replace(fresh, spent, record)
        self._store.remember()
        return written


class _PlainLock:
    """A lock that no helper process can go on with."""

    def __init__(self, lock: Any) -> None:
        self.take, self.release = lock.take, lock.release
        self.path = lock.path


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
