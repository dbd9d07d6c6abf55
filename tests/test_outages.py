"""The auth endpoint in trouble, and the herd that meets it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests

from adh_auth import AdhAuth, ConfigurationError, ReauthorizationRequired, RefreshFailed, TokenFile, steps
from adh_auth.attempts import FAILED
from adh_auth.testing import Sandbox

from .support import PATIENCE, Family, assert_nothing_lost, child


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between tries are short where their length is not what is tested."""
    monkeypatch.setattr(steps, "PAUSES", (0.01, 0.02, 0.03))


@pytest.fixture(params=["requests", "httpx", "httpx2"])
def get(request: pytest.FixtureRequest, arguments: dict[str, Any]) -> Callable[[str], Any]:
    """A GET with the plugin of each client."""
    import httpx
    import httpx2

    from adh_auth import AdhHttpx2Auth, AdhHttpxAuth

    module, auth = {"requests": (requests, AdhAuth), "httpx": (httpx, AdhHttpxAuth), "httpx2": (httpx2, AdhHttpx2Auth)}[request.param]
    made = auth(**arguments)  # type: ignore[operator]
    return lambda url: module.get(url, auth=made, timeout=PATIENCE)  # type: ignore[attr-defined]


FAULTS: dict[str, list[dict[str, Any]]] = {
    "503": [{"status": 503}],
    "500 then 502": [{"status": 500}, {"status": 502, "body": b"<html>bad gateway</html>"}],
    "429": [{"status": 429, "retry_after": 0}],
    "dropped before the commit": [{"drop": "before"}, {"drop": "before"}],
    "a portal's page": [{"status": 200, "body": b"<html>please sign in</html>"}],
    "an empty body": [{"status": 200, "body": b""}],
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.usefixtures("soon")
def test_trouble_that_passes_is_ridden_out(name: str, sandbox: Sandbox, token_file: Path, get: Callable[[str], Any]) -> None:
    """The caller sees a 200 and no trouble."""
    for fault in FAULTS[name]:
        sandbox.fail_next(**fault)
    sandbox.expire()
    assert get(sandbox.url + "/api/auth/me").status_code == 200
    assert_nothing_lost(sandbox, token_file)


def test_the_pause_that_was_asked_for_is_kept(sandbox: Sandbox, arguments: dict[str, Any]) -> None:
    """429 with Retry-After: the next try comes no sooner."""
    sandbox.fail_next(status=429, retry_after=2)
    AdhAuth(**arguments).refresh()
    calls = [call.time for call in sandbox.log if call.path == "/api/auth/refresh"]
    assert len(calls) == 2
    assert calls[1] - calls[0] >= 2.0


def test_a_pause_beyond_the_deadline_is_the_callers(sandbox: Sandbox, token_file: Path, arguments: dict[str, Any]) -> None:
    """A Retry-After that is longer than the deadline fails at once, with the seconds as an attribute, and is respected by the next try."""
    sandbox.fail_next(status=429, retry_after=50)
    auth = AdhAuth(**arguments)
    for _ in range(2):
        with pytest.raises(RefreshFailed) as caught:
            auth.refresh()
        assert (caught.value.retry_after, caught.value.status) == (50.0, 429)
        assert caught.value.request_id
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("drop", ["after", "midway"])
def test_a_reply_lost_after_the_commit(drop: str, sandbox: Sandbox, token_file: Path, get: Callable[[str], Any]) -> None:
    """One more try: on a server with a grace window it recovers."""
    sandbox.grace = 60.0
    sandbox.fail_next(drop=drop)
    sandbox.expire()
    assert get(sandbox.url + "/api/auth/me").status_code == 200
    assert sandbox.counts.refresh_calls == 2
    assert_nothing_lost(sandbox, token_file)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("drop", ["after", "midway"])
def test_a_reply_lost_on_a_strict_server(drop: str, sandbox: Sandbox, token_file: Path, get: Callable[[str], Any]) -> None:
    """The error says that a reply was lost, and when; the file is as it was; and the next call costs the server nothing."""
    sandbox.fail_next(drop=drop)
    sandbox.expire()
    before = token_file.read_bytes()
    started = time.time()
    for _ in range(2):
        with pytest.raises(ReauthorizationRequired, match="reply to an earlier try was lost at") as caught:
            get(sandbox.url + "/api/auth/me")
        assert caught.value.reply_lost_at is not None
        assert started - 1 <= caught.value.reply_lost_at <= time.time()
    assert sandbox.counts.refresh_calls == 2
    assert token_file.read_bytes() == before


def test_down_for_good_and_back(sandbox: Sandbox, token_file: Path, get: Callable[[str], Any]) -> None:
    """RefreshFailed inside the documented bound, the pair intact; the next call after the endpoint's return works without a restart."""
    sandbox.expire()
    sandbox.fail_next(None, status=503)
    before = token_file.read_bytes()
    started = time.monotonic()
    with pytest.raises(RefreshFailed, match="still good"):
        get(sandbox.url + "/api/auth/me")
    assert time.monotonic() - started < steps.REFRESH_DEADLINE
    assert token_file.read_bytes() == before
    sandbox.heal()
    assert get(sandbox.url + "/api/auth/me").status_code == 200
    assert_nothing_lost(sandbox, token_file)


def test_nobody_listens(sandbox: Sandbox, token_file: Path, arguments: dict[str, Any], family: Family) -> None:
    """A refused connection is told as such, within the bound; nothing was sent, so that no reply can have been lost."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for cls in (AdhAuth, family.auth):
        auth = cls(**{**arguments, "base_url": f"http://127.0.0.1:{port}"})
        with pytest.raises(RefreshFailed, match="refused") as caught:
            auth.refresh()
        assert caught.value.reply_lost_at is None
    assert_nothing_lost(sandbox, token_file)


def test_an_endpoint_that_never_answers_is_given_up_on(
    sandbox: Sandbox, token_file: Path, get: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole refresh ends at its deadline, whatever the server does with the connection."""
    monkeypatch.setattr(steps, "REFRESH_DEADLINE", 1.5)
    sandbox.expire()
    hold = sandbox.hold_next(on="refresh", at="before")
    started = time.monotonic()
    with pytest.raises(RefreshFailed, match="A reply may have been lost"):
        get(sandbox.url + "/api/auth/me")
    assert time.monotonic() - started < 15
    assert hold.reached.is_set()
    hold.release()


def test_the_bounds_are_in_order() -> None:
    """A waiter is more patient than a holder can be slow, and the pauses fit into the deadline."""
    assert sum(steps.PAUSES) < steps.REFRESH_DEADLINE < steps.LOCK_TIMEOUT


def test_invalid_grant_is_remembered(sandbox: Sandbox, token_file: Path, get: Callable[[str], Any]) -> None:
    """A dead session costs the server one call; a new sign-in lifts that at once, without a restart."""
    sandbox.expire()
    sandbox.revoke()
    sandbox.fail_next(3, on="me", status=401, body=b'{"code": "token_expired"}')
    for _ in range(3):
        with pytest.raises(ReauthorizationRequired):
            get(sandbox.url + "/api/auth/me")
    assert sandbox.counts.refresh_calls == 1
    sandbox.heal()
    sandbox.write_token_file(token_file)
    assert get(sandbox.url + "/api/auth/me").status_code == 200


def test_invalid_client_is_a_configuration_error(sandbox: Sandbox, token_file: Path, arguments: dict[str, Any], family: Family) -> None:
    """A client that the server refuses is the setting's fault, not the session's."""
    for cls in (AdhAuth, family.auth):
        with pytest.raises(ConfigurationError, match="ADH_CLIENT_SECRET") as caught:
            cls(**{**arguments, "client_secret": "wrong"}).refresh()
        assert caught.value.code == "invalid_client"
    assert_nothing_lost(sandbox, token_file)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    "body",
    [
        b'{"access_token": "adh_x", "refresh_token": ""}',
        b'{"access_token": "a\\r\\nX: y", "refresh_token": "adh_rt_x"}',
        b'{"access_token": 5, "refresh_token": "adh_rt_x"}',
    ],
)
def test_a_reply_of_no_use(body: bytes, sandbox: Sandbox, token_file: Path, arguments: dict[str, Any]) -> None:
    """A reply whose tokens are not sane is a typed error; the old pair is kept."""
    before = token_file.read_bytes()
    sandbox.fail_next(status=200, body=body)
    with pytest.raises(RefreshFailed, match="of no use"):
        AdhAuth(**arguments).refresh()
    assert token_file.read_bytes() == before
    assert_nothing_lost(sandbox, token_file)


