"""What a fork takes along, and what it waits for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest

from adh_auth.common import fork_safety
from adh_auth.common.fork_safety import OwnDescriptor, exchange_under_way, no_fork

from ..support.processes import PATIENCE

pytestmark = pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="needs fork")


def _in_child(check: Callable[[], bool]) -> bool:
    """Fork, and return whether `check` is true in the child."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return os.waitpid(pid, 0)[1] == 0


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_child_closes_what_is_its_parents() -> None:
    """The parent keeps it."""
    reading, writing = os.pipe()
    own = OwnDescriptor(reading)
    try:
        assert _in_child(lambda: not _is_open(reading) and _is_open(writing))
        assert own.number() == reading
    finally:
        own.close()
        os.close(writing)
    assert not _is_open(reading)


def test_a_number_that_is_another_files_is_left_alone() -> None:
    """The program has closed every descriptor and opened its own: that one is neither read nor closed."""
    reading, writing = os.pipe()
    own = OwnDescriptor(reading)
    os.close(reading)
    other = os.open(os.devnull, os.O_RDONLY)
    os.dup2(other, reading)
    with pytest.raises(OSError, match="Bad file descriptor"):
        own.number()
    own.close()
    assert _is_open(reading)
    for fd in {reading, other, writing}:
        os.close(fd)


def test_a_fork_waits_for_an_exchange() -> None:
    """In another thread; not for one in its own, which goes on in the parent alone."""
    under_way, over = threading.Event(), threading.Event()

    def exchange() -> None:
        with exchange_under_way():
            under_way.set()
            time.sleep(0.2)
            over.set()

    thread = threading.Thread(target=exchange)
    thread.start()
    under_way.wait(PATIENCE)
    assert _in_child(over.is_set)
    thread.join()
    with exchange_under_way():
        started = time.monotonic()
        assert _in_child(lambda: fork_safety._state.exchanging == [])
        assert time.monotonic() - started < fork_safety.FORK_WAIT


def test_a_fork_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that forks may hold what the exchange needs."""
    monkeypatch.setattr(fork_safety, "FORK_WAIT", 0.1)
    under_way, end = threading.Event(), threading.Event()

    def exchange() -> None:
        with exchange_under_way():
            under_way.set()
            end.wait(PATIENCE)

    thread = threading.Thread(target=exchange)
    thread.start()
    under_way.wait(PATIENCE)
    assert _in_child(lambda: True)
    end.set()
    thread.join()


def test_a_child_can_fork_anew_after_a_fork_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler forks in there."""
    with no_fork():
        assert _in_child(lambda: _in_child(lambda: True))
