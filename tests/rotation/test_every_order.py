"""Every interleaving: the real rotation code, stepped through every order in which two clients can take their
steps, with every fault.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from adh_auth.errors import TokenFileError
from adh_auth.rotation import attempt, transaction
from adh_auth.rotation.attempt import Attempt
from adh_auth.rotation.decision import Refresh
from adh_auth.tokens import Stored

from ..support import simulated_world as simulation
from ..support.simulated_world import FULL, SAMPLES, Broken, Rules, SimulatedStore, explore, sample


@pytest.fixture(autouse=True)
def _no_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "PAUSE_SLICE", simulation.EVER)


@pytest.mark.long
@pytest.mark.parametrize("name", FULL)
def test_every_order(name: str, record_property: Callable[[str, object], None]) -> None:
    """In no order of steps is a token sent twice, a pair lost outside the one window, a waiter left waiting
    or an old session revived.
    """
    report = explore(FULL[name])
    record_property("simulation", f"{name}: {report}")
    assert report.orders > report.states > report.runs > 10
    if FULL[name].faults and FULL[name].processes > 1:
        # What can fail did fail somewhere, or the simulation explores less than it says.
        assert {"True", "crashed", "TokenFileError", "RefreshFailed"} <= set(report.outcomes)


@pytest.mark.parametrize("name", SAMPLES)
def test_many_orders_of_three(name: str, record_property: Callable[[str, object], None]) -> None:
    """The same holds for three clients and two faults, in a large seeded sample."""
    report = sample(*SAMPLES[name])
    record_property("simulation", f"{name}: {report}")
    assert report.outcomes["True"] > report.runs


def _never_recovers(*arguments: Any) -> Any:
    yield from ()


def _always_refreshes(*arguments: Any, **named: Any) -> Refresh:
    return Refresh()


def _takes_what_is_held(store: SimulatedStore) -> bool:
    store._world.holder = store._process.number
    return True


def _forgets(store: SimulatedStore, *arguments: Any) -> None:
    """Do nothing."""


def _unmarked(fresh: Stored, spent: Stored) -> Stored:
    return fresh


def _drops(attempt: Attempt, fresh: Stored, why: str) -> Any:
    attempt.has_pair = False
    yield from ()
    raise TokenFileError(why)


#: A line that guards something, taken out, and what the simulation finds then.
MISTAKES = {
    "no check of what a killed process has left": (
        transaction,
        "_recover",
        _never_recovers,
        "sent twice|lost outside",
    ),
    "no decision under the lock": (transaction, "decide", _always_refreshes, "where one would do"),
    "a lock that excludes nobody": (
        SimulatedStore,
        "take",
        _takes_what_is_held,
        "without the lock|sent twice",
    ),
    "a lock that is not given back": (SimulatedStore, "release", _forgets, "deadlock"),
    "a pair that does not say which token it replaces": (
        Stored,
        "in_place_of",
        _unmarked,
        "sent twice|lost outside",
    ),
    "a pair that is dropped when the disk refuses it": (
        Attempt,
        "_continue_unsaved",
        _drops,
        "sent twice|lost outside",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_found(
    monkeypatch: pytest.MonkeyPatch, mistake: tuple[object, str, object, str]
) -> None:
    """The simulation finds the order of steps in which a mistake costs something, and lists it."""
    owner, name, wrong, found = mistake
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(Broken, match=found) as caught:
        explore(Rules())
    assert "  1:  load" in str(caught.value)


def test_no_recovery_rests_on_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """The record is a courtesy to those who wait: where none is ever written, nothing is lost that is not
    lost with one.
    """
    monkeypatch.setattr(SimulatedStore, "note", _forgets)
    assert explore(Rules()).outcomes["True"] > 100


def test_write_over_a_newer_state_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename that does not check whether the file still holds what was spent is found.

    It undoes a sign-in.
    """
    monkeypatch.setattr(
        SimulatedStore, "_install_over", lambda store, fresh, spent: store._install(fresh) or True
    )
    with pytest.raises(Broken, match="an old session came back"):
        explore(Rules(faults=0, signs_in=True))


def test_same_seed_same_runs() -> None:
    """A sample that has found something can be run again."""
    rules = Rules(processes=3, faults=2)
    assert simulation.sample(rules, 50, 7) == simulation.sample(rules, 50, 7)
