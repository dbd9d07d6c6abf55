"""``adh-auth save FILE --store``: a session moves from a token file to a store, and a kill loses nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from adh_auth import AdhAuth, LockTimeout, StoreError, TokenFile, TokenFileError, Tokens, TokenStore
from adh_auth.cli import move
from adh_auth.cli.move import move_session
from adh_auth.store.factory import session_in
from adh_auth.store.record import REFUSED, Record
from adh_auth.store.register import RegisterRefused, RegisterUnavailable
from adh_auth.store.reservation import reserved_path
from adh_auth.testing import MemoryRegister, Sandbox
from adh_auth.tokens import MOVING_TO, Stored, fingerprint

from ..support.cli import adh, environment, one_line_of, started, tokens_in
from ..support.processes import PATIENCE

KINDS = ("folder", pytest.param("postgresql", marks=pytest.mark.servers))


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty store."""
    if request.param == "folder":
        yield (tmp_path / "sessions").as_uri()
        return
    server = request.getfixturevalue("postgresql_server")
    server.execute("DROP TABLE IF EXISTS adh_auth_session")
    yield server.url()


@pytest.fixture
def env(sandbox: Sandbox, store: str) -> dict[str, str]:
    """The environment of the programs that are to use the store."""
    app = sandbox.environment("/nowhere")
    del app["ADH_TOKEN_FILE"]
    return {**app, "ADH_STORE": store, "ADH_SESSION": "reports"}


@pytest.fixture
def old(sandbox: Sandbox, token_file: Path) -> dict[str, Any]:
    """The arguments of a program that still uses the file."""
    app = {"client_id": sandbox.client_id, "client_secret": sandbox.client_secret}
    return {"token_file": token_file, "base_url": sandbox.url, **app}


def _get(sandbox: Sandbox, auth: AdhAuth) -> int:
    return requests.get(f"{sandbox.url}/api/x", auth=auth, timeout=PATIENCE).status_code


def test_a_session_moves_with_all_that_is_known_of_it(
    sandbox: Sandbox, token_file: Path, env: dict[str, str], store: str, old: dict[str, Any]
) -> None:
    """Pair, unknown keys and last rotation. The file says where it went; both locks are free."""
    AdhAuth(**old).refresh()
    secrets = tokens_in(token_file)
    mapping = json.loads(token_file.read_text())
    token_file.write_text(json.dumps({**mapping, "mine": 7}))
    said = adh("save", str(token_file), env=env)
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.startswith("moved: ")
    assert "Remove it once there are none" in said.stdout
    assert not any(secret in said.stdout + token_file.read_text() for secret in secrets)
    moved = TokenStore(store, "reports").load()
    assert {moved.access_token, moved.refresh_token} == secrets
    status = json.loads(adh("status", "--json", env=env).stdout)
    assert status["last_rotation"]["pid"]
    assert adh("refresh", env=env).returncode == 0
    assert (sandbox.counts.rotations, sandbox.counts.reused) == (2, 0)
    with pytest.raises(
        TokenFileError, match=r"it was moved to session reports of \w+://.*ADH_SESSION=reports"
    ):
        AdhAuth(**old).refresh()
    again = adh("save", str(token_file), env=env)
    assert "holds no session any more" in one_line_of(again)
    assert TokenStore(store, "reports").load().refresh_token != moved.refresh_token


def test_a_program_that_runs_is_told(
    sandbox: Sandbox, token_file: Path, env: dict[str, str], old: dict[str, Any]
) -> None:
    """Its next request raises what says where the session is."""
    auth = AdhAuth(**old)
    assert _get(sandbox, auth) == 200
    assert adh("save", str(token_file), env=env).returncode == 0
    with pytest.raises(TokenFileError, match="holds no session any more") as caught:
        _get(sandbox, auth)
    assert "PASSWORD" not in str(caught.value)


def test_json_names_the_store(token_file: Path, env: dict[str, str]) -> None:
    """One object."""
    facts = json.loads(adh("save", "--json", str(token_file), env=env).stdout)
    assert facts["session"] == "reports"


def test_the_file_can_be_signed_in_anew(sandbox: Sandbox, token_file: Path, env: dict[str, str]) -> None:
    """It is a token file again, which refreshes."""
    assert adh("save", str(token_file), env=env).returncode == 0
    reply = json.dumps(sandbox.sign_in())
    assert adh("save", "--token-file", str(token_file), env=env, input=reply).returncode == 0
    assert adh("refresh", "--token-file", str(token_file), env=env).returncode == 0


