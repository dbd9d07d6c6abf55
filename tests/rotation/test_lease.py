"""A store whose lock is a lease, which may be lost, and a store that is down in the midst of a rotation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adh_auth import TokenFile
from adh_auth.common.secret import Secret
from adh_auth.errors import LockTimeout, RefreshFailed, StoreError
from adh_auth.oauth.endpoint import Unreachable
from adh_auth.rotation.context import Transaction
from adh_auth.rotation.core import Rotation
from adh_auth.rotation.transaction import rotation_transaction
from adh_auth.store.base import LeaseLost, Look
from adh_auth.store.record import DONE, FAILED, SENDING, UNSAVED, Record
from adh_auth.tokens import fingerprint

from ..support.processes import PATIENCE
from .memory import CALLS, NEW, OLD, PACE, PAIR, SIGNED_IN, Endpoint, MemoryStore, World

REJECTED = Secret(OLD.access_token)


class LeaseStore(MemoryStore):
    """A store whose lease is lost as often as `losses` says, at the step `where`."""

    def __init__(self, where: str, losses: int) -> None:
        super().__init__()
        self.where, self.losses = where, losses
        self.takes = 0
        self.when_lost: Callable[[], None] = lambda: None

    def take(self) -> bool:
        self.takes += 1
        return super().take()

    def note(self, record: Record) -> None:
        if record.state == SENDING:
            self._lose("note")
        super().note(record)

    def before_send(self) -> None:
        self._lose("before_send")

    def _lose(self, where: str) -> None:
        if where == self.where and self.losses:
            self.losses -= 1
            self.when_lost()
            raise LeaseLost


def run(steps: Transaction) -> Any:
    """Do all steps. Return what they return; raise what they raise."""
    value: Any = None
    error: BaseException | None = None
    while True:
        try:
            step = steps.send(value) if error is None else steps.throw(error)
        except StopIteration as end:
            return end.value
        value, error = None, None
        try:
            value = step.work()
        except BaseException as raised:
            error = raised


@pytest.mark.parametrize("where", ["note", "before_send"])
def test_a_lost_lease_is_decided_anew(where: str) -> None:
    """Nothing is sent; the lock is taken again, and the token is sent once."""
    store = LeaseStore(where, losses=2)
    world = World(Endpoint(PAIR), store)
    assert run(rotation_transaction(world.context(), REJECTED)) == NEW
    assert store.takes == 3
    assert len(world.endpoint.calls) == 1
    assert store.reservation == "left"
    assert world.clock.slept == [PACE.lock_interval] * 2
    assert not store._lock.locked()
    assert world.warnings == []


@pytest.mark.parametrize("where", ["note", "before_send"])
def test_who_lost_the_lease_adopts_what_another_got(where: str) -> None:
    """The other one has refreshed meanwhile."""
    store = LeaseStore(where, losses=1)
    store.when_lost = lambda: store.sign_in(SIGNED_IN)
    world = World(Endpoint(PAIR), store)
    assert run(rotation_transaction(world.context(), REJECTED)) == SIGNED_IN
    assert world.endpoint.calls == []


def test_who_lost_the_lease_shares_a_failure() -> None:
    """The other one has tried meanwhile: nobody tries again right after it."""
    store = LeaseStore("note", losses=1)
    failed = Record(number=1, about=fingerprint(OLD.refresh_token), state=FAILED, reason="no network")
    store.when_lost = lambda: setattr(store, "last_record", failed)
    world = World(Endpoint(PAIR), store)
    with pytest.raises(RefreshFailed, match="no network"):
        run(rotation_transaction(world.context(), REJECTED))
    assert world.endpoint.calls == []


def test_a_lease_that_is_lost_again_and_again_ends_with_the_lock_timeout() -> None:
    """It is bounded by the same time as any wait for the lock."""
    world = World(Endpoint(PAIR), LeaseStore("note", losses=10**6))
    with pytest.raises(LockTimeout):
        run(rotation_transaction(world.context(), REJECTED))
    assert world.context().lock_timeout < world.clock.passed < world.context().lock_timeout + 1
    assert world.endpoint.calls == []


def test_a_lease_that_is_lost_while_the_program_ends() -> None:
    """No further try begins."""
    world = World(Endpoint(PAIR), LeaseStore("note", losses=10**6))
    world.clock.is_ending = True
    with pytest.raises(RefreshFailed, match="the program is ending"):
        run(rotation_transaction(world.context(), REJECTED))


def test_a_lease_that_is_lost_after_a_lost_reply_sends_nothing_more() -> None:
    """The second try finds that another follows; what that one got is adopted."""
    store = LeaseStore("before_send", losses=0)
    world = World(Endpoint(Unreachable("ReadTimeout", sent=True), PAIR), store)

    def lose_next() -> None:
        store.losses = 1
        store.when_lost = lambda: store.sign_in(NEW)

    world.endpoint.when_called = lose_next
    assert run(rotation_transaction(world.context(), REJECTED)) == NEW
    assert len(world.endpoint.calls) == 1


class Waiting(MemoryStore):
    """A store whose lock is held; it counts what a waiter asks for."""

    pace = PACE._replace(notices_records=True)

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def take(self) -> bool:
        self.asked.append("take")
        return False

    def look(self) -> Look:
        self.asked.append("look")
        return super().look()._replace(state=self._version())

    def has_changed(self, state: object) -> bool:
        self.asked.append("has_changed")
        return state != self._version()

    def _version(self) -> object:
        return self.content.tokens, self.last_record


def test_a_waiter_asks_once_for_each_poll() -> None:
    """Where a change shows a new record, too, a look follows a change only."""
    store = Waiting()
    world = World(Endpoint(PAIR), store)

    def go_on() -> None:
        if len(world.clock.slept) == 30:
            store.note(Record(number=1, state=SENDING, about=fingerprint(OLD.refresh_token)))
        if len(world.clock.slept) == 60:
            store.sign_in(NEW)

    world.clock.when_slept = go_on
    assert run(rotation_transaction(world.context(), REJECTED)) == NEW
    assert store.asked.count("look") == 3
    assert store.asked.count("has_changed") == 60
    assert world.clock.slept[0] == PACE.first_poll
    assert max(world.clock.slept) == PACE.last_poll
    assert store.asked.count("take") == pytest.approx(world.clock.passed / PACE.lock_interval, rel=0.3)


def test_a_waiter_learns_of_a_failure_from_a_change() -> None:
    """The holder's failure is shared without a look after each try for the lock."""
    store = Waiting()
    world = World(Endpoint(PAIR), store)
    failed = Record(number=1, about=fingerprint(OLD.refresh_token), state=FAILED, reason="no network")
    world.clock.when_slept = lambda: store.note(failed)
    with pytest.raises(RefreshFailed, match="no network"):
        run(rotation_transaction(world.context(), REJECTED))
    assert store.asked.count("look") == 2


