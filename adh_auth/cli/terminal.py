"""How the commands speak: lines for people, JSON for programs, colours and a redrawn table on a terminal
only.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from ..common.console import a_reader_may_go

__all__ = ["colourful", "echo", "echo_json", "paint", "redraws", "stdout_on_stderr"]

_CODES = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}


def echo(text: str = "", end: str = "\n") -> None:
    """Write a line to stdout, at once: whoever reads a pipe wants it now.

    Raises `OSError`, `BrokenPipeError` among them.
    """
    if sys.stdout is not None:  # None in a program without a console
        with a_reader_may_go():
            sys.stdout.write(text + end)
            sys.stdout.flush()


def echo_json(value: Mapping[str, Any], indent: int | None = 2) -> None:
    """Write a JSON object to stdout, in a single line where `indent` is None."""
    echo(json.dumps(value, indent=indent))


@contextmanager
def stdout_on_stderr() -> Iterator[None]:
    """What goes to stdout meanwhile comes out on stderr, so that the JSON that follows stands alone."""
    if sys.__stdout__ is None:
        yield
        return
    # The descriptor, not sys.stdout: Chrome writes "Opening in existing browser session." to the stdout that
    # it inherits.
    kept, stdout = os.dup(sys.stdout.fileno()), sys.stdout.fileno()
    _point(stdout, sys.stderr)
    try:
        yield
    finally:
        os.dup2(kept, stdout)
        os.close(kept)


def _point(descriptor: int, stream: TextIO | None) -> None:
    target = os.open(os.devnull, os.O_WRONLY) if stream is None else os.dup(stream.fileno())
    os.dup2(target, descriptor)
    os.close(target)


def colourful(stream: TextIO) -> bool:
    """Whether colours are welcome: on a terminal, unless ``NO_COLOR`` is set (no-color.org) or ``TERM`` is
    dumb.
    """
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def redraws(stream: TextIO) -> bool:
    """Whether lines that were written can be written over."""
    # The old console of Windows shows escape sequences as they are; the terminal that replaced it sets
    # WT_SESSION.
    knows_escapes = sys.platform != "win32" or "WT_SESSION" in os.environ
    return stream.isatty() and os.environ.get("TERM") != "dumb" and knows_escapes


def paint(text: str, colour: str | None) -> str:
    """The text for stdout, in that colour where colours are welcome."""
    if (
        colour is None
        or not text
        or sys.stdout is None
        or not (colourful(sys.stdout) and redraws(sys.stdout))
    ):
        return text
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m"