def test_a_reply_of_the_exchange_moves_too(
    sandbox: Sandbox, tmp_path: Path, env: dict[str, str], store: str
) -> None:
    """It is a token file; its life counts from when it was saved."""
    reply = tmp_path / "reply.json"
    reply.write_text(json.dumps(sandbox.sign_in()))
    assert adh("save", str(reply), env=env).returncode == 0
    expires_at = TokenStore(store, "reports").load().expires_at
    assert expires_at is not None
    assert "access_token" not in reply.read_text()


def test_what_is_no_token_file_stays(tmp_path: Path, env: dict[str, str], store: str) -> None:
    """Nothing is moved and nothing is changed."""
    file = tmp_path / "x.json"
    file.write_text("{}")
    assert "is not a usable token file" in one_line_of(adh("save", str(file), env=env))
    assert file.read_text() == "{}"
    assert "does not exist. Name the token file" in one_line_of(
        adh("save", str(tmp_path / "none.json"), env=env)
    )


def test_a_refresh_in_flight_is_waited_for(
    sandbox: Sandbox, token_file: Path, env: dict[str, str], store: str
) -> None:
    """The pair that another process gets meanwhile is the one that moves."""
    hold = sandbox.hold_next(on="refresh")
    with started("refresh", "--token-file", str(token_file), env=env) as refresh:
        hold.wait()
        with started("save", str(token_file), env=env) as save:
            hold.release()
            assert refresh.wait(PATIENCE) == 0
            assert save.wait(PATIENCE) == 0
    assert adh("refresh", env=env).returncode == 0
    assert (sandbox.counts.rotations, sandbox.counts.reused) == (2, 0)


def test_the_pair_of_a_killed_process_moves(
    sandbox: Sandbox, token_file: Path, env: dict[str, str], store: str
) -> None:
    """What it has left beside the file replaces what is in it."""
    spent = Stored.from_bytes(token_file.read_bytes())
    fresh = Stored.of(Tokens("adh_fresh", "adh_rt_fresh", 2e9), {}, {}).in_place_of(spent)
    beside = Path(reserved_path(str(token_file)))
    beside.write_bytes(fresh.to_bytes())
    beside.chmod(0o600)
    assert adh("save", str(token_file), env=env).returncode == 0
    assert TokenStore(store, "reports").load().refresh_token == "adh_rt_fresh"


#: The steps of a move, in their order.
STEPS = [(step, moment) for step in ("mark_moving", "take_over", "retire") for moment in ("before", "after")]
KILLED = """
import os, sys
from adh_auth.cli import main
from adh_auth.store.registry import RegistryStore
from adh_auth.store.token_file import TokenFile
step, moment, *arguments = sys.argv[1:]

def killed(work):
    def run(*given, **named):
        if moment == "after":
            work(*given, **named)
        os._exit(9)
    return run

for kind in (TokenFile, RegistryStore):
    if step in vars(kind):
        setattr(kind, step, killed(getattr(kind, step)))
sys.exit(main.main(arguments))
"""


def _killed(step: str, moment: str, token_file: Path, env: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, step, moment, "save", str(token_file)],
        env=environment(env),
        capture_output=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 9, done.stderr


@pytest.mark.parametrize(("step", "moment"), STEPS)
def test_a_kill_at_each_step_loses_nothing(
    step: str, moment: str, sandbox: Sandbox, token_file: Path, env: dict[str, str], old: dict[str, Any]
) -> None:
    """The same command again goes on; meanwhile the token is never sent from two places."""
    _killed(step, moment, token_file, env)
    sandbox.expire()
    in_store = adh("refresh", env=env).returncode == 0
    try:
        AdhAuth(**old).refresh()
        in_file = True
    except TokenFileError:
        in_file = False
    assert not (in_store and in_file)
    again = adh("save", str(token_file), env=env)
    assert again.returncode == 0 or "holds no session any more" in again.stderr
    assert adh("refresh", env=env).returncode == 0
    with pytest.raises(TokenFileError, match="holds no session any more"):
        TokenFile(token_file).load()
    assert (sandbox.counts.reused, sandbox.counts.refused) == (0, 0)


def test_a_half_moved_file_serves_until_its_token_expires(
    sandbox: Sandbox, token_file: Path, env: dict[str, str], old: dict[str, Any]
) -> None:
    """And then says what to run."""
    _killed("take_over", "before", token_file, env)
    auth = AdhAuth(**old)
    assert _get(sandbox, auth) == 200
    sandbox.expire()
    with pytest.raises(TokenFileError, match=r"is being moved to .*run it again: adh-auth save .* --store"):
        _get(sandbox, auth)
    assert sandbox.counts.refresh_calls == 0


