"""The commands: what they print, their exit codes, and what they must not print."""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from adh_auth import TokenFile, Tokens
from adh_auth.cli import login_command
from adh_auth.cli.commands import COMMANDS
from adh_auth.cli.flags import in_flags
from adh_auth.cli.parser import new_parser
from adh_auth.store.folder import file_name
from adh_auth.store.remedies import shell_quoted
from adh_auth.testing import Sandbox

from ..support.cli import adh, environment, one_line_of, started, tokens_in
from ..support.processes import PATIENCE

NAMES = ("demo", "login", "save", "status", "token", "me", "refresh", "revoke", "logout", "store", "sandbox")
REPLY = {
    "access_token": "adh_first",
    "refresh_token": "adh_rt_first",
    "expires_in": 3600,
    "token_type": "Bearer",
    "scope": "a b",
    "more": 1,
}


@pytest.fixture
def env(sandbox: Sandbox, token_file: Path) -> dict[str, str]:
    """The environment of a user who is signed in to the sandbox."""
    return sandbox.environment(token_file)


def test_the_help_names_every_command() -> None:
    """`--help` is where a new user starts: it names every command, and exits with 0."""
    said = adh("--help")
    assert said.returncode == 0
    assert all(f"\n    {name} " in said.stdout for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_command_has_an_example(name: str) -> None:
    """Every command's help shows how it is called."""
    said = adh(name, "--help")
    assert said.returncode == 0
    assert f"adh-auth {name}" in said.stdout.partition("example: ")[2]


def test_the_help_loads_no_client() -> None:
    """Help answers at once: nothing that a command needs is loaded for it."""
    unwanted = {"requests", "httpx", "filelock", "anyio", "json"}
    code = "import sys; from adh_auth.cli import main; main.main(['--help']); "
    code += f"print({unwanted!r} & set(sys.modules))"
    said = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    assert said.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    "arguments",
    [(), ("nonsense",), ("status", "--nonsense"), ("demo", "--seconds", "0"), ("sandbox", "--port", "x")],
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    """A usage that makes no sense is 2, with the usage on stderr and nothing on stdout."""
    said = adh(*arguments)
    assert (said.returncode, said.stdout) == (2, "")
    assert "usage: adh-auth" in said.stderr


def test_a_secret_on_the_command_line_is_refused_and_not_repeated() -> None:
    """The client secret comes from the environment only, and the refusal does not print it once more."""
    for arguments in (("--client-secret", "hush"), ("--client-secret=hush",)):
        said = adh("me", *arguments)
        assert said.returncode == 2
        assert "ADH_CLIENT_SECRET" in said.stderr
        assert "hush" not in said.stderr


@pytest.mark.parametrize("name", NAMES)
def test_each_command_speaks_json(name: str) -> None:
    """A program can call any of them: `--json` is in every command's help."""
    assert "--json" in adh(name, "--help").stdout


NEED_A_SESSION = ("status", "token", "me", "refresh", "revoke")


@pytest.mark.parametrize(
    "arguments",
    [
        *((name,) for name in NEED_A_SESSION),
        *((name, "--json") for name in NEED_A_SESSION if name != "status"),
    ],
    ids=" ".join,
)
def test_an_error_is_one_line_and_1(arguments: tuple[str, ...], env: dict[str, str], tmp_path: Path) -> None:
    """A missing file is an error in one line that names it in its own spelling, without a traceback; with
    `--json`, too.
    """
    missing = tmp_path / "Some Folder" / "Missing.json"
    said = adh(*arguments, "--token-file", str(missing), env=env)
    assert (said.returncode, said.stdout) == (1, "")
    line = one_line_of(said)
    assert line.count(str(missing)) >= 2, "once as what is wrong, once in the command to copy"


def test_a_missing_secret_names_its_variable(env: dict[str, str]) -> None:
    """What has to be set is named."""
    said = adh("me", env={**env, "ADH_CLIENT_SECRET": ""})
    assert said.returncode == 1
    assert "ADH_CLIENT_SECRET" in one_line_of(said)


def test_a_first_run_is_told_all_that_is_missing(tmp_path: Path) -> None:
    """Id and secret are one error, in the words of the command line."""
    said = adh("login", env={"HOME": str(tmp_path)})
    assert said.returncode == 1
    assert one_line_of(said) == (
        "adh-auth: client_id and client_secret are missing: set ADH_CLIENT_ID and ADH_CLIENT_SECRET to those of "
        "your OAuth app, or pass --client-id\n"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("login", "--redirect-uri", "http://app.example/"), "--redirect-uri must be https"),
        (("login", "--redirect-uri", "https://app.example/"), "instead, with --paste"),
        (("login", "--scope", " "), "--scope must be a string"),
        (("me", "--base-url", "http://api.example"), "--base-url must be https"),
        (("me", "--client-id", "other"), "(or --client-id) to sandbox-client"),
    ],
    ids=lambda value: None,
)
def test_messages_name_flags(
    arguments: tuple[str, ...], words: str, env: dict[str, str], token_file: Path
) -> None:
    """What the library calls an argument is a flag here."""
    assert adh("refresh", env=env).returncode == 0  # the file names its client from now on
    said = adh(*arguments, env=env)
    assert said.returncode == 1
    assert words in one_line_of(said)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("client_id is missing: pass client_id= or set X", "client_id is missing: pass --client-id or set X"),
        ("pass client_secret= or set ADH_CLIENT_SECRET", "set ADH_CLIENT_SECRET"),
        ("see what it is doing, or raise lock_timeout", "see what it is doing"),
        ("open https://x/?client_id=a&scope=b&paste=True", "open https://x/?client_id=a&scope=b&paste=True"),
        ("/a/token_file=/b is missing", "/a/token_file=/b is missing"),
        ("the query holds scope=a", "the query holds scope=a"),
        ("start again with paste=True", "start again with --paste"),
    ],
)
def test_only_arguments_become_flags(message: str, shown: str) -> None:
    """A URL or a path in a message stays as it is."""
    assert in_flags(message) == shown


