"""The lease: who may send the token, when another may follow, and what a stopped machine finds out in time."""

from __future__ import annotations

import os

import pytest

from adh_auth.errors import StoreError
from adh_auth.store.base import LeaseLost
from adh_auth.store.record import FAILED, REFUSED, SENDING, UNSAVED, Record
from adh_auth.store.registry import RegistryStore
from adh_auth.tokens import Stored, fingerprint

from ..support.machines import FIRST, SECOND, Begun, Machine, Machines


@pytest.fixture
def machines() -> Machines:
    return Machines().signed_in()


def _watch(machines: Machines, machine: Machine, seconds: float, step: float = 0.25) -> float | None:
    """Try to take the lease again and again. Return after how many seconds that worked."""
    lock, began = machine.store.lock(), machines.clock.passed
    while machines.clock.passed - began <= seconds:
        if lock.take():
            return machines.clock.passed - began
        machines.clock.passed += step
    return None


def _abandoned(machines: Machines, state: str = SENDING) -> Begun:
    """Return the rotation of a machine that was killed after its note; its lease is over."""
    begun = machines.machine().begin()
    if state != SENDING:
        begun.machine.store.note(Record(number=1, about=begun.record.about, state=state))
    machines.clock.passed += 35.5
    return begun


def test_one_holder(machines: Machines) -> None:
    """Of two machines one gets the lease, and the other one after its release."""
    first, second = machines.machine().store.lock(), machines.machine().store.lock()
    assert first.take()
    assert not second.take()
    first.release()
    assert second.take()
    assert not first.take()


def test_two_that_have_seen_the_same(machines: Machines) -> None:
    """What was read before another machine took the lease is no reason to take it."""
    here, there = machines.machine(), machines.machine()
    here.store.look()
    there.store.look()
    lock, other = here.store.lock(), there.store.lock()
    assert lock.take()
    assert not other.take()


def test_a_look_is_enough_for_one_take(machines: Machines) -> None:
    """A waiter that has just looked takes the lease in one trip."""
    machine = machines.machine()
    machine.store.look()
    assert machine.store.lock().take()
    assert machine.register.calls == ["get", "take"]


def test_a_look_is_enough_for_no_second_take(machines: Machines) -> None:
    """What a waiter has seen once is not believed for ever: the clock may stand still."""
    held, waiting = machines.machine().store.lock(), machines.machine()
    assert held.take()
    lock = waiting.store.lock()
    waiting.store.look()
    assert not lock.take()
    held.release()
    assert lock.take()


def test_own_lease_that_ran_out(machines: Machines) -> None:
    """A rotation that begins anew has nobody to wait for but itself."""
    begun = machines.machine().begin()
    machines.clock.passed += 36
    assert begun.lock.take()


def test_lease_from_take_to_note(machines: Machines) -> None:
    """A holder that has noted nothing is followed after 10 s: it has sent nothing."""
    assert machines.machine().store.lock().take()
    assert _watch(machines, machines.machine(), 20) == pytest.approx(10.0, abs=0.3)


def test_holder_that_has_failed(machines: Machines) -> None:
    """A record of a failure ends the lease in the same trip."""
    for state in (FAILED, REFUSED):
        begun = machines.machine().begin()
        begun.machine.store.note(Record(number=1, about=begun.record.about, state=state))
        calls = len(begun.machine.register.calls)
        begun.lock.release()
        assert len(begun.machine.register.calls) == calls
        other = machines.machine().store.lock()
        assert other.take()
        other.release()


@pytest.mark.parametrize("state", [SENDING, UNSAVED])
def test_lease_over_an_unfinished_attempt(machines: Machines, state: str) -> None:
    """Its holder may be alive: it is followed after 35 s, and 8 s in which this machine has watched it."""
    begun = machines.machine().begin()
    if state == UNSAVED:
        begun.machine.store.note(Record(number=1, about=begun.record.about, state=state))
    assert _watch(machines, machines.machine(), 60) == pytest.approx(43.0, abs=0.6)


def test_observation_begins_when_the_lease_is_over(machines: Machines) -> None:
    """Whoever comes later watches for 8 s as well: clocks of two machines are not compared."""
    _abandoned(machines)
    machines.clock.passed += 1000
    assert _watch(machines, machines.machine(), 60) == pytest.approx(8.0, abs=0.3)


