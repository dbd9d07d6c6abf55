"""AdhAuth in a requests session: an expiry in the middle of anything."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests

from adh_auth import AdhAuth, ReauthorizationRequired, TokenFile, TokenFileError
from adh_auth.common.threads import THREAD_NAME_PREFIX
from adh_auth.store.remedies import login_command_line
from adh_auth.testing import Sandbox

from ..support.faults import grown_older, near_its_end, wait_until
from ..support.processes import PATIENCE


@pytest.fixture
def auth(arguments: dict[str, Any]) -> AdhAuth:
    return AdhAuth(**arguments)


@pytest.fixture
def session(auth: AdhAuth) -> Iterator[requests.Session]:
    with requests.Session() as made:
        made.auth = auth
        yield made


def test_an_expiry_is_not_noticed(sandbox: Sandbox, session: requests.Session) -> None:
    """The caller sees a 200; `history` holds the 401 and `elapsed` is set."""
    sandbox.expire()
    answer = session.get(sandbox.url + "/api/auth/me")
    assert answer.status_code == 200
    assert [item.status_code for item in answer.history] == [401]
    assert answer.history[0].json()["code"] == "token_expired"
    assert answer.elapsed > timedelta(0)
    assert sandbox.counts.rotations == 1
    assert session.get(sandbox.url + "/api/auth/me").history == []


@pytest.mark.parametrize("shape", ["code", "nested", "oauth", "header"])
def test_every_shape_of_the_401(sandbox: Sandbox, session: requests.Session, shape: str) -> None:
    """The code is found in all the shapes that the platform's material attests."""
    sandbox.error_shape = shape
    sandbox.expire()
    assert session.get(sandbox.url + "/api/auth/me").status_code == 200


@pytest.mark.parametrize(
    "body",
    [b'{"code": "token_expired_not"}', b'{"message": "token_expired"}', b"<html>token_expired</html>", b""],
)
@pytest.mark.parametrize("stream", [False, True])
def test_any_other_401_is_the_callers(
    sandbox: Sandbox, session: requests.Session, body: bytes, stream: bool
) -> None:
    """A 401 of another code is handed over untouched, readable to the last byte, and spends no refresh."""
    sandbox.fail_next(on="me", status=401, body=body)
    answer = session.get(sandbox.url + "/api/auth/me", stream=stream)
    assert answer.status_code == 401
    assert (answer.raw.read() if stream else answer.content) == body
    assert sandbox.counts.refresh_calls == 0


def test_a_long_401_stays_readable(sandbox: Sandbox, session: requests.Session) -> None:
    """A 401's body is read and stays readable, whatever its length."""
    body = b'{"code": "other", "pad": "' + b"x" * 100_000 + b'"}'
    sandbox.fail_next(on="me", status=401, body=body)
    assert session.get(sandbox.url + "/api/auth/me").content == body


def test_retried_once_exactly(sandbox: Sandbox, session: requests.Session) -> None:
    """A second 401 goes to the caller."""
    sandbox.fail_next(5, on="me", status=401, body=b'{"code": "token_expired"}')
    answer = session.get(sandbox.url + "/api/auth/me")
    assert answer.status_code == 401
    assert sandbox.counts.rotations == 1
    assert len(answer.history) == 1


def test_an_older_pair_is_answered_with_the_stored_one(
    sandbox: Sandbox, session: requests.Session, arguments: dict[str, Any]
) -> None:
    """A call with an older pair than the file's is sent again with the stored one, for a 401 of any code."""
    sandbox.kills_old_access = True
    prepared = session.prepare_request(requests.Request("GET", sandbox.url + "/api/auth/me"))
    AdhAuth(**arguments).refresh()
    answer = session.send(prepared)
    assert answer.status_code == 200
    assert answer.history[0].json()["code"] != "token_expired"
    assert sandbox.counts.rotations == 1


BODIES: dict[str, dict[str, Any]] = {
    "bytes": {"data": b"\x00\xff" * 5000},
    "text": {"data": "grüße"},
    "json": {"json": {"a": [1, 2, {"b": None}]}},
    "form": {"data": {"a": "1", "b": ["2", "3"]}},
    "files": {"files": {"f": ("n.txt", b"content" * 100)}, "data": {"k": "v"}},
    "none": {},
}


