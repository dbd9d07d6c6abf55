"""A store over a register: the fence of a write, healing, what a request believes, messages, bad content."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from adh_auth.common.limits import MAX_READ_BYTES, SAVE_LIMIT
from adh_auth.common.secret import Secret
from adh_auth.errors import ConfigurationError, LockTimeout, StoreError, TokenStoreError
from adh_auth.store.cipher import Cipher, cipher_from
from adh_auth.store.factory import FILE_SCHEME, SCHEMES, session_in
from adh_auth.store.record import NOTHING, SENDING, UNSAVED, Record
from adh_auth.store.register import RegisterRefused, RegisterUnavailable, TableMissing
from adh_auth.store.registry import LAST_PAUSES, RegistryStore
from adh_auth.testing import MemoryRegister
from adh_auth.tokens import Stored, Tokens, file_mapping, fingerprint

from ..support.machines import FIRST, SECOND, THIRD, Machine, Machines
from ..support.processes import ROOT

LOSS = "session store memory://test#reports had lost its newest pair"


@pytest.fixture
def machines() -> Machines:
    return Machines().signed_in()


@pytest.fixture
def postgres() -> Machines:
    """As in PostgreSQL: a missing row is a sign-out."""
    return Machines(missing_is_lost=False).signed_in()


# The write of a new pair.


def test_pair_success_and_end_of_the_lease_in_one_trip(machines: Machines) -> None:
    """No trip follows the write: not for the record, and not for the release."""
    machine = machines.machine()
    begun = machine.begin()
    assert begun.write(SECOND)
    calls = list(machine.register.calls)
    machine.store.note(begun.done)
    begun.lock.release()
    assert machine.register.calls == calls
    assert calls[-2:] == ["note", "put"]
    look = machines.machine().store.look()
    assert (look.stored.tokens, look.record) == (SECOND, begun.done)
    assert machines.machine().store.lock().take()


def test_what_was_written_is_known_here(machines: Machines) -> None:
    """The next request reads nothing."""
    machine = machines.machine()
    before = machine.store.state()
    machine.rotate(SECOND)
    calls = len(machine.register.calls)
    assert machine.store.read().tokens == SECOND
    assert machine.store.state() not in (None, before)
    assert len(machine.register.calls) == calls


@pytest.mark.parametrize("newer", ["a sign-in", "a sign-out", "a rotation", "the same pair once more"])
def test_newer_state_wins(machines: Machines, newer: str) -> None:
    """Rule 8: what has come meanwhile stays."""
    begun = machines.machine().begin()
    if newer == "a sign-out":
        machines.machine().store.delete()
    elif newer == "a rotation":
        machines.clock.passed += 1000
        watcher = machines.machine()
        lock = watcher.store.lock()
        while not lock.take():
            machines.clock.passed += 1
        look = watcher.store.look()
        assert watcher.store.reserve().replace(look.stored.rotated(_reply(THIRD), 0.0), look.stored, Record())
    else:
        machines.machine().store.save(THIRD if newer == "a sign-in" else FIRST)
    before = machines.register.get("reports")
    assert not begun.write(SECOND)
    assert machines.register.get("reports") == before
    if newer != "a sign-out":
        assert begun.machine.store.read().tokens == machines.row_pair()


def _reply(tokens: Tokens) -> dict[str, Any]:
    return {"access_token": tokens.access_token, "refresh_token": tokens.refresh_token}


def test_write_after_the_lease_was_lost(machines: Machines) -> None:
    """The pair counts, not the lease: it ends that of whoever has followed."""
    begun = machines.machine().begin()
    machines.clock.passed += 36
    follower = machines.machine()
    lock = follower.store.lock()
    while not lock.take():
        machines.clock.passed += 0.5
    follower.store.look()
    assert begun.write(SECOND)
    assert machines.row_pair() == SECOND
    assert not follower.store.reserve().replace(begun.spent, begun.spent, Record())


def test_lost_answer_to_a_write(machines: Machines) -> None:
    """The mark in the row shows that it was done."""
    begun = machines.machine().begin()
    begun.machine.register.lost_answers = 1
    assert begun.write(SECOND)
    assert begun.machine.register.calls[-2:] == ["put", "get"]


@pytest.mark.parametrize("read", [True, False], ids=["and the row can be read", "and nothing can be read"])
def test_lost_answer_to_a_write_that_was_given_up(machines: Machines, read: bool) -> None:
    """The caller tries again later, and learns that it was done: it is not taken for another's pair."""
    begun = machines.machine().begin()
    register = begun.machine.register
    register.lost_answers = 1
    original = register.get
    register.get = lambda session: _cut_off(register)  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="can't be changed"):
        begun.write(SECOND)
    register.get = original  # type: ignore[method-assign]
    register.is_cut_off = False
    if not read:
        machines.machine().rotate(THIRD, SECOND)
        assert not begun.write(SECOND)
        return
    assert begun.write(SECOND)
    assert machines.row_pair() == SECOND


def _cut_off(register: MemoryRegister) -> Any:
    register.is_cut_off = True
    return register.note("reports", "", "", 0.0)


def test_write_is_tried_for_three_seconds_and_then_at_once(machines: Machines) -> None:
    """The first try is patient. The pauses between further ones are the caller's."""
    begun = machines.machine().begin()
    machines.register.stop()
    before = machines.clock.passed
    with pytest.raises(StoreError, match="can't be changed: connection refused"):
        begun.write(SECOND)
    assert 3.0 <= machines.clock.passed - before < 3.6
    before = machines.clock.passed
    with pytest.raises(StoreError):
        begun.write(SECOND)
    with pytest.raises(StoreError):
        begun.machine.store.note(Record(number=1, about=begun.record.about, state=UNSAVED))
    assert machines.clock.passed == before
    machines.register.start()
    assert begun.write(SECOND)