def test_redirects_of_the_endpoint_are_not_followed(sandbox: Sandbox, arguments: dict[str, Any], family: Family) -> None:
    """A redirect would take the refresh token along."""
    for cls in (AdhAuth, family.auth):
        sandbox.fail_next(status=307, headers={"Location": sandbox.url + "/api/auth/refresh"})
        with pytest.raises(RefreshFailed, match="redirects are not followed"):
            cls(**arguments).refresh()
    assert sandbox.counts.rotations == 0


def test_a_background_refresh_that_fails_is_not_begun_by_every_request(
    sandbox: Sandbox, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the old token lives, trouble with the endpoint costs one attempt, not one for each request."""
    monkeypatch.setattr(steps, "PAUSES", ())
    sandbox.token_life = 30.0
    auth = AdhAuth(**arguments, refresh_ahead=60)
    auth.refresh()
    sandbox.fail_next(None, status=503)
    with requests.Session() as session:
        session.auth = auth
        for _ in range(5):
            assert session.get(sandbox.url + "/api/auth/me").status_code == 200
            assert auth._core._job is not None
            auth._core._job.join()
    assert sandbox.counts.refresh_calls == 2
    assert TokenFile(arguments["token_file"]).record().state == FAILED


HERD = """
import json, sys, threading, time
from adh_auth import AdhAuth
import requests
print("ready", flush=True)
sys.stdin.readline()
url, threads = sys.argv[1], int(sys.argv[2])
outcomes = []
auth = AdhAuth()
def work():
    try:
        outcomes.append(str(requests.get(url, auth=auth, timeout=90).status_code))
    except Exception as error:
        outcomes.append(type(error).__name__)
started = time.monotonic()
workers = [threading.Thread(target=work) for _ in range(threads)]
for worker in workers: worker.start()
for worker in workers: worker.join()
print(json.dumps([outcomes, time.monotonic() - started]), flush=True)
"""


def herd(sandbox: Sandbox, token_file: Path, processes: int, threads: int) -> tuple[list[str], float]:
    """What each thread of each process came to, and the seconds that the slowest took."""
    import json

    with ExitStack() as stack:
        code = HERD.replace("sys.argv[1], int(sys.argv[2])", f"{sandbox.url + '/api/auth/me'!r}, {threads}")
        children = [stack.enter_context(child(code, sandbox.environment(token_file))) for _ in range(processes)]
        for process in children:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in children:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        outcomes, slowest = [], 0.0
        for process in children:
            output, errors = process.communicate(timeout=90)
            assert output, errors
            mine, seconds = json.loads(output)
            outcomes += mine
            slowest = max(slowest, seconds)
    return outcomes, slowest


def test_a_herd_in_an_outage(sandbox: Sandbox, token_file: Path) -> None:
    """16 processes of 2 threads: at most 24 refresh calls in all, and everyone has a typed error within 60 seconds."""
    sandbox.expire()
    sandbox.fail_next(None, status=503)
    outcomes, slowest = herd(sandbox, token_file, 16, 2)
    assert outcomes == ["RefreshFailed"] * 32
    assert slowest < 60
    assert sandbox.counts.refresh_calls <= 24
    sandbox.heal()
    assert_nothing_lost(sandbox, token_file)


def test_a_herd_with_a_dead_refresh_token(sandbox: Sandbox, token_file: Path) -> None:
    """8 processes: exactly one call reaches the server, and everyone is told to sign in."""
    sandbox.revoke()
    sandbox.fail_next(None, on="me", status=401, body=b'{"code": "token_expired"}')
    outcomes, _ = herd(sandbox, token_file, 8, 1)
    assert outcomes == ["ReauthorizationRequired"] * 8
    assert sandbox.counts.refresh_calls == 1


def test_one_outcome_for_all_threads(sandbox: Sandbox, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait for one attempt share its failure, each with an exception of its own."""
    monkeypatch.setattr(steps, "PAUSES", ())
    auth = AdhAuth(**arguments)
    sandbox.fail_next(status=503)
    hold = sandbox.hold_next(on="refresh", at="before")
    errors: list[BaseException] = []

    def work() -> None:
        try:
            auth.refresh()
        except RefreshFailed as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    hold.wait(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while sum("wait" in str(frame) for frame in _frames(threads)) < 8:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    hold.release()
    for thread in threads:
        thread.join()
    assert len({id(error) for error in errors}) == 8
    assert sandbox.counts.refresh_calls == 1


def _frames(threads: list[threading.Thread]) -> list[str]:
    import sys

    frames = sys._current_frames()
    return [frames[thread.ident].f_code.co_name for thread in threads if thread.ident in frames]
