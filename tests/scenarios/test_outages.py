"""A failing endpoint, alone and before a herd: retried, shared, remembered, never taken for a logout."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
import requests

from adh_auth import (
    AdhAuth,
    AdhAuthError,
    AdhHttpx2Auth,
    AdhHttpxAuth,
    ConfigurationError,
    ReauthorizationRequired,
    RefreshFailed,
    TokenFile,
)
from adh_auth.common import limits
from adh_auth.rotation import attempt
from adh_auth.rotation.job import Job
from adh_auth.store.file_lock import RotationLock
from adh_auth.testing import Sandbox

from ..support.faults import ONE_CALL, auth_for, get, near_its_end, wait_until
from ..support.processes import PATIENCE, assert_nothing_lost, child

#: Each client's way to a status, given the URL and the arguments of its auth class.
CLIENTS: dict[str, Callable[..., int]] = {
    "requests": lambda url, **given: requests.get(url, auth=AdhAuth(**given), timeout=60).status_code,
    "httpx": lambda url, **given: httpx.get(url, auth=AdhHttpxAuth(**given), timeout=60).status_code,
    "httpx2": lambda url, **given: int(httpx2.get(url, auth=AdhHttpx2Auth(**given), timeout=60).status_code),
}


@pytest.fixture(params=CLIENTS)
def call(request: pytest.FixtureRequest, sandbox: Sandbox, arguments: dict[str, Any]) -> Callable[[], int]:
    """A call through a fresh client, once for each of the three, after the access token has expired."""
    sandbox.expire()
    return lambda: CLIENTS[request.param](sandbox.url + "/api/auth/me", **arguments)


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between tries that are not what the test is about."""
    monkeypatch.setattr(attempt, "PAUSES", (0.02, 0.02, 0.02))


# Failures that pass.

PASSING: dict[str, tuple[dict[str, Any], ...]] = {
    "503": ({"status": 503},),
    "500 then 502": ({"status": 500}, {"status": 502}),
    "dropped before the commit": ({"drop": "before"},),
    "dropped twice": ({"drop": "before"}, {"drop": "before"}),
    "a portal's page": ({"status": 200, "body": b"<html>Welcome to the hotel</html>"},),
}


@pytest.mark.parametrize("faults", PASSING.values(), ids=PASSING)
def test_trouble_that_passes(
    sandbox: Sandbox, token_file: Path, call: Callable[[], int], short_pauses: None, faults: Any
) -> None:
    """A blip is ridden out with a few tries, and the caller sees nothing of it."""
    for fault in faults:
        sandbox.fail_next(**fault)
    assert call() == 200
    assert sandbox.counts.refresh_calls == len(faults) + 1
    assert_nothing_lost(sandbox, token_file)


def test_pause_that_grows(sandbox: Sandbox, token_file: Path) -> None:
    """The pauses between tries are the documented ones, so that a failing endpoint can recover."""
    sandbox.fail_next(2, status=503)
    auth_for(sandbox).refresh()
    first, second, third = _refresh_times(sandbox)
    assert second - first >= attempt.PAUSES[0]
    assert third - second >= attempt.PAUSES[1] > attempt.PAUSES[0]
    assert_nothing_lost(sandbox, token_file)


def test_pause_that_was_asked_for(sandbox: Sandbox, token_file: Path, short_pauses: None) -> None:
    """A 429 with `Retry-After` is tried again not before that time, and soon after it."""
    sandbox.fail_next(status=429, retry_after=1.2)
    auth_for(sandbox).refresh()
    first, second = _refresh_times(sandbox)
    assert 1.2 <= second - first < 6
    assert_nothing_lost(sandbox, token_file)


def test_pause_that_is_too_long(sandbox: Sandbox, token_file: Path, short_pauses: None) -> None:
    """A `Retry-After` beyond the deadline is not waited for; the error says so, and until then no client
    calls again.
    """
    sandbox.expire()
    sandbox.fail_next(status=429, retry_after=300)
    auth = auth_for(sandbox)
    for caller in (auth, auth, auth_for(sandbox)):
        with pytest.raises(RefreshFailed) as caught:
            get(sandbox, caller)
        assert (caught.value.retry_after, caught.value.status) == (300, 429)
    assert sandbox.counts.refresh_calls == 1
    Path(f"{token_file}.record").unlink()  # stands for the minute after which it is tried all the same
    assert_nothing_lost(sandbox, token_file)


