"""Programs that look like a Python interpreter, for the start of a helper process."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["changed_interpreter", "fake_interpreter"]

#: The end of a script that goes on as the helper that it was started as.
GOES_ON = """
import sys
rest = sys.argv[sys.argv.index("-c") + 1:]
sys.argv = ["-c", *rest[1:]]
exec(rest[0])
"""


def fake_interpreter(folder: Path, script: str) -> str:
    """Return the path of a program by that name, which runs the script."""
    path = folder / "python3"
    path.write_text(f"#!{sys.executable}\n{script}")
    path.chmod(0o700)
    return str(path)


def changed_interpreter(folder: Path, changes: str) -> str:
    """Return the path of an interpreter that makes some changes, and then does what it was started for."""
    return fake_interpreter(folder, changes + GOES_ON)
