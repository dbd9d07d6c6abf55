"""``adh-auth sandbox -- COMMAND``: a program with a sandbox that ends with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ..support.cli import COMMAND, adh, environment, one_line_of, started
from ..support.processes import PATIENCE, reaped

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs signals: run it on a POSIX system")

CALL = """
import os, requests
from adh_auth import AdhAuth
answer = requests.get(os.environ["ADH_BASE_URL"] + "/api/auth/me", auth=AdhAuth(), timeout=30)
print(answer.json()["name"], [past.status_code for past in answer.history])
print(os.environ["ADH_TOKEN_FILE"])
"""
#: Says that it is ready, and names each signal that arrives, until stdin ends or has a q.
COUNT = """
import os, signal
def say(text): os.write(1, f"{text}\\n".encode())
names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCONT", "SIGWINCH", "SIGRTMIN")
for name in names:
    if hasattr(signal, name):
        signal.signal(getattr(signal, name), lambda number, _: say(int(number)))
say("ready")
while os.read(0, 1) not in (b"", b"q"):
    pass
"""


def run(code: str, *options: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a Python program with a sandbox."""
    return adh("sandbox", *options, "--", sys.executable, "-c", code, env=env)


def test_the_program_is_signed_in_and_nothing_is_left(tmp_path: Path) -> None:
    """It calls the API as it stands; stdout is its own; the temporary folder ends with it."""
    said = run(CALL, env={"TMPDIR": str(tmp_path), "HTTP_PROXY": "http://127.0.0.1:1"})
    assert (said.returncode, said.stderr) == (0, "")
    name, file = said.stdout.splitlines()
    assert name == "Sandbox User []"
    assert file.startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_environment_names_this_session_only(tmp_path: Path) -> None:
    """All four variables are the sandbox's; those of a store are gone; exceptions of a proxy are kept."""
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    users = {"ADH_BASE_URL": "https://api.example", "ADH_STORE": "redis://x", "ADH_SESSION": "y"}
    proxies = {"http_proxy": "http://127.0.0.1:1", "NO_PROXY": "intranet"}
    file = tmp_path / "mine.json"
    seen = json.loads(run(code, "--token-file", str(file), env={**users, **proxies}).stdout)
    assert seen["ADH_BASE_URL"].startswith("http://127.0.0.1:")
    assert (seen["ADH_CLIENT_ID"], seen["ADH_CLIENT_SECRET"]) == ("sandbox-client", "sandbox-secret")
    assert seen["ADH_TOKEN_FILE"] == str(file)
    assert not {"ADH_STORE", "ADH_SESSION"} & set(seen)
    assert seen["NO_PROXY"] == seen["no_proxy"] == "intranet,127.0.0.1"
    assert file.exists(), "one that was named stays"
    assert "no_proxy" not in json.loads(run(code).stdout)


def test_options_before_the_dashes_are_ours_and_those_after_are_the_programs() -> None:
    """`--token-life` is the sandbox's, `--json` behind the dashes the program's, a second `--` as well."""
    code = "import sys; print(sys.argv[1:])"
    said = adh("sandbox", "--token-life", "5", "--", sys.executable, "-c", code, "--json", "--", "-x")
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout == "['--json', '--', '-x']\n"


def test_an_expiry_is_met_and_counted(tmp_path: Path) -> None:
    """Access tokens live as long as asked; with --json the counts are a line of stderr."""
    code = "import time; time.sleep(0.6)" + CALL
    said = run(code, "--token-life", "0.5", "--json")
    assert said.returncode == 0
    assert said.stdout.splitlines()[0] == "Sandbox User [401]"
    counts = json.loads(said.stderr)
    assert (counts["requests"], counts["rotations"], counts["reused"]) == (2, 1, 0)


def test_dashes_without_a_program() -> None:
    """An empty variable in a script: no sandbox that waits for ever."""
    said = adh("sandbox", "--")
    assert (said.returncode, said.stdout) == (2, "")
    assert "name the COMMAND" in said.stderr


@pytest.mark.parametrize("status", [0, 1, 3, 255])
def test_the_exit_status_is_passed_on(status: int) -> None:
    """A script sees the program's status, not ours."""
    assert run(f"raise SystemExit({status})").returncode == status


@POSIX
def test_the_end_by_a_signal_is_a_shells() -> None:
    """128 and the number, as a shell has it."""
    assert run("import os; os.kill(os.getpid(), 9)").returncode == 128 + 9


def test_a_program_that_can_not_be_started(tmp_path: Path) -> None:
    """As in a shell: 127 where there is none, 126 for one that is no program; one line, and no folder."""
    text = tmp_path / "text"
    text.write_text("")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, status in ((str(tmp_path / "missing"), 127), (str(text), 126)):
        said = adh("sandbox", "--", name, env={"TMPDIR": str(folder)})
        assert (said.returncode, said.stdout) == (status, "")
        assert name in one_line_of(said)
    assert list(folder.iterdir()) == []