def test_unfinished_attempts_have_no_success(machines: Machines) -> None:
    """Only the record that was written along with a pair costs no trip."""
    machine = machines.machine()
    machine.rotate(SECOND)
    begun = machine.begin(SECOND)
    machine.store.note(Record(number=begun.record.number, about=begun.record.about, state=UNSAVED))
    assert machines.machine().store.look().record.state == UNSAVED


# A register that has gone back.


def test_older_pair(machines: Machines) -> None:
    """A failover has lost the newest pair: a process that has seen it puts it back, loudly."""
    machine = machines.machine()
    snapshot = machines.register.snapshot()
    machine.rotate(SECOND)
    machines.register.go_back(snapshot)
    assert machines.row_pair() == FIRST
    with pytest.warns(UserWarning, match=LOSS):
        assert machine.store.look().stored.tokens == SECOND
    assert machines.row_pair() == SECOND
    assert machines.machine().store.lock().take()


@pytest.mark.parametrize("first", ["look", "has_changed", "take", "read in the background"])
def test_loss_is_found_by_any_read(machines: Machines, first: str) -> None:
    """Whatever reads first puts it right; a process that has adopted the pair does as well."""
    snapshot = machines.register.snapshot()
    machines.machine().rotate(SECOND)
    machine = machines.machine()
    state = machine.store.look().state
    machines.register.go_back(snapshot)
    machines.clock.passed += 6
    reads: dict[str, Callable[[], object]] = {
        "look": machine.store.look,
        "has_changed": lambda: machine.store.has_changed(state),
        "take": machine.store.lock().take,
        "read in the background": lambda: _await_background_read(machine),
    }
    with pytest.warns(UserWarning, match=LOSS):
        reads[first]()
    assert machines.row_pair() == SECOND


def _await_background_read(machine: Machine) -> None:
    machine.store.state()
    for thread in threading.enumerate():
        if thread.name == "adh-auth store":
            thread.join(30)


def test_missing_key(machines: Machines) -> None:
    """A flushed Redis has lost the key: it is put back."""
    machine = machines.machine()
    machine.store.look()
    machines.register.remove("reports")
    with pytest.warns(UserWarning, match=LOSS):
        assert machine.store.look().stored.tokens == FIRST
    assert machines.row_pair() == FIRST


def test_missing_row(postgres: Machines) -> None:
    """A row of a table that is gone was deleted: that is a sign-out."""
    machine = postgres.machine()
    machine.store.look()
    postgres.register.remove("reports")
    with pytest.raises(StoreError, match="holds no session"):
        machine.store.look()
    assert postgres.row_pair() is None
    postgres.machine().store.save(SECOND)
    assert machine.store.look().stored.tokens == SECOND


def test_row_that_was_deleted_and_made_anew(postgres: Machines) -> None:
    """A sign-in after a deletion that a process has not seen is no loss."""
    machine = postgres.machine()
    machine.rotate(SECOND)
    postgres.register.remove("reports")
    postgres.clock.passed += 1
    postgres.machine().store.save(THIRD)
    assert machine.store.look().stored.tokens == THIRD
    assert postgres.row_pair() == THIRD


def test_a_place_that_is_taken_long_after_the_token_was_spent(machines: Machines) -> None:
    """A process that got a pair from a helper that was killed: it looks then, and a sign-in since wins."""
    spent = machines.machine().store.look().stored
    fresh = Stored.of(SECOND, spent.mapping, {})
    machine = machines.machine()
    assert machine.store.lock().take()
    assert machine.store.reserve().replace(fresh, spent, Record())
    assert machines.row_pair() == SECOND
    machines.machine().store.save(THIRD)
    assert machine.store.lock().take()
    assert not machine.store.reserve().replace(fresh, spent, Record())
    assert machines.row_pair() == THIRD


def test_sign_out_is_never_undone(machines: Machines) -> None:
    """Not by a process that has the pair, and not after a failover that has lost the sign-out."""
    machine = machines.machine()
    machine.store.look()
    snapshot = machines.register.snapshot()
    machines.machine().store.delete()
    with pytest.raises(StoreError, match="holds no session"):
        machine.store.look()
    assert machines.row_pair() is None
    machines.register.go_back(snapshot)
    with pytest.warns(UserWarning, match="had lost"), pytest.raises(StoreError, match="holds no session"):
        machine.store.look()
    assert machines.row_pair() is None
    machines.machine().store.save(SECOND)
    assert machine.store.look().stored.tokens == SECOND


def test_sign_out_after_another_sign_out(machines: Machines) -> None:
    """Signed out is signed out: an older tombstone is no loss."""
    machine, other = machines.machine(), machines.machine()
    snapshot = machines.register.snapshot()
    machines.clock.passed += 1
    machine.store.delete()
    with pytest.raises(StoreError, match="holds no session"):
        machine.store.look()
    machines.register.go_back(snapshot)
    assert other.store.lock().take()
    other.store.look()
    other.store.remove()
    calls = len(machine.register.calls)
    with pytest.raises(StoreError, match="holds no session"):
        machine.store.look()
    assert machine.register.calls[calls:] == ["get"]


@pytest.mark.parametrize("what", ["sign-in", "sign-out"])
def test_change_after_a_loss_is_never_undone(machines: Machines, what: str) -> None:
    """The user signs in or out on a register that had gone back: that comes after what was lost."""
    machine = machines.machine()
    snapshot = machines.register.snapshot()
    machine.rotate(SECOND)
    machine.rotate(THIRD, SECOND)
    machines.register.go_back(snapshot)
    machines.clock.passed += 1
    new = Tokens("access-new", "refresh-new")
    if what == "sign-in":
        machines.machine().store.save(new)
        assert machine.store.look().stored.tokens == new
    else:
        machines.machine().store.delete()
        with pytest.raises(StoreError, match="holds no session"):
            machine.store.look()
    assert machines.row_pair() == (new if what == "sign-in" else None)