def test_holder_that_goes_on(machines: Machines) -> None:
    """A note of the holder, seen in the last moment, begins the wait anew."""
    begun = _abandoned(machines)
    watcher = machines.machine().store.lock()
    for _ in range(30):  # 7.5 s
        assert not watcher.take()
        machines.clock.passed += 0.25
    begun.machine.store.note(begun.record)
    machines.clock.passed += 34
    assert not watcher.take()
    machines.clock.passed += 1.5
    for _ in range(32):
        assert not watcher.take()
        machines.clock.passed += 0.25
    assert watcher.take()


GAPS = ["stopped", "stopped, and the clock set back", "suspended", "out of reach", "cut off for a moment"]


@pytest.mark.parametrize("gap", [*GAPS, "followed by another machine"])
def test_observation_with_a_gap(machines: Machines, gap: str) -> None:
    """A machine that was stopped or suspended, or could not reach the store, has watched nothing."""
    _abandoned(machines)
    machine = machines.machine()
    watcher = machine.store.lock()
    for _ in range(30):
        assert not watcher.take()
        machines.clock.passed += 0.25
    _interrupt(machines, machine, gap)
    for _ in range(31):
        assert not watcher.take()
        machines.clock.passed += 0.25
    machines.clock.passed += 0.5
    assert watcher.take()


def _interrupt(machines: Machines, machine: Machine, gap: str) -> None:
    if gap.startswith("stopped"):
        machines.clock.passed += 2.1
        machines.clock.suspended -= 2.1 if "set back" in gap else 0.0
    elif gap == "suspended":
        machines.clock.suspended += 3600
    elif gap == "out of reach":
        machines.register.stop()
        with pytest.raises(StoreError, match="can't be read"):
            machine.store.lock().take()
        machines.register.start()
    elif gap == "followed by another machine":
        row = machines.register.get("reports")
        assert row is not None
        machines.register.take("reports", row.version, "another", 10.0)
        machines.register.advance(11.0)  # a failover to a host whose clock is ahead
    else:
        state = machine.store.look().state
        machine.register.is_cut_off = True
        assert not machine.store.has_changed(state)
        machine.register.is_cut_off = False


def test_reads_two_seconds_apart_are_no_gap(machines: Machines) -> None:
    """A slow register can be watched, too."""
    _abandoned(machines)
    assert _watch(machines, machines.machine(), 60, step=2.0) == pytest.approx(8.0)


def test_two_that_watch(machines: Machines) -> None:
    """Both have watched for long enough: one follows, and the other begins to wait anew."""
    _abandoned(machines)
    first, second = machines.machine().store.lock(), machines.machine().store.lock()
    for _ in range(32):
        assert not first.take()
        assert not second.take()
        machines.clock.passed += 0.25
    machines.clock.passed += 0.25
    assert first.take()
    assert not second.take()


def test_attempt_on_another_pair(machines: Machines) -> None:
    """A record about a pair that is gone holds nobody up: its lease ended with the sign-in."""
    machines.machine().begin()
    machines.machine().store.save(SECOND)
    assert machines.machine().store.lock().take()


def test_holder_that_broke_off(machines: Machines) -> None:
    """A job that ends without a word gives the lease back, and is followed at once: nothing is on its way."""
    begun = machines.machine().begin()
    begun.lock.release()
    assert machines.machine().store.lock().take()


# Notes.


def test_note_after_another_took_the_lease(machines: Machines) -> None:
    """Nothing is sent: the holder learns from its note that it came too late."""
    machine = machines.machine()
    lock = machine.store.lock()
    assert lock.take()
    machine.store.look()
    machines.clock.passed += 11
    assert machines.machine().store.lock().take()
    with pytest.raises(LeaseLost):
        machine.store.note(Record(number=1, about=fingerprint(FIRST.refresh_token), state=SENDING))
    row = machines.register.get("reports")
    assert row is not None
    assert row.record is None
    assert not lock.take()


def test_note_without_a_lease(machines: Machines) -> None:
    """No lease, no note, no reservation, and no trip."""
    machine = machines.machine()
    for use in (lambda: machine.store.note(Record()), machine.store.before_send, machine.store.reserve):
        with pytest.raises(LeaseLost):
            use()
    assert machine.register.calls == []


def test_note_after_a_lease_that_ran_out(machines: Machines) -> None:
    """A slow holder goes on where nobody has followed."""
    machine = machines.machine()
    assert machine.store.lock().take()
    machine.store.look()
    machines.clock.passed += 100
    machine.store.note(Record(number=1, state=SENDING))