@pytest.mark.parametrize("name", BODIES)
def test_the_same_body_is_sent_again(sandbox: Sandbox, session: requests.Session, name: str) -> None:
    """Bytes, JSON, forms and multipart arrive byte for byte after an expiry."""
    sandbox.expire()
    answer = session.post(sandbox.url + "/api/echo", **BODIES[name])
    assert answer.status_code == 200
    sent = answer.request.body or b""
    sent = sent.encode() if isinstance(sent, str) else sent
    assert isinstance(sent, bytes)
    assert answer.json()["sha256"] == hashlib.sha256(sent).hexdigest()
    assert answer.json()["length"] == len(sent)
    assert [item.status_code for item in answer.history] == [401]


def test_files_are_sent_again_from_where_they_stood(
    sandbox: Sandbox, session: requests.Session, tmp_path: Path
) -> None:
    """A seekable body is rewound to where it stood, not to its start."""
    (tmp_path / "f").write_bytes(b"skipped" + b"sent" * 50_000)
    with open(tmp_path / "f", "rb") as file:
        for body in (file, io.BytesIO(b"skipped" + b"sent" * 50_000)):
            body.seek(7)
            sandbox.expire()
            answer = session.post(sandbox.url + "/api/echo", data=body)
            assert answer.json()["sha256"] == hashlib.sha256(b"sent" * 50_000).hexdigest()


def pieces() -> Iterator[bytes]:
    yield b"one"
    yield b"two"


class OnceOnly(io.RawIOBase):
    """A stream that can't go back, as a pipe or requests-toolbelt's MultipartEncoder."""

    def __init__(self) -> None:
        self.left = b"onetwo"

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        piece, self.left = self.left, b""
        return piece

    def __iter__(self) -> Any:
        return iter([self.read()])


@pytest.mark.parametrize("body", [pieces, OnceOnly])
def test_a_one_shot_body_is_never_sent_again_empty(
    sandbox: Sandbox, session: requests.Session, body: Any
) -> None:
    """It meets a 401: the rotation happens, the caller gets the 401, and the next request works; nothing
    hangs.
    """
    sandbox.expire()
    answer = session.post(sandbox.url + "/api/echo", data=body(), timeout=PATIENCE)
    assert answer.status_code == 401
    assert sandbox.counts.rotations == 1
    assert session.post(sandbox.url + "/api/echo", data=body(), timeout=PATIENCE).json()["body"] == "onetwo"


def test_a_one_shot_body_is_not_sent_with_a_dead_token(
    sandbox: Sandbox, session: requests.Session, auth: AdhAuth, token_file: Path
) -> None:
    """Where the expiry on file is past, the rotation comes before a body that can be sent only once."""
    pair = TokenFile(token_file).load()
    TokenFile(token_file).save(type(pair)(pair.access_token, pair.refresh_token, expires_at=1.0))
    sandbox.expire()
    answer = session.post(sandbox.url + "/api/echo", data=pieces())
    assert answer.json()["body"] == "onetwo"
    assert answer.history == []


def test_a_stream_stays_a_stream(sandbox: Sandbox, session: requests.Session) -> None:
    """After an expiry a streamed response is still unread."""
    sandbox.expire()
    with session.get(sandbox.url + "/api/stream?chunks=3", stream=True) as answer:
        assert answer.raw.closed is False
        assert b"".join(answer.iter_content(4)) == b"chunk 0\nchunk 1\nchunk 2\n"


def test_hooks_see_the_final_response_only(sandbox: Sandbox, session: requests.Session) -> None:
    """A raise_for_status hook does not meet the 401."""
    seen = []

    def check(response: requests.Response, **_: Any) -> None:
        seen.append(response.status_code)
        response.raise_for_status()

    for hooks in (None, {"response": check}):
        session.hooks["response"] = [] if hooks else [check]
        sandbox.expire()
        assert session.get(sandbox.url + "/api/auth/me", hooks=hooks).status_code == 200
    assert seen == [200, 200]