def test_another_pair_of_the_same_generation(machines: Machines) -> None:
    """It was written after the loss, on what was left: it counts, and no two processes fight for theirs."""
    machine, other = machines.machine(), machines.machine()
    snapshot = machines.register.snapshot()
    machine.rotate(SECOND)
    machines.register.go_back(snapshot)
    other.rotate(THIRD)
    assert machine.store.look().stored.tokens == THIRD
    assert other.store.look().stored.tokens == THIRD


def test_loss_before_the_write(machines: Machines) -> None:
    """The register goes back while the endpoint answers: the pair that comes is not taken for an old one."""
    oldest = machines.register.snapshot()
    machines.machine().rotate(SECOND)
    begun = machines.machine().begin(SECOND)
    machines.register.go_back(oldest)
    with pytest.warns(UserWarning, match=LOSS):
        assert begun.write(THIRD)
    assert machines.row_pair() == THIRD
    calls = len(begun.machine.register.calls)
    begun.machine.store.note(begun.done)
    assert len(begun.machine.register.calls) == calls


def test_missing_key_before_the_write(machines: Machines) -> None:
    """The same where the key is gone; a missing row is a sign-out in PostgreSQL."""
    begun = machines.machine().begin()
    machines.register.remove("reports")
    with pytest.warns(UserWarning, match=LOSS):
        assert begun.write(SECOND)
    assert machines.row_pair() == SECOND


def test_missing_row_before_the_write(postgres: Machines) -> None:
    """A session that was deleted meanwhile stays deleted."""
    begun = postgres.machine().begin()
    postgres.register.remove("reports")
    assert not begun.write(SECOND)
    assert postgres.register.get("reports") is None


def test_loss_of_the_note_before_the_write(machines: Machines) -> None:
    """The generation is there still: an ordinary write."""
    snapshot = machines.register.snapshot()
    begun = machines.machine().begin()
    machines.register.go_back(snapshot)
    assert begun.write(SECOND)
    assert machines.row_pair() == SECOND


def test_loss_where_one_may_only_read(machines: Machines) -> None:
    """A reader goes on with the newest pair that it knows: what the register holds is spent."""
    machine = machines.machine()
    snapshot = machines.register.snapshot()
    machines.machine().rotate(SECOND)
    machine.store.look()
    machines.register.go_back(snapshot)
    machine.register.is_read_only = True
    assert machine.store.look().stored.tokens == SECOND
    assert machines.row_pair() == FIRST


def test_lost_answer_to_healing(machines: Machines) -> None:
    """The register is read again, and holds the newest pair."""
    machine = machines.machine()
    snapshot = machines.register.snapshot()
    machine.rotate(SECOND)
    machines.register.go_back(snapshot)
    machine.register.lost_answers = 1
    assert machine.store.look().stored.tokens == SECOND
    assert machines.row_pair() == SECOND


def test_healing_is_no_race(machines: Machines) -> None:
    """Between the look and the healing the user signs in: the newer state wins."""
    machine = machines.machine()
    snapshot = machines.register.snapshot()
    machine.rotate(SECOND)
    machines.register.go_back(snapshot)
    heal = machine.register.heal

    def late(*arguments: Any) -> bool:
        machines.clock.passed += 1
        machines.machine().store.save(THIRD)
        return heal(*arguments)

    machine.register.heal = late  # type: ignore[method-assign,assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert machine.store.look().stored.tokens == THIRD
    assert machines.row_pair() == THIRD


# What a request believes.


def test_state_asks_nobody(machines: Machines) -> None:
    """Nothing is known before the first read, which is one trip; then memory is believed for 5 s."""
    machine = machines.machine()
    assert machine.store.state() is None
    assert machine.store.record() == NOTHING
    assert machine.register.calls == []
    assert machine.store.read().tokens == FIRST
    state = machine.store.state()
    assert state is not None
    machines.clock.passed += 4.9
    assert machine.store.state() == state
    assert machine.store.read().tokens == FIRST
    assert machine.register.calls == ["get"]


def test_read_in_the_background(machines: Machines) -> None:
    """After 5 s another process's rotation is found by a thread, and no request waits for it."""
    machine = machines.machine()
    machine.store.read()
    state = machine.store.state()
    machines.machine().rotate(SECOND)
    machines.clock.passed += 5.0
    hold, get = threading.Event(), machine.register.get

    def slow(session: str) -> Any:
        assert hold.wait(30)
        return get(session)

    machine.register.get = slow  # type: ignore[method-assign]
    for _ in range(10):
        assert machine.store.state() == state
        assert machine.store.read().tokens == FIRST
        machines.clock.passed += 6.0
    reader = [thread for thread in threading.enumerate() if thread.name == "adh-auth store"]
    assert len(reader) == 1
    assert reader[0].daemon
    hold.set()
    reader[0].join(30)
    assert machine.register.calls == ["get", "get"]
    assert machine.store.read().tokens == SECOND
    assert machine.store.state() not in (None, state)


@pytest.mark.parametrize(("age", "reads"), [(0.99, 1), (1.0, 2)])
def test_expired_token_is_believed_for_a_second(machines: Machines, age: float, reads: int) -> None:
    """Another process has most likely rotated by now."""
    machines.machine().store.save(Tokens("access-1", "refresh-1", expires_at=machines.clock.wall() + 0.5))
    machine = machines.machine()
    machine.store.read()
    machines.clock.passed += age
    _await_background_read(machine)
    assert len(machine.register.calls) == reads


@pytest.mark.parametrize(("age", "reads"), [(4.99, 1), (5.0, 2), (-1.0, 2)])
def test_good_token_is_believed_for_five_seconds(machines: Machines, age: float, reads: int) -> None:
    """Each look in a request costs a comparison. A clock that was set back ends the belief."""
    machine = machines.machine()
    machine.store.read()
    machines.clock.passed += age
    _await_background_read(machine)
    assert len(machine.register.calls) == reads