def test_a_control_character_in_a_name_does_not_reach_the_terminal(tmp_path: Path) -> None:
    """An error stays one line, and plain, whatever the file is called."""
    said = adh("status", "--token-file", str(tmp_path / "a\nb\x1b[31m"))
    assert said.returncode == 1
    assert "\x1b" not in one_line_of(said)


# save


@pytest.mark.parametrize("source", ["stdin", "dash", "file"])
def test_save_makes_a_reply_the_session(source: str, tmp_path: Path) -> None:
    """The reply becomes a private token file with its expiry and all its keys, and no token is printed."""
    target, reply = tmp_path / "new" / "tokens.json", tmp_path / "reply.json"
    reply.write_text(json.dumps(REPLY))
    arguments = {"stdin": (), "dash": ("-",), "file": (str(reply),)}[source]
    said = adh("save", *arguments, "--token-file", str(target), input=json.dumps(REPLY))
    assert (said.returncode, said.stderr) == (0, "")
    saved = json.loads(target.read_bytes())
    assert saved["more"] == 1
    assert saved["expires_at"] == pytest.approx(time.time() + 3600, abs=PATIENCE)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert not any(token in said.stdout for token in tokens_in(target))


def test_save_counts_the_life_of_a_reply_from_when_it_was_received(tmp_path: Path) -> None:
    """A reply that was saved to a file an hour ago has an hour less to live."""
    target, reply = tmp_path / "tokens.json", tmp_path / "reply.json"
    reply.write_text(json.dumps(REPLY))
    os.utime(reply, (1_700_000_000, 1_700_000_000))
    assert adh("save", str(reply), "--token-file", str(target)).returncode == 0
    assert TokenFile(target).load().expires_at == 1_700_003_600


def test_save_keeps_the_expiry_of_a_token_file(tmp_path: Path) -> None:
    """A token file is a reply, too, and its `expires_at` is right while its `expires_in` is long past."""
    target = tmp_path / "tokens.json"
    assert (
        adh(
            "save", "--token-file", str(target), input=json.dumps({**REPLY, "expires_at": 1_700_000_000})
        ).returncode
        == 0
    )
    assert TokenFile(target).load().expires_at == 1_700_000_000


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", "empty"),
        ("hello", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"access_token": "a"}', "refresh_token is missing"),
        ('{"access_token": "a b", "refresh_token": "b"}', "header"),
        ('{"code": "invalid_grant", "message": "used"}', "refused (invalid_grant)"),
        ("x" * 2**21, "more than"),
    ],
)
def test_save_refuses_what_is_no_reply(data: str, reason: str, token_file: Path) -> None:
    """Anything but a token reply is refused with its reason, and the old session stays byte for byte."""
    before = token_file.read_bytes()
    said = adh("save", "--token-file", str(token_file), input=data)
    assert (said.returncode, said.stdout) == (1, "")
    assert reason in one_line_of(said)
    assert token_file.read_bytes() == before


