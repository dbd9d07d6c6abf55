"""What the demo shows: a table that is redrawn on a terminal, a line per second elsewhere, and the totals."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...common.text import one_line
from ..terminal import echo, paint, supports_redraw

__all__ = ["Screen", "Totals", "WorkerRow", "print_totals", "screen"]


@dataclass(frozen=True)
class WorkerRow:
    """What one process has done, and what it does now."""

    pid: int
    kind: str
    calls: int
    failures: int
    expiries: int
    rotations: int
    token: str
    doing: str
    colour: str | None = None

    def facts(self) -> dict[str, Any]:
        """Return what it has done, for JSON."""
        return {
            "pid": self.pid,
            "client": self.kind,
            "requests": self.calls,
            "failures": self.failures,
            "expiries": self.expiries,
            "rotations": self.rotations,
        }


@dataclass(frozen=True)
class Totals:
    """The outcome of a demo.

    `seconds`: how long the processes worked. `reused`: refresh tokens that the server has seen twice.
    `rows`: each process as it ended. `token_life`: of an access token, in seconds.
    """

    seconds: float
    calls: int
    failures: int
    expiries: int
    rotations: int
    reused: int
    rows: tuple[WorkerRow, ...]
    threads: int
    token_life: float
    problems: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether nothing failed."""
        return not (self.failures or self.reused or self.problems)

    def facts(self) -> dict[str, Any]:
        """Return the outcome for JSON."""
        return {
            "good": self.good,
            "seconds": round(self.seconds, 3),
            "token_life": self.token_life,
            "requests": self.calls,
            "failures": self.failures,
            "expiries": self.expiries,
            "rotations": self.rotations,
            "reused": self.reused,
            "processes": [row.facts() for row in self.rows],
            "troubles": list(self.problems),
        }


class Screen:
    """Shows nothing, for a program that waits for the totals; base of what shows something."""

    def show(self, elapsed: float, rows: Sequence[WorkerRow]) -> None:
        """Show the processes after `elapsed` seconds."""

    def close(self) -> None:
        """Put the terminal back in order."""


_HEAD = ("process", "client", "calls", "failed", "401s met", "rotations", "access token", "what it does")
_LINE = "{:>8}  {:<9} {:>8}  {:>6}  {:>8}  {:>9}  {:<12}  {}"

# Control sequences of ECMA-48 and xterm.
_HIDE_CURSOR, _SHOW_CURSOR, _CLEAR_LINE = "\x1b[?25l", "\x1b[?25h", "\x1b[2K"


class Table(Screen):
    """A table that is drawn over itself."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._height = 0
        echo(_HIDE_CURSOR, end="")

    def show(self, elapsed: float, rows: Sequence[WorkerRow]) -> None:
        """Draw the table over the one before."""
        clock = f"{min(elapsed, self._seconds):5.1f} of {self._seconds:g} s"
        lines: list[tuple[str, str | None]] = [(clock, "bold"), ("", None), (_LINE.format(*_HEAD), "dim")]
        lines += [(_cells(row), row.colour) for row in rows]
        # A line that is wider than the terminal wraps, and the cursor then goes up too few lines.
        width = shutil.get_terminal_size().columns - 1
        drawn = "".join(f"{_CLEAR_LINE}{paint(text[:width], colour)}\n" for text, colour in lines)
        up = f"\x1b[{self._height}A" if self._height else ""
        echo(up + drawn, end="")
        self._height = len(lines)

    def close(self) -> None:
        """Show the cursor again."""
        echo(_SHOW_CURSOR, end="")


class Lines(Screen):
    """A line per second."""

    def __init__(self) -> None:
        self._next = 1.0

    def show(self, elapsed: float, rows: Sequence[WorkerRow]) -> None:
        """Write a line, if one is due."""
        if elapsed < self._next:
            return
        self._next = int(elapsed) + 1.0
        calls = ", ".join(f"{row.kind} {row.calls}" for row in rows)
        failures, rotations = sum(row.failures for row in rows), sum(row.rotations for row in rows)
        rotated = "".join(
            f"; process {row.pid} ({row.kind}) {row.doing}" for row in rows if row.colour == "green"
        )
        echo(f"{elapsed:3.0f} s  calls: {calls}; failures {failures}; rotations {rotations}{rotated}")


def screen(seconds: float, *, silent: bool = False) -> Screen:
    """Return the screen that fits stdout, for a demo of so many seconds."""
    if silent:
        return Screen()
    return Table(seconds) if sys.stdout is not None and supports_redraw(sys.stdout) else Lines()


def _cells(row: WorkerRow) -> str:
    return _LINE.format(
        row.pid, row.kind, row.calls, row.failures, row.expiries, row.rotations, row.token, row.doing
    )


def print_totals(totals: Totals) -> None:
    """Print the numbers, and what they mean to a reader who is new to all of this."""
    echo()
    for name, number, bad in (
        ("calls", totals.calls, False),
        ("failures", totals.failures, totals.failures > 0),
        ("expiries met (401 token_expired)", totals.expiries, False),
        ("rotations", totals.rotations, False),
        ("refresh tokens used twice", totals.reused, totals.reused > 0),
    ):
        echo(f"{name:<33}{paint(f'{number:>7}', 'red' if bad else None)}")
    echo()
    for problem in totals.problems:
        echo(paint(one_line(problem), "red"))
    echo(_meaning(totals))


def _meaning(totals: Totals) -> str:
    start = f"""\
What you have just seen: {len(totals.rows)} processes, each with {totals.threads} threads or tasks, \
called an API with one token file.
Its access tokens live {totals.token_life:g} s, and each refresh token works only once: \
used twice, the server ends the session.
"""
    if not totals.good:
        return start + "Something failed that should not have; please report the lines above."
    if not totals.rotations:
        longer = f"adh-auth demo --seconds {3 * totals.token_life:g}"
        return start + f"The demo ended before a token had expired. Let it run longer: {longer}"
    return f"""{start}\
The token expired {_times(totals.rotations)}. The API answered 401 token_expired; one process took a lock, \
traded the refresh
token for a new pair and wrote it to the file, and the others went on with what they found there.
Every call that had met a 401 was sent again with the new token: no call of the programs has failed.

Two lines do that for a program of yours:  from adh_auth import AdhAuth;  session.auth = AdhAuth()
Next: adh-auth sandbox (this local ADH, to develop against), adh-auth login (sign in for real)."""


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