def _refresh_times(sandbox: Sandbox) -> list[float]:
    return [entry.time for entry in sandbox.log if entry.path == "/api/auth/refresh"]


# A reply that never arrives.


@pytest.mark.parametrize("drop", ["after", "midway"])
def test_lost_reply_on_a_server_with_grace(
    sandbox: Sandbox, token_file: Path, call: Callable[[], int], short_pauses: None, drop: str
) -> None:
    """A reply that is lost after the commit is asked for once more, which a server with a grace window
    answers.
    """
    sandbox.grace = 60
    sandbox.fail_next(drop=drop)
    assert call() == 200
    assert (sandbox.counts.rotations, sandbox.counts.refresh_calls) == (1, 2)
    assert_nothing_lost(sandbox, token_file)


@pytest.mark.parametrize("drop", ["after", "midway"])
def test_lost_reply_on_a_strict_server(
    sandbox: Sandbox, token_file: Path, call: Callable[[], int], short_pauses: None, drop: str
) -> None:
    """Where the second try is refused, the error says that a reply was lost, and when; no process tries a
    third time.
    """
    before, started = token_file.read_bytes(), time.time()
    sandbox.fail_next(drop=drop)
    for ask in (call, auth_for(sandbox).refresh):
        with pytest.raises(
            ReauthorizationRequired, match=r"reply to an earlier try was lost at \d{4}-\d\d-\d\d "
        ) as caught:
            ask()
        assert started - 1 <= (caught.value.reply_lost_at or 0) <= time.time()
    assert sandbox.counts.refresh_calls == 2
    assert token_file.read_bytes() == before


# Failures that stay.


def test_down_for_good(sandbox: Sandbox, token_file: Path) -> None:
    """An endpoint that refuses connections costs an error in a few seconds and no token; its return needs no
    restart.
    """
    auth, before = auth_for(sandbox), token_file.read_bytes()
    sandbox.expire()
    sandbox.stop()
    started = time.monotonic()
    with pytest.raises(RefreshFailed, match="still good"):
        auth.refresh()
    assert time.monotonic() - started < sum(attempt.PAUSES) + 10
    assert token_file.read_bytes() == before
    sandbox.start()
    assert get(sandbox, auth) == 200
    assert_nothing_lost(sandbox, token_file)


def test_answers_503_for_good(
    sandbox: Sandbox, token_file: Path, call: Callable[[], int], short_pauses: None
) -> None:
    """An endpoint that keeps failing is called as often as there are pauses and once more; the pair is as
    it was.
    """
    before = token_file.read_bytes()
    sandbox.fail_next(None, status=503)
    with pytest.raises(RefreshFailed) as caught:
        call()
    assert caught.value.status == 503
    assert caught.value.request_id
    assert sandbox.counts.refresh_calls == len(attempt.PAUSES) + 1
    assert token_file.read_bytes() == before
    sandbox.heal()
    assert call() == 200
    assert_nothing_lost(sandbox, token_file)


def test_never_answers(sandbox: Sandbox, token_file: Path) -> None:
    """The documented bound, in real time: an endpoint that takes the call and says nothing is given up on
    after `REFRESH_DEADLINE`.
    """
    auth = auth_for(sandbox)
    sandbox.expire()
    with sandbox.hold_next(at="before"):
        started = time.monotonic()
        with pytest.raises(RefreshFailed, match="may have been lost"):
            auth.refresh()
        taken = time.monotonic() - started
    assert limits.REFRESH_DEADLINE - 1 < taken < limits.REFRESH_DEADLINE + 3 < limits.LOCK_TIMEOUT
    assert sandbox.counts.refresh_calls == 1
    wait_until(lambda: len(_refresh_times(sandbox)) == 1)


