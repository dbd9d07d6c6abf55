"""The command line as its users meet it: a process of its own, with pipes or a terminal around it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .processes import PATIENCE, ROOT, reaped

COMMAND = [sys.executable, "-m", "adh_auth"]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment, with the package on the import path."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **(extra or {})}


def adh(
    *arguments: str, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run ``adh-auth`` to its end."""
    options = {"capture_output": True, "stdin": None if "input" in options else subprocess.DEVNULL, **options}
    return subprocess.run(  # noqa: PLW1510 - the tests check the exit code
        [*COMMAND, *arguments], text=True, timeout=2 * PATIENCE, env=environment(env), **options
    )


@contextmanager
def started(
    *arguments: str, env: Mapping[str, str] | None = None, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """A running ``adh-auth``; killed and reaped at the end."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
    process = subprocess.Popen([*COMMAND, *arguments], text=True, env=environment(env), **options)
    with reaped(process):
        yield process


def on_a_terminal(
    *arguments: str, env: Mapping[str, str] | None = None, size: tuple[int, int] = (24, 80)
) -> tuple[int, str]:
    """Return the exit code, and what was written to a terminal of so many lines and columns."""
    import fcntl
    import pty
    import struct
    import termios

    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    # COLUMNS and LINES of whoever runs the tests would count for more than the terminal's size.
    settings = {"TERM": "xterm", "COLUMNS": "", "LINES": "", **(env or {})}
    with started(*arguments, env=settings, stdout=end) as process:
        os.close(end)
        seen = _drained(terminal)
        return process.wait(PATIENCE), seen


def _drained(terminal: int) -> str:
    seen = b""
    try:
        while chunk := os.read(terminal, 65536):
            seen += chunk
    except OSError:  # EIO on Linux: the other end is closed
        pass
    os.close(terminal)
    return seen.decode()


def one_line_of(process: subprocess.CompletedProcess[str]) -> str:
    """Return the single line of an error."""
    assert process.stderr.startswith("adh-auth: ")
    assert process.stderr.count("\n") == 1
    return process.stderr


def tokens_in(path: Path) -> set[str]:
    """Return the tokens of the file, which no output may hold."""
    import json

    mapping = json.loads(path.read_bytes())
    return {mapping["access_token"], mapping["refresh_token"]}