def test_note_that_is_refused(machines: Machines) -> None:
    """Rule 14: a role that may only read works until the rotation, which then spends nothing."""
    machine = machines.machine()
    machine.register.is_read_only = True
    assert machine.store.load() == FIRST
    with pytest.raises(StoreError, match=r"can't be changed: permission denied\. Grant this user") as caught:
        machine.store.lock().take()
    assert (caught.value.store, caught.value.session) == ("memory://test", "reports")


# Just before the token is sent.


@pytest.mark.parametrize("clock", ["both", "monotonic", "wall"])
@pytest.mark.parametrize(("seconds", "notes"), [(0.0, 1), (2.0, 1), (2.01, 2), (3600.0, 2), (-1.0, 2)])
def test_note_that_is_old(machines: Machines, clock: str, seconds: float, notes: int) -> None:
    """A note that began more than 2 s ago is repeated, whichever clock shows it."""
    begun = machines.machine().begin()
    machines.clock.passed += 0.0 if clock == "wall" else seconds
    machines.clock.suspended += {"both": 0.0, "wall": seconds, "monotonic": -seconds}[clock]
    begun.machine.store.before_send()
    assert begun.machine.register.calls.count("note") == notes
    row = machines.register.get("reports")
    assert row is not None
    passed = seconds if notes == 1 and clock != "monotonic" else 0.0
    assert row.lease_left == pytest.approx(35.0 - passed, abs=0.01)


@pytest.mark.parametrize("clock", ["passed", "suspended"])
def test_stopped_before_the_token_is_sent(machines: Machines, clock: str) -> None:
    """A machine that was stopped for longer than its lease, and was followed, sends nothing."""
    begun = machines.machine().begin()
    setattr(machines.clock, clock, getattr(machines.clock, clock) + 36)
    assert _watch(machines, machines.machine(), 20) is not None
    with pytest.raises(LeaseLost):
        begun.machine.store.before_send()


def test_stopped_and_the_pair_is_another(machines: Machines) -> None:
    """The same where whoever followed has finished."""
    begun = _abandoned(machines)
    assert _watch(machines, machines.machine(), 20) is not None
    machines.machine().store.save(SECOND)
    with pytest.raises(LeaseLost):
        begun.machine.store.before_send()


def test_register_that_is_always_slow(machines: Machines) -> None:
    """Each note takes longer than the lease allows for: nothing is sent in the end."""
    begun = machines.machine().begin()
    note = begun.machine.register.note

    def slow(session: str, me: str, record: str, seconds: float) -> bool:
        machines.clock.passed += 5
        return note(session, me, record, seconds)

    begun.machine.register.note = slow  # type: ignore[method-assign]
    machines.clock.passed += 3
    with pytest.raises(LeaseLost):
        begun.machine.store.before_send()
    assert len(begun.machine.register.calls) < 12


# Lost answers.


def test_lost_answer_to_a_take(machines: Machines) -> None:
    """The row says who has the lease."""
    machine = machines.machine()
    machine.register.lost_answers = 1
    lock = machine.store.lock()
    assert lock.take()
    assert machine.register.calls == ["get", "take", "get"]
    machine.store.look()
    machine.store.note(Record(number=1, state=SENDING))


def test_lost_answer_to_a_take_that_is_noticed_later(machines: Machines) -> None:
    """A take that was given up on, and had worked, is known at the next try."""
    machine = machines.machine()
    lock = machine.store.lock()
    machine.register.lost_answers = 1
    get = machine.register.get
    machine.store.look()
    machine.register.get = lambda session: _unavailable()  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="can't be changed"):
        lock.take()
    machine.register.get = get  # type: ignore[method-assign]
    assert lock.take()
    assert machine.register.calls.count("take") == 1


def test_lease_that_nobody_knows_of(machines: Machines) -> None:
    """A take that was given up on, and had worked, is released at the end of the job."""
    machine = machines.machine()
    lock = machine.store.lock()
    machine.store.look()
    machine.register.lost_answers = 1
    get = machine.register.get
    machine.register.get = lambda session: _unavailable()  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="can't be changed"):
        lock.take()
    machine.register.get = get  # type: ignore[method-assign]
    lock.release()
    assert machines.machine().store.lock().take()


def _unavailable() -> None:
    from adh_auth.store.register import RegisterUnavailable

    raise RegisterUnavailable("connection refused")