def test_cookies_go_on(sandbox: Sandbox, session: requests.Session) -> None:
    """Cookies of the session go along with the request that is sent again."""
    session.get(sandbox.url + "/api/cookie?crumb=1")
    assert session.cookies["crumb"] == "1"
    sandbox.expire()
    answer = session.get(sandbox.url + "/api/echo")
    assert answer.request.headers["Cookie"] == "crumb=1"


def test_a_redirect_after_the_resend_carries_the_new_token(
    sandbox: Sandbox, session: requests.Session
) -> None:
    """requests builds the redirect from the original request, which must not go on with the old token."""
    sandbox.kills_old_access = True
    sandbox.expire()
    answer = session.get(sandbox.url + "/api/redirect", params={"to": "/api/auth/me"})
    assert answer.status_code == 200
    assert sandbox.counts.rotations == 1
    assert sandbox.counts.unauthorized == 1


def test_an_expiry_between_two_hops(sandbox: Sandbox, session: requests.Session) -> None:
    """A redirect within the API keeps the token and still rotates."""
    sandbox.fail_next(on="me", status=401, body=b'{"code": "token_expired"}')
    answer = session.get(sandbox.url + "/api/redirect", params={"to": "/api/auth/me"})
    assert answer.status_code == 200
    assert sandbox.counts.rotations == 1


def test_another_host_is_left_alone(sandbox: Sandbox, session: requests.Session) -> None:
    """Requests of the same session to other hosts pass with whatever header the caller set, and spend
    nothing.
    """
    with Sandbox() as other:
        answer = session.get(other.url + "/api/auth/me", headers={"Authorization": "Bearer theirs"})
        assert answer.status_code == 401
        assert answer.request.headers["Authorization"] == "Bearer theirs"
    assert sandbox.counts.refresh_calls == 0


def test_many_threads_one_refresh(sandbox: Sandbox, session: requests.Session) -> None:
    """Threads that meet one expiry share one refresh."""
    session.get(sandbox.url + "/api/auth/me")
    sandbox.expire()
    start = threading.Barrier(16)
    statuses: list[int] = []

    def work() -> None:
        start.wait()
        statuses.append(session.get(sandbox.url + "/api/auth/me").status_code)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 16
    assert sandbox.counts.refresh_calls == 1


def test_errors_are_the_clients_too(sandbox: Sandbox, session: requests.Session, token_file: Path) -> None:
    """What comes out of a call is also a requests.RequestException that carries the request."""
    sandbox.revoke()
    sandbox.fail_next(on="me", status=401, body=b'{"code": "token_expired"}')
    with pytest.raises(requests.RequestException) as refused:
        session.get(sandbox.url + "/api/auth/me")
    assert isinstance(refused.value, ReauthorizationRequired)
    assert refused.value.request is not None
    assert login_command_line(str(token_file)) in str(refused.value)
    token_file.unlink()
    with pytest.raises(requests.RequestException) as missing:
        session.get(sandbox.url + "/api/auth/me")
    assert isinstance(missing.value, TokenFileError)


def test_a_corrupt_file_costs_no_call(sandbox: Sandbox, session: requests.Session, token_file: Path) -> None:
    """A file that can't be read is an error before any network call, and stays as it is."""
    token_file.write_bytes(b'{"access_token": ')
    with pytest.raises(TokenFileError):
        session.get(sandbox.url + "/api/auth/me")
    assert sandbox.counts.requests == 0
    assert token_file.read_bytes() == b'{"access_token": '


def test_refresh_revoke_and_tokens(sandbox: Sandbox, auth: AdhAuth, token_file: Path) -> None:
    """refresh() forces one, tokens reads the file, revoke() revokes at the server and removes the file."""
    before = auth.tokens
    assert auth.refresh() == auth.tokens != before
    assert sandbox.counts.rotations == 1
    auth.revoke()
    assert sandbox.counts.revocations == 1
    assert not token_file.exists()
    with pytest.raises(TokenFileError):
        _ = auth.tokens


