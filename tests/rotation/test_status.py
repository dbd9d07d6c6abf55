"""What `status` shows at three in the morning, and that it changes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adh_auth import TokenFile
from adh_auth.common.text import format_clock
from adh_auth.rotation.decision import MAX_RETRY_AFTER
from adh_auth.store.record import DONE, FAILED, REFUSED, SENDING, UNSAVED, Record
from adh_auth.store.remedies import login_command_line
from adh_auth.testing import Sandbox
from adh_auth.tokens import Stored, fingerprint

from ..support.cli import adh, environment, on_a_terminal, one_line_of, started
from ..support.privileges import CAN_GIVE_AWAY, DROP, STRANGER, gives_away, need_ordinary_rights
from ..support.processes import PATIENCE


@pytest.fixture
def env(sandbox: Sandbox, token_file: Path) -> dict[str, str]:
    """The environment of a user who is signed in to the sandbox."""
    return sandbox.environment(token_file)


def facts(token_file: Path, code: int = 0) -> dict[str, Any]:
    """Return what ``status --json`` prints, without a client id or secret."""
    said = adh("status", "--json", "--token-file", str(token_file))
    assert (said.returncode, said.stderr) == (code, "")
    shown: dict[str, Any] = json.loads(said.stdout)
    return shown


def rows(token_file: Path) -> dict[str, str]:
    """Return what ``status`` shows a person, by its labels."""
    said = adh("status", "--token-file", str(token_file)).stdout
    return {
        label.strip(): text.strip() for label, text in (line.split("  ", 1) for line in said.splitlines())
    }


def noted(token_file: Path, state: str, **more: Any) -> TokenFile:
    """The token file, with an attempt on its refresh token on record."""
    file = TokenFile(token_file)
    about = fingerprint(file.load().refresh_token)
    file.note(
        replace(
            Record(number=7, about=about, state=state, at=time.time() - 90, pid=4242, host="elsewhere"),
            **more,
        )
    )
    return file


def test_a_good_session_is_shown_in_a_few_lines(token_file: Path) -> None:
    """Without an attempt on record: signed in, the file, its mode, owner and fingerprints, and no failure."""
    tokens = TokenFile(token_file).load()
    said = adh("status", "--token-file", str(token_file))
    assert (said.returncode, said.stderr) == (0, "")
    shown = rows(token_file)
    assert shown["signed in"] == "yes"
    assert shown["token file"] == str(token_file)
    assert shown["mode"].startswith("0600, owner ")
    assert shown["access token"] == fingerprint(tokens.access_token)
    assert shown["refresh token"] == fingerprint(tokens.refresh_token)
    assert shown["scope"] == "profile:read discussions:read"
    assert shown["last failure"] == "none"


def test_it_says_who_where_and_with_which_client(token_file: Path) -> None:
    """As the file has them; a file of a time before says what will write them."""
    shown = rows(token_file)
    assert shown["server"] == shown["client"] == "not stored; the next refresh writes it"
    assert "user" not in shown
    owner = {"base_url": "https://api.example", "client_id": "reports", "signed_in_as": "Ada Lovelace"}
    token_file.write_text(json.dumps({**json.loads(token_file.read_bytes()), **owner}))
    shown = rows(token_file)
    assert (shown["user"], shown["server"], shown["client"]) == (
        "Ada Lovelace",
        "https://api.example",
        "reports",
    )
    assert {name: facts(token_file)[name] for name in owner} == owner
    labels = list(shown)
    assert labels.index("user") < labels.index("server") < labels.index("client") < labels.index("expiry")


def test_times_are_local_and_name_their_zone(token_file: Path) -> None:
    """A person need not reckon; JSON has epoch seconds."""
    token_file.write_text(json.dumps({**json.loads(token_file.read_bytes()), "expires_at": 4102444800}))
    said = adh("status", "--token-file", str(token_file), env={"TZ": "IST-5:30"}).stdout
    assert "2100-01-01 05:30:00+05:30 (in " in said


@pytest.mark.parametrize(
    ("left", "text"),
    [(7300, "in 2 h 1 min"), (-130, "2 min ago"), (-200_000, "2 d 7 h ago"), (None, "not stored")],
)
def test_the_expiry_is_shown_both_ways(left: float | None, text: str, token_file: Path) -> None:
    """The expiry is shown as a time and as a distance from now."""
    reply = json.loads(token_file.read_bytes())
    token_file.write_text(json.dumps(reply if left is None else {**reply, "expires_at": time.time() + left}))
    assert text in adh("status", "--token-file", str(token_file)).stdout
    seconds = facts(token_file)["seconds_left"]
    assert seconds == (None if left is None else pytest.approx(left, abs=PATIENCE))


@pytest.mark.parametrize(
    ("state", "promise"),
    [
        ("", "the next request refreshes it"),
        (REFUSED, "it can't be refreshed any more"),
        (FAILED, "the next request tries to refresh it"),
    ],
)
def test_an_expiry_that_is_over_promises_no_more_than_is_true(
    state: str, promise: str, token_file: Path
) -> None:
    """A refused refresh token brings no new pair, and one that failed may fail again."""
    token_file.write_text(json.dumps({**json.loads(token_file.read_bytes()), "expires_at": time.time() - 90}))
    if state:
        noted(token_file, state)
    assert rows(token_file)["expiry"].endswith(f" ago); {promise}")


def test_it_names_who_rotated_last(env: dict[str, str], token_file: Path) -> None:
    """The process that got the present pair is named, with the time."""
    with started("refresh", env=env) as process:
        process.wait(PATIENCE)
    shown = facts(token_file)["last_rotation"]
    assert shown["pid"] == process.pid
    assert shown["at"] == pytest.approx(time.time(), abs=PATIENCE)


def test_a_refresh_in_flight_is_seen_while_it_lasts(
    env: dict[str, str], sandbox: Sandbox, token_file: Path
) -> None:
    """A refresh on its way is shown with its process, is not a failure, and is over when it is over."""
    with sandbox.hold_next() as hold, started("refresh", env=env) as process:
        hold.wait()
        shown = facts(token_file)
        assert shown["refresh_in_flight"]["pid"] == process.pid
        assert shown["trouble"] is None
        assert f"process {process.pid}" in adh("status", env=env).stdout
        hold.release()
        assert process.wait(PATIENCE) == 0
    assert facts(token_file)["refresh_in_flight"] is None


def test_a_refresh_whose_process_was_killed_is_not_in_flight(
    env: dict[str, str], sandbox: Sandbox, token_file: Path
) -> None:
    """The kernel frees the lock of the dead: what is left is a failure with a next step, and the session
    counts as good.
    """
    with sandbox.hold_next(at="before") as hold:
        with started("refresh", env=env) as process:
            hold.wait()
            process.send_signal(signal.SIGKILL)
            process.wait(PATIENCE)
        shown = facts(token_file)
    assert shown["signed_in"]
    assert shown["refresh_in_flight"] is None
    assert f"process {process.pid}" in shown["trouble"]["what"]
    assert "next refresh" in shown["trouble"]["next_step"]


def test_a_pair_that_was_left_beside_the_file_is_found(token_file: Path) -> None:
    """A process that was killed between writing the pair and renaming it has lost nothing, and `status`
    knows.
    """
    file = noted(token_file, SENDING)
    fresh = Stored.from_bytes(token_file.read_bytes()).rotated(
        {"access_token": "adh_n", "refresh_token": "adh_rt_n"}, time.time()
    )
    beside = Path(f"{token_file}.new")
    beside.write_bytes(fresh.to_bytes())
    beside.chmod(0o600)
    assert file.left_behind() is not None
    assert "found beside the file" in facts(token_file)["trouble"]["next_step"]


def test_the_only_copy_of_a_pair_is_named(token_file: Path) -> None:
    """While a process holds a pair that it can't write, the user is asked not to end it; afterwards, what is
    left to try.
    """
    file = noted(token_file, UNSAVED, reason="the disk is full", pid=os.getpid())
    with file.locked(PATIENCE):
        shown = facts(token_file)
        assert "the disk is full" in shown["trouble"]["what"]
        assert f"don't end process {os.getpid()}" in shown["trouble"]["next_step"]
    shown = facts(token_file)
    assert shown["refresh_in_flight"] is None
    assert "adh-auth login" in shown["trouble"]["next_step"]


def test_a_refusal_is_not_signed_in(env: dict[str, str], sandbox: Sandbox, token_file: Path) -> None:
    """After `invalid_grant` the session is over: exit 1, and the command that starts a new one."""
    sandbox.revoke()
    assert adh("refresh", env=env).returncode == 1
    shown = facts(token_file, code=1)
    assert not shown["signed_in"]
    assert shown["trouble"]["code"] == "invalid_grant"
    assert shown["trouble"]["next_step"] == login_command_line(str(token_file))
    assert shown["trouble"]["request_id"] in adh("status", env=env).stdout


def test_a_failure_that_may_pass_is_shown_as_such(token_file: Path) -> None:
    """An outage leaves the session good; its reason is shown."""
    noted(token_file, FAILED, reason="HTTP 503 at the refresh endpoint", status=503)
    shown = facts(token_file)
    assert shown["signed_in"]
    assert (shown["trouble"]["status"], shown["trouble"]["pid"]) == (503, 4242)
    assert "still good" in shown["trouble"]["next_step"]


def test_a_reply_that_may_have_been_lost_leaves_a_doubt(token_file: Path) -> None:
    """The token may have been used up by the try whose reply was lost."""
    noted(token_file, FAILED, reason="HTTP 502", lost_at=time.time() - 90, lost_how="HTTP 502")
    assert facts(token_file)["trouble"]["next_step"].startswith("the session is most likely still good: ")


def test_a_refused_client_is_told_what_to_check(env: dict[str, str], token_file: Path) -> None:
    """After `invalid_client` it is the settings that need a check; the session is as good as before."""
    assert adh("refresh", env={**env, "ADH_CLIENT_SECRET": "not the secret"}).returncode == 1
    shown = facts(token_file)
    assert shown["signed_in"]
    assert shown["trouble"]["code"] == "invalid_client"
    assert shown["trouble"]["next_step"] == (
        "check ADH_CLIENT_ID and ADH_CLIENT_SECRET; the session is still good:"
        " the next request that meets an expired token tries again"
    )


@pytest.mark.parametrize("asked", [40, 3600])
def test_a_pause_that_the_server_asked_for_is_shown(asked: float, token_file: Path) -> None:
    """It is shown until when nothing is sent: as long as the server wished, and no longer than it is kept."""
    at = time.time()
    token_file.write_text(json.dumps({**json.loads(token_file.read_bytes()), "expires_at": at - 90}))
    noted(token_file, FAILED, reason="HTTP 429", at=at, not_before=at + asked)
    until = min(at + asked, at + MAX_RETRY_AFTER)
    shown = facts(token_file)
    assert shown["trouble"]["not_before"] == pytest.approx(until)
    clock = format_clock(until)
    step = (
        f"the server is not asked again before {clock} (it asked to wait):"
        " until then, a request that meets an expired token fails"
    )
    assert shown["trouble"]["next_step"] == f"the session is still good; {step}"
    said = rows(token_file)
    assert said["what to do"] == shown["trouble"]["next_step"]
    assert said["expiry"].endswith(f"; it is not refreshed before {clock}")


def test_a_pause_is_shown_as_it_is_kept(env: dict[str, str], sandbox: Sandbox, token_file: Path) -> None:
    """While it is shown, a refresh sends nothing; once it is over, nothing of it is shown."""
    sandbox.fail_next(status=429, retry_after=3600)
    assert adh("refresh", env=env).returncode == 1
    assert facts(token_file)["trouble"]["not_before"] is not None
    assert adh("refresh", env=env).returncode == 1
    assert sandbox.counts.refresh_calls == 1
    over = time.time() - MAX_RETRY_AFTER
    noted(token_file, FAILED, at=over, not_before=over + 3600)
    shown = facts(token_file)["trouble"]
    assert shown["not_before"] is None
    assert (
        shown["next_step"]
        == "the session is still good: the next request that meets an expired token tries again"
    )


@pytest.mark.parametrize("state", [SENDING, FAILED, REFUSED, UNSAVED, DONE])
def test_a_record_of_another_token_is_no_failure(state: str, token_file: Path) -> None:
    """A new sign-in lifts whatever was on record."""
    noted(token_file, state, about="0" * 12)
    assert facts(token_file)["trouble"] is None


@pytest.mark.parametrize(
    "garbage", [b"", b"{", b'{"at": 1e300, "rotated_at": 1e300, "rotated_by": 1, "number": 1}', b"\xff" * 99]
)
def test_a_broken_record_breaks_nothing(garbage: bytes, token_file: Path) -> None:
    """The record is a courtesy: whatever it holds, the session is shown."""
    Path(f"{token_file}.record").write_bytes(garbage)
    assert adh("status", "--token-file", str(token_file)).stdout.startswith("signed in")


@pytest.mark.parametrize("content", [None, b"", b"{}", b"nonsense"])
def test_no_usable_file_is_1(content: bytes | None, tmp_path: Path) -> None:
    """A missing or broken file is an error in a line, or JSON that says the same."""
    path = tmp_path / "tokens.json"
    if content is not None:
        path.write_bytes(content)
    said = adh("status", "--token-file", str(path))
    assert (said.returncode, said.stdout) == (1, "")
    shown = facts(path, code=1)
    assert not shown["signed_in"]
    assert shown["problem"] in one_line_of(said)


def test_a_symlink_and_an_open_mode_are_shown(token_file: Path, tmp_path: Path) -> None:
    """Where a link leads, and that others can read the file, is what the user has to know."""
    link = tmp_path / "link.json"
    link.symlink_to(token_file)
    token_file.chmod(0o644)
    said = adh("status", "--token-file", str(link)).stdout
    assert f"{link} → {token_file}" in said
    assert "0644" in said
    assert "others can reach it" in said


def test_a_read_only_file_is_reported_before_it_hurts(token_file: Path) -> None:
    """A file that can be read but not rotated works until it expires: `status` says so now."""
    token_file.write_text(json.dumps({**json.loads(token_file.read_bytes()), "expires_at": time.time() - 90}))
    token_file.chmod(0o400)
    assert facts(token_file)["rewriting"] == "it is read-only"
    shown = rows(token_file)
    assert "can't be rewritten" in shown["mode"]
    assert shown["expiry"].endswith("; the next request tries to refresh it")


_WITHOUT_WRITING = """
import os, sys
sys.dont_write_bytecode = True
from adh_auth.cli import main, status_command
def refuse(event, arguments):
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & writes:
        os._exit(99)  # an exception could be taken for what the system says
    if event in ("os.mkdir", "os.rename", "os.remove", "os.chmod", "socket.connect"):
        os._exit(98)