def test_no_session_is_believed_for_a_second() -> None:
    """A new sign-in counts a second later at the latest, and a loop of requests is no storm on the store."""
    machines = Machines()
    machine = machines.machine()
    for _ in range(5):
        with pytest.raises(StoreError, match="holds no session"):
            machine.store.read()
        assert machine.store.state() is None
    assert machine.register.calls == ["get"]
    machines.machine().store.save(FIRST)
    machines.clock.passed += 1.0
    assert machine.store.read().tokens == FIRST


def test_outage_in_a_request(machines: Machines) -> None:
    """With a good token requests go on, with one try every 5 seconds in the background."""
    machine = machines.machine()
    machine.store.read()
    state = machine.store.state()
    machines.register.stop()
    for _ in range(40):
        _await_background_read(machine)
        assert machine.store.state() == state
        machines.clock.passed += 0.5
    assert machine.store.read().tokens == FIRST
    assert len(machine.register.calls) == 1 + 3
    assert machines.clock.slept == []


def test_unexpected_error_in_the_background(machines: Machines) -> None:
    """Whatever a driver raises there, no thread ends with a traceback, and the next read works."""
    machine = machines.machine()
    machine.store.read()
    get = machine.register.get
    machine.register.get = lambda session: _broken()  # type: ignore[method-assign]
    machines.clock.passed += 6
    _await_background_read(machine)
    machine.register.get = get  # type: ignore[method-assign]
    machines.clock.passed += 6
    _await_background_read(machine)
    assert len(machine.register.calls) == 2


def _broken() -> Any:
    raise ZeroDivisionError


@pytest.mark.parametrize("in_loop", [False, True])
def test_no_thread_can_be_started(machines: Machines, monkeypatch: pytest.MonkeyPatch, in_loop: bool) -> None:
    """The request reads itself, except in an event loop: there a later one does."""
    import asyncio

    import trio

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    machine = machines.machine()
    machine.store.read()
    machines.clock.passed += 6

    async def ask() -> object:
        return machine.store.state()

    monkeypatch.setattr(threading.Thread, "start", refuse)
    if in_loop:
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(ask())
        finally:
            monkeypatch.undo()
            loop.close()
        monkeypatch.setattr(threading.Thread, "start", refuse)
        machines.clock.passed += 6
        trio.run(ask)
        assert len(machine.register.calls) == 1
        machines.clock.passed += 6
    machine.store.state()
    assert len(machine.register.calls) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_fork(machines: Machines) -> None:
    """The child of a fork has no thread that reads, and starts one of its own."""
    machine = machines.machine()
    machine.store.read()
    machines.clock.passed += 6
    hold, get = threading.Event(), machine.register.get

    def slow(session: str) -> Any:
        assert hold.wait(30)
        return get(session)

    machine.register.get = slow  # type: ignore[method-assign]
    machine.store.state()
    child = os.fork()
    if not child:
        hold.set()
        machine.register.get = get  # type: ignore[method-assign]
        machines.clock.passed += 6
        before = len(machine.register.calls)
        _await_background_read(machine)
        os._exit(0 if len(machine.register.calls) == before + 1 else 1)
    hold.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    _await_background_read(machine)


def test_has_changed(machines: Machines) -> None:
    """Every change of the row counts, also a record; an outage does not."""
    machine = machines.machine()
    state = machine.store.look().state
    assert not machine.store.has_changed(state)
    begun = machines.machine().begin()
    assert machine.store.has_changed(state)
    state = machine.store.look().state
    assert begun.write(SECOND)
    assert machine.store.has_changed(state)
    state = machine.store.look().state
    machines.machine().store.delete()
    assert machine.store.has_changed(state)
    machines.register.stop()
    assert not machine.store.has_changed(state)
    assert machines.clock.slept == []


def test_has_changed_with_a_refusal(machines: Machines) -> None:
    """A password that was changed meanwhile is no change."""
    machine = machines.machine()
    state = machine.store.look().state
    machine.register.get = lambda session: _refuse("password")  # type: ignore[method-assign]
    assert not machine.store.has_changed(state)


def _refuse(reason: str) -> Any:
    raise RegisterRefused(reason, "check it")


# Outages.


def test_read_is_tried_for_ten_seconds(machines: Machines) -> None:
    """Then the error says that the session is as it was."""
    machine = machines.machine()
    machines.register.stop()
    with pytest.raises(StoreError) as caught:
        machine.store.look()
    assert 10.0 <= machines.clock.passed < 10.6
    assert len(machine.register.calls) > 15
    assert str(caught.value) == (
        "session store memory://test#reports can't be read: connection refused."
        " The session is as it was; try again later"
    )
    assert isinstance(caught.value, TokenStoreError)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (copied.store, copied.session) == ("memory://test", "reports")


def test_host_that_is_not_known(machines: Machines) -> None:
    """It is tried for ten seconds, too, and the message says what to check."""
    machine = machines.machine()

    def fail(session: str) -> None:
        raise RegisterUnavailable("the host is not known", "Check the host of the store's URL")

    machine.register.get = fail  # type: ignore[method-assign]
    with pytest.raises(StoreError) as caught:
        machine.store.look()
    assert str(caught.value) == (
        "session store memory://test#reports can't be read: the host is not known. "
        "Check the host of the store's URL. The session is as it was; try again later"
    )
    assert 10.0 <= machines.clock.passed < 10.6


