"""A frozen program (PyInstaller, cx_Freeze, Nuitka) has what it sees imported, and runs every command."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from modulefinder import ModuleFinder
from pathlib import Path

import pytest

from adh_auth.testing import Sandbox

from ..support.cli import environment
from ..support.clients import needs
from ..support.processes import PATIENCE, ROOT

#: Modules that no command needs: other entry points. A frozen program starts no helper.
OTHER_ENTRY_POINTS = {
    "adh_auth.__main__",
    "adh_auth.helper",
    "adh_auth.helper.__main__",
    "adh_auth.helper.plain_post",
    "adh_auth.pytest_plugin",
    "adh_auth.store.inherited_lock",
}


def test_every_module_is_imported_by_name(tmp_path: Path) -> None:
    """The imports from the entry point lead to every module: none is named by a string only."""
    script = tmp_path / "adh-auth.py"
    script.write_text("from adh_auth.cli.main import main\nmain()\n")
    finder = ModuleFinder(path=[str(ROOT)])  # nothing but this package: the rest is what freezers know well
    finder.run_script(str(script))
    found = {name for name in finder.modules if name.partition(".")[0] == "adh_auth"}
    assert found == _modules() - OTHER_ENTRY_POINTS


def _modules() -> set[str]:
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "adh_auth").rglob("*.py")
    }
    return {name.removesuffix(".__init__") for name in names}


def test_no_module_is_imported_only_for_type_checkers(tmp_path: Path) -> None:
    """The names of the package are found by what takes `TYPE_CHECKING` for false, too, as Nuitka does."""
    package = (ROOT / "adh_auth" / "__init__.py").read_text(encoding="utf-8")
    script = tmp_path / "names.py"
    script.write_text(
        package.replace("if TYPE_CHECKING:", "if 0:")
        .replace("from .", "from adh_auth.")
        .replace("from adh_auth. ", "from adh_auth ")
    )
    finder = ModuleFinder(path=[str(ROOT)])
    finder.run_script(str(script))
    assert {
        f"adh_auth.{name}"
        for name in (
            "for_requests",
            "for_httpx",
            "for_httpx2",
            "store.token_file",
            "tokens",
            "errors",
            "sign_in.flow",
        )
    } <= {*finder.modules}


@pytest.mark.long
def test_the_demo_of_a_frozen_program_starts_itself(tmp_path: Path) -> None:
    """Its executable takes no `-c`: the processes of the demo are the same program with `--worker`."""
    code = "import sys; sys.frozen, sys.executable = True, sys.argv.pop(1); "
    code += "from adh_auth.cli.main import main; sys.exit(main())"
    program = tmp_path / "adh-auth"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$0" "$@"\n')
    program.chmod(0o700)
    command = [str(program), "demo", "--seconds", "3", "--json"]
    said = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=2 * PATIENCE, check=False
    )
    assert (said.returncode, said.stderr) == (0, "")
    sums = json.loads(said.stdout)
    assert (sums["good"], len(sums["processes"]), sums["rotations"] > 0) == (True, 5, True)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`adh-auth`, frozen by PyInstaller into one file."""
    needs("PyInstaller", "freeze")
    folder = tmp_path_factory.mktemp("frozen")
    script = folder / "entry.py"
    script.write_text("import sys\nfrom adh_auth.cli.main import main\nsys.exit(main())\n")
    options = [
        "--onefile",
        "--name",
        "adh-auth",
        "--paths",
        str(ROOT),
        "--log-level",
        "ERROR",
        "--workpath",
        "work",
        "--distpath",
        "dist",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "PyInstaller", *options, str(script)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if "Python library not found" in done.stderr or "shared library" in done.stderr:
        pytest.skip("needs a Python with a shared library: the system's, or one built with --enable-shared")
    assert done.returncode == 0, done.stderr
    return folder / "dist" / "adh-auth"


@pytest.mark.freeze
@pytest.mark.timeout(600)
def test_a_frozen_command_line_runs_every_command(
    frozen: Path, sandbox: Sandbox, token_file: Path, tmp_path: Path
) -> None:
    """From a folder of its own, without this checkout and without a Python."""
    env = {**os.environ, **sandbox.environment(token_file)}

    def run(*arguments: str, code: int = 0, given: str = "") -> str:
        said = subprocess.run(
            [str(frozen), *arguments],
            cwd=tmp_path,
            env=env,
            input=given,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert said.returncode == code, said.stderr
        assert "Traceback" not in said.stderr
        return said.stdout + said.stderr

    assert "usage: adh-auth" in run("--help")
    run("save", given=json.dumps(sandbox.sign_in()))
    for command in ("status", "token", "me", "refresh", "revoke", "logout"):
        run(command)
    assert "--overwrite" in run("sandbox", "--token-file", str(tmp_path), code=1)
    assert "not the URL that a sign-in ends on" in run("login", "--no-browser", "--paste", code=1)
    assert json.loads(run("demo", "--seconds", "3", "--json"))["good"]