# Over a register in memory.


class Failing(MemoryRegister):
    """Its next `put` fails: before the change, or after it."""

    failure: Exception | None = None
    after = False

    def put(self, *arguments: Any) -> bool:
        if self.failure is not None and self.after:
            super().put(*arguments)
        if self.failure is not None:
            raise self.failure
        return super().put(*arguments)


def test_a_store_that_refuses_leaves_the_file_as_it_was(
    sandbox: Sandbox, token_file: Path, old: dict[str, Any]
) -> None:
    """The session goes on there."""
    register = Failing()
    register.failure = RegisterRefused("permission denied", "Grant it")
    with pytest.raises(StoreError, match="permission denied"):
        move_session(TokenFile(token_file), session_in(register, "reports"))
    assert MOVING_TO not in json.loads(token_file.read_text())
    AdhAuth(**old).refresh()
    assert sandbox.counts.rotations == 1


def test_a_lost_answer_keeps_the_file_from_refreshing(
    sandbox: Sandbox, token_file: Path, old: dict[str, Any]
) -> None:
    """The store may have the session: the move is to be finished."""
    register = Failing()
    register.failure, register.after = RegisterRefused("it said", "so"), True
    store = session_in(register, "reports")
    with pytest.raises(StoreError):
        move_session(TokenFile(token_file), store)
    with pytest.raises(TokenFileError, match="is being moved"):
        AdhAuth(**old).refresh()
    register.failure = None
    store.save(Tokens("adh_newer", "adh_rt_newer"))  # what a machine has got there meanwhile, marks kept
    move_session(TokenFile(token_file), store)
    assert store.load().refresh_token == "adh_rt_newer"
    assert sandbox.counts.refresh_calls == 0


def test_a_store_out_of_reach_keeps_the_file_from_refreshing(token_file: Path, old: dict[str, Any]) -> None:
    """What can't be read may be there."""
    register = MemoryRegister()

    class Down(Failing):
        def get(self, session: str) -> Any:
            if self.failure is not None and self.after:
                raise RegisterRefused("down", "wait")
            return super().get(session)

        def put(self, *arguments: Any) -> bool:
            self.after = True
            raise RegisterUnavailable("connection refused")

    down = Down()
    down.failure = RegisterRefused("down", "wait")
    with pytest.raises(StoreError):
        move_session(TokenFile(token_file), session_in(down, "reports"))
    with pytest.raises(TokenFileError, match="is being moved"):
        AdhAuth(**old).refresh()
    move_session(TokenFile(token_file), session_in(register, "reports"))
    assert TokenStore(register, "reports").load()


def test_what_is_recorded_moves_along(token_file: Path) -> None:
    """A session that was refused is refused there without a call."""
    file, register = TokenFile(token_file), MemoryRegister()
    about = fingerprint(file.load().refresh_token)
    file.note(Record(state=REFUSED, about=about, at=1.0, pid=7, host="h"))
    move_session(file, session_in(register, "reports"))
    record = session_in(register, "reports").look().record
    assert (record.state, record.about) == (REFUSED, about)


def test_it_waits_for_a_refresh_of_the_session_that_is_there(token_file: Path) -> None:
    """Under the lease of the store, too."""
    register = MemoryRegister()
    store = session_in(register, "reports")
    store.save(Tokens("adh_other", "adh_rt_other"))
    row = register.get("reports")
    assert row is not None
    assert register.take("reports", row.version, "someone", 1000.0)
    seen: list[str] = []

    class Clock:
        def monotonic(self) -> float:
            return 0.0

        def wall(self) -> float:
            return 0.0

        def sleep(self, seconds: float) -> None:
            seen.append("waited")
            register.release("reports", "someone")

    from adh_auth.store.registry import RegistryStore

    move_session(TokenFile(token_file), RegistryStore(register, "reports", clock=Clock()))
    assert seen == ["waited"]
    assert TokenStore(register, "reports").load().access_token != "adh_other"


def test_the_lock_of_the_file_is_taken(token_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another process has it, nothing is changed on either side."""
    monkeypatch.setattr(move, "SAVE_TIMEOUT", 0.05)
    register, before = MemoryRegister(), token_file.read_bytes()
    with TokenFile(token_file).locked(PATIENCE), pytest.raises(LockTimeout):
        move_session(TokenFile(token_file), session_in(register, "reports"))
    assert (register.sessions(), token_file.read_bytes()) == ([], before)
