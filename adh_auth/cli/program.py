"""A program that this command runs: its exit status is ours, and a signal to us is one to it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ..common.console import print_to_stderr
from .end_signals import KILLED_BY

__all__ = ["run_program"]

#: Exit codes of a shell for a program that can't be started: it is not there; it can't be executed.
NOT_FOUND, NOT_EXECUTABLE = 127, 126

#: Seconds. Python runs a handler between two system calls: a signal that came just before one without an end
#: would be passed on when the program has ended.
HANDLERS_RUN_EVERY = 0.5

#: Signals that a program may have a use for, beside the real-time ones. SIGKILL and SIGSTOP reach nobody but
#: us. SIGTSTP stops us, as it should, and the program where a key of the terminal has sent it.
_PASSED_ON = (
    *("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGBREAK"),
    *("SIGUSR1", "SIGUSR2", "SIGALRM", "SIGIO", "SIGPWR"),
    *("SIGCONT", "SIGWINCH", "SIGINFO"),
)
#: Those that a terminal, or its shell, sends to the whole foreground group: the program has got them already.
_FROM_TERMINAL = ("SIGINT", "SIGQUIT", "SIGBREAK", "SIGCONT", "SIGWINCH", "SIGINFO")


def run_program(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a program to its end, with our standard streams, and return its exit status.

    One that a signal ended returns 128 and its number; one that can't be started 127 or 126, as in a shell.
    """
    child = _Child()
    with _signals_to(child.receive):
        try:
            child.start(arguments, environment)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            print_to_stderr(f"adh-auth: {arguments[0]} can't be started: {reason}")
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        return child.wait()


class _Child:
    """The program, or the signals that came before it was started."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []

    def start(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it. Raises `OSError`."""
        self._process = subprocess.Popen(_found(arguments), env=environment)  # noqa: S603 - the user's own
        for number in self._early:
            self.receive(number)

    def receive(self, number: int, _: object = None) -> None:
        """Pass a signal on, in a handler."""
        if self._process is None:
            self._early.append(number)
        elif sys.platform != "win32" and not _terminal_sent(number):
            self._process.send_signal(number)

    def wait(self) -> int:
        """Return its exit status."""
        assert self._process is not None
        while True:
            with suppress(subprocess.TimeoutExpired):
                status = self._process.wait(HANDLERS_RUN_EVERY)
                return status if status >= 0 else KILLED_BY - status


def _found(arguments: Sequence[str]) -> list[str]:
    # CreateProcess looks for .exe only: `npm` is npm.cmd.
    program = shutil.which(arguments[0]) if sys.platform == "win32" else None
    return [program or arguments[0], *arguments[1:]]


def _terminal_sent(number: int) -> bool:
    """Return whether that signal, if a key of our terminal has sent it, went to the program, too.

    A handler does not learn who sent a signal: in the foreground of a terminal, a `kill` of us alone is lost.
    """
    if number not in _numbers_of(_FROM_TERMINAL):
        return False
    with suppress(OSError):  # no controlling terminal
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            return os.tcgetpgrp(terminal) == os.getpgrp()
        finally:
            os.close(terminal)
    return False


def _numbers_of(names: Sequence[str]) -> list[int]:
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


def _real_time_signals() -> range:
    # systemd and container runtimes stop some programs by one of them. The C library keeps the first few.
    first = getattr(signal, "SIGRTMIN", 0)
    return range(first, getattr(signal, "SIGRTMAX", 0) + 1) if first else range(0)


@contextmanager
def _signals_to(receive: Callable[[int, Any], None]) -> Iterator[None]:
    """Call `receive` for each signal that is passed on. A program inherits no handler.

    What was ignored from the start (nohup) stays ignored, for the program, too.
    """
    numbers = [*_numbers_of(_PASSED_ON), *_real_time_signals()]
    before = {
        number: handler for number in numbers if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }
    for number in before:
        signal.signal(number, receive)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