def test_outage_that_ends_in_time(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody notices a failover of a few seconds."""
    machine = machines.machine()
    machines.register.stop()
    sleep = machines.clock.sleep

    def sleep_until_it_starts(seconds: float) -> None:
        sleep(seconds)
        if machines.clock.passed > 8:
            machines.register.start()

    monkeypatch.setattr(machines.clock, "sleep", sleep_until_it_starts)
    assert machine.store.look().stored.tokens == FIRST


def test_frozen_clock(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    """freezegun stops the clock of a user's test: the pauses count."""
    machine = machines.machine()
    machines.register.stop()
    slept: list[float] = []
    monkeypatch.setattr(machines.clock, "sleep", slept.append)
    with pytest.raises(StoreError):
        machine.store.look()
    assert 10.0 <= sum(slept) < 10.6


def test_refusal_is_not_tried_again(machines: Machines) -> None:
    """Rights, a wrong password, no room: a second try would not help."""
    machine = machines.machine()
    machine.register.get = lambda session: _refuse("password authentication failed")  # type: ignore[method-assign]
    with pytest.raises(StoreError, match=r"can't be read: password authentication failed\. Check it$"):
        machine.store.look()
    assert machines.clock.slept == []


def test_table_is_missing(machines: Machines) -> None:
    """The message names the command that makes it."""
    machine = machines.machine()

    def refuse(session: str) -> None:
        raise TableMissing("no table", "make it")

    machine.register.get = refuse  # type: ignore[method-assign]
    with pytest.raises(StoreError, match=r"has no table yet\. Make it with: adh-auth store init$"):
        machine.store.look()


def test_last_pauses_are_ten_seconds() -> None:
    """The end of the program gives a pair that could not be written 10 s."""
    assert sum(LAST_PAUSES) == pytest.approx(10.0)


def test_pace(machines: Machines) -> None:
    """Waiters ask every 30 to 250 ms, and not all at once."""
    paces = [machines.machine().store.pace for _ in range(50)]
    assert all(0.03 <= pace.first_poll < pace.last_poll <= 0.25 for pace in paces)
    assert len({pace.last_poll for pace in paces}) > 40
    assert all(pace.last_pauses == LAST_PAUSES and pace.notices_records for pace in paces)


# Sessions.


def test_no_session() -> None:
    """The message names the command that signs in."""
    machine = Machines(session="ada's reports").machine()
    for use in (machine.store.look, machine.store.read, machine.store.lock().take):
        with pytest.raises(StoreError) as caught:
            use()
        assert str(caught.value) == (
            "session store memory://test#ada's reports holds no session. Sign in with: adh-auth login"
            """ --store "$ADH_STORE" --session 'ada'"'"'s reports'"""
        )


@pytest.mark.parametrize("name", ["", "n" * 201, "a\nb", "a\0b", "\x1b[2J", "a\u202eb", 7, None])
def test_unusable_name(name: Any) -> None:
    """A name is 1 to 200 printable characters. What it holds is not shown."""
    with pytest.raises(ConfigurationError, match="1 to 200 printable characters") as caught:
        RegistryStore(MemoryRegister(), name)
    assert str(caught.value).isprintable()
    assert caught.value.setting == "session"


@pytest.mark.parametrize("name", ["n", "n" * 200, "ß漢🔑" * 50, "user/42", "a b"])
def test_usable_name(name: str) -> None:
    machines = Machines(session=name).signed_in()
    assert machines.machine().store.load() == FIRST


def test_save_keeps_unknown_keys(machines: Machines) -> None:
    """As in a token file: what describes the pair or its owner goes, and the rest stays."""
    store = machines.machine().store
    reply = {**_reply(FIRST), "scope": "read", "base_url": "https://old", "unknown": [1, 2]}
    store.save_mapping(reply, Tokens.from_response(reply))
    store.save(SECOND)
    mapping = machines.machine().store.look().stored.mapping
    assert mapping["unknown"] == [1, 2]
    assert "base_url" not in mapping
    assert "scope" not in mapping
    assert machines.row_pair() == SECOND


def test_save_takes_tokens_only(machines: Machines) -> None:
    """The message shows nothing of what it got."""
    with pytest.raises(TypeError, match="takes Tokens"):
        machines.machine().store.save({"access_token": "x"})  # type: ignore[arg-type]


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize(("scope", "is_kept"), [("s" * SAVE_LIMIT, False), ("s" * (SAVE_LIMIT - 200), True)])
def test_save_of_a_huge_pair(scope: str, is_kept: bool, encrypted: bool) -> None:
    """What could not be read back is refused before the write, and the session that was there stays."""
    machine = Machines().machine(cipher=_keys(1) if encrypted else None)
    machine.store.save(FIRST)
    huge = replace(SECOND, scope=scope)
    machine.register.calls.clear()
    if is_kept:
        machine.store.save(huge)
        assert machine.store.load() == huge
        return
    saves: tuple[Callable[[], None], ...] = (
        lambda: machine.store.save(huge),
        lambda: machine.store.save_mapping({}, huge),
    )
    for save in saves:
        with pytest.raises(
            StoreError, match=f"can't be changed: .* larger than {SAVE_LIMIT} bytes"
        ) as caught:
            save()
        assert "The session is as it was" in str(caught.value)
        assert (caught.value.store, caught.value.session) == ("memory://test", "reports")
    assert "put" not in machine.register.calls
    assert machine.store.load() == FIRST


def test_save_of_a_pair_that_encryption_makes_huge() -> None:
    """Quotes are escaped once more within the plaintext."""
    huge = replace(SECOND, scope='"' * (SAVE_LIMIT // 2 - 200))
    machine = Machines().machine(cipher=_keys(1))
    machine.store.save(FIRST)
    with pytest.raises(StoreError, match="larger than"):
        machine.store.save(huge)
    assert machine.store.load() == FIRST
    plain = Machines().machine()
    plain.store.save(huge)
    assert plain.store.load() == huge


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize(
    "added", ["s" * 60_000, '"' * 30_000, "\N{LATIN SMALL LETTER E WITH ACUTE}" * 30_000]
)
def test_rotation_of_the_largest_pair(added: str, encrypted: bool) -> None:
    """What was saved can be rotated, and read after that, whatever the largest reply adds."""
    cipher = _keys(1) if encrypted else None
    machines = Machines()
    machine = machines.machine(cipher=cipher)
    kept = {"team": "s" * (SAVE_LIMIT - 500)}
    machines.register.put(
        "reports", machine.store._view.encoded(stored_of(FIRST, kept)).reveal(), "s", None, None
    )
    machine.store.save(FIRST)
    fresh = replace(SECOND, scope=added)
    machine.rotate(fresh)
    assert machines.machine(cipher=cipher).store.load() == fresh


def test_other_changes_that_are_huge(machines: Machines) -> None:
    """A session that was moved here, and a user's name that was added."""
    machine = machines.machine()
    moved = stored_of(SECOND, {"team": "s" * MAX_READ_BYTES})
    changes: tuple[Callable[[], None], ...] = (
        lambda: machine.store.take_over(moved, NOTHING),
        lambda: machine.store.annotate(FIRST, signed_in_as="s" * MAX_READ_BYTES),
    )
    for change in changes:
        with pytest.raises(StoreError, match=f"larger than {MAX_READ_BYTES} bytes"):
            change()
    assert machine.store.load() == FIRST
    assert not machine.store.is_locked()


def test_lost_answer_to_a_save(machines: Machines) -> None:
    """It is not done twice: another's sign-in in between would be undone."""
    machine = machines.machine()
    machine.register.lost_answers = 1
    machine.store.save(SECOND)
    assert machine.register.calls.count("put") == 1
    assert machine.store.load() == SECOND


def test_old_session_is_forgotten(machines: Machines) -> None:
    """A sign-in counts here at once, also where it can't be read back."""
    machine = machines.machine()
    machine.store.read()
    put = machine.register.put

    def put_and_go(*arguments: Any) -> bool:
        done = put(*arguments)
        machine.register.is_cut_off = True
        return done

    machine.register.put = put_and_go  # type: ignore[method-assign,assignment]
    machine.store.save(SECOND)
    assert machine.store.state() is None
    machine.register.is_cut_off = False
    assert machine.store.read().tokens == SECOND


@pytest.mark.parametrize("what", ["sign-in", "sign-out"])
def test_loss_right_after_a_save(machines: Machines, what: str) -> None:
    """Who has signed in or out knows it, and puts it back."""
    machine = machines.machine()
    snapshot = machines.register.snapshot()
    machines.clock.passed += 1
    if what == "sign-in":
        machine.store.save(SECOND)
    else:
        machine.store.delete()
    machines.register.go_back(snapshot)
    with pytest.warns(UserWarning, match="had lost"):
        machine.store.has_changed(None)
    assert machines.row_pair() == (SECOND if what == "sign-in" else None)


def test_annotate(machines: Machines) -> None:
    """The user's name is added once it is known; the record stays, and the pair counts as a new one."""
    machine = machines.machine()
    machine.rotate(SECOND)
    record = machine.store.look().record
    machine.store.annotate(SECOND, signed_in_as="Ada")
    look = machines.machine().store.look()
    assert (look.stored.tokens, look.stored.mapping["signed_in_as"], look.record) == (SECOND, "Ada", record)
    assert machines.machine().store.lock().take()


def test_annotate_another_session(machines: Machines) -> None:
    """A session that has come meanwhile is left alone."""
    machines.machine().store.save(SECOND)
    before = machines.register.get("reports")
    machines.machine().store.annotate(FIRST, signed_in_as="Ada")
    after = machines.register.get("reports")
    assert before is not None
    assert after is not None
    assert (after.generation, after.pair, after.holder) == (before.generation, before.pair, "")


def test_annotate_waits_for_a_refresh(machines: Machines) -> None:
    """Or the new pair would find another generation, and be lost. A late holder still writes its pair."""
    begun = machines.machine().begin()
    machines.machine().store.annotate(FIRST, signed_in_as="Ada")
    assert 42.0 < machines.clock.passed < 44.5
    assert begun.write(SECOND)


def test_annotate_beside_holders_that_go_on(machines: Machines) -> None:
    """It gives up after 45 s."""
    begun = machines.machine().begin()
    sleep = machines.clock.sleep

    def sleep_and_note(seconds: float) -> None:
        sleep(seconds)
        begun.machine.store.note(begun.record)

    waiting = machines.machine()
    waiting.store._view.clock = machines.machine().clock.__class__()
    waiting.store._view.clock.sleep = sleep_and_note  # type: ignore[method-assign]
    with pytest.raises(LockTimeout, match="may have sent the refresh token"):
        waiting.store.annotate(FIRST, signed_in_as="Ada")
    assert 45.0 <= machines.clock.passed < 46.0
    assert begun.write(SECOND)


def test_require_writable(machines: Machines) -> None:
    """Nothing changes, and a role that may only read is refused; a session that is missing is no problem."""
    machine = machines.machine()
    before = machines.register.get("reports")
    machine.store.require_writable()
    Machines().machine().store.require_writable()
    assert machines.register.get("reports") == before
    machine.register.is_read_only = True
    with pytest.raises(StoreError, match="can't be changed: permission denied"):
        machine.store.require_writable()


def test_delete_of_nothing() -> None:
    """A missing session is no error, and leaves no row."""
    machines = Machines()
    machines.machine().store.delete()
    assert machines.register.get("reports") is None


def test_remove_under_the_lock(machines: Machines) -> None:
    """A revocation removes the session that it has revoked; one that came meanwhile stays."""
    machine = machines.machine()
    assert machine.store.lock().take()
    machine.store.look()
    machines.machine().store.save(SECOND)
    machine.store.remove()
    assert machines.row_pair() == SECOND
    lock = machine.store.lock()
    assert lock.take()
    machine.store.look()
    machine.store.remove()
    assert machines.row_pair() is None
    lock.release()


# What a row may hold.


def _with_row(pair: str, cipher: Cipher | None = None) -> Machine:
    machines = Machines()
    machines.register.put("reports", pair, "stamp", None, None)
    return machines.machine(cipher=cipher)


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ("", "it is empty"),
        ("not JSON", "it is not JSON"),
        ("[]", "it is not a JSON object"),
        ("{}", "access_token is missing"),
        ('{"access_token": "a b", "refresh_token": "r"}', "must not go into a header"),
        (json.dumps({"access_token": "a", "refresh_token": "r", "x": "y" * 1024 * 1024}), "is larger than"),
        (json.dumps({"access_token": "a", "refresh_token": "r", "x": "y" * 10_000_000}), "is larger than"),
        ("\ud800", "it is not JSON"),
    ],
    ids=["empty", "text", "list", "no token", "a token with a blank", "1 MB and more", "10 MB", "surrogate"],
)
def test_unusable_content(pair: str, reason: str) -> None:
    """It is left as it is, and the message says what is wrong and how to sign in."""
    machine = _with_row(pair)
    with pytest.raises(
        StoreError, match=f"is not a usable session: .*{reason}.*left as it is.* sign in with"
    ):
        machine.store.look()
    assert machine.register.calls == ["get"]
    assert machine.store.state() is None


def test_huge_encrypted_content() -> None:
    """Ten megabytes are not decrypted first."""
    machine = _with_row("gAAAA" + "A" * 10_000_000, _keys(1))
    with pytest.raises(StoreError, match="is larger than"):
        machine.store.look()


def test_unusable_record(machines: Machines) -> None:
    """A record is a courtesy to waiters: no rotation fails for it."""
    row = machines.register.get("reports")
    assert row is not None
    machines.register.put("reports", row.pair, "s", row.generation, "\ud800 no JSON")
    assert machines.machine().store.look().record == NOTHING
    assert machines.machine().store.lock().take()


def stored_of(tokens: Tokens, kept: dict[str, Any]) -> Stored:
    return Stored(tokens, file_mapping(tokens, kept))


def _keys(*numbers: int) -> Cipher:
    import base64

    keys = ",".join(base64.urlsafe_b64encode(bytes([number]) * 32).decode() for number in numbers)
    cipher = cipher_from({"ADH_STORE_KEY": keys})
    assert cipher is not None
    return cipher


def test_encrypted_at_rest() -> None:
    """The register sees neither token; a key can be rotated; the session's name is inside."""
    machines = Machines()
    machine = machines.machine(cipher=_keys(1))
    machine.store.save(FIRST)
    row = machines.register.get("reports")
    assert row is not None
    assert row.pair is not None
    assert "access" not in row.pair
    assert machines.machine(cipher=_keys(2, 1)).store.load() == FIRST
    rotating = machines.machine(cipher=_keys(2, 1))
    rotating.rotate(SECOND)
    assert machines.machine(cipher=_keys(2)).store.load() == SECOND
    machines.register.put("other", row.pair, "s", None, None)
    with pytest.raises(StoreError, match="encrypted for a session of another name"):
        machines.machine(cipher=_keys(1), session="other").store.look()


def test_session_that_is_not_encrypted_yet(machines: Machines) -> None:
    """It is read, and the next pair is encrypted."""
    machine = machines.machine(cipher=_keys(1))
    machine.rotate(SECOND)
    row = machines.register.get("reports")
    assert row is not None
    assert row.pair is not None
    assert "refresh-2" not in row.pair
    assert machines.machine(cipher=_keys(1)).store.load() == SECOND


def test_healing_of_an_encrypted_pair() -> None:
    """What is put back is what was there."""
    machines = Machines()
    machine = machines.machine(cipher=_keys(1))
    machine.store.save(FIRST)
    snapshot = machines.register.snapshot()
    machine.rotate(SECOND)
    machines.register.go_back(snapshot)
    with pytest.warns(UserWarning, match=LOSS):
        machine.store.look()
    assert machines.machine(cipher=_keys(1)).store.load() == SECOND


@pytest.mark.parametrize(
    ("cipher", "message"),
    [
        (None, "is encrypted, and there is no key. Set ADH_STORE_KEY$"),
        (2, "is encrypted with another key. Add"),
    ],
)
def test_key_that_does_not_fit(cipher: int | None, message: str) -> None:
    """Nothing is changed."""
    machines = Machines()
    machines.machine(cipher=_keys(1)).store.save(FIRST)
    machine = machines.machine(cipher=cipher and _keys(cipher))  # type: ignore[arg-type]
    with pytest.raises(StoreError, match=message):
        machine.store.look()
    with pytest.raises(StoreError, match=message):
        machine.store.lock().take()


def test_sign_in_over_an_encrypted_session() -> None:
    """Without a key it is refused, or the next pair would lie there in the clear; a new key is fine."""
    machines = Machines()
    machines.machine(cipher=_keys(1)).store.save(FIRST)
    without = machines.machine().store
    with pytest.raises(StoreError, match="is encrypted, and there is no key"):
        without.save(SECOND)
    with pytest.raises(StoreError, match="is encrypted, and there is no key"):
        without.require_writable()
    assert machines.machine(cipher=_keys(1)).store.load() == FIRST
    machines.machine(cipher=_keys(2)).store.save(SECOND)
    assert machines.machine(cipher=_keys(2)).store.load() == SECOND
    without.delete()


@pytest.mark.parametrize("keys", ["secret", "c2VjcmV0", f"{'A' * 43}=,secret", "é" * 44])
def test_unusable_key(keys: str) -> None:
    """The message says how to make one, and shows none."""
    with pytest.raises(ConfigurationError, match="ADH_STORE_KEY holds no usable key") as caught:
        cipher_from({"ADH_STORE_KEY": keys})
    assert "secret" not in _shown(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("keys", ["", " ", ",", " , "])
def test_no_key(keys: str) -> None:
    assert cipher_from({"ADH_STORE_KEY": keys}) is None
    assert cipher_from({}) is None


# Secrets.


def _errors(machines: Machines) -> list[Callable[[], object]]:
    begun = machines.machine().begin()
    reader = machines.machine()
    reader.register.is_read_only = True
    cut_off = machines.machine()
    cut_off.register.is_cut_off = True
    begun.machine.register.is_cut_off = True
    return [
        lambda: begun.write(SECOND),
        lambda: reader.store.save(SECOND),
        reader.store.remove,
        cut_off.store.look,
        lambda: cut_off.store.save(SECOND),
        _with_row('{"access_token": "access-1 ", "refresh_token": "refresh-1"}').store.look,
    ]


@pytest.mark.parametrize("number", range(6))
def test_no_token_in_a_traceback(machines: Machines, number: int) -> None:
    """Rule 13, with local variables, and in each item of a tuple, as error reporters show them."""
    with pytest.raises(StoreError) as caught:
        _errors(machines)[number]()
    assert "refresh-" not in _shown(caught.value)
    assert "access-" not in _shown(caught.value).replace("access-token", "")
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
    frame = caught.value.__traceback__
    while frame is not None:
        if "/adh_auth/" in frame.tb_frame.f_code.co_filename:
            _assert_no_tokens(list(frame.tb_frame.f_locals.values()))
        frame = frame.tb_next


def _shown(error: BaseException) -> str:
    """Return the traceback with the local variables of all frames but the test's."""
    frames = traceback.TracebackException.from_exception(error, capture_locals=True)
    shown = [frame for frame in frames.stack if "/tests/" not in frame.filename]
    return "".join(traceback.StackSummary.from_list(shown).format()) + str(error)


def _assert_no_tokens(values: list[Any]) -> None:
    for value in values:
        items = value if isinstance(value, (tuple, list)) else [value]
        assert not any(isinstance(item, str) and ("access-" in item or "refresh-" in item) for item in items)
        assert "refresh-" not in repr(value)


# Status, messages, URLs.


def test_facts(machines: Machines) -> None:
    """What status shows: a name, no mode, no owner; whether the lease is held; nothing is changed."""
    machine = machines.machine()
    store = machine.store
    assert store.facts().name == store.name == "memory://test#reports"
    assert store.facts_for_errors() == {"store": "memory://test", "session": "reports"}
    assert (store.kind, store.what()) == ("session store", "session store memory://test#reports")
    assert store.left_behind() is None
    store.recover(store.read(), store.record())
    assert store.cached(None, None) is None
    assert store.is_locked() is False
    begun = machines.machine().begin()
    machines.clock.passed += 2
    assert store.is_locked() is True
    assert store.record() == begun.record
    machines.clock.passed += 35
    assert store.is_locked() is False
    machines.register.stop()
    machines.clock.passed += 2
    assert store.is_locked() is None
    assert set(machine.register.calls) == {"get"}


def test_lock_timeout(machines: Machines) -> None:
    """The message says who may have sent the token, and when somebody may follow."""
    from adh_auth.common.text import format_time

    begun = machines.machine().begin()
    store = machines.machine().store
    store.look()
    error = store.lock_timeout(store.lock(), 45.0)
    at, follow = format_time(begun.record.at), format_time(begun.record.at + 35)
    assert str(error) == (
        "another process (pid 7 on pod-3) may have sent the refresh token of memory://test#reports"
        f" at {at}; nobody follows before {follow}"
    )
    assert (error.holder, error.waited, error.lock_file) == (7, 45.0, None)
    assert (error.store, error.session) == ("memory://test", "reports")


def test_lock_timeout_before_a_note(machines: Machines) -> None:
    """The same where nothing is recorded."""
    store = machines.machine().store
    store.look()
    assert "more than 45 s" in str(store.lock_timeout(store.lock(), 45.0))


@pytest.mark.parametrize(
    "url", ["mysql://u:secret@h/db", "secret", "", "://secret", "postgresql:secret", "REDISS2://:secret@h"]
)
def test_unknown_scheme(url: str) -> None:
    """The message names the schemes, and nothing of the URL."""
    with pytest.raises(ConfigurationError, match="postgresql, postgres, redis") as caught:
        session_in(Secret(url), "reports")
    assert "secret" not in str(caught.value)
    assert caught.value.setting == "store"


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != FILE_SCHEME])
def test_missing_driver(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """The message names the extra that brings it."""
    package, extra = ("psycopg", "postgres") if scheme.startswith("postgres") else ("redis", "redis")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigurationError) as caught:
        session_in(Secret(f"{scheme}://user:secret@host/db"), "reports")
    assert str(caught.value) == (
        f'this store needs {package}. Install it with: pip install "adh-auth[{extra}]"'
    )
    assert "user:secret" not in _shown(caught.value)
    assert caught.value.__context__ is None


