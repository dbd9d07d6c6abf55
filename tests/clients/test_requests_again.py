"""AdhAuth in requests: what a request keeps when it is sent again, and request objects that are sent more
than once.
"""

from __future__ import annotations

import array
import copy
import io
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from adh_auth import AdhAuth, TokenFile
from adh_auth.testing import Sandbox

from ..support.processes import PATIENCE, child
from ..support.raw_server import OLD, Answer, RawServer, Seen, as_json, rotating

EXPIRED = b'{"code": "token_expired"}'


@pytest.fixture
def auth(arguments: dict[str, Any]) -> AdhAuth:
    return AdhAuth(**arguments)


@pytest.fixture
def session(auth: AdhAuth) -> Iterator[requests.Session]:
    with requests.Session() as made:
        made.auth = auth
        yield made


def me(sandbox: Sandbox) -> requests.Request:
    return requests.Request("GET", sandbox.url + "/api/auth/me")


# A request object that is sent again and again.


def test_a_prepared_request_goes_through_every_expiry(sandbox: Sandbox, session: requests.Session) -> None:
    """A poller's request object is answered with 200 after each expiry, and each costs one refresh."""
    prepared = session.prepare_request(me(sandbox))
    for expiries in range(1, 5):
        sandbox.expire()
        answer = session.send(prepared)
        assert answer.status_code == 200
        assert sandbox.counts.rotations == expiries
        # The second round's pair is adopted first, and turns out to be expired as well.
        assert [past.status_code for past in answer.history] == [401] * min(expiries, 2)
        assert [past.json()["code"] for past in answer.history] == ["token_expired"] * min(expiries, 2)
        assert answer.elapsed.total_seconds() > 0
        assert len(prepared.hooks["response"]) == 1
        assert session.send(prepared).status_code == 200


