"""A store in memory, a clock that only moves by its sleeps, and an endpoint that answers from a list."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from adh_auth.common.secret import Secret
from adh_auth.errors import LockTimeout, StoreError
from adh_auth.oauth.endpoint import EndpointCall, EndpointReply
from adh_auth.rotation.context import Calls, RotationContext
from adh_auth.store.base import Look, Pace
from adh_auth.store.record import NOTHING, Record
from adh_auth.store.stat_cache import StatCache
from adh_auth.tokens import Stored, Tokens

T = TypeVar("T")

OLD = Tokens("access-old", "refresh-old")
NEW = Tokens("access-new", "refresh-new")
SIGNED_IN = Tokens("access-of-a-new-session", "refresh-of-a-new-session")


def stored(tokens: Tokens) -> Stored:
    """Return the pair as a file holds it."""
    return Stored(tokens, {"access_token": tokens.access_token, "refresh_token": tokens.refresh_token})


def reply(status: int, headers: dict[str, str] | None = None, **mapping: Any) -> EndpointReply:
    """Return a JSON reply."""
    return EndpointReply(status, headers or {}, json.dumps(mapping).encode())


PAIR = reply(200, access_token=NEW.access_token, refresh_token=NEW.refresh_token)
INVALID_GRANT = reply(400, {"X-Request-Id": "req_1"}, error="invalid_grant")
BUSY = reply(503)


PACE = Pace(first_poll=0.004, last_poll=0.02, lock_interval=0.05, last_pauses=(0.1, 0.2, 0.3, 0.4, 0.5))


class MemoryStore:
    """One session in memory, shared by threads. It is its own lock and its own reservation."""

    name = "memory"
    kind = "session store"
    path = "memory.lock"
    pace = PACE
    reads_block = False

    def __init__(self, tokens: Tokens = OLD) -> None:
        self.content = stored(tokens)
        self.notes: list[Record] = []
        self.last_record = NOTHING
        self.reads = 0
        self.cached_for: list[object] = []
        self.writes = 0
        #: raised by the next writes, one each; then they work
        self.refusals: list[BaseException] = []
        self.has_state = True
        self.reservation = "none"
        self._lock = threading.Lock()

    def sign_in(self, tokens: Tokens) -> None:
        """Replace the session, as another program would."""
        self.content = stored(tokens)

    def state(self) -> object:
        return self.content.tokens.access_token if self.has_state else None

    def cached(self, state: object, made: T) -> StatCache[T]:
        self.cached_for.append(state)
        return StatCache(b"", state, made)

    def read(self) -> Stored:
        self.reads += 1
        return self.content

    def look(self) -> Look:
        state = self.state()
        return Look(state, self.read(), self.record())

    def has_changed(self, state: object) -> bool:
        return self.state() != state

    def before_send(self) -> None:
        """Do nothing."""

    def lock(self) -> MemoryStore:
        return self

    def take(self) -> bool:
        return self._lock.acquire(blocking=False)

    def release(self) -> None:
        if self._lock.locked():
            self._lock.release()

    def lock_timeout(self, lock: Any, waited: float) -> LockTimeout:
        return LockTimeout(f"waited {waited:g} s")

    def reserve(self) -> MemoryStore:
        self.reservation = "held"
        return self

    def replace(self, fresh: Stored, spent: Stored, record: Record) -> bool:
        self.writes += 1
        if self.refusals:
            raise self.refusals.pop(0)
        if spent.tokens.refresh_token != self.content.tokens.refresh_token:
            return False
        self.content = fresh
        self.note(record)
        return True

    def leave(self) -> None:
        self.reservation = "left"

    def discard(self) -> None:
        self.reservation = "discarded"

    def remove(self) -> None:
        raise NotImplementedError

    def record(self) -> Record:
        return self.last_record

    def note(self, record: Record) -> None:
        self.last_record = record
        self.notes.append(record)

    def left_behind(self) -> Stored | None:
        return None

    def recover(self, stored: Stored, record: Record) -> str | None:
        return None

    def what(self) -> str:
        return f"{self.kind} {self.name}"

    def facts_for_errors(self) -> dict[str, str]:
        return {"store": self.name, "session": "default"}

    def sign_in_command(self) -> str:
        return "sign in"

    def error(self, problem: str, next_step: str) -> StoreError:
        return StoreError(f"{self.what()} {problem}. {next_step}", **self.facts_for_errors())


@dataclass
class ManualClock:
    """A clock that moves by what is slept. `when_slept` runs after each sleep."""

    passed: float = 0.0
    slept: list[float] = field(default_factory=list)
    is_ending: bool = False
    when_slept: Callable[[], None] = lambda: None

    def now(self) -> float:
        return 1_700_000_000.0 + self.passed

    def monotonic(self) -> float:
        return self.passed

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.passed += seconds
        self.when_slept()

    def ending(self) -> bool:
        return self.is_ending


class Endpoint:
    """Answers from a list: a reply is returned, an exception raised. The last one answers all that follow."""

    def __init__(self, *answers: EndpointReply | BaseException) -> None:
        self._answers = list(answers)
        self.calls: list[EndpointCall] = []
        #: seconds that each call was given
        self.seconds: list[float] = []
        self.when_called: Callable[[], None] = lambda: None

    def __call__(self, call: EndpointCall, seconds: float) -> EndpointReply:
        self.calls.append(call)
        self.seconds.append(seconds)
        self.when_called()
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer


CALLS = Calls("https://api.example", "client", Secret("the client's secret"))


@dataclass
class World:
    """What one attempt needs, and what came of it."""

    endpoint: Endpoint
    store: MemoryStore = field(default_factory=MemoryStore)
    clock: ManualClock = field(default_factory=ManualClock)
    warnings: list[str] = field(default_factory=list)
    unsaved: list[Tokens] = field(default_factory=list)

    def context(self) -> RotationContext:
        """Return the context of a job in this world."""
        return RotationContext(
            store=self.store,
            clock=self.clock,
            post=self.endpoint,
            refresh_call=CALLS.refresh,
            owner=CALLS.owner,
            who=(4242, "here"),
            lock_timeout=45.0,
            continue_unsaved=self.unsaved.append,
            warn=self.warnings.append,
        )
