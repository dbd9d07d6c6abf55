"""``adh-auth logout``: signed out here only. The server is not told, and need not be there."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from adh_auth import TokenFile
from adh_auth.store.reservation import reserved_path
from adh_auth.testing import Sandbox

from ..support.cli import adh, one_line_of, started, tokens_in
from ..support.processes import PATIENCE


@pytest.fixture
def env(token_file: Path) -> dict[str, str]:
    """A file and nothing else: no id, no secret, no server."""
    return {"ADH_TOKEN_FILE": str(token_file)}


def test_logout_removes_the_file_and_tells_no_server(
    env: dict[str, str], sandbox: Sandbox, token_file: Path
) -> None:
    """The file goes with what stands beside it; the session itself lives on; no token is printed."""
    secrets = tokens_in(token_file)
    copy = TokenFile(token_file).load()
    Path(str(token_file) + ".record").write_text("{}")
    Path(reserved_path(str(token_file))).write_text("{}")
    said = adh("logout", env=env)
    assert (said.returncode, said.stderr) == (0, "")
    assert str(token_file) in said.stdout
    assert "signed out here" in said.stdout
    assert "not ended" in said.stdout
    assert "adh-auth revoke" in said.stdout
    assert not any(secret in said.stdout for secret in secrets)
    # The lock file stays: processes that wait for one that was unlinked hold another lock.
    assert {path.name for path in token_file.parent.iterdir()} <= {"tokens.json.lock"}
    assert (sandbox.log, sandbox.counts.revocations) == ([], 0)
    TokenFile(token_file).save(copy)
    assert adh("me", env=sandbox.environment(token_file)).returncode == 0


def test_logout_without_a_session_is_no_error(env: dict[str, str], token_file: Path, tmp_path: Path) -> None:
    """Nothing to do is said, and is a success: of a file that is missing, and of a folder."""
    token_file.unlink()
    for arguments in ((), ("--token-file", str(tmp_path / "nowhere" / "tokens.json"))):
        said = adh("logout", *arguments, env=env)
        assert (said.returncode, said.stderr) == (0, "")
        assert "nothing to do" in said.stdout
    assert not (tmp_path / "nowhere").exists()


def test_logout_as_json(env: dict[str, str], token_file: Path) -> None:
    """A program learns which file it was, and whether there was one."""
    for removed in (True, False):
        said = adh("logout", "--json", env=env)
        assert said.returncode == 0
        assert json.loads(said.stdout) == {"token_file": str(token_file), "removed": removed}


def test_logout_removes_a_file_that_can_not_be_read_as_a_session(
    env: dict[str, str], token_file: Path
) -> None:
    """A corrupt file is no reason to keep it."""
    token_file.write_bytes(b"{")
    assert adh("logout", env=env).returncode == 0
    assert not token_file.exists()


def test_logout_comes_after_a_refresh_in_flight(sandbox: Sandbox, token_file: Path) -> None:
    """It waits for the lock, and what the refresh wrote is gone as well."""
    env = sandbox.environment(token_file)
    with sandbox.hold_next() as hold, started("refresh", env=env) as refreshing:
        hold.wait()
        with started("logout", env=env) as leaving:
            with pytest.raises(subprocess.TimeoutExpired):
                leaving.wait(1.0)
            hold.release()
            assert refreshing.wait(PATIENCE) == leaving.wait(PATIENCE) == 0
    assert not token_file.exists()


def test_logout_says_why_it_can_not(env: dict[str, str], token_file: Path) -> None:
    """What is no file is not removed, and not called signed out."""
    token_file.unlink()
    os.mkdir(token_file)
    said = adh("logout", env=env)
    assert (said.returncode, said.stdout) == (1, "")
    assert str(token_file) in one_line_of(said)


def test_logout_and_revoke_say_which_is_which() -> None:
    """One word for each, in the list of commands and in their own help."""
    summaries = {line.split()[0]: line for line in adh("--help").stdout.splitlines() if line.strip()}
    assert "sign out here" in summaries["logout"]
    assert "sign out everywhere" in summaries["revoke"]
    assert "revoke" in adh("logout", "--help").stdout
    assert "logout" in adh("revoke", "--help").stdout
