"""What type checkers see of the package: every type is known, and a misspelt name is an error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..support.clients import needs
from ..support.processes import PATIENCE, ROOT

#: What a user writes, and the errors that belong there.
MISSPELT = """
import adh_auth
from adh_auth import AdhAuht, RefreshFialed

adh_auth.logn()
"""
RIGHT = """
import adh_auth
from adh_auth import AdhAuth, AdhHttpx2Auth, AdhHttpxAuth, Event, RefreshFailed, TokenFile, Tokens, login

def alert(event: Event) -> None:
    print(event.kind, event.error)

async def token(auth: AdhHttpxAuth) -> str:
    return await auth.aget_token(min_life=60)

try:
    found: str = AdhAuth("tokens.json", on_event=alert).get_token()
except RefreshFailed as error:
    print(error.request, error.response, error.status)
"""
#: A type checker starts node, and reads the stubs of the whole standard library.
SECONDS = 4 * PATIENCE
WRONG_NAMES = ("AdhAuht", "RefreshFialed", "logn")


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    # pyright looks for the packages of the `python` on the path.
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    options: Any = {"cwd": folder, "env": environment, "timeout": SECONDS}
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False, **options
    )


def checked(command: list[str], code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Return what a type checker says of a file."""
    file = folder / "users.py"
    file.write_text(code, encoding="utf-8")
    return run([*command, str(file)], folder)


def mypy(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    needs("mypy", "lint")
    return checked(["mypy", "--strict", "--cache-dir", str(folder / "cache")], code, folder)


def pyright(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    needs("pyright", "lint")
    return checked(["pyright"], code, folder)


CHECKERS = pytest.mark.parametrize("checker", [mypy, pyright])


@CHECKERS
@pytest.mark.lint
def test_a_misspelt_name_is_an_error(checker: Any, tmp_path: Path) -> None:
    """The names are loaded late, by a `__getattr__` that type checkers must not see."""
    done = checker(MISSPELT, tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert all(name in done.stdout for name in WRONG_NAMES), done.stdout
    assert done.stdout.count("error:") == len(WRONG_NAMES)


@CHECKERS
@pytest.mark.lint
def test_what_the_readme_has_is_no_error(checker: Any, tmp_path: Path) -> None:
    """The public names, and the client's `request` and `response` on an error."""
    done = checker(RIGHT, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.lint
def test_every_type_is_known(tmp_path: Path) -> None:
    """Of all that can be imported, as pyright counts it."""
    needs("pyright", "lint")
    done = run(["pyright", "--verifytypes", "adh_auth", "--ignoreexternal", "--outputjson"], tmp_path)
    found = json.loads(done.stdout)["typeCompleteness"]
    unknown = [
        (symbol["name"], [each["message"] for each in symbol["diagnostics"]])
        for symbol in found["symbols"]
        if symbol["isExported"] and (symbol["isTypeAmbiguous"] or not symbol["isTypeKnown"])
    ]
    assert unknown == []
    assert found["completenessScore"] == 1