def test_a_revoke_that_fails_keeps_the_file(sandbox: Sandbox, auth: AdhAuth, token_file: Path) -> None:
    """The server is called first; if that fails, the file stays."""
    content = token_file.read_bytes()
    sandbox.fail_next(on="revoke", status=503)
    with pytest.raises(Exception, match="could not be revoked"):
        auth.revoke()
    assert token_file.read_bytes() == content


def test_a_call_through_refresh_via(sandbox: Sandbox, arguments: dict[str, Any]) -> None:
    """`refresh_via` carries the refresh, even when it is the very session that the auth sits on."""
    with requests.Session() as session:
        session.auth = AdhAuth(**arguments, refresh_via=session)
        seen: list[str] = []
        session.hooks["response"].append(lambda response, **_: seen.append(response.request.path_url))
        sandbox.expire()
        assert session.get(sandbox.url + "/api/auth/me").status_code == 200
        assert seen == ["/api/auth/refresh", "/api/auth/me"]


def test_ahead_of_time(sandbox: Sandbox, arguments: dict[str, Any]) -> None:
    """With refresh_ahead the refresh happens in the background while the old token lives: no 401, no waiting
    request.
    """
    auth = AdhAuth(**arguments, refresh_ahead=60)
    auth.refresh()
    near_its_end(arguments["token_file"])
    before = auth.tokens
    hold = sandbox.hold_next(on="refresh")
    with requests.Session() as session:
        session.auth = auth
        assert session.get(sandbox.url + "/api/auth/me").status_code == 200
        hold.wait(PATIENCE)
        assert session.get(sandbox.url + "/api/auth/me").status_code == 200
        assert auth.tokens == before
        hold.release()
        wait_until(lambda: auth.tokens != before)
        assert session.get(sandbox.url + "/api/auth/me").status_code == 200
    assert auth.tokens != before
    assert sandbox.counts.unauthorized == 0


def test_dead_by_the_clock_refreshes_first(
    sandbox: Sandbox, arguments: dict[str, Any], token_file: Path
) -> None:
    """With refresh_ahead a pair that is dead by the clock is rotated before the request."""
    pair = TokenFile(token_file).load()
    TokenFile(token_file).save(type(pair)(pair.access_token, pair.refresh_token, expires_at=1.0))
    answer = requests.get(sandbox.url + "/api/auth/me", auth=AdhAuth(**arguments, refresh_ahead=60))
    assert answer.status_code == 200
    assert sandbox.counts.rotations == 1
    assert sandbox.counts.unauthorized == 0


def test_the_expiry_is_persisted(sandbox: Sandbox, auth: AdhAuth, token_file: Path) -> None:
    """A rotation writes expires_at beside the new pair."""
    import json
    import time

    auth.refresh()
    assert abs(json.loads(token_file.read_text())["expires_at"] - time.time() - 3600) < 60


def test_a_pool_of_one_is_not_starved(sandbox: Sandbox, session: requests.Session) -> None:
    """A 401 gives its connection back before the request is sent again."""
    session.mount(
        "http://", requests.adapters.HTTPAdapter(pool_connections=1, pool_maxsize=1, pool_block=True)
    )
    for _ in range(3):
        sandbox.expire()
        assert session.get(sandbox.url + "/api/auth/me", timeout=PATIENCE).status_code == 200


@pytest.mark.parametrize(("age", "refreshes"), [(19.0, 0), (21.0, 1)])
def test_the_first_half_of_a_life_is_left_alone(
    sandbox: Sandbox, arguments: dict[str, Any], token_file: Path, age: float, refreshes: int
) -> None:
    """A pair that lives shorter than `refresh_ahead` is refreshed half-way through its life, by an object for
    each request, too.
    """
    sandbox.token_life = 40.0
    AdhAuth(**arguments).refresh()
    grown_older(token_file, age)
    before = sandbox.counts.refresh_calls
    for _ in range(5):
        auth = AdhAuth(**arguments, refresh_ahead=60)
        requests.get(sandbox.url + "/api/auth/me", auth=auth, timeout=PATIENCE)
        wait_until(
            lambda: not any(thread.name.startswith(THREAD_NAME_PREFIX) for thread in threading.enumerate())
        )
    assert sandbox.counts.refresh_calls - before == refreshes
