"""The README is the manual: each of its Python blocks runs, against the sandbox in place of the API."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adh_auth.testing import Sandbox

from .support import PATIENCE, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SHELL = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
API = "https://api.agenticdeveloperhub.com"


def environment(sandbox: Sandbox, token_file: Path) -> dict[str, str]:
    return {**os.environ, **sandbox.environment(token_file), "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_a_python_block_runs(number: int, sandbox: Sandbox, token_file: Path, tmp_path: Path) -> None:
    """The block runs as it stands in a folder with a token file; a block with a test is run by pytest."""
    code = PYTHON[number].replace(API, sandbox.url)
    name = "test_block.py" if "def test_" in code else "block.py"
    (tmp_path / name).write_text(code, encoding="utf-8")
    command = [sys.executable, "-W", "error::DeprecationWarning", name]
    if name.startswith("test_"):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "adh_auth.pytest_plugin", "--rootdir", str(tmp_path), name]
        if "adh_auth" in _entry_points():
            del command[6:8]
    done = subprocess.run(command, cwd=tmp_path, env=environment(sandbox, token_file), capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _entry_points() -> set[str]:
    from importlib.metadata import entry_points

    return {point.name for point in entry_points(group="pytest11")}


def test_something_runnable_comes_early() -> None:
    """A stranger finds the demo command, and the test command, before line 30."""
    head = "\n".join(README.splitlines()[:30])
    assert "adh-auth demo" in head
    assert "-m pytest" in head


def test_the_shell_blocks_name_commands_that_exist(sandbox: Sandbox, token_file: Path, tmp_path: Path) -> None:
    """Every `adh-auth` command of a shell block, and of the table, has a --help that answers."""
    named = set(re.findall(r"adh-auth ([a-z]+)", "\n".join(SHELL) + README[README.index("## Command line") :]))
    assert {"login", "status", "token", "demo"} <= named
    for command in sorted(named):
        done = subprocess.run(
            [sys.executable, "-m", "adh_auth", command, "--help"], cwd=tmp_path, env=environment(sandbox, token_file), capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, (command, done.stderr)


def test_the_curl_line_works(sandbox: Sandbox, token_file: Path, tmp_path: Path) -> None:
    """`adh-auth token` prints a token that works now, and nothing else."""
    sandbox.expire()
    done = subprocess.run(
        [sys.executable, "-m", "adh_auth", "token"], cwd=tmp_path, env=environment(sandbox, token_file), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    import requests

    answer: Any = requests.get(sandbox.url + "/api/auth/me", headers={"Authorization": f"Bearer {done.stdout.strip()}"}, timeout=PATIENCE)
    assert answer.status_code == 200


def test_every_link_within_leads_somewhere() -> None:
    """A link to a section finds its heading."""
    anchors = {re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in README.splitlines() if line.startswith("#")}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors


def test_the_faults_table_names_tests_that_exist() -> None:
    """Each row of "What can go wrong" names its test."""
    section = README[README.index("## What can go wrong") : README.index("## Security")]
    named = re.findall(r"`(test_\w+)\.(test_\w+)`", section)
    for file, function in named:
        assert f"def {function}(" in (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"), (file, function)
    assert len(named) > 20
