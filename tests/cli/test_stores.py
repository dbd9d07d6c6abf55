"""`--store`, `--session` and ``adh-auth store``, over a folder, a register in memory, PostgreSQL and Redis."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adh_auth import AdhAuth, StoreError, TokenFile, Tokens, TokenStore
from adh_auth.cli import login_command
from adh_auth.cli.commands import COMMANDS
from adh_auth.cli.parser import new_parser
from adh_auth.store.folder import file_name
from adh_auth.store.register import RegisterRefused
from adh_auth.testing import MemoryRegister, Sandbox

from ..support import servers
from ..support.cli import COMMAND, adh, environment, one_line_of, tokens_in

WITH_SESSION = ("login", "save", "status", "token", "me", "refresh", "revoke", "logout")
KINDS = (
    "folder",
    pytest.param("postgresql", marks=pytest.mark.servers),
    pytest.param("redis", marks=pytest.mark.servers),
)


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty store of each kind."""
    if request.param == "folder":
        yield (tmp_path / "sessions").as_uri()
        return
    server = request.getfixturevalue(f"{request.param}_server")
    if request.param == "postgresql":
        server.execute("DROP TABLE IF EXISTS adh_auth_session")
    else:
        _flush(server)
    yield server.url()


def _flush(server: Any) -> None:
    import redis

    with redis.Redis.from_url(server.url()) as client:
        client.flushall()


@pytest.fixture
def env(sandbox: Sandbox, store: str) -> dict[str, str]:
    """The environment of a program with a session in that store."""
    app = sandbox.environment("/nowhere")
    del app["ADH_TOKEN_FILE"]
    return {**app, "ADH_STORE": store, "ADH_SESSION": "reports"}


def _save(sandbox: Sandbox, env: dict[str, str], *arguments: str) -> dict[str, Any]:
    said = adh("save", "--json", *arguments, env=env, input=json.dumps(sandbox.sign_in()))
    assert (said.returncode, said.stderr) == (0, "")
    facts: dict[str, Any] = json.loads(said.stdout)
    return facts


def test_each_command_works_on_a_store(sandbox: Sandbox, env: dict[str, str], store: str) -> None:
    """From `save`, which makes the table, to `revoke`. JSON names store and session; no password is shown."""
    assert _save(sandbox, env)["session"] == "reports"
    assert json.loads(adh("me", "--json", env=env).stdout)["name"] == "Sandbox User"
    token = adh("token", env=env).stdout.strip()
    refreshed = json.loads(adh("refresh", "--json", env=env).stdout)
    assert refreshed["store"] == json.loads(adh("status", "--json", env=env).stdout)["store"]
    assert adh("token", env=env).stdout.strip() != token
    status = adh("status", env=env)
    assert status.returncode == 0
    assert "reports" in status.stdout
    said = adh("revoke", "--json", env=env)
    assert json.loads(said.stdout)["revoked"]
    assert sandbox.counts.revocations == 1
    for shown in (status.stdout, said.stdout, json.dumps(refreshed)):
        assert servers.PASSWORD not in shown
    empty = adh("status", env=env)
    assert empty.returncode == 1
    advice = one_line_of(empty).rpartition("Sign in with: ")[2].replace("adh-auth", shlex.join(COMMAND))
    assert "login" in advice
    # Pasted as it is, it is taken, though the URL in the variable has a password.
    pasted = subprocess.run(["/bin/sh", "-c", f"{advice.strip()} --help"], env=environment(env), check=False)
    assert pasted.returncode == 0


def test_an_empty_store_says_what_to_do() -> None:
    """As `--store "$ADH_STORE"` is where the variable is not set."""
    said = adh("login", "--store", "")
    assert said.returncode == 2
    assert "--store is empty: name the URL of the store, or set ADH_STORE" in said.stderr


def test_logout_from_a_store(sandbox: Sandbox, env: dict[str, str]) -> None:
    """Signed out here; once more is no error."""
    _save(sandbox, env)
    for removed in (True, False):
        said = adh("logout", "--json", env=env)
        facts = json.loads(said.stdout)
        assert (facts["removed"], facts["session"]) == (removed, "reports")
    assert "nothing to do" in adh("logout", env=env).stdout
    assert sandbox.counts.revocations == 0


def test_status_of_a_missing_session_as_json(env: dict[str, str]) -> None:
    """A program learns which session of which store."""
    said = adh("status", "--json", env=env)
    facts = json.loads(said.stdout)
    assert (said.returncode, facts["signed_in"], facts["session"]) == (1, False, "reports")
    assert facts["store"]