USELESS = {
    "HTML with status 200": b"<!doctype html><title>Sign in</title>",
    "an empty body": b"",
    "a reply cut short": b'{"access_token": "adh_x", "refresh_tok',
    "an error with status 200": b'{"error": "temporarily_unavailable"}',
    "a list": b"[1, 2]",
    "an empty token": b'{"access_token": "", "refresh_token": "adh_rt_x"}',
    "a number for a token": b'{"access_token": 7, "refresh_token": "adh_rt_x"}',
    "a token that would end its header": b'{"access_token": "a\\r\\nX: y", "refresh_token": "adh_rt_x"}',
}


@pytest.mark.parametrize("body", USELESS.values(), ids=USELESS)
def test_reply_of_no_use(
    sandbox: Sandbox, token_file: Path, call: Callable[[], int], short_pauses: None, body: bytes
) -> None:
    """A reply that holds no pair is a failed refresh, whatever its status; the stored pair stays."""
    before = token_file.read_bytes()
    sandbox.fail_next(None, status=200, body=body)
    with pytest.raises(RefreshFailed):
        call()
    assert token_file.read_bytes() == before
    sandbox.heal()
    assert_nothing_lost(sandbox, token_file)


def test_client_that_the_server_refuses(
    sandbox: Sandbox, token_file: Path, arguments: dict[str, Any]
) -> None:
    """`invalid_client` is about the configuration, said at once, and no reason to sign in again."""
    before = token_file.read_bytes()
    sandbox.expire()
    with pytest.raises(ConfigurationError, match="ADH_CLIENT_SECRET"):
        get(sandbox, AdhAuth(**{**arguments, "client_secret": "mistyped"}))
    assert sandbox.counts.refresh_calls == 1
    assert token_file.read_bytes() == before
    assert_nothing_lost(sandbox, token_file)


def test_bounds_are_in_order() -> None:
    """A waiter is more patient than a holder can be slow, and the pauses fit into the deadline."""
    assert sum(attempt.PAUSES) < limits.REFRESH_DEADLINE < limits.LOCK_TIMEOUT


def test_redirect_is_not_followed(sandbox: Sandbox, call: Callable[[], int]) -> None:
    """A redirect of the endpoint would take the refresh token along: it is a failed refresh."""
    sandbox.fail_next(status=307, headers={"Location": sandbox.url + "/api/auth/refresh"})
    with pytest.raises(RefreshFailed, match="redirects are not followed"):
        call()
    assert (sandbox.counts.refresh_calls, sandbox.counts.rotations) == (1, 0)


# A refusal.


def test_refused_and_unchanged(sandbox: Sandbox, token_file: Path, call: Callable[[], int]) -> None:
    """`invalid_grant` is final for that very token: no try follows, in this client or another, until the user
    signs in.
    """
    before = token_file.read_bytes()
    sandbox.fail_next(status=400, body=b'{"code": "invalid_grant", "message": "no"}')
    for _ in range(3):
        with pytest.raises(ReauthorizationRequired, match="adh-auth login") as caught:
            call()
        assert caught.value.code == "invalid_grant"
    assert sandbox.counts.refresh_calls == 1
    assert token_file.read_bytes() == before
    sandbox.write_token_file(token_file)
    assert call() == 200


def test_refused_and_changed(sandbox: Sandbox, token_file: Path, call: Callable[[], int]) -> None:
    """A refusal that arrives after the user has signed in anew is not the newer session's."""
    sandbox.fail_next(status=400, body=b'{"code": "invalid_grant"}')
    with sandbox.hold_next() as hold, ThreadPoolExecutor(1) as threads:
        answer = threads.submit(call)
        hold.wait(PATIENCE)
        sandbox.write_token_file(token_file)
        hold.release()
        assert answer.result(PATIENCE) == 200
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


