"""Every interleaving of machines over one register: the real rotation and the real store, with every fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from adh_auth.rotation import attempt
from adh_auth.store import lease, registry, session_view
from adh_auth.store.lease import Lease
from adh_auth.store.record import NOTHING
from adh_auth.store.registry import RegistryReservation
from adh_auth.store.session_view import SessionView
from adh_auth.testing import MemoryRegister

from ..support.simulated_machines import KINDS, SAMPLES, Rules, explore, sample
from ..support.simulated_world import EVER, Broken


@pytest.fixture(autouse=True)
def _no_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "PAUSE_SLICE", EVER)
    # The warnings of healing: logging them takes most of the time.
    monkeypatch.setattr(session_view, "warn_loudly", lambda message: None)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_every_order_of_two(kind: str, record_property: Callable[[str, object], None]) -> None:
    """Two machines, with one fault of that kind at any step, a strict server.

    In no order is a token sent twice, a pair lost that a living process has seen, or a machine left waiting,
    but for the holes that no client of a register can help.
    """
    report = explore(Rules(kinds=(kind,)))
    record_property("simulation", f"two machines, {kind}: {report}")
    assert report.orders > report.states > report.runs > 10
    assert report.outcomes["True"] > report.runs / 2


def test_every_order_with_a_sign_in(record_property: Callable[[str, object], None]) -> None:
    """Somebody signs in at any moment, and that session stays."""
    report = explore(Rules(faults=0, signs_in=True))
    record_property("simulation", f"two machines, a sign-in: {report}")
    assert set(report.outcomes) == {"True"}


@pytest.mark.parametrize("name", SAMPLES)
def test_many_orders(name: str, record_property: Callable[[str, object], None]) -> None:
    """The same holds for three machines and several faults, in a large seeded sample.

    Here a machine also comes between two operations of another one's step.
    """
    report = sample(*SAMPLES[name])
    record_property("simulation", f"{name}: {report}")
    assert report.outcomes["True"] > report.runs


def test_same_seed_same_runs() -> None:
    """A sample that has found something can be run again."""
    rules = Rules(processes=3, faults=2)
    assert sample(rules, 50, 7) == sample(rules, 50, 7)


def _yes(*arguments: Any) -> bool:
    return True


def _no(*arguments: Any) -> bool:
    return False


def _nothing(*arguments: Any) -> None:
    """Do nothing."""


def _put_without_fence(reservation: Any, written: Any) -> bool:
    view = reservation._view
    pair = written.pair.reveal()
    done: bool = view.register.put(view.name.session, pair, written.stamp, None, written.record)
    return done


#: What guards something, taken out: the owner and the name, what stands there instead, the faults that show
#: it, and what the simulation finds.
MISTAKES: dict[str, tuple[Any, str, Any, Rules, str]] = {
    "a lease that is over is followed at once": (
        Lease,
        "_has_observed",
        _yes,
        Rules(kinds=("clock ahead",)),
        "sent twice",
    ),
    "an unfinished attempt is no reason to wait": (
        lease,
        "is_unfinished",
        _no,
        Rules(kinds=("clock ahead",)),
        "sent twice",
    ),
    "no second note after a stop": (Lease, "before_send", _nothing, Rules(kinds=("stop",)), "sent twice"),
    "a lease that excludes nobody": (
        Lease,
        "_is_free",
        _yes,
        Rules(faults=0),
        "sent twice|where one would do",
    ),
    "a write that asks for no generation": (
        RegistryReservation,
        "_put",
        _put_without_fence,
        Rules(faults=0, signs_in=True),
        "an old session came back",
    ),
    "a register that has gone back is believed": (
        SessionView,
        "_is_loss",
        _no,
        Rules(kinds=("goes back 1",)),
        "has seen its successor|successor is known",
    ),
    "a flushed register is believed": (
        registry,
        "is_loss",
        _no,
        Rules(kinds=("flushed",)),
        "no session is left|no hole",
    ),
    "a record that nobody reads": (
        lease,
        "record_of",
        lambda seen: NOTHING,
        Rules(kinds=("clock ahead",)),
        "sent twice",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_found(
    monkeypatch: pytest.MonkeyPatch, mistake: tuple[Any, str, Any, Rules, str]
) -> None:
    """The simulation finds the order of steps in which a mistake costs something, and lists it."""
    owner, name, wrong, rules, found = mistake
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(Broken, match=found) as caught:
        explore(rules)
    assert "  1: load" in str(caught.value)


def test_register_that_takes_a_note_from_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver whose `note` does not ask who has the lease is found."""
    noted = MemoryRegister._noted

    def by_anybody(register: MemoryRegister, entry: Any, me: str, record: str, seconds: float) -> Any:
        return noted(register, entry, entry.holder if entry else me, record, seconds)

    monkeypatch.setattr(MemoryRegister, "_noted", by_anybody)
    with pytest.raises(Broken, match=r"sent twice|has seen its successor"):
        explore(Rules(kinds=("stop",)))