def test_options_beat_the_environment(sandbox: Sandbox, env: dict[str, str], tmp_path: Path) -> None:
    """`--store` and `--session` over the variables; `--token-file` over both."""
    other = (tmp_path / "other").as_uri()
    assert _save(sandbox, env, "--store", other, "--session", "mine")["session"] == "mine"
    assert TokenStore(other, "mine").load().access_token
    file = tmp_path / "tokens.json"
    assert "session" not in _save(sandbox, env, "--token-file", str(file))
    assert TokenFile(file).load().access_token


def test_init_check_and_list(sandbox: Sandbox, env: dict[str, str]) -> None:
    """The table is made once, writing is proved, and the names are listed."""
    for _ in range(2):
        assert json.loads(adh("store", "init", "--json", env=env).stdout)["ready"]
    said = adh("store", "check", "--json", env=env)
    assert (said.returncode, json.loads(said.stdout)["good"]) == (0, True)
    assert adh("store", "list", env=env).stdout == ""
    for session in ("user/2", "user/1"):
        _save(sandbox, env, "--session", session)
    assert adh("store", "list", env=env).stdout == "user/1\nuser/2\n"
    assert json.loads(adh("store", "list", "--json", env=env).stdout)["sessions"] == ["user/1", "user/2"]


def test_init_prints_what_it_would_run(env: dict[str, str], store: str) -> None:
    """For whoever owns the database; nothing is made."""
    said = adh("store", "init", "--print", env=env)
    assert said.returncode == 0
    if store.startswith("postgresql"):
        assert said.stdout.startswith("CREATE TABLE IF NOT EXISTS adh_auth_session")
        assert "GRANT SELECT, INSERT, UPDATE" in said.stdout
        assert "has no table yet. Make it with: adh-auth store init" in adh("store", "list", env=env).stderr
    else:
        assert "needs no table" in said.stdout


@pytest.mark.servers
def test_check_fails_where_nothing_can_be_written(postgresql_server: servers.PostgreSQLServer) -> None:
    """A role that may only read: one line, exit 1, no password."""
    server = postgresql_server
    server.execute("DROP TABLE IF EXISTS adh_auth_session")
    assert adh("store", "init", env={"ADH_STORE": server.url()}).returncode == 0
    server.execute("DROP ROLE IF EXISTS reader")
    server.execute("CREATE ROLE reader LOGIN PASSWORD 'reader-s3cret'")
    server.execute("GRANT SELECT ON adh_auth_session TO reader")
    said = adh("store", "check", env={"ADH_STORE": server.url("reader", "reader-s3cret")})
    server.execute("REVOKE ALL ON adh_auth_session FROM reader")
    server.execute("DROP ROLE reader")
    assert said.returncode == 1
    assert "Grant this user SELECT, INSERT and UPDATE on it" in one_line_of(said)
    assert "s3cret" not in said.stderr


def test_a_store_that_is_down_is_one_line() -> None:
    """No traceback, no password."""
    said = adh("store", "list", env={"ADH_STORE": "mysql://app:s3cret@db/app"})
    assert "store must be a URL that begins with one of file, postgresql" in one_line_of(said)
    assert "s3cret" not in said.stderr


def test_a_command_needs_a_store() -> None:
    """Flag and variable are named."""
    assert "pass --store or set ADH_STORE" in one_line_of(adh("store", "check"))
    assert "--print belongs to store init" in one_line_of(adh("store", "list", "--print"))


@pytest.mark.parametrize("command", WITH_SESSION)
@pytest.mark.parametrize(
    "url",
    [
        "postgresql://app:hush@db/app",
        "redis://:hush@cache",
        "postgresql://db/app?user=app&password=hush",
        "postgresql://db/app?pass%77ord=hush",
        "postgresql://app:hu@sh/hush@db/app",
    ],
)
def test_a_password_in_store_is_refused_and_not_repeated(command: str, url: str) -> None:
    """Every user of the machine sees a command line; the variable is named."""
    for arguments in (("--store", url), (f"--store={url}",)):
        with pytest.raises(SystemExit) as ended:
            new_parser().parse_args([command, *arguments])
        assert ended.value.code == 2


def test_the_refusal_names_the_variable() -> None:
    """And shows nothing of the URL."""
    said = adh("status", "--store", "postgresql://app:hush@db/app")
    assert said.returncode == 2
    assert "Set ADH_STORE to the URL instead" in said.stderr
    assert "hush" not in said.stderr
    said = adh("store", "list", "--store", "redis://:hush@db")
    assert (said.returncode, "hush" in said.stderr) == (2, False)