sys.addaudithook(refuse)
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("state", ["", SENDING, UNSAVED, REFUSED])
def test_reading_changes_nothing(state: str, token_file: Path, tmp_path: Path) -> None:
    """On a read-only folder everything is shown, and no file is made or opened for writing, the lock's
    included.
    """
    if state:
        noted(token_file, state)
    before = sorted(tmp_path.iterdir())
    tmp_path.chmod(0o500)
    try:
        command = [sys.executable, "-c", _WITHOUT_WRITING, "status", "--token-file", str(token_file)]
        said = subprocess.run(
            command, capture_output=True, text=True, env=environment(), timeout=PATIENCE, check=False
        )
        assert (said.returncode, said.stderr) == (1 if state == REFUSED else 0, "")
        assert said.stdout.startswith("signed in")
        assert sorted(tmp_path.iterdir()) == before
    finally:
        tmp_path.chmod(0o700)


def _given_away(path: Path) -> str:
    """Make it another user's where that can be done. Return the owner as `status` names one."""
    if CAN_GIVE_AWAY:
        os.chown(path, STRANGER, -1)
    try:
        return path.owner()
    except KeyError:
        return f"uid {path.stat().st_uid}"


@pytest.mark.skipif(sys.platform == "win32", reason="needs modes and owners: run it on a POSIX system")
@pytest.mark.parametrize(
    ("name", "mode"),
    [("tokens.json.lock", 0o600), ("tokens.json.record", 0o600), ("tokens.json.record", 0o666)],
)
def test_a_companion_that_is_shut_is_reported_before_it_hurts(name: str, mode: int, token_file: Path) -> None:
    """A lock or a record that `sudo` has left stops the next rotation: `status` says so now, and leaves it as
    it is.
    """
    need_ordinary_rights()
    if not CAN_GIVE_AWAY:
        mode &= 0o400
    shut = token_file.with_name(name)
    shut.touch()
    shut.chmod(mode)
    owner = _given_away(shut)
    before = _states(token_file.parent)
    words = f"{shut} can't be written by this user (mode {mode:04o}, owner {owner})"
    assert json.loads(_seen_without_rights(token_file, "--json"))["rewriting"] == words
    assert f"; it can't be rewritten at the next rotation: {words}\n" in _seen_without_rights(token_file)
    assert _states(token_file.parent) == before