def test_save_waits_for_nothing_but_the_lock(sandbox: Sandbox, env: dict[str, str], token_file: Path) -> None:
    """A save during a refresh comes after it, and wins."""
    with sandbox.hold_next() as hold, started("refresh", env=env) as refreshing:
        hold.wait()
        with started("save", "--json", env=env, stdin=subprocess.PIPE) as saving:
            saving.stdin.write(json.dumps(REPLY))  # type: ignore[union-attr]
            saving.stdin.close()  # type: ignore[union-attr]
            saving.stdin = None
            with pytest.raises(subprocess.TimeoutExpired):
                saving.wait(1.0)
            hold.release()
            assert saving.wait(PATIENCE) == 0
        assert refreshing.wait(PATIENCE) == 0
    assert TokenFile(token_file).load().access_token == "adh_first"


# token


def test_token_prints_a_good_token_without_a_call(
    sandbox: Sandbox, env: dict[str, str], token_file: Path
) -> None:
    """A token that lives long enough by the stored expiry is printed alone, without a call, an id or a
    secret.
    """
    reply = {**sandbox.sign_in(), "expires_at": time.time() + 3600}
    token_file.write_text(json.dumps(reply))
    said = adh("token", env={"ADH_TOKEN_FILE": env["ADH_TOKEN_FILE"]})
    assert (said.returncode, said.stdout, said.stderr) == (0, reply["access_token"] + "\n", "")
    assert sandbox.counts.requests == sandbox.counts.refresh_calls == 0


@pytest.mark.parametrize("how", ["environment", "flag"])
def test_token_is_not_printed_for_another_server(
    how: str, sandbox: Sandbox, env: dict[str, str], token_file: Path
) -> None:
    """It goes to the server that the shell names: `curl` takes both. The same server in other letters is fine."""
    reply = {**sandbox.sign_in(), "expires_at": time.time() + 3600, "base_url": sandbox.url}
    token_file.write_text(json.dumps(reply))

    def said_for(server: str) -> subprocess.CompletedProcess[str]:
        if how == "flag":
            return adh("token", "--base-url", server, env={**env, "ADH_BASE_URL": sandbox.url})
        return adh("token", env={**env, "ADH_BASE_URL": server})

    said = said_for("https://other.example")
    assert (said.returncode, said.stdout) == (1, "")
    line = one_line_of(said)
    assert sandbox.url in line
    assert "https://other.example" in line
    assert said_for(sandbox.url.upper() + "/").stdout == reply["access_token"] + "\n"


def test_token_as_json_has_the_expiry(sandbox: Sandbox, env: dict[str, str], token_file: Path) -> None:
    """`token --json` holds the access token with its type and times, and nothing of the refresh token."""
    reply = {**sandbox.sign_in(), "expires_at": time.time() + 3600}
    token_file.write_text(json.dumps(reply))
    facts = json.loads(adh("token", "--json", env=env).stdout)
    assert facts.pop("seconds_left") == pytest.approx(3600, abs=PATIENCE)
    assert facts == {
        "access_token": reply["access_token"],
        "token_type": "Bearer",
        "expires_at": reply["expires_at"],
    }


def test_token_as_json_has_null_for_an_unknown_expiry(env: dict[str, str], token_file: Path) -> None:
    """Where no expiry is stored the times are null, not missing."""
    facts = json.loads(adh("token", "--json", env=env).stdout)
    assert facts["access_token"] == TokenFile(token_file).load().access_token
    assert (facts["expires_at"], facts["seconds_left"]) == (None, None)


@pytest.mark.parametrize("left", [-60, 10])
def test_token_refreshes_what_is_about_to_expire(
    left: float, sandbox: Sandbox, env: dict[str, str], token_file: Path
) -> None:
    """A token that is past, or has less than 30 s to live, is refreshed before it is printed."""
    reply = {**sandbox.sign_in(), "expires_at": time.time() + left}
    token_file.write_text(json.dumps(reply))
    said = adh("token", env=env)
    assert said.returncode == 0
    assert said.stdout == TokenFile(token_file).load().access_token + "\n" != reply["access_token"] + "\n"
    assert sandbox.counts.rotations == 1