@pytest.mark.parametrize("asked", [40, 3600])
def test_a_pause_that_is_too_long_to_wait_for_is_told(
    sandbox: Sandbox, token_file: Path, call: Callable[[], int], asked: int
) -> None:
    """The error says until when no process tries again, and where; a caller gets meanwhile the same, and no
    call is made.
    """
    sandbox.fail_next(status=503, retry_after=asked)
    started = time.time()
    for ask in (call, auth_for(sandbox).refresh):
        with pytest.raises(
            RefreshFailed, match=rf"at {sandbox.url} failed: HTTP 503.*nobody tries again before \d{{4}}-"
        ) as caught:
            ask()
        until = datetime.fromisoformat(
            re.findall(r"before (\S+ [\d:]+[+-][\d:]+)", str(caught.value))[0]
        ).timestamp()
        assert started + min(asked, 60) - 1 <= until <= time.time() + min(asked, 60)
        assert caught.value.retry_after == asked
    assert sandbox.counts.refresh_calls == 1


def test_a_reply_that_may_be_lost_is_told(
    sandbox: Sandbox, token_file: Path, call: Callable[[], int], short_pauses: None
) -> None:
    """The error does not promise that the session is good."""
    sandbox.fail_next(None, status=503)
    with pytest.raises(
        RefreshFailed,
        match="most likely still good; if that try has used up the token, "
        "the next one will ask for a new sign-in",
    ):
        call()


@pytest.mark.parametrize("code", ["invalid_request", "access_denied", "invalid_grants", "token_expired"])
def test_other_codes_are_no_logout(sandbox: Sandbox, token_file: Path, short_pauses: None, code: str) -> None:
    """Only the code `invalid_grant` is terminal: any other leaves the session as it is
    (Shopify/hydrogen#3916).
    """
    sandbox.expire()
    sandbox.fail_next(status=400, body=json.dumps({"code": code, "message": "invalid_grant"}).encode())
    with pytest.raises(RefreshFailed, match="still good"):
        get(sandbox, auth_for(sandbox))
    assert_nothing_lost(sandbox, token_file)


# The herd.

#: A process that waits for the word, calls in as many threads as it was told, and prints the errors' classes;
#: then once more.
HERD = (
    ONE_CALL
    + """
import sys, threading
auth = AdhAuth()
def one():
    try:
        answer = requests.get(os.environ["ADH_BASE_URL"] + "/api/auth/me", auth=auth, timeout=60)
        said.append(str(answer.status_code))
    except Exception as error: said.append(type(error).__name__)
print("ready", flush=True)
while sys.stdin.readline():
    said = []
    threads = [threading.Thread(target=one) for _ in range({threads})]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    print(*said, flush=True)
"""
)


@pytest.fixture
def herd(sandbox: Sandbox, token_file: Path) -> Iterator[Callable[[int, int], list[subprocess.Popen[str]]]]:
    """Makes processes that are ready to call."""
    with ExitStack() as stack:

        def made(processes: int, threads: int) -> list[subprocess.Popen[str]]:
            code = HERD.replace("{threads}", str(threads))
            started = [
                stack.enter_context(child(code, sandbox.environment(token_file))) for _ in range(processes)
            ]
            assert [_line(process) for process in started] == ["ready"] * processes
            return started

        yield made


def _told(herd: list[subprocess.Popen[str]]) -> list[str]:
    for process in herd:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [word for process in herd for word in _line(process).split()]


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_herd_meets_an_outage(
    sandbox: Sandbox, token_file: Path, herd: Callable[[int, int], list[subprocess.Popen[str]]]
) -> None:
    """16 processes with 2 threads each share one outage: at most 24 refresh calls in all, and a typed error
    for everyone within 60 s.
    """
    processes = herd(16, 2)
    sandbox.expire()
    sandbox.fail_next(None, status=503)
    started = time.monotonic()
    assert _told(processes) == ["RefreshFailed"] * 32
    assert time.monotonic() - started < 60
    assert sandbox.counts.refresh_calls <= 24
    sandbox.heal()
    assert_nothing_lost(sandbox, token_file)


