"""AdhAuth in requests: a caller's time-out bounds its wait for a refresh; the refresh goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from urllib3.util import Timeout

from adh_auth import AdhAuth, ReauthorizationRequired, RefreshFailed, TokenFile
from adh_auth.clients.requests_auth import FIRST_WAIT_SECONDS, WAIT_SHARE, read_timeout
from adh_auth.testing import Sandbox

from ..support.faults import wait_until
from ..support.processes import PATIENCE

#: Seconds of the caller's time-out. Without a bound, a refresh would take `PATIENCE` here.
SHORT = 0.4


@pytest.fixture
def session(arguments: dict[str, Any]) -> Iterator[requests.Session]:
    with requests.Session() as made:
        made.auth = AdhAuth(**arguments)
        yield made


FORMS: dict[str, Any] = {
    "number": SHORT,
    "pair": (PATIENCE, SHORT),
    "read": Timeout(connect=PATIENCE, read=SHORT),
    "total": Timeout(total=SHORT),
    "both": Timeout(total=PATIENCE, read=SHORT),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_callers_timeout_bounds_the_wait(sandbox: Sandbox, session: requests.Session, form: str) -> None:
    """Each call answers within its own time-out with an error that says to try again; the refresh goes on and
    is made once.
    """
    url = sandbox.url + "/api/auth/me"
    sandbox.expire()
    with sandbox.hold_next(on="refresh") as hold:
        for _ in range(3):
            started = time.monotonic()
            with pytest.raises(RefreshFailed, match="goes on, try again later") as raised:
                session.get(url, timeout=FORMS[form])
            assert SHORT <= time.monotonic() - started < (1 + WAIT_SHARE) * SHORT + 5
            assert isinstance(raised.value, requests.RequestException)
        hold.wait(PATIENCE)
    wait_until(lambda: sandbox.counts.rotations == 1)
    assert session.get(url, timeout=PATIENCE).status_code == 200
    assert sandbox.counts.refresh_calls == 1


@pytest.mark.parametrize(
    "timeout", [None, (SHORT, None), Timeout(connect=SHORT)], ids=["none", "connect", "connect only"]
)
def test_without_a_timeout_the_call_waits(sandbox: Sandbox, session: requests.Session, timeout: Any) -> None:
    """A caller who has set no bound for reading waits for the refresh, however long it takes."""
    sandbox.expire()
    with sandbox.hold_next(on="refresh") as hold:
        statuses: list[int] = []
        caller = threading.Thread(
            target=lambda: statuses.append(
                session.get(sandbox.url + "/api/auth/me", timeout=timeout).status_code
            )
        )
        caller.start()
        hold.wait(PATIENCE)
        caller.join(2 * SHORT)
        assert caller.is_alive()
        hold.release()
        caller.join()
    assert statuses == [200]


def test_read_timeout() -> None:
    """The read part of a time-out in every form that requests takes."""
    assert [read_timeout(value) for value in (None, 2, 0.5, (3, None), (None, 4), (3, 0.5))] == [
        None,
        2.0,
        0.5,
        None,
        4.0,
        0.5,
    ]
    assert read_timeout(Timeout(connect=3)) is None
    assert read_timeout(Timeout(connect=3, read=2.5)) == 2.5
    assert read_timeout(Timeout(total=9, read=None)) == pytest.approx(9, abs=1)
    assert read_timeout(Timeout(total=2, read=9)) == pytest.approx(2, abs=1)


def test_a_timeout_object_stays_usable(sandbox: Sandbox, session: requests.Session) -> None:
    """A urllib3 `Timeout` that many calls share is not started by us."""
    timeout: Any = Timeout(total=PATIENCE)
    for _ in range(2):
        sandbox.expire()
        assert session.get(sandbox.url + "/api/auth/me", timeout=timeout).status_code == 200
    timeout.start_connect()


def dead(sandbox: Sandbox, session: requests.Session) -> None:
    """The API has called the pair expired, and its refresh has been given up on by a call with a time-out."""
    sandbox.expire()
    with pytest.raises(RefreshFailed):
        session.get(sandbox.url + "/api/auth/me", timeout=SHORT)


def test_a_one_shot_body_waits_for_a_live_token(sandbox: Sandbox, session: requests.Session) -> None:
    """It is never sent with a token that is known to be expired, whatever the time-out: it could not be sent
    again.
    """
    with sandbox.hold_next(on="refresh") as hold:
        dead(sandbox, session)
        before = sandbox.counts.requests
        answers: list[requests.Response] = []

        def upload() -> None:
            answers.append(
                session.post(sandbox.url + "/api/echo", data=iter([b"one", b"two"]), timeout=SHORT)
            )

        caller = threading.Thread(target=upload)
        caller.start()
        caller.join(FIRST_WAIT_SECONDS + 0.25)
        assert caller.is_alive()
        assert sandbox.counts.requests == before
        hold.release()
        caller.join()
    assert answers[0].json()["body"] == "onetwo"
    assert answers[0].history == []


def test_a_thread_without_timeouts_waits_before_it_sends(sandbox: Sandbox, session: requests.Session) -> None:
    """The time-outs of one thread do not count for another: one that has none sends nothing that is known
    to fail.
    """
    ready, go = threading.Event(), threading.Event()
    statuses: list[int] = []

    def patient() -> None:
        statuses.append(session.get(sandbox.url + "/api/auth/me").status_code)
        ready.set()
        go.wait(PATIENCE)
        statuses.append(session.get(sandbox.url + "/api/auth/me").status_code)

    other = threading.Thread(target=patient)
    other.start()
    assert ready.wait(PATIENCE)
    with sandbox.hold_next(on="refresh") as hold:
        dead(sandbox, session)
        before = sandbox.counts.unauthorized
        go.set()
        other.join(FIRST_WAIT_SECONDS + 0.25)
        assert other.is_alive()
        hold.release()
        other.join()
    assert statuses == [200, 200]
    assert sandbox.counts.unauthorized == before


def test_head_after_a_call_that_gave_up(sandbox: Sandbox, session: requests.Session) -> None:
    """The API has said before that the token is expired, so that an answer to HEAD need not say it, and no
    expiry on file is needed.
    """
    with sandbox.hold_next(on="refresh") as hold:
        dead(sandbox, session)
        with pytest.raises(RefreshFailed):
            session.head(sandbox.url + "/api/auth/me", timeout=SHORT)
        hold.release()
    assert session.head(sandbox.url + "/api/auth/me", timeout=PATIENCE).status_code == 200
    assert sandbox.counts.refresh_calls == 1


def test_a_refusal_on_record_needs_no_call(sandbox: Sandbox, session: requests.Session) -> None:
    """A session that is dead is an error before anything is sent, with and without a time-out."""
    sandbox.fail_next(on="me", status=401, body=b'{"code": "token_expired"}')
    sandbox.revoke()
    with pytest.raises(ReauthorizationRequired):
        session.get(sandbox.url + "/api/auth/me", timeout=PATIENCE)
    before = sandbox.counts
    for timeout in (PATIENCE, None, PATIENCE):
        with pytest.raises(ReauthorizationRequired):
            session.get(sandbox.url + "/api/auth/me", timeout=timeout)
    assert sandbox.counts == before


def test_the_first_call_of_a_dead_pair_by_the_clock(
    sandbox: Sandbox, arguments: dict[str, Any], token_file: Path
) -> None:
    """With refresh_ahead and an expiry that is past, the first call does not know of its time-out yet, and
    keeps it all the same.
    """
    pair = TokenFile(token_file).load()
    TokenFile(token_file).save(type(pair)(pair.access_token, pair.refresh_token, expires_at=1.0))
    sandbox.expire()
    with sandbox.hold_next(on="refresh"):
        started = time.monotonic()
        with pytest.raises(RefreshFailed):
            requests.get(
                sandbox.url + "/api/auth/me", auth=AdhAuth(**arguments, refresh_ahead=60), timeout=SHORT
            )
        assert time.monotonic() - started < FIRST_WAIT_SECONDS + SHORT + 5


def test_a_pause_on_record_needs_no_call(sandbox: Sandbox, session: requests.Session) -> None:
    """While the endpoint has asked for a pause, a call with a time-out fails before it is sent, as does one
    without.
    """
    sandbox.expire()
    sandbox.fail_next(None, status=503, retry_after=50)
    with pytest.raises(RefreshFailed, match="503"):
        session.get(sandbox.url + "/api/auth/me", timeout=PATIENCE)
    before = sandbox.counts
    for timeout in (PATIENCE, None):
        with pytest.raises(RefreshFailed, match="503"):
            session.get(sandbox.url + "/api/auth/me", timeout=timeout)
    assert sandbox.counts == before