def test_threads_that_send_one_prepared_request(sandbox: Sandbox, session: requests.Session) -> None:
    """Threads that share a request object share one refresh for each expiry, and each send ends in 200."""
    rounds, count = 5, 8
    session.mount("http://", HTTPAdapter(pool_maxsize=count))
    prepared = session.prepare_request(me(sandbox))
    expired = threading.Barrier(count, action=sandbox.expire)
    statuses: list[int] = []

    def poll() -> None:
        for _ in range(rounds):
            expired.wait(PATIENCE)
            statuses.append(session.send(prepared, timeout=PATIENCE).status_code)

    threads = [threading.Thread(target=poll) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * rounds * count
    assert sandbox.counts.rotations == sandbox.counts.refresh_calls == rounds


def test_an_adopted_pair_that_has_expired_is_rotated_away_from(
    sandbox: Sandbox, session: requests.Session, arguments: dict[str, Any]
) -> None:
    """Two expiries close together: the pair that another process got is old, too, by the time it is used."""
    prepared = session.prepare_request(me(sandbox))
    sandbox.expire()
    AdhAuth(**arguments).refresh()
    sandbox.expire()
    assert session.send(prepared).status_code == 200
    assert sandbox.counts.rotations == 2


def test_a_refreshed_pair_is_the_last_that_is_tried(
    sandbox: Sandbox, session: requests.Session, arguments: dict[str, Any]
) -> None:
    """An API that calls every token expired gets the adopted pair and the refreshed one, and its 401 goes to
    the caller.
    """
    prepared = session.prepare_request(me(sandbox))
    AdhAuth(**arguments).refresh()
    sandbox.fail_next(None, on="me", status=401, body=EXPIRED)
    answer = session.send(prepared)
    assert answer.status_code == 401
    assert answer.json() == {"code": "token_expired"}
    assert [past.status_code for past in answer.history] == [401, 401]
    assert sandbox.counts.rotations == 2


def test_an_auth_that_is_put_on_again_watches_once(sandbox: Sandbox, arguments: dict[str, Any]) -> None:
    """A retry decorator that signs a request object anew each time leaves one hook, and a 401 costs one
    refresh.
    """
    prepared = me(sandbox).prepare()
    for _ in range(3):
        prepared.prepare_auth(AdhAuth(**arguments))
    assert len(prepared.hooks["response"]) == 1
    sandbox.fail_next(None, on="me", status=401, body=EXPIRED)
    with requests.Session() as session:
        assert session.send(prepared).status_code == 401
    assert sandbox.counts.rotations == 1


def test_a_late_401_to_a_request_that_has_moved_on(tmp_path: Path) -> None:
    """Two threads send one request object, which is redirected: the late 401 of the old token does not spend
    the new one.
    """
    late, first = threading.Event(), threading.Event()

    def api(seen: Seen) -> Answer:
        if seen.path == "/api/moved" and seen.headers["authorization"] != "Bearer " + OLD["access_token"]:
            return Answer(302, {"Location": "/api/x"})
        if seen.path == "/api/moved" and not first.is_set():
            first.set()
            late.wait(PATIENCE)
        return rotating(seen)

    path = tmp_path / "tokens.json"
    with RawServer(api) as server, requests.Session() as session:
        TokenFile(path).save(pair_of(OLD))
        session.mount("http://", HTTPAdapter(pool_maxsize=2))
        session.auth = AdhAuth(path, client_id="i", client_secret="s", base_url=server.url)
        prepared = session.prepare_request(requests.Request("GET", server.url + "/api/moved"))
        statuses: list[int] = []
        slow = threading.Thread(
            target=lambda: statuses.append(session.send(prepared, timeout=PATIENCE).status_code)
        )
        slow.start()
        assert first.wait(PATIENCE)
        assert session.send(prepared, timeout=PATIENCE).status_code == 200
        late.set()
        slow.join()
        assert statuses == [200]
        assert len(server.to("/api/auth/refresh")) == 1


def pair_of(mapping: dict[str, Any]) -> Any:
    from adh_auth import Tokens

    return Tokens(mapping["access_token"], mapping["refresh_token"])


# Hooks of the caller's.


def raising(response: requests.Response, **_: Any) -> None:
    response.raise_for_status()


def test_hooks_that_raise_do_not_hide_an_expiry(
    sandbox: Sandbox, auth: AdhAuth, session: requests.Session
) -> None:
    """`raise_for_status` as a hook of the session, of the request, or on a request that is signed by hand
    afterwards sees the 200.
    """
    by_hand = requests.Request("GET", sandbox.url + "/api/auth/me", hooks={"response": raising}).prepare()
    by_hand.prepare_auth(auth)
    sandbox.expire()
    assert session.send(by_hand).status_code == 200
    sandbox.expire()
    assert session.get(sandbox.url + "/api/auth/me", hooks={"response": [raising]}).status_code == 200
    session.hooks["response"] = [raising]
    sandbox.expire()
    assert session.get(sandbox.url + "/api/auth/me").status_code == 200
    assert sandbox.counts.rotations == 3


def test_a_hook_that_raises_sees_the_last_401(sandbox: Sandbox, session: requests.Session) -> None:
    """A 401 that stays one is raised by the caller's hook as without us."""
    sandbox.fail_next(None, on="me", status=401, body=EXPIRED)
    with pytest.raises(requests.HTTPError):
        session.get(sandbox.url + "/api/auth/me", hooks={"response": raising})
    assert sandbox.counts.rotations == 1


# Cookies.


def sent_cookies(tmp_path: Path, session: requests.Session, **options: Any) -> list[str | None]:
    """The ``Cookie`` header of the first and of the second send, where the 401 sets `fresh=1`."""

    def api(seen: Seen) -> Answer:
        answer = rotating(seen)
        if answer.status == 401:
            answer.headers["Set-Cookie"] = "fresh=1; Path=/"
        return answer

    path = tmp_path / "tokens.json"
    TokenFile(path).save(pair_of(OLD))
    with RawServer(api) as server:
        session.auth = AdhAuth(path, client_id="i", client_secret="s", base_url=server.url)
        assert session.get(server.url + "/api/x", **options).status_code == 200
        return [seen.headers.get("cookie") for seen in server.to("/api/x")]


@pytest.mark.parametrize("how", ["headers", "session.headers", "bytes"])
@pytest.mark.parametrize("with_jar", [False, True])
def test_the_callers_own_cookie_header_survives(tmp_path: Path, how: str, with_jar: bool) -> None:
    """It is sent again as it was, and alone, as in the first send: requests puts no cookie of a jar beside
    it.
    """
    own: Any = b"sid=mine" if how == "bytes" else "sid=mine"
    with requests.Session() as session:
        if with_jar:
            session.cookies["jar"] = "1"
        if how == "session.headers":
            session.headers["Cookie"] = own
        options = {} if how == "session.headers" else {"headers": {"Cookie": own}}
        assert sent_cookies(tmp_path, session, **options) == ["sid=mine", "sid=mine"]
        assert session.cookies["fresh"] == "1"


@pytest.mark.parametrize("how", ["none", "session", "call"])
def test_a_cookie_that_the_401_sets_goes_along(tmp_path: Path, how: str) -> None:
    """Cookies of a jar are made anew for the second send, with what the 401 has set."""
    with requests.Session() as session:
        if how == "session":
            session.cookies["jar"] = "1"
        first, second = sent_cookies(
            tmp_path, session, **({"cookies": {"jar": "1"}} if how == "call" else {})
        )
    assert first == (None if how == "none" else "jar=1")
    assert set((second or "").split("; ")) == ({"fresh=1"} if how == "none" else {"jar=1", "fresh=1"})


# Bodies.

BODIES: dict[str, Any] = {
    "bytearray": lambda: bytearray(b"\x00 body"),
    "memoryview": lambda: memoryview(b"\x00 body"),
    "array": lambda: array.array("b", b"\x00 body"),
    "BytesIO": lambda: _at(io.BytesIO(b"skipped\x00 body"), 7),
    "empty BytesIO": io.BytesIO,
    "BytesIO at its end": lambda: _at(io.BytesIO(b"skipped"), 7),
}


def _at(file: io.BytesIO, position: int) -> io.BytesIO:
    file.seek(position)
    return file


@pytest.mark.parametrize("name", BODIES)
def test_a_body_in_memory_is_sent_again(sandbox: Sandbox, session: requests.Session, name: str) -> None:
    """Whatever holds bytes in memory can be sent twice, and arrives whole both times."""
    session.get(sandbox.url + "/api/auth/me")
    sandbox.expire()
    answer = session.post(sandbox.url + "/api/echo", data=BODIES[name](), timeout=PATIENCE)
    assert answer.status_code == 200
    assert answer.json()["length"] == (6 if answer.json()["body"] else 0)
    assert answer.json()["body"] == ("" if "empty" in name or "end" in name else "\x00 body")


def test_an_empty_file_is_sent_again(sandbox: Sandbox, session: requests.Session, tmp_path: Path) -> None:
    """An empty upload stays an empty upload, and does not hang."""
    (tmp_path / "empty").touch()
    sandbox.expire()
    with open(tmp_path / "empty", "rb") as file:
        assert session.post(sandbox.url + "/api/echo", data=file, timeout=PATIENCE).json()["length"] == 0


# What is pickled.


def secrets_of(sandbox: Sandbox, token_file: Path) -> list[bytes]:
    pair = TokenFile(token_file).load()
    return [value.encode() for value in (sandbox.client_secret, pair.access_token, pair.refresh_token)]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_response_holds_no_secret(
    sandbox: Sandbox, session: requests.Session, token_file: Path, protocol: int
) -> None:
    """joblib, a cache on disk, the result of a pool: neither the client secret nor a token goes along,
    whatever came before the 200.
    """
    known = secrets_of(sandbox, token_file)
    plain = session.get(sandbox.url + "/api/auth/me")
    sandbox.expire()
    resent = session.get(sandbox.url + "/api/auth/me")
    redirected = session.get(sandbox.url + "/api/redirect", params={"to": "/api/auth/me"})
    for answer in (plain, resent, redirected):
        data = pickle.dumps(answer, protocol)
        assert not [secret for secret in known + secrets_of(sandbox, token_file) if secret in data]
        again = pickle.loads(data)
        assert again.json() == answer.json()
        assert again.request.headers["Authorization"] == "Bearer [redacted]"
        assert again.request.url == answer.request.url


def test_a_pickled_response_is_readable_elsewhere(
    session: requests.Session, sandbox: Sandbox, tmp_path: Path
) -> None:
    """Where no ADH_* is set, and even where this library is not installed."""
    (tmp_path / "pickle").write_bytes(pickle.dumps(session.get(sandbox.url + "/api/auth/me")))
    code = (
        "import pickle, sys; sys.modules['adh_auth'] = None\n"
        f"answer = pickle.load(open({str(tmp_path / 'pickle')!r}, 'rb'))\n"
        "print(answer.status_code, answer.request.hooks['response'][0](answer, timeout=1) is answer)"
    )
    with child(code) as process:
        assert process.communicate(timeout=PATIENCE)[0].strip() == "200 True"


def test_a_copied_request_is_still_watched(sandbox: Sandbox, session: requests.Session) -> None:
    """A deep copy of a request object goes through an expiry, and one of a response can be read."""
    copied = copy.deepcopy(session.prepare_request(me(sandbox)))
    sandbox.expire()
    answer = session.send(copied)
    assert answer.status_code == 200
    assert copy.deepcopy(answer).json() == copy.copy(answer).json() == answer.json()


def test_a_hook_shows_nothing(sandbox: Sandbox, session: requests.Session, token_file: Path) -> None:
    """`response.request.hooks`, printed, has neither a path nor a state, and no file is read for it."""
    answer = session.get(sandbox.url + "/api/auth/me")
    assert answer.request.headers["Authorization"] == "Bearer " + TokenFile(token_file).load().access_token
    assert "adh_auth" in repr(answer.request.hooks)
    assert str(token_file) not in repr(answer.request.hooks)


# A 401 without a body.


@pytest.fixture
def ended(token_file: Path, sandbox: Sandbox) -> None:
    """The expiry on file is past, and the API thinks so, too."""
    pair = TokenFile(token_file).load()
    TokenFile(token_file).save(type(pair)(pair.access_token, pair.refresh_token, expires_at=1.0))
    sandbox.expire()


def test_head_refreshes_by_the_stored_expiry(
    sandbox: Sandbox, session: requests.Session, ended: None
) -> None:
    """The code is in the body, which HEAD does not have: the stored expiry decides."""
    assert session.head(sandbox.url + "/api/auth/me").status_code == 200
    assert sandbox.counts.rotations == 1


def test_a_bare_401_costs_one_refresh_for_a_pair(
    sandbox: Sandbox, session: requests.Session, ended: None
) -> None:
    """A resource that answers a bare 401 for another reason is the cause of one refresh and no second one."""
    sandbox.fail_next(None, on="me", status=401, body=b"")
    for method in ("HEAD", "GET", "HEAD"):
        assert session.request(method, sandbox.url + "/api/auth/me").status_code == 401
    assert sandbox.counts.rotations == 1


def test_a_bare_401_before_the_stored_expiry_is_the_callers(
    sandbox: Sandbox, session: requests.Session, auth: AdhAuth
) -> None:
    """By the stored expiry the token is valid, so a bare 401 has another reason."""
    auth.refresh()
    sandbox.fail_next(on="me", status=401, body=b"")
    assert session.head(sandbox.url + "/api/auth/me").status_code == 401
    assert sandbox.counts.rotations == 1


def test_a_401_with_a_body_and_no_code_is_the_callers(
    sandbox: Sandbox, session: requests.Session, ended: None
) -> None:
    """A body without a code gives another reason: the clock does not decide then."""
    sandbox.fail_next(on="me", status=401, body=b"no")
    assert session.get(sandbox.url + "/api/auth/me").status_code == 401
    assert sandbox.counts.rotations == 0


BARE = {
    "no length": b"Content-Length: 0\r\n\r\n",
    "no chunk": b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "closed": b"Connection: close\r\n\r\n",
}


@pytest.mark.parametrize("framing", BARE)
def test_every_way_to_send_no_body(framing: str, tmp_path: Path) -> None:
    """A length of nothing, no chunks, and a connection that is closed at once are all bare."""
    path = tmp_path / "tokens.json"
    pair = pair_of(OLD)
    TokenFile(path).save(type(pair)(pair.access_token, pair.refresh_token, expires_at=1.0))

    def api(seen: Seen) -> Answer:
        answer = rotating(seen)
        if answer.status != 401:
            return answer
        return Answer(stream=lambda wire, _: wire.write(b"HTTP/1.1 401 Unauthorized\r\n" + BARE[framing]))

    with RawServer(api) as server:
        auth = AdhAuth(path, client_id="i", client_secret="s", base_url=server.url)
        assert requests.get(server.url + "/api/x", auth=auth, timeout=PATIENCE).status_code == 200


# A 401 whose body breaks off or stalls.


def unfinished(ending: str, head: bytes = b"", body: bytes = b'{"cod') -> Answer:
    """A 401 of which less comes than is announced; then the connection is closed, or nothing happens any
    more.
    """

    def write(wire: Any, closing: threading.Event) -> None:
        wire.write(
            b"HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
            + head
            + b"\r\n"
            + body
        )
        wire.flush()
        if ending == "stalls":
            closing.wait(PATIENCE)

    return Answer(stream=write)


def call(tmp_path: Path, first: Answer, **options: Any) -> requests.Response:
    """A call to an API whose first 401 is `first`."""

    def api(seen: Seen) -> Answer:
        answer = rotating(seen)
        return first if answer.status == 401 else answer

    path = tmp_path / "tokens.json"
    TokenFile(path).save(pair_of(OLD))
    with RawServer(api) as server:
        auth = (
            AdhAuth(path, client_id="i", client_secret="s", base_url=server.url)
            if options.pop("signed", True)
            else None
        )
        answer = requests.get(server.url + "/api/x", auth=auth, **options)
        if options.get("stream"):
            with pytest.raises(requests.RequestException):
                list(answer.iter_content(10))
        return answer


@pytest.mark.parametrize("ending", ["breaks off", "stalls"])
def test_a_401_that_breaks_off_is_the_callers(tmp_path: Path, ending: str) -> None:
    """It is handed over, and reading it fails as it does without us: at once where the body is waited for,
    later for a stream.
    """
    assert call(tmp_path, unfinished(ending), stream=True, timeout=0.5).status_code == 401
    errors = []
    for signed in (True, False):
        with pytest.raises(requests.RequestException) as raised:
            call(tmp_path, unfinished(ending), timeout=0.5, signed=signed)
        errors.append(type(raised.value))
    assert errors[0] is errors[1]


def test_a_stream_waits_for_a_stalling_401_no_longer_than_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a time-out of the caller's own, too, a streamed 401 is handed over after a while."""
    monkeypatch.setattr("adh_auth.clients.requests_body.PEEK_SECONDS", 0.2)
    assert call(tmp_path, unfinished("stalls"), stream=True).status_code == 401


@pytest.mark.parametrize("ending", ["breaks off", "stalls"])
@pytest.mark.parametrize("code_in", ["header", "body"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_code_that_is_known_needs_no_more_bytes(
    tmp_path: Path, ending: str, code_in: str, stream: bool
) -> None:
    """If the header has the code, or the part of the body that came has it, the rest is not waited for."""
    header = code_in == "header"
    first = unfinished(
        ending,
        b'WWW-Authenticate: Bearer error="token_expired"\r\n' if header else b"",
        b"" if header else EXPIRED,
    )
    answer = call_through(tmp_path, first, stream)
    assert answer.status_code == 200
    assert [past.content for past in answer.history] == [b""]


def call_through(tmp_path: Path, first: Answer, stream: bool) -> requests.Response:
    path = tmp_path / "tokens.json"
    TokenFile(path).save(pair_of(OLD))

    def api(seen: Seen) -> Answer:
        answer = rotating(seen)
        return first if answer.status == 401 else answer

    with RawServer(api) as server:
        auth = AdhAuth(path, client_id="i", client_secret="s", base_url=server.url)
        answer = requests.get(
            server.url + "/api/x", auth=auth, stream=stream
        )  # no time-out: it must not be needed
        assert answer.json() == {"id": "usr"}
        return answer


def test_a_long_401_is_read_whole_in_every_way(sandbox: Sandbox, session: requests.Session) -> None:
    """`raw.read()`, `raw.read1()`, `iter_content(None)` and `iter_lines` return all of a 401 that was read
    into, and end.
    """
    body = b'{"code": "other",\n"pad": "' + b"x" * 100_000 + b'"}'
    ways: list[Any] = [
        lambda answer: answer.raw.read(),
        lambda answer: b"".join(iter(lambda: answer.raw.read1(700), b"")),
        lambda answer: b"".join(answer.iter_content(None)),
        lambda answer: b"\n".join(answer.iter_lines()),
        lambda answer: b"".join(answer.raw.stream(4096)),
    ]
    for read in ways:
        sandbox.fail_next(on="me", status=401, body=body)
        assert read(session.get(sandbox.url + "/api/auth/me", stream=True, timeout=PATIENCE)) == body


# The connection of a 401.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("pad", [0, 100_000])
def test_a_401_gives_its_connection_back_before_the_refresh(
    sandbox: Sandbox, arguments: dict[str, Any], stream: bool, pad: int
) -> None:
    """A pool of one that blocks when it is empty, and carries the refresh itself, does not wait for its own
    401.
    """
    with requests.Session() as session:
        session.mount("http://", HTTPAdapter(pool_connections=1, pool_maxsize=1, pool_block=True))
        session.auth = AdhAuth(**arguments, refresh_via=session)
        header = {"WWW-Authenticate": 'Bearer error="token_expired"'}
        sandbox.fail_next(on="me", status=401, body=b"x" * pad, headers=header)
        with session.get(sandbox.url + "/api/auth/me", stream=stream, timeout=PATIENCE) as answer:
            assert answer.status_code == 200
    assert sandbox.counts.rotations == 1


def test_a_401_of_the_callers_gives_its_connection_back(tmp_path: Path) -> None:
    """In a pool of one, a 401 of another code goes to the caller, whose read gives the connection back."""
    path = tmp_path / "tokens.json"
    TokenFile(path).save(pair_of(OLD))
    with RawServer(lambda _: as_json({"code": "other"}, 401)) as server, requests.Session() as session:
        session.mount("http://", HTTPAdapter(pool_connections=1, pool_maxsize=1, pool_block=True))
        session.auth = AdhAuth(path, client_id="i", client_secret="s", base_url=server.url)
        assert [session.get(server.url + "/api/x", timeout=PATIENCE).status_code for _ in range(2)] == [
            401,
            401,
        ]


def test_a_retry_on_401_hides_the_expiry(sandbox: Sandbox, arguments: dict[str, Any]) -> None:
    """The README says so: urllib3 answers the 401 itself, before requests calls any hook."""
    sandbox.expire()
    with requests.Session() as session:
        session.auth = AdhAuth(**arguments)
        session.mount("http://", HTTPAdapter(max_retries=Retry(total=1, status_forcelist=[401])))
        with pytest.raises(requests.exceptions.RetryError):
            session.get(sandbox.url + "/api/auth/me", timeout=PATIENCE)
    assert sandbox.counts.refresh_calls == 0
