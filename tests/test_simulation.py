"""Every order in which processes can take the steps of a rotation, on a simulated disk, lock, clock and server."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from .simulation import Explorer, World, sample


@pytest.fixture
def tell(record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    def say(text: str) -> None:
        record_property("simulation", text)
        with capsys.disabled():
            print(f"\n{text}")

    return say


@pytest.mark.parametrize("grace", [False, True], ids=["strict", "grace"])
@pytest.mark.parametrize("faults", [0, 1, 2])
def test_two_processes_in_every_order(grace: bool, faults: int, tell: Callable[[str], None]) -> None:
    """With at most two crashes, lost or dropped replies or ends of a program anywhere, nothing is lost outside the one window."""
    explorer = Explorer(partial(World, 2, grace=grace), faults)
    explorer.explore()
    assert explorer.runs > 0
    tell(f"two processes, at most {faults} fault(s), {'grace' if grace else 'strict'}: {explorer.states} states, {explorer.runs} runs, all of them")


@pytest.mark.parametrize("manner", ["locked", "careless"])
def test_a_sign_in_at_any_moment_wins(manner: str, tell: Callable[[str], None]) -> None:
    """A new sign-in in the middle of two processes' rotation, in every order: its session is the one that works afterwards."""
    explorer = Explorer(partial(World, 2, login=manner), 0)
    explorer.explore()
    tell(f"two processes and a {manner} sign-in: {explorer.states} states, {explorer.runs} runs, all of them")


def test_two_faults_at_once(tell: Callable[[str], None]) -> None:
    """One process with every combination of two faults, and then another who finds what is left."""
    explorer = Explorer(partial(World, 1), 2)
    explorer.explore()
    tell(f"one process, at most 2 faults: {explorer.states} states, {explorer.runs} runs, all of them")


def test_three_processes_in_every_order(tell: Callable[[str], None]) -> None:
    """Three processes without a fault: one refresh, and everyone has the new pair."""
    explorer = Explorer(partial(World, 3), 0)
    explorer.explore()
    tell(f"three processes, no fault: {explorer.states} states, {explorer.runs} runs, all of them")


@pytest.mark.parametrize("seed", range(2))
def test_three_processes_in_many_orders(seed: int, tell: Callable[[str], None]) -> None:
    """A large seeded sample of three processes' orders with up to two faults."""
    runs = sample(partial(World, 3), 2, 4000, seed)
    tell(f"three processes, at most 2 faults, seed {seed}: {runs} runs, a sample")