def test_token_asks_the_api_where_no_expiry_is_stored(
    sandbox: Sandbox, env: dict[str, str], token_file: Path
) -> None:
    """Where nothing is known the API is asked: a live token is printed as it is, an expired one is rotated
    first.
    """
    first = TokenFile(token_file).load().access_token
    assert adh("token", env=env).stdout == first + "\n"
    assert sandbox.counts.rotations == 0
    sandbox.expire()
    assert adh("token", env=env).stdout == TokenFile(token_file).load().access_token + "\n" != first + "\n"
    assert sandbox.counts.rotations == 1


def test_token_prints_nothing_when_the_session_is_dead(sandbox: Sandbox, env: dict[str, str]) -> None:
    """A token that does not work is never printed: a script would send it."""
    sandbox.revoke()
    for arguments in (("token",), ("token", "--json")):
        said = adh(*arguments, env=env)
        assert (said.returncode, said.stdout) == (1, "")
        assert "invalid_token" in one_line_of(said)


# me, refresh, revoke


def test_me_prints_the_user(env: dict[str, str], sandbox: Sandbox) -> None:
    """`me` prints who is signed in, through an expiry too, as lines or as JSON."""
    sandbox.expire()
    assert "sandbox@example.com" in adh("me", env=env).stdout
    assert json.loads(adh("me", "--json", env=env).stdout)["id"] == "usr_sandbox"
    assert sandbox.counts.rotations == 1


@pytest.mark.parametrize(
    ("body", "status"), [(b"<html>portal</html>", 200), (b"[]", 200), (b"{}", 503), (b"", 404)]
)
def test_me_refuses_a_reply_without_a_user(
    body: bytes, status: int, env: dict[str, str], sandbox: Sandbox
) -> None:
    """A reply without a user is an error in one line that names the status."""
    sandbox.fail_next(on="me", status=status, body=body)
    said = adh("me", env=env)
    assert said.returncode == 1
    assert f"HTTP {status}" in one_line_of(said)


def test_an_unreachable_api_is_one_line(env: dict[str, str], sandbox: Sandbox) -> None:
    """No connection: which API, why, and that nothing is lost."""
    sandbox.stop()
    line = one_line_of(adh("me", env=env))
    assert sandbox.url in line
    assert "refused" in line


def test_refresh_forces_one(env: dict[str, str], sandbox: Sandbox, token_file: Path) -> None:
    """`refresh` trades the token whatever the clock says; `--base-url` and `--client-id` replace the
    environment variables.
    """
    before = tokens_in(token_file)
    arguments = (
        "--base-url",
        env.pop("ADH_BASE_URL"),
        "--client-id",
        env.pop("ADH_CLIENT_ID"),
        "--token-file",
        env.pop("ADH_TOKEN_FILE"),
    )
    assert adh("refresh", *arguments, env=env).stdout.startswith("refreshed: ")
    facts = json.loads(adh("refresh", "--json", *arguments, env=env).stdout)
    assert facts["seconds_left"] == pytest.approx(3600, abs=PATIENCE)
    assert sandbox.counts.rotations == 2
    assert not before & tokens_in(token_file)


def test_revoke_ends_the_session_and_removes_the_file(
    env: dict[str, str], sandbox: Sandbox, token_file: Path
) -> None:
    """The server knows before the file goes."""
    said = adh("revoke", env=env)
    assert (said.returncode, sandbox.counts.revocations, token_file.exists()) == (0, 1, False)
    assert said.stdout.startswith("signed out everywhere: ")


def test_revoke_as_json_names_the_file(env: dict[str, str], sandbox: Sandbox, token_file: Path) -> None:
    """`revoke --json` names the file that is removed."""
    said = adh("revoke", "--json", env=env)
    assert json.loads(said.stdout) == {"token_file": str(token_file), "revoked": True}
    assert (said.returncode, sandbox.counts.revocations, token_file.exists()) == (0, 1, False)


def test_revoke_as_json_is_silent_where_it_failed(
    env: dict[str, str], sandbox: Sandbox, token_file: Path
) -> None:
    """If the server can't be reached, stdout stays empty and the file stays."""
    sandbox.stop()
    said = adh("revoke", "--json", env=env)
    assert (said.returncode, said.stdout, token_file.exists()) == (1, "", True)
    assert "refused" in one_line_of(said)


