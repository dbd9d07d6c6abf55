"""`get_token` and `aget_token`: a token that works now, by the same rotation as every request."""

from __future__ import annotations

import asyncio
import math
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
import requests

from adh_auth import (
    AdhAuth,
    AdhHttpx2Auth,
    AdhHttpxAuth,
    ConfigurationError,
    ReauthorizationRequired,
    RefreshFailed,
    TokenFile,
)
from adh_auth.clients.current_token import check_request
from adh_auth.common.secret import Secret
from adh_auth.testing import Sandbox

from ..support.faults import auth_for, near_its_end
from ..support.processes import PATIENCE, assert_nothing_lost, child

CLASSES = (AdhAuth, AdhHttpxAuth, AdhHttpx2Auth)


class Caller:
    """One class, called from a thread or from a task."""

    def __init__(self, kind: Any, how: str, arguments: dict[str, Any]) -> None:
        self.auth = kind(**arguments)
        self.how = how

    def get_token(self, *arguments: Any, **named: Any) -> str:
        if self.how == "thread":
            return str(self.auth.get_token(*arguments, **named))

        async def main() -> str:
            return str(await self.auth.aget_token(*arguments, **named))

        return anyio.run(main, backend=self.how)


@pytest.fixture(params=["thread", "asyncio", "trio"])
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=CLASSES, ids=lambda kind: kind.__name__)
def caller(request: pytest.FixtureRequest, how: str, arguments: dict[str, Any]) -> Caller:
    return Caller(request.param, how, arguments)


def status(sandbox: Sandbox, token: str) -> int:
    """Return what the API answers to a token."""
    header = {"Authorization": f"Bearer {token}"}
    return requests.get(sandbox.url + "/api/auth/me", headers=header, timeout=PATIENCE).status_code


def test_the_stored_token_is_given_as_long_as_it_lasts(
    sandbox: Sandbox, token_file: Path, caller: Caller
) -> None:
    """No refresh, no lock: it is a read of the file."""
    token = caller.get_token()
    assert type(token) is str
    assert token == TokenFile(token_file).load().access_token
    assert sandbox.counts.refresh_calls == 0


def test_a_token_with_less_left_is_refreshed_first(
    sandbox: Sandbox, token_file: Path, caller: Caller
) -> None:
    """What comes back works, is the file's, and the API has seen no expired one."""
    near_its_end(token_file, 29.0)
    token = caller.get_token()
    assert token == TokenFile(token_file).load().access_token
    assert status(sandbox, token) == 200
    assert (sandbox.counts.refresh_calls, sandbox.counts.unauthorized) == (1, 0)
    assert caller.get_token() == token
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


@pytest.mark.parametrize(("left", "min_life", "refreshes"), [(60, 50, 0), (60, 70, 1), (60, 0, 0)])
def test_min_life_decides(
    sandbox: Sandbox,
    token_file: Path,
    arguments: dict[str, Any],
    left: float,
    min_life: float,
    refreshes: int,
) -> None:
    """In seconds that the token has left by its stored expiry."""
    near_its_end(token_file, left)
    AdhAuth(**arguments).get_token(min_life)
    assert sandbox.counts.refresh_calls == refreshes


def test_without_an_expiry_the_stored_token_counts_as_good(
    sandbox: Sandbox, token_file: Path, caller: Caller
) -> None:
    """Nothing says otherwise."""
    file = TokenFile(token_file)
    file.save(replace(file.load(), expires_at=None))
    assert caller.get_token() == file.load().access_token
    assert sandbox.counts.refresh_calls == 0


def test_a_life_shorter_than_min_life_is_given_all_the_same(
    sandbox: Sandbox, token_file: Path, caller: Caller
) -> None:
    """A refresh per call would spend one refresh token per call."""
    sandbox.token_life = 20
    near_its_end(token_file, 5.0)
    tokens = {caller.get_token() for _ in range(3)}
    assert len(tokens) == 1
    assert status(sandbox, tokens.pop()) == 200
    assert sandbox.counts.refresh_calls == 1


def test_the_second_half_of_a_short_life_is_refreshed(
    sandbox: Sandbox, token_file: Path, arguments: dict[str, Any]
) -> None:
    """Half of its life is as much as such a token can offer."""
    sandbox.token_life = 20
    near_its_end(token_file, 5.0)
    auth, file = AdhAuth(**arguments), TokenFile(token_file)
    auth.get_token()
    record = file.record()
    assert record.rotated_at is not None
    file.note(replace(record, rotated_at=record.rotated_at - 25.0))
    auth.get_token()
    assert sandbox.counts.refresh_calls == 2


def test_a_short_life_that_is_over_is_refreshed(
    sandbox: Sandbox, token_file: Path, arguments: dict[str, Any]
) -> None:
    """Whatever the record says of its first half."""
    sandbox.token_life = 20
    auth, file = AdhAuth(**arguments), TokenFile(token_file)
    near_its_end(token_file, 5.0)
    auth.get_token()
    file.save(replace(file.load(), expires_at=1.0))
    auth.get_token()
    assert sandbox.counts.refresh_calls == 2


def test_what_the_server_has_just_given_is_returned(
    sandbox: Sandbox, token_file: Path, arguments: dict[str, Any]
) -> None:
    """Even if it is over by now, as far as the clocks agree: one call spends one refresh token at most."""
    sandbox.token_life = 1
    sandbox.refresh_seconds = 1.2
    near_its_end(token_file)
    AdhAuth(**arguments).get_token()
    assert sandbox.counts.refresh_calls == 1


