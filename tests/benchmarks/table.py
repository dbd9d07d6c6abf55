"""The table: one row for each number, with its goal where there is one."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import NamedTuple

__all__ = ["Row", "printed"]


class Row(NamedTuple):
    """One number. `goal` and `met` are for a number that has a limit."""

    part: str
    what: str
    value: str
    goal: str = ""
    met: bool | None = None


def printed(rows: Sequence[Row], *, markdown: bool, judged: bool) -> str:
    """Return the rows as text, and what they were measured on. `judged`: mark the goals that are missed."""
    lines = [("", "measured", "value", "goal")]
    lines += [(row.part, row.what, row.value, _goal(row, judged)) for row in rows]
    where = (
        f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, "
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"{datetime.now(timezone.utc):%Y-%m-%d}"
    )
    return f"{_as_markdown(lines) if markdown else _as_text(lines)}\n\n{where}"


def _goal(row: Row, judged: bool) -> str:
    return row.goal + (" – missed" if judged and row.met is False else "")


def _as_markdown(lines: Sequence[tuple[str, ...]]) -> str:
    head, *rest = ("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([head, "|---" * len(lines[0]) + "|", *rest])


def _as_text(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