def test_threads_of_one_process_adopt(machines: Machines) -> None:
    """A note by another thread finds no lease: two rotations never work under one."""
    machine = machines.machine()
    begun = machine.begin()
    raised: list[BaseException] = []

    def note() -> None:
        try:
            machine.store.note(Record(number=9, about=fingerprint("x"), state=SENDING))
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=note)
    thread.start()
    thread.join()
    assert [type(error).__name__ for error in raised] == ["LeaseLost"]
    assert begun.write(SECOND)


ENDING = """
import atexit, threading
from adh_auth.testing import MemoryRegister
from adh_auth.store.registry import RegistryStore
from adh_auth.tokens import Tokens
from tests.support.machines import MachineClock

clock, register = MachineClock(), MemoryRegister()
RegistryStore(register, "s").save(Tokens("access", "refresh"))
store = RegistryStore(register, "s", clock=clock)
store.read()
start = threading.Thread.start
threading.Thread.start = lambda thread: print("started", thread.name) or start(thread)

def use():
    clock.passed += 6
    before = len(register.calls)
    assert store.state() is not None
    print("read", len(register.calls) - before)

atexit.register(use)
"""


def test_request_at_the_end_of_the_program() -> None:
    """No thread is started any more, which could be cut off: the request reads itself."""
    result = subprocess.run(
        [sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert (result.stdout, result.stderr) == ("read 1\n", "")


def test_thread_that_reads_keeps_no_program_alive() -> None:
    """A register that never answers delays no exit."""
    script = ENDING.replace(
        "atexit.register(use)", "register.get = lambda session: threading.Event().wait()\nuse()"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert (result.stdout, result.stderr) == ("started adh-auth store\nread 0\n", "")
