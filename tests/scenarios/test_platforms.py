"""What Windows and macOS do differently: their name and their errors are simulated, the rest is real."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adh_auth import TokenFile
from adh_auth.cli import main
from adh_auth.clients.httpx_compat import PARTS
from adh_auth.store import disk, remedies
from adh_auth.testing import Sandbox

from ..support.processes import PATIENCE, ROOT


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system calls itself Windows."""
    monkeypatch.setattr(sys, "platform", "win32")


# Commands that are printed.


@pytest.mark.parametrize("path", [r"C:\Users\Ann Ex\adh\tokens.json", r"C:\adh\tokens.json"])
def test_a_printed_command_can_be_pasted_into_cmd(path: str, windows: None) -> None:
    """The path is quoted as Windows quotes it: cmd.exe takes a single quote for a letter."""
    assert (
        remedies.login_command_line(path)
        == f"sign in with: adh-auth login --token-file {subprocess.list2cmdline([path])}"
    )


@pytest.mark.parametrize("mark", "&|<>^()@!;,=`'%")
def test_no_mark_of_cmd_cuts_the_path_short(mark: str, windows: None) -> None:
    """cmd.exe ends a command at `&`, which a folder's name may hold: inside double quotes it is a letter."""
    path = rf"C:\a{mark}b\tokens.json"
    assert remedies.login_command_line(path).endswith(f' --token-file "{path}"')


def test_a_printed_command_can_be_pasted_into_a_posix_shell() -> None:
    """The shell passes the path to the command unchanged."""
    path = "/home/it's $HOME & more/tokens.json"
    assert shlex.split(remedies.login_command_line(path).partition("adh-auth ")[2])[-1] == path


