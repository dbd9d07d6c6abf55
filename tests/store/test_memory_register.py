"""The register in memory keeps the contract of every register, and fails as a test asks it to."""

from __future__ import annotations

import pytest

from adh_auth.store.register import RegisterUnavailable
from adh_auth.testing import MemoryRegister, StoreContract


class TestMemoryRegister(StoreContract):
    @pytest.fixture(params=[True, False], ids=["missing is lost", "missing is signed out"])
    def register(self, request: pytest.FixtureRequest) -> MemoryRegister:
        return MemoryRegister(missing_is_lost=request.param)


@pytest.fixture
def register() -> MemoryRegister:
    return MemoryRegister()


def test_stopped(register: MemoryRegister) -> None:
    """A register that is stopped is out of reach from every machine."""
    other = register.for_another_machine()
    register.stop()
    for machine in (register, other):
        with pytest.raises(RegisterUnavailable):
            machine.get("s")
    register.start()
    assert other.get("s") is None


def test_cut_off(register: MemoryRegister) -> None:
    """A machine that is cut off reaches nothing, and another one does."""
    other = register.for_another_machine()
    other.is_cut_off = True
    assert register.put("s", "{}", "stamp", None, None)
    with pytest.raises(RegisterUnavailable):
        other.put("s", None, "stamp", None, None)
    other.is_cut_off = False
    row = other.get("s")
    assert row is not None
    assert row.pair == "{}"


def test_lost_answer(register: MemoryRegister) -> None:
    """The change was made, and nobody is told."""
    register.lost_answers = 1
    with pytest.raises(RegisterUnavailable):
        register.put("s", "{}", "stamp", None, None)
    assert register.sessions() == ["s"]
    assert register.put("s", None, "stamp", None, None)


def test_its_own_clock(register: MemoryRegister) -> None:
    """A lease is over by the register's clock."""
    register.put("s", "{}", "stamp", None, None)
    row = register.get("s")
    assert row is not None
    register.take("s", row.version, "me", 35.0)
    register.advance(36.0)
    row = register.get("s")
    assert row is not None
    assert -2 < row.lease_left < 0


def test_goes_back(register: MemoryRegister) -> None:
    """It holds what it held, and goes on from there."""
    register.put("s", "1", "stamp", None, None)
    before = register.get("s")
    snapshot = register.snapshot()
    register.put("s", "2", "stamp", None, None)
    register.go_back(snapshot)
    assert before is not None
    assert register.get("s") == before
    register.remove("s")
    assert register.get("s") is None


def test_a_row_shows_no_pair(register: MemoryRegister) -> None:
    """Rule 13: a traceback with locals shows the repr of a row."""
    register.put("s", "secret", "stamp", None, None)
    assert "secret" not in repr(register.get("s"))


def test_repr_shows_its_name_only(register: MemoryRegister) -> None:
    """No session, no pair, no holder; also for another machine, and where it was not built."""
    register.put("reports", '{"access_token": "geheim"}', "stamp", None, "geheim")
    assert repr(register) == "MemoryRegister('memory://test')"
    assert repr(register.for_another_machine()) == repr(register)
    assert repr(MemoryRegister.__new__(MemoryRegister)) == "<MemoryRegister>"
