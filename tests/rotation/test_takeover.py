"""A helper was killed with a pair that it could not write: what its program does with the pair."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from adh_auth import TokenFile
from adh_auth.common.secret import Secret
from adh_auth.errors import StoreError, TokenFileError
from adh_auth.helper.__main__ import run_steps
from adh_auth.rotation.takeover import LateReservation, take_over
from adh_auth.rotation.transaction import _after_helper
from adh_auth.store.base import LeaseLost
from adh_auth.store.record import DONE, FAILED, NOTHING, SENDING, UNSAVED
from adh_auth.store.registry import RotationLease
from adh_auth.tokens import Stored

from ..support.machines import SECOND, Machine, Machines
from .memory import NEW, OLD, SIGNED_IN, Endpoint, World, stored


@pytest.fixture
def world() -> World:
    """A world in which nothing is sent."""
    return World(Endpoint(AssertionError("sent")))


@pytest.fixture
def machines() -> Machines:
    """A register with a session."""
    return Machines().signed_in()


def _taken_over(world: World) -> object:
    context = world.context()
    context.lock = world.store.lock()
    return run_steps(take_over(context, NEW, stored(OLD)))


def test_it_writes_until_that_works(world: World) -> None:
    """The caller goes on meanwhile, and the record says who has the pair."""
    world.store.refusals = [TokenFileError("full")] * 2
    assert _taken_over(world) == NEW
    assert world.store.content.tokens == NEW
    assert world.unsaved == [NEW]
    assert [(record.state, record.pid) for record in world.store.notes] == [(UNSAVED, 4242), (DONE, 4242)]
    assert world.store.writes == 3
    assert world.store.reservation == "left"


@pytest.mark.parametrize("newer", [NEW, SIGNED_IN], ids=["its last write", "a new sign-in"])
def test_what_the_file_holds_by_now_wins(newer: object, world: World) -> None:
    """Nothing is written over it, and nobody is warned."""
    world.store.sign_in(newer)  # type: ignore[arg-type]
    assert _taken_over(world) == newer
    assert (world.store.writes, world.warnings) == (0, [])


def test_it_waits_for_the_lock(world: World) -> None:
    """Another process may hold it for a moment."""
    world.store.take()
    world.clock.when_slept = world.store.release
    assert _taken_over(world) == NEW
    assert world.store.content.tokens == NEW


def test_a_program_that_ends_does_not_wait_for_ever(world: World) -> None:
    """It says that the pair was not written."""
    world.store.take()
    world.clock.is_ending = True
    assert _taken_over(world) == NEW
    assert world.warnings == [
        "the program ends, and its new pair could not be written: the lock was not free"
    ]
    assert world.store.content.tokens == OLD


def test_what_lies_beside_the_file_is_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new reservation would remove the only copy on disk first, and the program may be killed then."""
    file = TokenFile(tmp_path / "tokens.json")
    file.save(OLD)
    spent = file.read()
    reservation = file.reserve()
    with monkeypatch.context() as disk:
        disk.setattr("os.replace", _fails)
        with pytest.raises(TokenFileError):
            reservation.replace(stored(NEW), spent, NOTHING)
    reservation.leave()
    monkeypatch.setattr(TokenFile, "reserve", _fails)
    assert LateReservation(file).replace(stored(NEW), spent, NOTHING)
    assert file.load() == NEW


def test_what_is_another_tokens_is_not(tmp_path: Path) -> None:
    """It was left by an earlier rotation."""
    file = TokenFile(tmp_path / "tokens.json")
    file.save(OLD)
    beside = tmp_path / "tokens.json.new"
    beside.write_bytes(stored(SIGNED_IN).in_place_of(stored(NEW)).to_bytes())
    beside.chmod(0o600)
    assert LateReservation(file).replace(stored(NEW), file.read(), NOTHING)
    assert file.load() == NEW
    assert not beside.exists()


# Over a register.


def _late(machine: Machine) -> tuple[LateReservation, RotationLease]:
    lock = machine.store.lock()
    assert lock.take()
    machine.store.look()
    return LateReservation(machine.store, lock), lock


def test_another_thread_goes_on(machines: Machines) -> None:
    """A job that has no thread of its own is gone on with by whoever comes."""
    late, _ = _late(machines.machine())
    spent = machines.machine().store.look().stored
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(late.replace, Stored.of(SECOND, {}, {}), spent, NOTHING).result()
    assert machines.row_pair() == SECOND


def test_another_machine_has_the_lease(machines: Machines) -> None:
    """Nothing is written until it is free again."""
    machine = machines.machine()
    late, lock = _late(machine)
    spent = machine.store.look().stored
    lock.release()
    other = machines.machine().store.lock()
    assert other.take()
    machines.clock.passed += 1
    with pytest.raises(LeaseLost):
        late.replace(Stored.of(SECOND, {}, {}), spent, NOTHING)
    other.release()
    assert late.replace(Stored.of(SECOND, {}, {}), spent, NOTHING)


@pytest.mark.parametrize("when", ["before the lock", "under the lock"])
def test_a_sign_out_ends_it(machines: Machines, when: str, world: World) -> None:
    """It wins, and nobody tries for ever."""
    machine = machines.machine()
    spent = machine.store.look().stored
    context = world.context()
    context.store, context.lock = machine.store, machine.store.lock()
    if when == "under the lock":

        def sign_out() -> None:
            machines.machine().store.delete()
            machine.register.is_read_only = False

        assert context.lock.take()
        machine.register.is_read_only = True
        world.clock.when_slept = sign_out
    else:
        machines.machine().store.delete()
    with pytest.raises(StoreError, match="holds no session"):
        run_steps(take_over(context, SECOND, spent))
    assert machines.row_pair() is None


@pytest.mark.parametrize(
    ("state", "given_back"), [("", True), (SENDING, False), (UNSAVED, False), (FAILED, True)]
)
def test_when_the_lease_is_taken_back(machines: Machines, world: World, state: str, given_back: bool) -> None:
    """Not where the helper may have sent the token: a write of its may arrive late."""
    begun = machines.machine().begin()
    begun.machine.store.note(replace(begun.record, state=state))
    machine = machines.machine()
    context, helper = world.context(), Mock(unsaved=None)
    context.store, context.lock = machine.store, machine.store.lock()
    rejected = Secret(begun.spent.tokens.access_token)
    steps = _after_helper(context, helper, machine.store.look(), rejected, 0)
    assert steps.send(next(steps).work()).name == "lock"
    assert helper.give_back_lock.called is given_back


def test_a_program_that_ends_waits_for_the_lock(world: World) -> None:
    """As long as for its last tries to write."""
    world.store.take()
    world.clock.is_ending = True
    world.clock.when_slept = world.store.release
    assert _taken_over(world) == NEW
    assert world.store.content.tokens == NEW


def _fails(*_: object) -> None:
    raise OSError("no")
