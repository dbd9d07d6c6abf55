"""The command line in odd surroundings: missing or broken streams, warnings as errors, odd locales."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from adh_auth.testing import Sandbox

from ..support.cli import environment
from ..support.processes import PATIENCE

#: Runs commands one after the other, after the line of the surroundings, and writes down how each ended.
_MAIN = """
import json
from adh_auth.cli import main
codes = [main.main(arguments) for arguments in json.loads(sys.argv[1])]
with open(sys.argv[2], "w") as file: json.dump(codes, file)
"""
#: The interpreter's own last flush of stderr would change the exit code.
_NO_LAST_FLUSH = "\nimport atexit\natexit.register(setattr, sys, 'stderr', None)"
_BROKEN = """
class Broken:
    encoding = "utf-8"
    def write(self, text): raise OSError("broken")
    def flush(self): raise OSError("broken")
sys.stderr = Broken()
"""

#: What goes before the code, into the environment, and which descriptors are closed.
SURROUNDINGS: dict[str, tuple[list[str], str, dict[str, str], tuple[int, ...]]] = {
    "no console": ([], "sys.stdin = sys.stdout = sys.stderr = None", {}, ()),
    "no streams": ([], "", {}, (0, 1, 2)),
    "no stdin": ([], "", {}, (0,)),
    "no stdout": ([], "", {}, (1,)),
    "no stderr": ([], "", {}, (2,)),
    "a stderr that refuses": ([], _BROKEN + _NO_LAST_FLUSH, {}, ()),
    "a stderr that is closed": ([], "sys.stderr.close()" + _NO_LAST_FLUSH, {}, ()),
    "warnings are errors": (["-W", "error", "-X", "dev"], "", {}, ()),
    "the C locale": ([], "", {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, ()),
    "a code page": ([], "", {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}, ()),
}

if sys.implementation.name == "pypy":
    del SURROUNDINGS["a stderr that is closed"]  # PyPy itself ends with 1 then

#: What a user types, and how it ends.
COMMANDS = (
    ("", 2),
    ("--help", 0),
    ("--version", 0),
    ("nonsense", 2),
    ("login --help", 0),
    ("status", 0),
    ("status --json", 0),
    ("token", 0),
    ("me", 0),
    ("refresh", 0),
    ("refresh --client-id another", 1),
    ("save", 1),
    ("login --paste --no-browser", 1),
    ("revoke", 0),
    ("status", 1),
)

every_surrounding = pytest.mark.parametrize("name", SURROUNDINGS)


def _closing(descriptors: tuple[int, ...]) -> Callable[[], None] | None:
    def close() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    return close if descriptors else None


def _run(name: str, env: dict[str, str], *commands: str, stdin: bytes = b"") -> tuple[list[int], bytes]:
    """Return the exit code of each command, and stderr."""
    options, before, variables, closed = SURROUNDINGS[name]
    result = Path(env["ADH_TOKEN_FILE"]).with_name("codes.json")
    arguments = json.dumps([command.split() for command in commands])
    done = subprocess.run(
        [sys.executable, *options, "-c", "import sys\n" + before + _MAIN, arguments, str(result)],
        input=stdin,
        capture_output=True,
        timeout=2 * PATIENCE,
        env=environment({**env, **variables}),
        preexec_fn=_closing(closed),
        check=False,
    )
    assert done.returncode == 0, done
    return json.loads(result.read_bytes()), done.stderr


@pytest.fixture
def env(sandbox: Sandbox, tmp_path: Path) -> dict[str, str]:
    """A session in a folder whose name no code page has."""
    folder = tmp_path / "→ 日本"
    folder.mkdir()
    return sandbox.environment(sandbox.write_token_file(folder / "tokens.json"))


@every_surrounding
def test_every_command_ends_as_it_should(name: str, env: dict[str, str]) -> None:
    """Each command has its usual exit code and no traceback."""
    codes, errors = _run(name, env, *(command for command, _ in COMMANDS))
    assert dict(zip(COMMANDS, codes, strict=True)) == {(command, code): code for command, code in COMMANDS}
    assert b"Traceback" not in errors
    assert b"Exception" not in errors


@every_surrounding
def test_a_warning_costs_no_refresh(name: str, env: dict[str, str]) -> None:
    """Whether or not the warning can be printed, the new pair is on disk, valid and private."""
    file = Path(env["ADH_TOKEN_FILE"])
    file.chmod(0o644)  # which is worth a warning
    before = json.loads(file.read_bytes())
    assert _run(name, env, "refresh")[0] == [0]
    after = json.loads(file.read_bytes())
    assert (after["refresh_token"] != before["refresh_token"], file.stat().st_mode & 0o777) == (True, 0o600)


@pytest.mark.long
@pytest.mark.parametrize("name", ["no console", "no streams", "warnings are errors"])
def test_the_demo_works(name: str, env: dict[str, str]) -> None:
    """The demo starts and reaps its processes without any standard stream."""
    assert _run(name, env, "demo --seconds 1") == ([0], b"")


@pytest.mark.parametrize(
    "name", [name for name in SURROUNDINGS if name not in ("no console", "no streams", "no stdin")]
)
def test_a_reply_is_saved(name: str, sandbox: Sandbox, env: dict[str, str]) -> None:
    """`adh-auth save` takes bytes, whatever the locale."""
    reply = json.dumps({**sandbox.sign_in(), "name": "日本"}, ensure_ascii=False).encode()
    assert _run(name, env, "save", stdin=reply)[0] == [0]
    assert json.loads(Path(env["ADH_TOKEN_FILE"]).read_bytes())["name"] == "日本"


@pytest.mark.parametrize("name", ["the C locale", "a code page", "warnings are errors"])
def test_what_is_pasted_may_be_any_bytes(name: str, env: dict[str, str]) -> None:
    """A paste that the locale can't decode is no URL, and no traceback."""
    codes, errors = _run(name, env, "login --paste --no-browser", stdin=b"\x81\xff\n")
    assert codes == [1]
    assert b"that is not the URL that a sign-in ends on" in errors


def test_a_closed_stdout_takes_no_token_file(env: dict[str, str]) -> None:
    """What C code writes to descriptor 1 or 2 goes to the null device, not to the next file."""
    code = """
import os, sys
from adh_auth.common import console
with console.usable_standard_streams(): sys.exit(os.open(os.devnull, os.O_RDONLY))
"""
    said = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        preexec_fn=_closing((0, 1, 2)),
        timeout=PATIENCE,
        check=False,
    )
    assert said.returncode == 3
