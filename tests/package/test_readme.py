"""The README is the manual: each of its Python blocks runs, against the sandbox in place of the API."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import adh_auth
from adh_auth import AdhAuth, AdhAuthError, AdhHttpxAuth, Tokens, login
from adh_auth.testing import Call, Counts, Hold, Sandbox

from ..support.cli import adh
from ..support.clients import needs
from ..support.processes import PATIENCE, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SHELL = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
API = "https://api.agenticdeveloperhub.com"
#: What the clients call, the server's side of a hold, and an attribute that no argument sets.
INTERNAL = {
    "sync_auth_flow",
    "async_auth_flow",
    "auth_flow",
    "requires_request_body",
    "requires_response_body",
    "stand",
    "reached",
    "code_life",
}


def environment(sandbox: Sandbox, token_file: Path) -> dict[str, str]:
    return {**os.environ, **sandbox.environment(token_file), "PYTHONPATH": str(ROOT)}


#: Packages of the users': such a block runs where they are installed.
THEIRS = re.compile(r"^(?:import|from) (responses|requests_mock|respx|vcr|fastapi)\b", re.MULTILINE)
#: What the block with an application leaves to its users.
WHOEVER_ASKS = """
from fastapi.testclient import TestClient
with TestClient(app) as browser:
    assert browser.get("/whoami").json()["name"]
"""
NUMBERED = [
    pytest.param(number, marks=[pytest.mark.clients] if THEIRS.search(code) else [])
    for number, code in enumerate(PYTHON)
]


@pytest.mark.parametrize("number", NUMBERED)
def test_a_python_block_runs(number: int, sandbox: Sandbox, token_file: Path, tmp_path: Path) -> None:
    """The block runs as it stands in a folder with a token file; a block with a test is run by pytest."""
    code = PYTHON[number].replace(API, sandbox.url)
    for package in THEIRS.findall(code):
        needs(package)
    if "FastAPI(" in code:
        code += WHOEVER_ASKS
    name = "test_block.py" if "def test_" in code else "block.py"
    (tmp_path / name).write_text(code, encoding="utf-8")
    command = [sys.executable, "-W", "error::DeprecationWarning", name]
    if name.startswith("test_"):
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "adh_auth.pytest_plugin",
            "--rootdir",
            str(tmp_path),
            name,
        ]
        if "adh_auth" in _entry_points():
            del command[6:8]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(sandbox, token_file),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _entry_points() -> set[str]:
    from importlib.metadata import entry_points

    return {point.name for point in entry_points(group="pytest11")}


def test_something_runnable_comes_early() -> None:
    """A stranger finds the demo command, and the test command, before line 30."""
    head = "\n".join(README.splitlines()[:30])
    assert "adh-auth demo" in head
    assert "-m pytest" in head


def test_the_shell_blocks_name_commands_that_exist(
    sandbox: Sandbox, token_file: Path, tmp_path: Path
) -> None:
    """Every `adh-auth` command of a shell block, and of the table, has a --help that answers."""
    named = set(
        re.findall(r"adh-auth ([a-z]+)", "\n".join(SHELL) + README[README.index("## Command line") :])
    )
    assert {"login", "status", "token", "demo"} <= named
    for command in sorted(named):
        done = adh(command, "--help", env=sandbox.environment(token_file), cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)


def test_the_curl_line_works(sandbox: Sandbox, token_file: Path, tmp_path: Path) -> None:
    """`adh-auth token` prints a token that works now, and nothing else."""
    sandbox.expire()
    done = adh("token", env=sandbox.environment(token_file), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    import requests

    answer: Any = requests.get(
        sandbox.url + "/api/auth/me",
        headers={"Authorization": f"Bearer {done.stdout.strip()}"},
        timeout=PATIENCE,
    )
    assert answer.status_code == 200


def test_every_link_within_leads_somewhere() -> None:
    """A link to a section finds its heading."""
    anchors = {
        re.sub(r"[^a-z0-9_ -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in README.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors


def test_the_faults_table_names_tests_that_exist() -> None:
    """Each row of "What can go wrong" names its test."""
    section = README[README.index("## What can go wrong") : README.index("## Security")]
    named = re.findall(r"`(test_\w+)\.(test_\w+)`", section)
    files = {path.stem: path for path in (ROOT / "tests").rglob("test_*.py")}
    missing = [
        f"{file}.{function}"
        for file, function in named
        if file not in files or f"def {function}(" not in files[file].read_text(encoding="utf-8")
    ]
    assert missing == []
    assert len(named) > 20


def test_the_reference_has_every_public_name() -> None:
    """With each method, argument and attribute that a user may touch."""
    reference = README[README.index("## Reference") : README.index("## Numbers")]
    arguments = README[README.index("## Arguments") : README.index("## The token file")]
    known = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", reference + arguments))))
    missing = set(_public_names()) - known - {"self"}
    assert not missing


def _public_names() -> Iterator[str]:
    yield from adh_auth.__all__
    for function in (AdhAuth, login, Tokens, Tokens.from_response, Sandbox, Sandbox.fail_next):
        yield from inspect.signature(function).parameters
    for kind in (AdhAuth, AdhHttpxAuth, Tokens, Sandbox, Hold, *_errors(AdhAuthError)):
        for base in kind.__mro__:
            if base.__module__.startswith("adh_auth"):
                yield from (
                    name
                    for name in [*vars(base), *base.__annotations__]
                    if not name.startswith("_") and name not in INTERNAL
                )
    yield from (*Counts.__dataclass_fields__, *Call.__dataclass_fields__)
    yield from ("load", "save", "delete", "path")


def _errors(kind: type[AdhAuthError]) -> Iterator[type[AdhAuthError]]:
    yield kind
    for kinder in kind.__subclasses__():
        if kinder.__module__ == kind.__module__:
            yield from _errors(kinder)