def test_lost_answer_to_a_note(machines: Machines) -> None:
    """It is noted again."""
    machine = machines.machine()
    assert machine.store.lock().take()
    machine.store.look()
    machine.register.lost_answers = 1
    machine.store.note(Record(number=1, state=SENDING))
    assert machine.register.calls[-2:] == ["note", "note"]


def test_note_counts_from_its_last_try(machines: Machines) -> None:
    """The answer came late, and the lease counts from the note that was answered."""
    machine = machines.machine()
    assert machine.store.lock().take()
    machine.store.look()
    machine.register.lost_answers = 3
    machine.store.note(Record(number=1, state=SENDING))
    machine.clock.passed += 1.9
    machine.store.before_send()
    assert machine.register.calls.count("note") == 4


def test_release_that_fails(machines: Machines) -> None:
    """Nobody is told: the lease ends by itself."""
    lock = machines.machine().store.lock()
    assert lock.take()
    machines.register.stop()
    lock.release()
    machines.register.start()
    machines.clock.passed += 10
    assert machines.machine().store.lock().take()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_fork(machines: Machines) -> None:
    """A child neither uses nor gives back the lease of its parent."""
    begun = machines.machine().begin()
    child = os.fork()
    if not child:
        os._exit(_in_child(begun.machine.store, begun))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _in_child(store: RegistryStore, begun: Begun) -> int:
    calls = len(begun.machine.register.calls)
    try:
        store.note(begun.record)
    except LeaseLost:
        begun.lock.release()
        return len(begun.machine.register.calls) - calls
    return 99


def test_names_of_leases(machines: Machines) -> None:
    """No two leases have one name, not even of one store."""
    store = machines.machine().store
    names = {store.lock().me for _ in range(50)}
    assert len(names) == 50
    assert all(name.startswith(f"{os.getpid()}@") for name in names)


# Handed over to a helper process.


def test_a_lease_that_is_handed_over(machines: Machines) -> None:
    """The heir works under it. Whoever had it ends it no more, and competes like any other machine."""
    giver, heir, other = machines.machine(), machines.machine(), machines.machine()
    lock = giver.store.lock()
    assert lock.take()
    look = giver.store.look()
    identity = lock.identity
    lock.hand_over()
    lock.release()
    assert not lock.take()
    with pytest.raises(LeaseLost):
        giver.store.note(Record(number=1, state=SENDING))
    inherited = heir.store.inherited_lock(identity)
    assert inherited.take()
    assert not other.store.lock().take()
    heir.store.look()
    reservation = heir.store.reserve()
    heir.store.note(Record(number=1, state=SENDING))
    heir.store.before_send()
    assert reservation.replace(Stored.of(SECOND, look.stored.mapping, {}), look.stored, Record())
    assert machines.row_pair() == SECOND
    inherited.release()
    assert lock.take()


def test_a_lease_that_is_released_by_its_heir(machines: Machines) -> None:
    """It had nothing to send."""
    giver, heir = machines.machine(), machines.machine()
    lock = giver.store.lock()
    assert lock.take()
    identity = lock.identity
    lock.hand_over()
    heir.store.inherited_lock(identity).release()
    assert lock.take()


def test_a_lease_that_ran_out_before_its_heir_noted(machines: Machines) -> None:
    """The heir started too slowly: another has taken over, and it sends nothing."""
    giver, heir = machines.machine(), machines.machine()
    lock = giver.store.lock()
    assert lock.take()
    identity = lock.identity
    lock.hand_over()
    machines.clock.passed += 10.5
    assert machines.machine().store.lock().take()
    inherited = heir.store.inherited_lock(identity)
    heir.store.look()
    with pytest.raises(LeaseLost):
        heir.store.note(Record(number=1, state=SENDING))
    assert not inherited.take()


def test_a_lease_that_is_taken_back(machines: Machines) -> None:
    """Its heir has ended: nobody waits until it runs out, and what the heir has sent late finds it gone."""
    giver, heir, other = machines.machine(), machines.machine(), machines.machine()
    lock = giver.store.lock()
    assert lock.take()
    identity = lock.identity
    lock.hand_over()
    heir.store.inherited_lock(identity)
    lock.take_back()
    assert not other.store.lock().take()
    assert lock.take()
    assert not other.store.lock().take()
    assert not heir.register.note("reports", identity, "{}", 35.0)
    heir.register.release("reports", identity)
    assert not other.store.lock().take()
    lock.release()
    assert other.store.lock().take()
    assert not lock.take()
