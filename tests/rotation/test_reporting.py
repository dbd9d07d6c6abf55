"""What an event says of its rotation. Store, clock and endpoint are in memory."""

from __future__ import annotations

import threading

import pytest

from adh_auth.common.secret import Secret
from adh_auth.events import Event
from adh_auth.rotation.context import RotationContext
from adh_auth.rotation.reporting import Reporter
from adh_auth.rotation.transaction import rotation_transaction
from adh_auth.tokens import Tokens

from .memory import NEW, OLD, PAIR, Endpoint, World, stored


@pytest.fixture
def world() -> World:
    return World(Endpoint(PAIR))


def test_waited_is_the_time_for_the_lock_and_duration_that_of_the_whole(world: World) -> None:
    """In seconds: the call of the endpoint is in the one only."""
    events: list[Event] = []
    world.store.take()
    world.clock.passed = 100.0
    context = world.context()
    context.began = world.clock.passed

    def free_the_lock() -> None:
        if len(world.clock.slept) == 3:
            world.store.release()

    world.clock.when_slept = free_the_lock
    world.endpoint.when_called = lambda: setattr(world.clock, "passed", world.clock.passed + 2.0)
    outcome = run(context)
    Reporter(events.append, {"store": "memory", "session": "reports"}).report(context, outcome)
    (event,) = events
    waited = sum(world.clock.slept)
    assert (event.kind, event.store, event.session) == ("rotated", "memory", "reports")
    assert event.waited == pytest.approx(waited)
    assert event.waited > 0.01
    assert event.duration == pytest.approx(waited + 2.0)
    assert event.at == world.clock.now()


def run(context: RotationContext) -> Tokens:
    """Do the steps of a rotation."""
    steps = rotation_transaction(context, Secret(OLD.access_token))
    value = None
    while True:
        try:
            value = steps.send(value).work()
        except StopIteration as end:
            tokens: Tokens = end.value
            return tokens


@pytest.mark.parametrize(("in_the_file", "kinds"), [(OLD, []), (NEW, ["rotated"])])
def test_an_unsaved_pair_is_rotated_once_it_is_in_the_file(
    world: World, in_the_file: Tokens, kinds: list[str]
) -> None:
    """A program that ends before that has said all there is to say."""
    events: list[Event] = []
    context = world.context()
    context.refreshed = True
    context.unsaved_report = threading.Thread(target=lambda: None)
    context.unsaved_report.start()
    world.store.content = stored(in_the_file)
    Reporter(events.append, {"token_file": "memory"}).report(context, NEW)
    assert [event.kind for event in events] == kinds
