"""What the demo shows: a table that is redrawn on a terminal, a line per second elsewhere, and the totals."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...common.text import one_line
from ..terminal import echo, paint, supports_redraw

__all__ = ["Screen", "Totals", "WorkerRow", "print_meaning", "print_wrapped", "screen", "table_lines"]

#: Columns that stay: which client, and what it does.
MIN_COLUMNS = 2
#: Lines of a terminal that a table is drawn on. The cursor can't go up to what has scrolled away.
MIN_LINES = 12
#: Characters of a line of text at most: longer ones are hard to read.
MAX_TEXT_WIDTH = 100


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

    def cells(self) -> dict[str, str]:
        """Return its cells of the table, by the head of each column."""
        return {
            "process": str(self.pid),
            "client": self.kind,
            "calls": str(self.calls),
            "failed": str(self.failures),
            "401s": str(self.expiries),
            "rotations": str(self.rotations),
            "access token": self.token,
            "what it does": self.doing,
        }

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
    #: the store, where each process stood for a machine
    store: str | None = None

    @property
    def good(self) -> bool:
        """Whether nothing failed."""
        return not (self.failures or self.reused or self.problems)

    def cells(self) -> dict[str, str]:
        """Return the sums as a line of the table."""
        return {
            "process": "all",
            "calls": str(self.calls),
            "failed": str(self.failures),
            "401s": str(self.expiries),
            "rotations": str(self.rotations),
        }

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

    def finish(self, totals: Totals) -> None:
        """Show the outcome."""

    def close(self) -> None:
        """Put the terminal back in order."""


class Column(NamedTuple):
    """One column of the table. `width`: characters at least. `drop`: the lowest goes first."""

    head: str
    width: int
    drop: int
    left: bool = False


#: The last one has room for the longest that a process may be doing: no column comes and goes with that.
_COLUMNS = (
    Column("process", 7, drop=2),
    Column("client", 8, drop=7, left=True),
    Column("calls", 6, drop=6),
    Column("failed", 6, drop=4),
    Column("401s", 4, drop=3),
    Column("rotations", 9, drop=5),
    Column("access token", 12, drop=1, left=True),
    Column("what it does", 24, drop=8, left=True),
)
_GAP = "  "

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
        head, *lines = table_lines([row.cells() for row in rows], _line_width())
        self._draw(elapsed, head, [(line, row.colour) for line, row in zip(lines, rows, strict=True)])

    def finish(self, totals: Totals) -> None:
        """Draw the table once more with the sums, so that all of it is in view with what follows."""
        rows, sums = [row.cells() for row in totals.rows], totals.cells()
        head, *lines = table_lines([*rows, sums], _line_width())
        complete = all(name in head for name in sums)
        coloured: list[tuple[str, str | None]] = [(line, None) for line in lines[:-1]]
        self._draw(totals.seconds, head, [*coloured, (lines[-1], "bold")] if complete else coloured)
        _print_totals(totals, reused_only=complete)

    def close(self) -> None:
        """Show the cursor again."""
        echo(_SHOW_CURSOR, end="")

    def _draw(self, elapsed: float, head: str, rows: Sequence[tuple[str, str | None]]) -> None:
        clock = f"{min(elapsed, self._seconds):5.1f} of {self._seconds:g} s"
        lines = [(clock, "bold"), (head, "dim"), *rows]
        drawn = "".join(f"{_CLEAR_LINE}{paint(text, colour)}\n" for text, colour in lines)
        # The terminal's echo of Ctrl-C moves the cursor to the right.
        up = f"\r\x1b[{self._height}A" if self._height else ""
        echo(up + drawn, end="")
        self._height = len(lines)


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

    def finish(self, totals: Totals) -> None:
        """Write the totals."""
        _print_totals(totals)


def screen(seconds: float, *, silent: bool = False) -> Screen:
    """Return the screen that fits stdout, for a demo of so many seconds."""
    if silent:
        return Screen()
    can_redraw = sys.stdout is not None and supports_redraw(sys.stdout)
    return Table(seconds) if can_redraw and shutil.get_terminal_size().lines >= MIN_LINES else Lines()


def table_lines(rows: Sequence[Mapping[str, str]], width: int) -> list[str]:
    """Return the head and a line for each row, in whole columns that fit into `width` characters.

    A row has its cells by the head of their column.
    """
    columns = [(column, [column.head, *(row.get(column.head, "") for row in rows)]) for column in _COLUMNS]
    # A line that is wider than the terminal wraps, and the cursor then goes up too few lines.
    while _width(columns) > width and len(columns) > MIN_COLUMNS:
        columns.remove(min(columns, key=lambda pair: pair[0].drop))
    lines = zip(*(_padded(column, cells) for column, cells in columns), strict=True)
    return [_GAP.join(line).rstrip()[:width] for line in lines]


def _padded(column: Column, cells: list[str]) -> list[str]:
    width = max(column.width, *map(len, cells))
    return [cell.ljust(width) if column.left else cell.rjust(width) for cell in cells]


def _width(columns: Sequence[tuple[Column, list[str]]]) -> int:
    return len(_GAP.join(_padded(column, cells)[0] for column, cells in columns))


def _line_width() -> int:
    """Return the characters of a line that no terminal wraps."""
    return shutil.get_terminal_size().columns - 1


def print_wrapped(text: str) -> None:
    """Print paragraphs, wrapped between words. A line that is indented stays as it is."""
    width = min(_line_width(), MAX_TEXT_WIDTH)
    for line in text.splitlines():
        echo(line if line.startswith(" ") else textwrap.fill(line, width))


def print_meaning(totals: Totals) -> None:
    """Print what the numbers mean to a reader who is new to all of this."""
    echo()
    for problem in totals.problems:
        echo(paint(one_line(problem), "red"))
    print_wrapped(_meaning(totals))


def _print_totals(totals: Totals, *, reused_only: bool = False) -> None:
    rows = (
        ("calls", totals.calls, False),
        ("failures", totals.failures, totals.failures > 0),
        ("expiries met (401 token_expired)", totals.expiries, False),
        ("rotations", totals.rotations, False),
        ("refresh tokens used twice", totals.reused, totals.reused > 0),
    )
    echo()
    for name, number, bad in rows[-1:] if reused_only else rows:
        echo(f"{name:<33}{paint(f'{number:>7}', 'red' if bad else None)}")


def _meaning(totals: Totals) -> str:
    shared, lock, there = "one token file", "a lock", "to the file"
    if totals.store is not None:
        shared, lock, there = f"one session in {totals.store}, as machines would", "the lease", "there"
    start = f"""\
What you have just seen: {len(totals.rows)} processes, each with {totals.threads} threads or tasks, called \
an API with {shared}. Its access tokens live {totals.token_life:g} s, and each refresh token works \
once: used twice, the server ends the session.
"""
    if not totals.good:
        return start + "Something failed that should not have; please report the lines above."
    if not totals.rotations:
        longer = f"adh-auth demo --seconds {3 * totals.token_life:g}"
        return start + f"The demo ended before a token had expired. Let it run longer: {longer}"
    return f"""{start}\
The token expired {_times(totals.rotations)}: 401 token_expired. One process took {lock}, traded the refresh \
token for a new pair and wrote it {there}; the others went on with that. Each call that had met a 401 \
was sent again: no call of the programs has failed.
Two lines do that for a program of yours:
    from adh_auth import AdhAuth; session.auth = AdhAuth({"store=…" if totals.store else ""})
Next: adh-auth sandbox (a local ADH), adh-auth login (sign in for real)."""


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