@POSIX
@pytest.mark.parametrize(
    "name",
    ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCONT", "SIGWINCH", "SIGRTMIN"],
)
def test_a_signal_is_passed_on_once(name: str, tmp_path: Path) -> None:
    """A supervisor signals the process that it knows; the program ends as it likes, and then the sandbox."""
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip(f"needs a system that has {name}")
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("needs a signal that is not ignored from the start (nohup)")
    arguments = ("sandbox", "--", sys.executable, "-c", COUNT)
    with started(
        *arguments, env={"TMPDIR": str(tmp_path)}, stdin=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for sent in (number, signal.SIGTERM):  # the second one would come behind a second first
            process.send_signal(sent)
            assert process.stdout.readline() == f"{int(sent)}\n"
        said, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said, errors) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@POSIX
def test_ctrl_c_on_a_terminal_is_the_programs(tmp_path: Path) -> None:
    """The key ends neither the sandbox nor the command; the program ends as it likes."""
    with on_a_terminal_of_its_own(COUNT, tmp_path) as (process, keyboard):
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        keyboard.write(b"\x03")
        assert process.stdout.readline() == "2\n"
        keyboard.write(b"q\n")
        assert process.wait(PATIENCE) == 0
    assert list(tmp_path.iterdir()) == []


#: Signals the command that runs it, and says what comes back, up to the SIGTERM.
SIGNAL_BACK = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
os.kill(os.getppid(), signal.SIGINT)
os.kill(os.getppid(), signal.SIGTERM)
got = []
while signal.SIGTERM not in got:
    got.append(signal.sigwait({signal.SIGINT, signal.SIGTERM}))
print(*map(int, got), flush=True)
"""
INTERRUPT_BACK = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
os.kill(os.getppid(), signal.SIGINT)
print(int(signal.sigwait({signal.SIGINT})), flush=True)
"""


@POSIX
def test_what_a_terminal_has_sent_is_not_passed_on(tmp_path: Path) -> None:
    """It has sent a Ctrl-C to the program, too: a second one would cut its clean-up short."""
    with on_a_terminal_of_its_own(SIGNAL_BACK, tmp_path) as (process, _):
        assert process.stdout is not None
        assert process.stdout.readline() == "15\n"
        assert process.wait(PATIENCE) == 0
    command = [*COMMAND, "sandbox", "--", sys.executable, "-c", INTERRUPT_BACK]
    said = subprocess.run(
        command,
        env=environment(),
        start_new_session=True,  # no terminal: nobody else has sent it
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert said.stdout == "2\n"


@contextmanager
def on_a_terminal_of_its_own(code: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """``adh-auth sandbox -- PROGRAM`` in the foreground of a new terminal, and that one's keyboard."""
    import pty

    terminal, end = pty.openpty()
    command = [*COMMAND, "sandbox", "--", sys.executable, "-c", code]
    with (
        subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, *command],
            stdin=end,
            stdout=subprocess.PIPE,
            text=True,
            env=environment({"TMPDIR": str(folder)}),
            start_new_session=True,
        ) as process,
        reaped(process),
        os.fdopen(terminal, "wb", buffering=0) as keyboard,  # the program ends with it
    ):
        os.close(end)
        yield process, keyboard


#: Makes the terminal on stdin the controlling one of this new session, and becomes the command.
_TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@POSIX
def test_what_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """Behind nohup, the program does not get a SIGHUP either."""
    code = "import signal; print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)"
    said = subprocess.run(
        ["nohup", *COMMAND, "sandbox", "--", sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=PATIENCE,
        check=True,
    )
    assert said.stdout == "True\n"


#: ``adh-auth`` that gets a SIGTERM in the moment before it starts the program.
TERMINATED_EARLY = """
import os, signal, subprocess, sys
start = subprocess.Popen
def started_late(*arguments, **options):
    os.kill(os.getpid(), signal.SIGTERM)
    return start(*arguments, **options)
subprocess.Popen = started_late
from adh_auth.cli.main import main
sys.exit(main())
"""


@POSIX
def test_a_signal_before_the_start_is_passed_on_too(tmp_path: Path) -> None:
    """A supervisor that changes its mind at once leaves neither a program nor a folder behind."""
    command = [sys.executable, "-c", TERMINATED_EARLY, "sandbox", "--", sys.executable, "-c", COUNT]
    with (
        subprocess.Popen(
            command,
            env=environment({"TMPDIR": str(tmp_path)}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
        reaped(process),
    ):
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