def test_no_output_but_that_of_token_holds_a_secret(
    env: dict[str, str], sandbox: Sandbox, token_file: Path
) -> None:
    """No command shows a token, in the order of a session's life, as lines and as JSON."""
    secrets: set[str] = {env["ADH_CLIENT_SECRET"]}
    said: list[str] = []
    calls: list[tuple[str, ...]] = [
        ("status",),
        ("me",),
        ("refresh",),
        ("save", str(token_file)),
        ("revoke",),
        ("status",),
        ("me",),
    ]
    for form in ((), ("--json",)):
        sandbox.write_token_file(token_file)
        for arguments in calls:
            secrets |= tokens_in(token_file) if token_file.exists() else set()
            done = adh(*arguments, *form, env=env)
            said += [done.stdout, done.stderr]
    assert len(secrets) == 9
    assert not [secret for secret in secrets if secret in "".join(said)]


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_token_shows_the_access_token_alone(
    form: tuple[str, ...], env: dict[str, str], token_file: Path
) -> None:
    """`token` shows neither the refresh token nor the client secret."""
    said = adh("token", *form, env=env)
    shown = {
        secret
        for secret in (*tokens_in(token_file), env["ADH_CLIENT_SECRET"])
        if secret in said.stdout + said.stderr
    }
    assert shown == {TokenFile(token_file).load().access_token}


# what holds for every command


def test_ctrl_c_is_130_and_the_refresh_is_finished(
    env: dict[str, str], sandbox: Sandbox, token_file: Path
) -> None:
    """An interrupted refresh writes the new pair before the process ends, and prints no traceback."""
    before = tokens_in(token_file)
    with sandbox.hold_next() as hold, started("refresh", env=env) as process:
        hold.wait()
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        line = process.stderr.readline()
        hold.release()
        assert process.wait(PATIENCE) == 130
        assert process.stderr.read() == ""
    assert "finished first" in line
    assert not before & tokens_in(token_file)