def test_a_rejected_token_is_rotated_away_from(sandbox: Sandbox, token_file: Path, caller: Caller) -> None:
    """A handshake's 401 comes to nobody but the caller."""
    old = caller.get_token()
    sandbox.expire()
    new = caller.get_token(rejected=old)
    assert new != old
    assert status(sandbox, new) == 200
    assert caller.get_token(rejected=old) == new
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


def test_what_another_process_has_got_is_adopted(sandbox: Sandbox, caller: Caller) -> None:
    """Its rotation replaced the rejected token already."""
    old = caller.get_token()
    auth_for(sandbox).refresh()
    assert caller.get_token(rejected=old) == auth_for(sandbox).tokens.access_token
    assert sandbox.counts.refresh_calls == 1


def test_another_process_refreshes_meanwhile(sandbox: Sandbox, token_file: Path, caller: Caller) -> None:
    """The caller waits for its lock and takes its pair."""
    near_its_end(token_file)
    hold = sandbox.hold_next()
    code = "from adh_auth import AdhAuth; print(AdhAuth().get_token())"
    with child(code, sandbox.environment(token_file)) as other:
        hold.wait(PATIENCE)
        with ThreadPoolExecutor() as threads:
            mine = threads.submit(caller.get_token)
            hold.release()
            output, errors = other.communicate(timeout=PATIENCE)
            assert output.strip() == mine.result(PATIENCE), errors
    assert sandbox.counts.refresh_calls == 1


def test_threads_share_one_refresh(sandbox: Sandbox, token_file: Path, arguments: dict[str, Any]) -> None:
    """Single flight, as for requests."""
    near_its_end(token_file)
    auth = AdhAuth(**arguments)
    with ThreadPoolExecutor(16) as threads:
        tokens = set(threads.map(lambda _: auth.get_token(), range(16)))
    assert len(tokens) == 1
    assert sandbox.counts.refresh_calls == 1


def test_tasks_share_one_refresh(sandbox: Sandbox, token_file: Path, arguments: dict[str, Any]) -> None:
    """Single flight in one loop, without a thread for each task."""
    near_its_end(token_file)
    auth = AdhAuth(**arguments)
    threads: list[str] = []

    async def main() -> set[str]:
        tasks = [asyncio.create_task(auth.aget_token()) for _ in range(100)]
        await asyncio.sleep(0)
        threads.extend(thread.name for thread in threading.enumerate())
        return set(await asyncio.gather(*tasks))

    assert len(asyncio.run(main())) == 1
    assert threads.count("adh-auth rotation") <= 1  # it may have ended by then
    assert sandbox.counts.refresh_calls == 1


def test_a_dead_session_raises_and_sends_nothing_more(
    sandbox: Sandbox, token_file: Path, caller: Caller
) -> None:
    """The library's own error, without a client's class; the second call costs the server nothing."""
    near_its_end(token_file)
    sandbox.revoke()
    for _ in range(2):
        with pytest.raises(ReauthorizationRequired) as caught:
            caller.get_token()
        assert type(caught.value) is ReauthorizationRequired
    assert sandbox.counts.refresh_calls == 1


def test_an_outage_raises_and_leaves_requests_as_they_were(
    sandbox: Sandbox, token_file: Path, arguments: dict[str, Any]
) -> None:
    """The stored token still lives: a request goes out with it, without another try to refresh."""
    near_its_end(token_file)
    sandbox.fail_next(count=None, status=404)
    auth = AdhAuth(**arguments)
    with pytest.raises(RefreshFailed):
        auth.get_token()
    calls = sandbox.counts.refresh_calls
    assert requests.get(sandbox.url + "/api/auth/me", auth=auth, timeout=PATIENCE).status_code == 200
    assert sandbox.counts.refresh_calls == calls


def test_a_cancelled_task_does_not_cost_the_session(
    sandbox: Sandbox, token_file: Path, arguments: dict[str, Any]
) -> None:
    """The job goes on without it."""
    near_its_end(token_file)
    auth, hold = AdhAuth(**arguments), sandbox.hold_next()

    async def main() -> None:
        task = asyncio.create_task(auth.aget_token())
        await asyncio.to_thread(hold.wait, PATIENCE)
        task.cancel()
        hold.release()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    auth.get_token()
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


@pytest.mark.parametrize("min_life", [-1, math.nan, math.inf, "30", True, None])
def test_a_wrong_min_life_is_refused(caller: Caller, min_life: Any) -> None:
    """Before anything is read or sent."""
    with pytest.raises(ConfigurationError, match="min_life must be") as caught:
        caller.get_token(min_life)
    assert caught.value.setting == "min_life"


@pytest.mark.parametrize("rejected", ["", b"adh_secret", 7])
def test_a_wrong_rejected_token_is_refused(rejected: Any) -> None:
    """Without a word of what it was."""
    with pytest.raises(ConfigurationError, match="rejected must be") as caught:
        check_request(30.0, Secret(rejected))
    assert caught.value.setting == "rejected"
    assert "adh_secret" not in str(caught.value)


def test_no_traceback_shows_a_token(sandbox: Sandbox, arguments: dict[str, Any]) -> None:
    """With the locals of every frame of this library (rule 13)."""
    auth = AdhAuth(**arguments)
    token = auth.get_token()
    sandbox.fail_next(count=None, status=404)
    with pytest.raises(RefreshFailed) as caught:
        auth.get_token(rejected=token)
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    ours = [frame for frame in shown.stack if "adh_auth" in frame.filename.split("tests")[0]]
    assert ours
    assert token not in str([frame.locals for frame in ours if "/tests/" not in frame.filename])
