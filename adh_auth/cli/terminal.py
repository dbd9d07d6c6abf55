"""Output of the commands: lines for people, JSON for programs, colours and redrawing on a terminal only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from ..common.console import uniform_broken_pipe

__all__ = ["echo", "echo_json", "paint", "stdout_on_stderr", "supports_redraw"]

#: SGR parameters of ECMA-48.
_CODES = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}


def echo(text: str = "", end: str = "\n") -> None:
    """Write a line to stdout and flush it, for a program that reads it from a pipe.

    Raises `OSError`; `BrokenPipeError` where the reader has closed the pipe.
    """
    if sys.stdout is not None:  # None in a program without a console
        with uniform_broken_pipe():
            sys.stdout.write(text + end)
            sys.stdout.flush()


def echo_json(value: Mapping[str, Any], indent: int | None = 2) -> None:
    """Write a JSON object to stdout, in a single line where `indent` is None."""
    echo(json.dumps(value, indent=indent))


@contextmanager
def stdout_on_stderr() -> Iterator[None]:
    """Send to stderr what is written to stdout meanwhile, so that stdout holds only the JSON that follows."""
    if sys.__stdout__ is None:
        yield
        return
    # The descriptor, not sys.stdout: Chrome writes "Opening in existing browser session." to the stdout that
    # it inherits.
    stdout = sys.stdout.fileno()
    kept = os.dup(stdout)
    _redirect(stdout, sys.stderr)
    try:
        yield
    finally:
        os.dup2(kept, stdout)
        os.close(kept)


def _redirect(descriptor: int, stream: TextIO | None) -> None:
    target = os.open(os.devnull, os.O_WRONLY) if stream is None else os.dup(stream.fileno())
    os.dup2(target, descriptor)
    os.close(target)


def paint(text: str, colour: str | None) -> str:
    """Return the text for stdout, in that colour where stdout shows colours."""
    if colour is None or not text or sys.stdout is None or not _supports_colour(sys.stdout):
        return text
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m"


def supports_redraw(stream: TextIO) -> bool:
    """Return whether lines of the stream can be written over: a terminal that knows escape sequences."""
    # The old console of Windows shows escape sequences as they are; Windows Terminal sets WT_SESSION.
    knows_escapes = sys.platform != "win32" or "WT_SESSION" in os.environ
    return stream.isatty() and os.environ.get("TERM") != "dumb" and knows_escapes


def _supports_colour(stream: TextIO) -> bool:
    # NO_COLOR: no-color.org
    return supports_redraw(stream) and not os.environ.get("NO_COLOR")
