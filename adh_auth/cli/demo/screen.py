"""What the demo shows: a table that is drawn over itself on a terminal, a line per second elsewhere, and the
sums at the end.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...common.text import one_line
from ..terminal import echo, paint, redraws

__all__ = ["Sums", "WorkerRow", "print_sums", "screen"]


@dataclass(frozen=True)
class WorkerRow:
    """One process as it stands now."""

    pid: int
    kind: str
    requests: int
    failures: int
    expiries: int
    rotations: int
    token: str
    doing: str
    colour: str | None = None

    def facts(self) -> dict[str, Any]:
        """What it has done, for a program."""
        counts = {name: getattr(self, name) for name in ("requests", "failures", "expiries", "rotations")}
        return {"pid": self.pid, "client": self.kind, **counts}


@dataclass(frozen=True)
class Sums:
    """What came of it all.

    `seconds`: how long the processes worked. `reused`: refresh tokens that the server has seen twice. `life`:
    seconds that an access token lived. `rows`: each process as it ended.
    """

    seconds: float
    requests: int
    failures: int
    expiries: int
    rotations: int
    reused: int
    rows: tuple[WorkerRow, ...]
    threads: int
    life: float
    troubles: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether nothing failed."""
        return not (self.failures or self.reused or self.troubles)

    def facts(self) -> dict[str, Any]:
        """The same for a program, as JSON takes it."""
        return {
            "good": self.good,
            "seconds": round(self.seconds, 3),
            "token_life": self.life,
            "requests": self.requests,
            "failures": self.failures,
            "expiries": self.expiries,
            "rotations": self.rotations,
            "reused": self.reused,
            "processes": [row.facts() for row in self.rows],
            "troubles": list(self.troubles),
        }


_HEAD = ("process", "client", "requests", "failed", "401s met", "rotations", "access token", "what it does")
_LINE = "{:>8}  {:<9} {:>8}  {:>6}  {:>8}  {:>9}  {:<12}  {}"


class Table:
    """Drawn over itself."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._height = 0
        echo("\x1b[?25l", end="")  # hide the cursor: it would jump about

    def show(self, elapsed: float, rows: Sequence[WorkerRow]) -> None:
        """Draw the table, over the one before."""
        clock = f"{min(elapsed, self._seconds):5.1f} of {self._seconds:g} s"
        lines: list[tuple[str, str | None]] = [(clock, "bold"), ("", None), (_LINE.format(*_HEAD), "dim")]
        lines += [(_cells(row), row.colour) for row in rows]
        # A line that is wider than the terminal would wrap, and the cursor would not come back to where the
        # table began.
        width = shutil.get_terminal_size().columns - 1
        drawn = "".join(f"\x1b[2K{paint(text[:width], colour)}\n" for text, colour in lines)
        echo((f"\x1b[{self._height}A" if self._height else "") + drawn, end="")
        self._height = len(lines)

    def close(self) -> None:
        """Show the cursor again."""
        echo("\x1b[?25h", end="")


class Lines:
    """A line per second."""

    def __init__(self) -> None:
        self._next = 1.0

    def show(self, elapsed: float, rows: Sequence[WorkerRow]) -> None:
        """Write a line, where one is due."""
        if elapsed < self._next:
            return
        self._next = int(elapsed) + 1.0
        each = ", ".join(f"{row.kind} {row.requests}" for row in rows)
        failures, rotations = sum(row.failures for row in rows), sum(row.rotations for row in rows)
        news = "".join(
            f"; process {row.pid} ({row.kind}) {row.doing}" for row in rows if row.colour == "green"
        )
        echo(f"{elapsed:3.0f} s  requests: {each}; failures {failures}; rotations {rotations}{news}")

    def close(self) -> None:
        """Nothing to put back."""


class Silence:
    """Nothing, for a program that waits for the sums."""

    def show(self, elapsed: float, rows: Sequence[WorkerRow]) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Nothing to put back."""


def screen(seconds: float, *, silent: bool = False) -> Any:
    """The one that fits where stdout goes, for so many seconds."""
    if silent:
        return Silence()
    return Table(seconds) if sys.stdout is not None and redraws(sys.stdout) else Lines()


def _cells(row: WorkerRow) -> str:
    return _LINE.format(
        row.pid, row.kind, row.requests, row.failures, row.expiries, row.rotations, row.token, row.doing
    )


def print_sums(sums: Sums) -> None:
    """The numbers, and what they mean to somebody who has never heard of any of this."""
    echo()
    for name, number, bad in (
        ("requests", sums.requests, False),
        ("failures", sums.failures, sums.failures > 0),
        ("expiries met (401 token_expired)", sums.expiries, False),
        ("rotations", sums.rotations, False),
        ("refresh tokens used twice", sums.reused, sums.reused > 0),
    ):
        echo(f"{name:<33}{paint(f'{number:>7}', 'red' if bad else None)}")
    echo()
    for trouble in sums.troubles:
        echo(paint(one_line(trouble), "red"))
    for line in _meaning(sums):
        echo(line)


def _meaning(sums: Sums) -> Sequence[str]:
    start = (
        f"What you have just seen: {len(sums.rows)} processes, each with {sums.threads} threads or tasks, called an API with one token file.",
        f"Its access tokens live {sums.life:g} s, and each refresh token works only once: used twice, the server ends the session.",
    )
    if not sums.good:
        return (
            *start,
            "Something went wrong in that, and it should not have; please report the lines above.",
        )
    if not sums.rotations:
        return (
            *start,
            f"It ended before a token had expired. Let it run longer: adh-auth demo --seconds {3 * sums.life:g}",
        )
    return (
        *start,
        f"The token expired {_times(sums.rotations)}. The API said 401 token_expired to whoever came first; one process took a lock,",
        "traded the refresh token for a new pair and wrote it to the file, and the others went on with what they found there.",
        "Every request that had met a 401 was sent again with the new token: no call of the programs has failed.",
        "",
        "Two lines do that for a program of yours:  from adh_auth import AdhAuth;  session.auth = AdhAuth()",
        "Next: adh-auth sandbox (this local ADH, to develop against), adh-auth login (sign in for real).",
    )


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
