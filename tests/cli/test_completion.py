"""Completion in a real shell, by argcomplete (extra `completion`)."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..support.cli import adh, environment
from ..support.clients import needs
from ..support.processes import PATIENCE, ROOT

#: What bash does at a Tab: the README's line, then the function that it has registered.
TAB = """
eval "$({register} adh-auth)"
COMP_LINE={line}; COMP_POINT={point}; COMP_TYPE=9
_python_argcomplete adh-auth
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def completed(line: str, folder: Path) -> list[str]:
    """What a Tab at the end of the line offers."""
    needs("argcomplete", "completion")
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash: apt-get install bash")
    program = folder / "adh-auth"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m adh_auth "$@"\n')
    program.chmod(0o700)
    register = Path(sys.executable).parent / "register-python-argcomplete"
    script = TAB.format(register=shlex.quote(str(register)), line=shlex.quote(line), point=len(line))
    surroundings = environment({"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"})
    said = subprocess.run(
        [bash, "-c", script],
        env=surroundings,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert said.stderr == ""
    return sorted(said.stdout.split())


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("adh-auth log", ["login", "logout"]),
        ("adh-auth logout --", ["--help", "--json", "--session", "--store", "--token-file"]),
        ("adh-auth sandbox --token-l", ["--token-life"]),
        ("adh-auth me --client-s", []),
        ("adh-auth status --token-file adh", ["adh-auth"]),
    ],
)
def test_a_tab_completes_commands_options_and_files(line: str, offered: list[str], tmp_path: Path) -> None:
    """What the help shows is offered, a file where one is named, and never an option that is refused."""
    assert completed(line, tmp_path) == offered


def test_the_entry_point_says_that_it_can_complete() -> None:
    """argcomplete's completion for all programs at once looks for this word at the start of the module."""
    start = (ROOT / "adh_auth" / "cli" / "main.py").read_text(encoding="utf-8")[:1024]
    assert "PYTHON_ARGCOMPLETE_OK" in start


def test_without_the_extra_a_tab_does_no_harm() -> None:
    """Where argcomplete is missing, nothing is offered, and no traceback is written."""
    code = "import sys; sys.modules['argcomplete'] = None; "
    code += "from adh_auth.cli.main import main; sys.exit(main())"
    said = subprocess.run(
        [sys.executable, "-c", code],
        env=environment({"_ARGCOMPLETE": "1", "COMP_LINE": "adh-auth log", "COMP_POINT": "12"}),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (said.returncode, said.stdout) == (2, "")
    assert "Traceback" not in said.stderr


def test_only_a_tab_loads_it() -> None:
    """A command costs what it did."""
    code = "import sys; from adh_auth.cli import main; main.main(['--version']); "
    code += "print('argcomplete' in sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert said.stdout.splitlines()[-1] == "False"
    assert adh("--version").returncode == 0