@pytest.mark.parametrize("command", WITH_SESSION)
def test_token_file_with_store_is_wrong_usage(command: str) -> None:
    """One place only."""
    said = adh(command, "--token-file", "/x/tokens.json", "--store", "file:///x")
    assert (said.returncode, said.stdout) == (2, "")
    assert "not allowed with argument" in said.stderr


def test_token_file_with_session() -> None:
    """A file holds one session."""
    said = adh("status", "--token-file", "/x/tokens.json", "--session", "reports")
    assert "give --token-file or --session, not both" in one_line_of(said)


def test_a_session_of_a_folder_says_both(sandbox: Sandbox, tmp_path: Path) -> None:
    """Its file, too, for whoever looks for it."""
    folder = tmp_path / "adh"
    env = {**sandbox.environment("/nowhere"), "ADH_TOKEN_FILE": "", "ADH_STORE": folder.as_uri()}
    facts = _save(sandbox, env, "--session", "a")
    assert facts["token_file"] == str(folder / file_name("a"))
    assert (facts["store"], facts["session"]) == (f"file://{folder}", "a")


# Over a register in memory.


def _run(register: MemoryRegister, *arguments: str, session: str = "reports") -> int:
    args = new_parser().parse_args(arguments)
    args.store, args.session = register, session
    return COMMANDS[arguments[0]].run(args)


def test_commands_over_a_register(
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """As with a URL: facts in `status`, the last rotation included."""
    for name, value in sandbox.environment(tmp_path / "none.json").items():
        monkeypatch.setenv(name, value)
    register = MemoryRegister()
    TokenStore(register, "reports").save(Tokens.from_response(sandbox.sign_in()))
    assert _run(register, "refresh") == 0
    assert "refreshed: memory://test#reports" in capsys.readouterr().out
    assert _run(register, "status", "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["store"], status["session"], status["mode"]) == ("memory://test", "reports", None)
    assert status["last_rotation"]["pid"]
    assert _run(register, "status") == 0
    assert "session store  memory://test#reports" in capsys.readouterr().out
    for action in ("init", "check"):
        assert _run(register, "store", action) == 0
    capsys.readouterr()
    assert _run(register, "store", "list") == 0
    assert capsys.readouterr().out == "reports\n"
    assert _run(register, "revoke") == 0
    assert "memory://test#reports is empty" in capsys.readouterr().out
    assert _run(register, "logout") == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_register_that_refuses_is_not_said_to_be_good(capsys: pytest.CaptureFixture[str]) -> None:
    """`check --json` has the problem, and fails."""

    class ReadOnly(MemoryRegister):
        def check(self) -> list[str]:
            raise RegisterRefused("permission denied", "grant it")

    with pytest.raises(StoreError, match=r"memory://test does not work: permission denied\. Grant it"):
        _run(ReadOnly(), "store", "check", "--json")
    assert json.loads(capsys.readouterr().out)["good"] is False


def test_no_output_but_that_of_token_shows_a_token(sandbox: Sandbox, tmp_path: Path) -> None:
    """Of a session in a folder."""
    folder = tmp_path / "adh"
    env = {**sandbox.environment("/nowhere"), "ADH_TOKEN_FILE": "", "ADH_STORE": folder.as_uri()}
    _save(sandbox, env)
    secrets = tokens_in(folder / file_name("default"))
    for command in ("status", "me", "refresh", "logout"):
        said = adh(command, env=env)
        assert not any(secret in said.stdout + said.stderr for secret in secrets)


def test_login_makes_the_table_before_a_person_signs_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the sign-in gets the store. Auth objects never make one."""
    done: list[str] = []

    class Counting(MemoryRegister):
        def create(self) -> None:
            done.append("table")

    def login(**options: Any) -> Tokens:
        done.append(f"login to {options['store'].name}#{options['session']}")
        return Tokens("adh_a", "adh_rt_r")

    monkeypatch.setattr(login_command, "login", login)
    monkeypatch.setenv("ADH_CLIENT_ID", "id")
    monkeypatch.setenv("ADH_CLIENT_SECRET", "secret")
    register = Counting()
    assert _run(register, "login") == 0
    assert done == ["table", "login to memory://test#reports"]
    with pytest.raises(StoreError):
        AdhAuth(store=register, session="reports").refresh()
    assert done.count("table") == 1
