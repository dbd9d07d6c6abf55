"""SIGTERM and SIGHUP to a command: it ends as on Ctrl-C, a refresh that is under way first (rule 5)."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["end_signals_raise"]

#: A supervisor, ``timeout`` and a shutdown send the first; a terminal that is closed sends the second.
_END_SIGNALS = ("SIGTERM", "SIGHUP")
#: What a shell adds to the number of the signal that ended a program.
KILLED_BY = 128


@contextmanager
def end_signals_raise() -> Iterator[None]:
    """Around a command: a signal that would kill this process raises `SystemExit` with a shell's status.

    The interpreter then waits for the thread of a refresh. What is ignored (nohup) stays ignored.
    """
    numbers = [getattr(signal, name) for name in _END_SIGNALS if hasattr(signal, name)]
    deadly = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]

    def end(number: int, _: object) -> None:
        # A second one must not cut off the wait that the first one leads to.
        for each in deadly:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(KILLED_BY + number)

    with suppress(ValueError):  # not in the main thread, which alone gets signals
        for number in deadly:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number in deadly:
            if signal.getsignal(number) is end:
                signal.signal(number, signal.SIG_DFL)
