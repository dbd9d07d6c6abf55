"""SIGTERM and SIGHUP to a command (rule 5): a supervisor stops it, ``timeout``, or its terminal is closed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adh_auth.testing import Sandbox

from ..support.cli import COMMAND, adh, environment, started
from ..support.faults import near_its_end
from ..support.processes import PATIENCE, assert_nothing_lost, reaped

if sys.platform == "win32":
    pytest.skip("needs signals that a program can handle", allow_module_level=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["refresh", "me", "token"])
def test_a_refresh_is_finished_first(
    command: str, number: signal.Signals, sandbox: Sandbox, token_file: Path
) -> None:
    """However often it comes: the pair is written, then the command ends with a shell's status."""
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("needs a signal that is not ignored from the start (nohup)")
    near_its_end(token_file, 1)
    sandbox.expire()
    with (
        sandbox.hold_next() as hold,
        started(command, env=sandbox.environment(token_file)) as process,
    ):
        hold.wait(PATIENCE)
        process.send_signal(number)
        assert process.stderr is not None
        assert "terminated; a refresh that is under way is finished first" in process.stderr.readline()
        for again in (signal.SIGTERM, signal.SIGHUP):
            process.send_signal(again)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)  # alive, for the reply has not come yet
        hold.release()
        said, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said, errors) == (128 + number, "", "")
    assert sandbox.counts.rotations == 1
    assert_nothing_lost(sandbox, token_file)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_only_waits_ends_at_once(number: signal.Signals, tmp_path: Path) -> None:
    """A sign-in that nobody completes has nothing to finish."""
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("needs a signal that is not ignored from the start (nohup)")
    app = {"ADH_CLIENT_ID": "adh_app", "ADH_CLIENT_SECRET": "adh_secret"}
    arguments = ("login", "--paste", "--no-browser", "--token-file", str(tmp_path / "tokens.json"))
    with started(*arguments, env=app, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        errors = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 128 + number
    assert "Traceback" not in errors


def test_what_is_ignored_stays_ignored(sandbox: Sandbox, token_file: Path) -> None:
    """Behind nohup, a refresh outlives its terminal."""
    command = ["nohup", *COMMAND, "refresh"]
    with (
        sandbox.hold_next() as hold,
        subprocess.Popen(
            command,
            env=environment(sandbox.environment(token_file)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
        reaped(process),
    ):
        hold.wait(PATIENCE)
        process.send_signal(signal.SIGHUP)
        hold.release()
        said, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")
    assert said.startswith("refreshed")
    assert adh("me", env=sandbox.environment(token_file)).returncode == 0