# A store that is down.


class DownStore:
    """A token file behind a network: once it is down, everything that may raise does."""

    pace = TokenFile.pace
    reads_block = False
    kind = "session store"

    def __init__(self, path: Path) -> None:
        self._file = TokenFile(path)
        self.down = False
        self._state = self._file.state()
        self.refused: list[str] = []

    def state(self) -> object:
        if not self.down:
            self._state = self._file.state()
        return self._state

    def has_changed(self, state: object) -> bool:
        return not self.down and self._file.has_changed(state)

    def reserve(self) -> Any:
        reservation = self._file.reserve()
        return Guarded(self, reservation)

    def lock(self) -> Any:
        return Guarded(self, self._file.lock())

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._file, name)
        if name in ("name", "what", "facts_for_errors", "sign_in_command", "error", "lock_timeout", "cached"):
            return found
        return Guarded(self, self._file).__getattr__(name)


class Guarded:
    """An object whose methods raise while the store is down."""

    def __init__(self, store: DownStore, inner: Any) -> None:
        self._store, self._inner = store, inner

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            if self._store.down:
                self._store.refused.append(name)
                raise StoreError(f"{self._store.what()} can't be reached", store="x", session="default")
            return getattr(self._inner, name)(*arguments)

        return call


def _old_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.json"
    TokenFile(path).save(OLD)
    return path


@pytest.mark.filterwarnings("ignore:.*could (not )?be written")
def test_a_store_that_is_down_after_the_post_loses_nothing(tmp_path: Path) -> None:
    """The caller goes on with the new pair, the job keeps trying, and the pair is written once that works."""
    store = DownStore(_old_file(tmp_path))
    endpoint = Endpoint(PAIR)
    endpoint.when_called = lambda: setattr(store, "down", True)
    core = Rotation(store, CALLS, lambda: endpoint)
    job = core.rotate(REJECTED)
    assert job is not None
    job.wait(PATIENCE)
    assert job.outcome == NEW
    assert core.current().tokens == NEW
    assert core.must_look_first() is False
    assert not job.finished
    store.down = False
    job.join()
    assert TokenFile(store.name).load() == NEW
    assert TokenFile(store.name).record().state == DONE
    assert {"replace", "note"} <= set(store.refused)
    assert len(endpoint.calls) == 1
    assert TokenFile(store.name).lock().take()


def test_a_store_that_is_down_at_the_end_of_the_program(tmp_path: Path) -> None:
    """The last tries are those of the store's own pace; what is in hand is the outcome, whatever raises."""
    world = World(Endpoint(PAIR))
    world.clock.is_ending = True
    store: Any = DownStore(_old_file(tmp_path))
    store.pace = PACE._replace(last_pauses=(1.0, 2.0, 3.0))
    world.store = store
    world.endpoint.when_called = lambda: setattr(store, "down", True)
    assert run(rotation_transaction(world.context(), REJECTED)) == NEW
    assert world.clock.slept == [1.0, 2.0, 3.0]
    assert store.refused.count("replace") == 1 + 3 + 1
    assert "can't be reached" in world.warnings[-1]
    assert world.unsaved == [NEW]


def test_a_store_that_is_down_before_the_post_spends_nothing(tmp_path: Path) -> None:
    """The error is the store's, and nothing was sent."""
    world = World(Endpoint(PAIR))
    store: Any = DownStore(_old_file(tmp_path))
    world.store = store
    look = store._file.look

    def look_and_lose() -> Look:
        seen: Look = look()
        store.down = True
        return seen

    store.look = look_and_lose
    with pytest.raises(StoreError, match="can't be reached"):
        run(rotation_transaction(world.context(), REJECTED))
    assert world.endpoint.calls == []


def test_the_names_of_a_store_are_in_its_errors() -> None:
    """No error of a store has the path of a file."""
    store = MemoryStore()
    store.last_record = Record(number=1, about=fingerprint(OLD.refresh_token), state=UNSAVED, reason="full")
    store._lock.acquire()
    with pytest.raises(StoreError, match="session store memory holds a spent token") as caught:
        run(rotation_transaction(World(Endpoint(PAIR), store).context(), REJECTED))
    assert (caught.value.store, caught.value.session, caught.value.token_file) == ("memory", "default", None)
    assert "Make the store writable again" in str(caught.value)