def test_herd_meets_a_dead_refresh_token(
    sandbox: Sandbox, token_file: Path, herd: Callable[[int, int], list[subprocess.Popen[str]]]
) -> None:
    """8 processes with a dead refresh token cost the server one call; a new sign-in lifts the refusal at
    once, without a restart.
    """
    processes = herd(8, 2)
    sandbox.expire()
    sandbox.fail_next(None, status=400, body=b'{"code": "invalid_grant"}')
    for _ in range(2):
        assert _told(processes) == ["ReauthorizationRequired"] * 16
    assert sandbox.counts.refresh_calls == 1
    sandbox.heal()
    sandbox.write_token_file(token_file)
    assert _told(processes) == ["200"] * 16
    assert_nothing_lost(sandbox, token_file)


def test_who_comes_while_an_attempt_is_under_way_shares_its_failure(
    sandbox: Sandbox, token_file: Path, short_pauses: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that finds an attempt under way waits for it and has its outcome: the failure is not tried
    again on its behalf.
    """
    refused = threading.Event()
    take = RotationLock.take

    def watched(lock: RotationLock) -> bool:
        taken = take(lock)
        if not taken:
            refused.set()
        return taken

    monkeypatch.setattr(RotationLock, "take", watched)
    sandbox.expire()
    sandbox.fail_next(None, status=503)
    with sandbox.hold_next() as hold, ThreadPoolExecutor(2) as threads:
        first = threads.submit(get, sandbox, auth_for(sandbox))
        hold.wait(PATIENCE)
        second = threads.submit(get, sandbox, auth_for(sandbox))
        assert refused.wait(PATIENCE)
        hold.release()
        outcomes = [first.exception(PATIENCE), second.exception(PATIENCE)]
    assert all(isinstance(outcome, RefreshFailed) for outcome in outcomes)
    assert sandbox.counts.refresh_calls == len(attempt.PAUSES) + 1
    sandbox.heal()
    assert_nothing_lost(sandbox, token_file)


def test_threads_share_one_failure(
    sandbox: Sandbox, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that wait for one attempt share its failure, each with an exception of its own."""
    monkeypatch.setattr(attempt, "PAUSES", ())
    auth, waiting, wait = auth_for(sandbox), threading.Semaphore(0), Job.wait

    def watched(job: Job, seconds: float) -> None:
        waiting.release()
        wait(job, seconds)

    monkeypatch.setattr(Job, "wait", watched)
    sandbox.fail_next(status=503)
    with sandbox.hold_next(at="before") as hold, ThreadPoolExecutor(8) as threads:
        refreshes = [threads.submit(auth.refresh) for _ in range(8)]
        assert all(waiting.acquire(timeout=PATIENCE) for _ in range(8))
        hold.release()
        errors = [refresh.exception(PATIENCE) for refresh in refreshes]
    assert {type(error) for error in errors} == {RefreshFailed}
    assert len({id(error) for error in errors}) == 8
    assert sandbox.counts.refresh_calls == 1


def test_background_refresh_that_fails(sandbox: Sandbox, token_file: Path, short_pauses: None) -> None:
    """A refresh ahead of time that fails is the caller's error only once the token is dead, and not started
    by every request.
    """
    auth = auth_for(sandbox, refresh_ahead=4000.0)
    near_its_end(token_file)
    sandbox.fail_next(None, status=503)
    before = sandbox.counts.refresh_calls
    assert get(sandbox, auth) == 200
    wait_until(lambda: TokenFile(token_file).record().state == "failed")
    assert [get(sandbox, auth) for _ in range(20)] == [200] * 20
    assert sandbox.counts.refresh_calls - before == len(attempt.PAUSES) + 1
    sandbox.heal()
    assert_nothing_lost(sandbox, token_file)


def test_errors_are_typed_for_all(sandbox: Sandbox, token_file: Path, short_pauses: None) -> None:
    """What is raised out of a call is ours and the client's at once, so that the `except` clauses of existing
    scripts keep working.
    """
    sandbox.expire()
    sandbox.fail_next(None, status=503)
    with pytest.raises(requests.RequestException) as caught:
        get(sandbox, auth_for(sandbox))
    assert isinstance(caught.value, AdhAuthError)