@pytest.mark.parametrize("arguments", [("--help",), ("status", "--json"), ("me",)])
def test_a_reader_that_has_gone_is_no_traceback(arguments: tuple[str, ...], env: dict[str, str]) -> None:
    """`adh-auth … | head -0` ends without a word."""
    reading, writing = os.pipe()
    os.close(reading)
    said = adh(*arguments, env=env, capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    # argparse itself swallows what its printing of the help meets, where stdout is not buffered
    assert said.returncode in ((0, 141) if arguments == ("--help",) else (141,))
    assert said.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full: run it on Linux")
def test_an_output_that_can_not_be_written_is_not_fine(env: dict[str, str]) -> None:
    """A full disk behind stdout is an error: a script must not go on with half an output."""
    with open("/dev/full", "w") as full:
        said = adh("me", env=env, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert said.returncode == 1
    assert "No space left" in one_line_of(said)


def test_an_ascii_terminal_gets_its_lines(env: dict[str, str], tmp_path: Path, token_file: Path) -> None:
    """A locale that can't show a character costs that character, not the command."""
    link = tmp_path / "ä→ö.json"
    link.symlink_to(token_file)
    said = adh("status", "--token-file", str(link), env={**env, "PYTHONIOENCODING": "ascii"})
    assert (said.returncode, said.stderr) == (0, "")


def test_the_librarys_warnings_are_single_lines(env: dict[str, str], token_file: Path) -> None:
    """What the library warns of and logs is printed once, without a line of source code under it."""
    token_file.chmod(0o644)
    said = adh("refresh", env=env)
    assert said.returncode == 0
    assert "it is private now" in one_line_of(said)


# sandbox


def _exports(process: subprocess.Popen[str]) -> dict[str, str]:
    assert process.stdout is not None
    found: dict[str, str] = {}
    for line in iter(process.stdout.readline, ""):
        if line.startswith("export "):
            name, _, value = shlex.split(line)[1].partition("=")
            found[name] = value
        elif found:
            break
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_sandbox_serves_until_it_is_ended(number: signal.Signals, tmp_path: Path) -> None:
    """The printed lines point a shell at a working ADH; it exits with 0, prints the counts and leaves no
    temporary folder.
    """
    with started("sandbox", env={"TMPDIR": str(tmp_path)}) as process:
        env = _exports(process)
        assert sorted(env) == ["ADH_BASE_URL", "ADH_CLIENT_ID", "ADH_CLIENT_SECRET", "ADH_TOKEN_FILE"]
        assert adh("me", env=env).returncode == 0
        facts = json.loads(adh("status", "--json", env=env).stdout)
        assert (facts["base_url"], facts["client_id"]) == (env["ADH_BASE_URL"], env["ADH_CLIENT_ID"])
        process.send_signal(number)
        rest, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")
    assert "requests                   1" in rest
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_sandbox_as_json_prints_the_environment(number: signal.Signals, tmp_path: Path) -> None:
    """A line of JSON comes at once and suffices for `me`; a second one, with the counts, comes at the end,
    and nothing else.
    """
    with started("sandbox", "--json", "--token-life", "10", env={"TMPDIR": str(tmp_path)}) as process:
        assert process.stdout is not None
        facts = json.loads(process.stdout.readline())
        assert sorted(facts) == ["environment", "token_file", "token_life", "url"]
        env = facts["environment"]
        assert sorted(env) == ["ADH_BASE_URL", "ADH_CLIENT_ID", "ADH_CLIENT_SECRET", "ADH_TOKEN_FILE"]
        assert (facts["url"], facts["token_file"], facts["token_life"]) == (
            env["ADH_BASE_URL"],
            env["ADH_TOKEN_FILE"],
            10,
        )
        assert adh("me", env=env).returncode == 0
        process.send_signal(number)
        rest, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors, rest.count("\n")) == (0, "", 1)
    counts = json.loads(rest)
    assert (counts["requests"], counts["rotations"], counts["reused"]) == (1, 0, 0)
    assert list(tmp_path.iterdir()) == []


def test_sandbox_never_overwrites_a_session(token_file: Path) -> None:
    """A token file that is there stays unless the user says so."""
    before = token_file.read_bytes()
    said = adh("sandbox", "--token-file", str(token_file))
    assert said.returncode == 1
    assert "--overwrite" in one_line_of(said)
    assert token_file.read_bytes() == before
    with started("sandbox", "--overwrite", "--token-file", str(token_file), "--token-life", "10") as process:
        assert adh("me", env=_exports(process)).returncode == 0


def test_sandbox_says_that_a_port_is_in_use(sandbox: Sandbox) -> None:
    """A port that is taken is an error in one line."""
    port = sandbox.url.rpartition(":")[2]
    said = adh("sandbox", "--port", port, "--json")
    assert (said.returncode, said.stdout) == (1, "")
    assert f"port {port}" in one_line_of(said)


def test_login_gets_its_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The sign-in gets every option under its name, with the defaults that the guide's example app has."""
    got: dict[str, Any] = {}

    def login(token_file: str | None, **options: Any) -> Tokens:
        got.update(options, token_file=token_file)
        return Tokens("adh_a", "adh_rt_r")

    monkeypatch.setattr(login_command, "login", login)
    monkeypatch.setenv("ADH_CLIENT_ID", "id")
    monkeypatch.setenv("ADH_CLIENT_SECRET", "secret")
    args = new_parser().parse_args(["login", "--paste"])
    assert COMMANDS["login"].run(args) == 0
    got.pop("echo")("Start again with paste=True")
    assert capsys.readouterr().out == "Start again with --paste\n"
    assert got == {
        "token_file": None,
        "store": None,
        "session": None,
        "client_id": None,
        "base_url": None,
        "redirect_uri": "http://localhost:8765/callback",
        "scope": "profile:read discussions:read",
        "open_browser": True,
        "paste": True,
        "timeout": 300.0,
    }


def test_the_version_is_printed() -> None:
    """`--version` names the program and its version."""
    assert adh("--version").stdout.startswith("adh-auth 0.")


def test_the_commands_use_the_store_of_the_environment(sandbox: Sandbox, tmp_path: Path) -> None:
    """`ADH_STORE` and `ADH_SESSION` name the session for every command; no token file is made or read."""
    folder = tmp_path / "adh"
    env = sandbox.environment(tmp_path / "tokens.json")
    del env["ADH_TOKEN_FILE"]
    env.update(ADH_STORE=folder.as_uri(), ADH_SESSION="user/1")
    reply = tmp_path / "reply.json"
    reply.write_text(json.dumps(sandbox.sign_in()))
    name = str(folder / file_name("user/1"))
    assert name in adh("save", str(reply), env=env).stdout
    assert json.loads(adh("status", "--json", env=env).stdout)["token_file"] == name
    token = adh("token", env=env).stdout.strip()
    assert token == TokenFile(name).load().access_token
    assert json.loads(adh("me", "--json", env=env).stdout)["name"] == "Sandbox User"
    assert name in adh("refresh", env=env).stdout
    assert TokenFile(name).load().access_token != token
    assert f"{name} is removed" in adh("revoke", env=env).stdout
    missing = adh("token", env=env)
    assert missing.returncode == 1
    shown = shell_quoted(f"file://{folder}")
    assert f"--store {shown} --session user/1" in missing.stderr
    assert not (tmp_path / "tokens.json").exists()