@pytest.mark.parametrize("name", ["tokens.json", "a & b.json"])
def test_the_sandbox_points_cmd_at_itself(
    name: str,
    tmp_path: Path,
    windows: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All its lines can be pasted: `set "NAME=value"` takes `&` and a blank for part of the value, and `rem`
    is a comment.
    """
    from adh_auth.cli import sandbox_command

    monkeypatch.setattr(sandbox_command, "_wait", lambda: None)
    assert main.main(["sandbox", "--token-file", str(tmp_path / name)]) == 0
    lines = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    assert f'set "ADH_TOKEN_FILE={tmp_path / name}"' in lines
    assert all(line.startswith(("rem ", 'set "ADH_')) for line in lines)


# Errors that pass in a moment.


def _refusal(winerror: int) -> PermissionError:
    refusal = PermissionError(errno.EACCES, "refused for the moment")
    refusal.winerror = winerror  # type: ignore[attr-defined, unused-ignore]
    return refusal


@pytest.mark.parametrize("winerror", disk.WINDOWS_BUSY_ERRORS)
def test_the_sandbox_is_as_patient_as_the_library(
    winerror: int, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that Windows refuses while another process reads the file is tried again."""
    path = sandbox.write_token_file(tmp_path / "tokens.json")
    before, refusals, replace = path.read_bytes(), [_refusal(winerror) for _ in range(4)], os.replace

    def sometimes(*arguments: Any) -> None:
        if refusals:
            raise refusals.pop()
        replace(*arguments)

    monkeypatch.setattr(os, "replace", sometimes)
    sandbox.write_token_file(path)
    assert (path.read_bytes() != before, refusals) == (True, [])


def test_the_sandbox_leaves_nothing_beside_a_file_that_stays_refused(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A temporary file that cannot be installed is removed: it holds a session."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "refused for good")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        sandbox.write_token_file(tmp_path / "tokens.json")
    assert list(tmp_path.iterdir()) == []


# status.


def test_status_shows_no_mode_that_means_nothing(
    token_file: Path, windows: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Windows invents a mode, 0666 for every writable file, and names no owner."""
    assert main.main(["status", "--token-file", str(token_file)]) == 0
    said = capsys.readouterr().out
    assert "signed in" in said
    assert not {"mode", "owner"} & set(said.split())
    facts = TokenFile(token_file).facts()
    assert (facts.mode, facts.owner) == (None, None)


def test_status_still_tells_what_stops_the_next_rotation(
    token_file: Path, windows: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file with Windows' read-only attribute can't be replaced."""
    token_file.chmod(0o400)
    assert main.main(["status", "--token-file", str(token_file)]) == 0
    said = capsys.readouterr().out
    assert "it can't be rewritten at the next rotation: it is read-only" in said
    assert not {"mode", "owner"} & set(said.split())


# A closed pipe.

#: The command line with a stdout that refuses what is written as Windows does where the other end of the pipe
#: is closed.
_GONE = """
import contextlib, errno, io, os, sys
from adh_auth.cli import main
with contextlib.redirect_stdout(io.StringIO()):
    main.main(["--help"]), main.main(["status"])  # what is imported late is this system's
sys.platform = {platform!r}
class Gone:
    def __getattr__(self, name): return getattr(sys.__stdout__, name)
    def write(self, text): {write}
    def flush(self): {flush}
sys.stdout = Gone()
code = main.main(sys.argv[1:])
sys.stdout = sys.__stdout__
sys.exit(code)
"""
_REFUSE = "raise OSError(errno.EINVAL, 'Invalid argument')"


@pytest.mark.parametrize(("write", "flush"), [(_REFUSE, "pass"), ("pass", _REFUSE)], ids=["write", "flush"])
@pytest.mark.parametrize("arguments", [("--help",), ("status",), ("status", "--json")], ids=" ".join)
def test_a_reader_that_has_gone_is_no_error_on_windows(
    arguments: tuple[str, ...], write: str, flush: str, token_file: Path
) -> None:
    """Windows says EINVAL where other systems say EPIPE: `adh-auth … | more`, ended early, ends without a
    word.
    """
    said = _ran(_GONE.format(platform="win32", write=write, flush=flush), *arguments, token_file=token_file)
    # argparse swallows what its printing of the help meets, from 3.12 on
    assert said.returncode in ((0, 141) if arguments == ("--help",) else (141,))
    assert said.stderr == ""


def test_elsewhere_that_refusal_is_an_error(token_file: Path) -> None:
    """EINVAL means something else on other systems, and a script must not go on with half an output."""
    said = _ran(_GONE.format(platform="linux", write=_REFUSE, flush="pass"), "status", token_file=token_file)
    assert (said.returncode, said.stderr) == (1, "adh-auth: stopped: [Errno 22] Invalid argument\n")


def _ran(code: str, *arguments: str, token_file: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ADH_TOKEN_FILE": str(token_file)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)


# The proxies of macOS' settings.

#: A fork whose child calls the API with a client that asks for no proxies. macOS' own answer would end the
#: process, as it does there.
_FORKED = """
import os, sys, urllib.request
import requests, requests.utils, httpx, httpx2
from adh_auth import AdhAuth, AdhHttpxAuth, AdhHttpx2Auth

def ends_the_process(*_):
    os.abort()

urllib.request.getproxies_macosx_sysconf = urllib.request.proxy_bypass_macosx_sysconf = ends_the_process

def getproxies():
    return urllib.request.getproxies_environment() or ends_the_process()

def proxy_bypass(host):
    proxies = urllib.request.getproxies_environment()
    return urllib.request.proxy_bypass_environment(host, proxies) if proxies else ends_the_process()

for module in (urllib.request, requests.utils, requests.compat, httpx._utils, httpx2._utils):
    vars(module).update(getproxies=getproxies, proxy_bypass=proxy_bypass)

url = os.environ["ADH_BASE_URL"] + "/api/auth/me"
session = requests.Session()
session.trust_env = False
client = httpx.Client(trust_env=False)
client2 = httpx2.Client(trust_env=False)
CALLS = {
    "requests": lambda: session.get(url, auth=AdhAuth()).status_code,
    "httpx": lambda: client.get(url, auth=AdhHttpxAuth()).status_code,
    "httpx2": lambda: client2.get(url, auth=AdhHttpx2Auth()).status_code,
    "requests, refresh": lambda: AdhAuth().refresh() and 200,
    "httpx, refresh": lambda: AdhHttpxAuth().refresh() and 200,
}
call = CALLS[sys.argv[1]]
sys.platform = "darwin"
child = os.fork()
if not child:
    print(call(), flush=True)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
_EVERY_CALL = pytest.mark.parametrize(
    "how", ["requests", "httpx", "httpx2", "requests, refresh", "httpx, refresh"]
)


@_EVERY_CALL
def test_a_forked_child_does_not_ask_macos_for_proxies(how: str, sandbox: Sandbox, token_file: Path) -> None:
    """Such a question ends a forked child there (python/cpython#105912): a client that needs no proxy is
    refreshed without it.
    """
    sandbox.expire()
    said = _forked(how, sandbox, token_file)
    assert (said.returncode, said.stdout) == (0, "200\n"), said.stderr
    assert sandbox.counts.rotations == 1


@_EVERY_CALL
def test_a_forked_child_takes_the_variables_word(how: str, sandbox: Sandbox, token_file: Path) -> None:
    """A proxy that a variable names carries the refresh there, too: this one refuses everything."""
    sandbox.expire()
    said = _forked(how, sandbox, token_file, HTTP_PROXY="http://127.0.0.1:9", NO_PROXY="")
    if how == "requests":  # as the caller's own Session, which wants no variables
        assert (said.returncode, said.stdout) == (0, "200\n"), said.stderr
    else:
        assert "RefreshFailed" in said.stderr
        assert sandbox.counts.rotations == 0


def _forked(how: str, sandbox: Sandbox, token_file: Path, **more: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **sandbox.environment(token_file), **more}
    command = [sys.executable, "-c", _FORKED, how]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=2 * PATIENCE, check=False)


# A client of another major version.


@pytest.mark.parametrize(
    ("name", "client", "versions"),
    [("AdhHttpxAuth", "httpx", ">=0.27,<1"), ("AdhHttpx2Auth", "httpx2", ">=2")],
    ids=["httpx", "httpx2"],
)
@pytest.mark.parametrize("part", ["Auth", PARTS[0], PARTS[-1]])
def test_a_client_without_our_parts_is_named_with_its_version(
    name: str, client: str, versions: str, part: str
) -> None:
    """httpx 1.0 is another library, without `Auth`: the error names its version and those that do."""
    code = (
        f"import {client}\ndel {client}.{part}\n{client}.__version__ = '1.0.dev6'\n"
        f"from adh_auth import {name}"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.stderr.splitlines()[-1] == (
        f"ImportError: {name} needs {client}{versions}, and {client} 1.0.dev6 has no {part}: "
        f'pip install "{client}{versions}"'
    )


def test_the_versions_of_the_error_are_those_of_the_package() -> None:
    """The versions that the error names are those that the package requires."""
    wanted = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"httpx>=0.27,<1"' in wanted
    assert '"httpx2>=2"' in wanted