@gives_away
def test_a_lock_that_all_may_write_is_no_problem(token_file: Path) -> None:
    """Whose it is does not matter for a lock."""
    lock = token_file.with_name("tokens.json.lock")
    lock.touch()
    lock.chmod(0o666)
    _given_away(lock)
    assert json.loads(_seen_without_rights(token_file, "--json"))["rewriting"] is None


def _seen_without_rights(token_file: Path, *options: str) -> str:
    command = [
        sys.executable,
        "-c",
        DROP + _WITHOUT_WRITING,
        "status",
        "--token-file",
        str(token_file),
        *options,
    ]
    said = subprocess.run(
        command, capture_output=True, text=True, env=environment(), timeout=PATIENCE, check=False
    )
    assert (said.returncode, said.stderr) == (0, "")
    return said.stdout


def _states(folder: Path) -> dict[str, tuple[int, ...]]:
    states = {path.name: path.stat() for path in folder.iterdir()}
    return {
        name: (state.st_mode, state.st_uid, state.st_ino, state.st_mtime_ns) for name, state in states.items()
    }


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal: run it on a POSIX system")
def test_colours_are_for_terminals(token_file: Path) -> None:
    """A terminal gets colours; NO_COLOR, a dumb terminal and a pipe get none."""
    arguments = ("status", "--token-file", str(token_file))
    see: Callable[..., tuple[int, str]] = on_a_terminal
    without = {"NO_COLOR": ""}  # set and empty counts as not set, by the convention's own words
    code, seen = see(*arguments, env=without)
    assert code == 0
    assert "\x1b[32myes\x1b[0m" in seen
    assert "\x1b" not in see(*arguments, env={"NO_COLOR": "1"})[1]
    assert "\x1b" not in see(*arguments, env={"TERM": "dumb", **without})[1]
    assert "\x1b" not in adh(*arguments).stdout
