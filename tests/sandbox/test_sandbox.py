"""The sandbox over its real sockets, with nothing but the standard library's client."""

import base64
import hashlib
import http.client
import json
import math
import os
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import pytest
import trustme

from adh_auth.testing import Counts, Sandbox

from ..support.faults import wait_until

VERIFIER = "v" * 43
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
REDIRECT_URI = "http://localhost:8765/callback"
LOST = (http.client.RemoteDisconnected, ConnectionResetError)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Caller:
    """One kept-alive connection to a sandbox and the calls that a client makes."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.connection = http.client.HTTPConnection(urlsplit(sandbox.url).netloc, timeout=10)

    def close(self) -> None:
        self.connection.close()

    def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        self.connection.request(method, path, body, dict(headers or {}))
        response = self.connection.getresponse()
        return Answer(response.status, response.headers, response.read())

    def get(self, path: str, token: str | None = None, method: str = "GET", body: Any = None) -> Answer:
        return self.call(method, path, body, {"Authorization": f"Bearer {token}"} if token else {})

    def me(self, token: str | None = None) -> Answer:
        return self.get("/api/auth/me", token)

    def post(self, path: str, payload: Mapping[str, Any]) -> Answer:
        return self.call("POST", path, json.dumps(payload), {"Content-Type": "application/json"})

    def refresh(self, refresh_token: str, /, **changes: Any) -> Answer:
        return self.post(
            "/api/auth/refresh", self.client("refresh_token", refresh_token=refresh_token) | changes
        )

    def revoke(self, token: str, /, **changes: Any) -> Answer:
        return self.post("/api/auth/revoke", self.client("", token=token) | changes)

    def exchange(self, code: str, /, **changes: Any) -> Answer:
        payload = self.client(
            "authorization_code", code=code, redirect_uri=REDIRECT_URI, code_verifier=VERIFIER
        )
        return self.post("/api/oauth/signin/exchange", payload | changes)

    def client(self, grant_type: str, **payload: str) -> dict[str, Any]:
        grant = {"grant_type": grant_type} if grant_type else {}
        return {
            **grant,
            **payload,
            "client_id": self.sandbox.client_id,
            "client_secret": self.sandbox.client_secret,
        }

    def start(self, **changes: str) -> Answer:
        query = {
            "client_id": self.sandbox.client_id,
            "redirect_uri": REDIRECT_URI,
            "response_type": "code",
            "scope": "profile:read",
            "state": "st/ate",
            "code_challenge": CHALLENGE,
            "code_challenge_method": "S256",
        }
        return self.call("GET", f"/api/oauth/signin/start?{urlencode(query | changes)}")

    def code(self) -> str:
        return landing(self.start())["code"]


def landing(answer: Answer) -> dict[str, str]:
    """What the redirect brings back to the redirect_uri."""
    return dict(parse_qsl(urlsplit(answer.headers["Location"]).query))


def connect(sandbox: Sandbox, timeout: float = 10.0) -> socket.socket:
    """A bare connection, for what no client would send."""
    return socket.create_connection(("127.0.0.1", urlsplit(sandbox.url).port or 0), timeout=timeout)


def server_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("adh-sandbox")]


@pytest.fixture
def caller(sandbox: Sandbox) -> Iterator[Caller]:
    with closing(Caller(sandbox)) as connected:
        yield connected


@pytest.fixture
def others() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


# Access tokens


def test_me(sandbox: Sandbox, caller: Caller) -> None:
    """A live access token gets the flat user, and every answer has a request id of its own."""
    token = sandbox.sign_in()["access_token"]
    first, second = caller.me(token), caller.me(token)
    assert first.status == 200
    assert set(first.json) == {"id", "email", "name"}
    assert first.headers["X-Request-Id"] != second.headers["X-Request-Id"]


def test_no_token(caller: Caller) -> None:
    """Without a bearer token the answer is `unauthorized`, with an unknown one `invalid_token`."""
    assert (caller.me().status, caller.me().json["code"]) == (401, "unauthorized")
    assert (
        caller.call("GET", "/api/auth/me", headers={"Authorization": "Basic YTpi"}).json["code"]
        == "unauthorized"
    )
    assert (caller.me("adh_wrong").status, caller.me("adh_wrong").json["code"]) == (401, "invalid_token")


@pytest.mark.parametrize(
    "path",
    [
        "/api/auth/me",
        "/api/things",
        "/api/stream",
        "/api/redirect?to=/x",
        "/api/status/200",
        "/api/cookie?a=b",
    ],
)
def test_everything_needs_a_token(caller: Caller, path: str) -> None:
    """No path under /api that is not part of signing in answers without a token."""
    assert caller.get(path).status == 401


def test_expire(sandbox: Sandbox, caller: Caller) -> None:
    """`expire()` ends what was issued until then, and nothing that comes after it."""
    reply = sandbox.sign_in()
    sandbox.expire()
    assert caller.me(reply["access_token"]).json["code"] == "token_expired"
    assert caller.me(caller.refresh(reply["refresh_token"]).json["access_token"]).status == 200


def test_token_life(sandbox: Sandbox, caller: Caller) -> None:
    """A token is good for `token_life` seconds, as that was set when the token was issued."""
    sandbox.token_life = 0.0
    short = sandbox.sign_in()["access_token"]
    sandbox.token_life = 60.0
    assert caller.me(short).json["code"] == "token_expired"
    assert caller.me(sandbox.sign_in()["access_token"]).status == 200


@pytest.mark.parametrize(
    ("token_life", "text"),
    [(3600.0, '"expires_in": 3600,'), (60, '"expires_in": 60,'), (0.25, '"expires_in": 0.25,')],
)
def test_expires_in(token_life: float, text: str) -> None:
    """`expires_in` is an integer whenever the life is a whole number of seconds."""
    assert text in json.dumps(Sandbox(token_life=token_life).sign_in())


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("code", {"code": "token_expired", "message": "The access token has expired."}),
        ("nested", {"error": {"code": "token_expired", "message": "The access token has expired."}}),
        ("oauth", {"error": "token_expired"}),
    ],
)
def test_error_shapes(sandbox: Sandbox, caller: Caller, shape: str, expected: dict[str, Any]) -> None:
    """The same code comes in each of the shapes that the platform's own material attests."""
    token = sandbox.sign_in()["access_token"]
    sandbox.expire()
    sandbox.error_shape = shape
    answer = caller.me(token)
    assert (answer.status, answer.json) == (401, expected)
    assert answer.headers["WWW-Authenticate"] is None


def test_header_shape(sandbox: Sandbox, caller: Caller) -> None:
    """The fourth shape is an empty body and RFC 6750's header; other errors keep their body."""
    token = sandbox.sign_in()["access_token"]
    sandbox.expire()
    sandbox.error_shape = "header"
    answer = caller.me(token)
    assert (answer.status, answer.body, answer.headers["WWW-Authenticate"]) == (
        401,
        b"",
        'Bearer error="token_expired"',
    )
    assert caller.refresh("adh_rt_wrong").json["code"] == "invalid_grant"


# Rotation


def test_rotation(sandbox: Sandbox, caller: Caller) -> None:
    """A refresh brings a new pair without a scope; the old access token lives on until it expires."""
    old = sandbox.sign_in()
    answer = caller.refresh(old["refresh_token"])
    assert answer.status == 200
    assert set(answer.json) == {"access_token", "refresh_token", "expires_in", "token_type"}
    assert not set(answer.json.values()) & {old["access_token"], old["refresh_token"]}
    assert caller.me(old["access_token"]).status == caller.me(answer.json["access_token"]).status == 200


def test_token_names(sandbox: Sandbox) -> None:
    """Tokens have the form of the platform's, and the exchange reply has the scope that was asked for."""
    reply = sandbox.sign_in(scope="integrations:manage")
    assert reply["access_token"].startswith("adh_")
    assert reply["refresh_token"].startswith("adh_rt_")
    assert (reply["token_type"], reply["scope"]) == ("Bearer", "integrations:manage")


def test_kills_old_access(sandbox: Sandbox, caller: Caller) -> None:
    """If set, a rotation ends the earlier access tokens of its session and of no other, with a code that is
    not `token_expired`.
    """
    old, other = sandbox.sign_in(), sandbox.sign_in()
    sandbox.kills_old_access = True
    fresh = caller.refresh(old["refresh_token"]).json
    assert caller.me(old["access_token"]).json["code"] == "invalid_token"
    assert caller.me(fresh["access_token"]).status == caller.me(other["access_token"]).status == 200


def test_reuse_revokes_the_session(sandbox: Sandbox, caller: Caller) -> None:
    """A refresh token that comes a second time costs the whole session, its newest pair included, and no
    other session.
    """
    old, other = sandbox.sign_in(), sandbox.sign_in()
    fresh = caller.refresh(old["refresh_token"]).json
    reused = caller.refresh(old["refresh_token"])
    assert (reused.status, reused.json["code"]) == (400, "invalid_grant")
    assert caller.me(fresh["access_token"]).json["code"] == "invalid_token"
    assert caller.refresh(fresh["refresh_token"]).json["code"] == "invalid_grant"
    assert caller.refresh(other["refresh_token"]).status == 200
    assert sandbox.counts == Counts(
        requests=1, unauthorized=1, refresh_calls=4, rotations=2, refused=2, reused=1
    )


def test_unknown_token_is_no_reuse(sandbox: Sandbox, caller: Caller) -> None:
    """An unknown refresh token is refused, but it is no second use."""
    assert caller.refresh("adh_rt_wrong").json["code"] == "invalid_grant"
    assert sandbox.counts == Counts(refresh_calls=1, refused=1)


def test_grace(sandbox: Sandbox, caller: Caller) -> None:
    """Within `grace` a spent token gets the same successor again, which is neither a reuse nor a rotation."""
    sandbox.grace = 60.0
    old = sandbox.sign_in()["refresh_token"]
    first, second = caller.refresh(old), caller.refresh(old)
    assert first.json == second.json
    assert sandbox.counts == Counts(refresh_calls=2, rotations=1)


def test_grace_ends(sandbox: Sandbox, caller: Caller) -> None:
    """After `grace` the spent token is a reuse again."""
    sandbox.grace = 60.0
    old = sandbox.sign_in()["refresh_token"]
    caller.refresh(old)
    sandbox.grace = 0.0
    assert caller.refresh(old).json["code"] == "invalid_grant"
    assert sandbox.counts.reused == 1


def test_grace_does_not_outlive_the_session(sandbox: Sandbox, caller: Caller) -> None:
    """A revoked session has no grace."""
    sandbox.grace = 60.0
    old = sandbox.sign_in()["refresh_token"]
    caller.refresh(old)
    sandbox.revoke()
    assert caller.refresh(old).json["code"] == "invalid_grant"


def test_one_of_many_wins(sandbox: Sandbox, others: ThreadPoolExecutor) -> None:
    """Of eight that present one token at the same time exactly one is served, and the session is gone."""
    old = sandbox.sign_in()["refresh_token"]
    together = threading.Barrier(8)

    def present(_: int) -> int:
        with closing(Caller(sandbox)) as caller:
            together.wait(10)
            return caller.refresh(old).status

    assert sorted(others.map(present, range(8))) == [200] + [400] * 7
    assert sandbox.counts == Counts(refresh_calls=8, rotations=1, refused=7, reused=7)


def test_revoke_all(sandbox: Sandbox, caller: Caller) -> None:
    """`revoke()` ends every session, also where the access token had expired before; a new sign-in works."""
    reply = sandbox.sign_in()
    sandbox.expire()
    sandbox.revoke()
    assert caller.me(reply["access_token"]).json["code"] == "invalid_token"
    assert caller.refresh(reply["refresh_token"]).json["code"] == "invalid_grant"
    assert caller.me(sandbox.sign_in()["access_token"]).status == 200


@pytest.mark.parametrize(
    "changes", [{"grant_type": "password"}, {"refresh_token": ""}, {"refresh_token": 5}, {"client_id": None}]
)
def test_refresh_payload(sandbox: Sandbox, caller: Caller, changes: dict[str, Any]) -> None:
    """A refresh that lacks something is an `invalid_request` that names the field, and spends nothing."""
    reply = sandbox.sign_in()
    answer = caller.refresh(reply["refresh_token"], **changes)
    assert (answer.status, answer.json["code"], answer.json["field"]) == (
        400,
        "invalid_request",
        next(iter(changes)),
    )
    assert caller.refresh(reply["refresh_token"]).status == 200


@pytest.mark.parametrize("changes", [{"client_id": "other"}, {"client_secret": "other"}])
def test_refresh_client(sandbox: Sandbox, caller: Caller, changes: dict[str, Any]) -> None:
    """Another client is an `invalid_client`, and spends nothing."""
    reply = sandbox.sign_in()
    answer = caller.refresh(reply["refresh_token"], **changes)
    assert (answer.status, answer.json["code"]) == (401, "invalid_client")
    assert caller.refresh(reply["refresh_token"]).status == 200


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/x-www-form-urlencoded", b"grant_type=refresh_token", 415),
        ("application/json", b"grant_type=refresh_token", 400),
        ("application/json; charset=utf-8", b"[1]", 400),
        ("application/json", b"", 400),
        ("application/json", b"\xff", 400),
    ],
)
def test_json_only(caller: Caller, content_type: str, body: bytes, status: int) -> None:
    """The auth endpoints take a JSON object and nothing else."""
    answer = caller.call("POST", "/api/auth/refresh", body, {"Content-Type": content_type})
    assert (answer.status, answer.json["code"]) == (status, "invalid_request")


def test_wrong_method(caller: Caller) -> None:
    """An auth endpoint has one method."""
    assert caller.get("/api/auth/refresh").json["code"] == "method_not_allowed"
    assert caller.post("/api/auth/me", {}).status == 405


def test_revoke_endpoint(sandbox: Sandbox, caller: Caller) -> None:
    """Revoking a refresh token ends its session with a 204 that has no body."""
    reply = sandbox.sign_in()
    answer = caller.revoke(reply["refresh_token"])
    assert (answer.status, answer.body, answer.headers["Content-Length"]) == (204, b"", None)
    assert caller.me(reply["access_token"]).status == 401
    assert caller.refresh(reply["refresh_token"]).status == 400
    assert sandbox.counts.revocations == 1


def test_revoke_unknown(sandbox: Sandbox, caller: Caller) -> None:
    """An unknown token is no error, and an access token does not end a session."""
    reply = sandbox.sign_in()
    assert caller.revoke("adh_rt_wrong").status == caller.revoke(reply["access_token"]).status == 204
    assert caller.me(reply["access_token"]).status == 200


def test_revoke_client(sandbox: Sandbox, caller: Caller) -> None:
    """Revoking takes the client's own secret."""
    reply = sandbox.sign_in()
    assert caller.revoke(reply["refresh_token"], client_secret="other").json["code"] == "invalid_client"
    assert caller.refresh(reply["refresh_token"]).status == 200


# Signing in


def test_sign_in(sandbox: Sandbox, caller: Caller) -> None:
    """The code from the redirect buys a pair with the scope that was asked for."""
    started = caller.start()
    assert (started.status, landing(started)["state"]) == (302, "st/ate")
    assert started.headers["Location"].startswith(f"{REDIRECT_URI}?")
    reply = caller.exchange(landing(started)["code"])
    assert (reply.status, reply.json["scope"]) == (200, "profile:read")
    assert caller.me(reply.json["access_token"]).status == 200
    assert sandbox.counts.exchanges == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("redirect_uri", f"{REDIRECT_URI}/"),
        ("response_type", "token"),
        ("code_challenge_method", "plain"),
        ("code_challenge", "short"),
        ("code_challenge", "c" * 129),
        ("code_challenge", "+" * 43),
        ("scope", ""),
        ("state", ""),
    ],
)
def test_start_is_checked(caller: Caller, name: str, value: str) -> None:
    """A sign-in with a missing or wrong parameter is a 400 and no redirect."""
    answer = caller.start(**{name: value})
    assert (answer.status, answer.json["code"], answer.json["field"]) == (400, "invalid_request", name)


def test_start_client(caller: Caller) -> None:
    """An unknown client cannot start a sign-in."""
    assert caller.start(client_id="other").json["code"] == "invalid_client"


def test_start_keeps_the_query(sandbox: Sandbox, caller: Caller) -> None:
    """A registered redirect_uri with a query keeps it."""
    sandbox.redirect_uris = ["http://localhost:1/back?from=adh"]
    location = caller.start(redirect_uri="http://localhost:1/back?from=adh").headers["Location"]
    assert set(parse_qs(urlsplit(location).query)) == {"from", "code", "state"}


def test_denial(sandbox: Sandbox, caller: Caller) -> None:
    """`deny_next()` sends one sign-in back without a code."""
    sandbox.deny_next()
    assert landing(caller.start()) == {"error": "access_denied", "state": "st/ate"}
    assert "code" in landing(caller.start())


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"code": "wrong"}, 400, "invalid_grant"),
        ({"redirect_uri": "http://localhost:8765/"}, 400, "invalid_grant"),
        ({"code_verifier": "w" * 43}, 401, "invalid_verifier"),
        ({"client_id": "other"}, 401, "invalid_client"),
        ({"client_secret": "other"}, 401, "invalid_client"),
        ({"code_verifier": ""}, 400, "invalid_request"),
        ({"grant_type": "refresh_token"}, 400, "invalid_request"),
    ],
)
def test_exchange_failures(caller: Caller, changes: dict[str, str], status: int, code: str) -> None:
    """The exchange fails in the documented ways."""
    answer = caller.exchange(caller.code(), **changes)
    assert (answer.status, answer.json["code"]) == (status, code)


def test_code_life(sandbox: Sandbox, caller: Caller) -> None:
    """A code is good for `code_life` seconds."""
    sandbox.code_life = 0.0
    assert caller.exchange(caller.code()).json["code"] == "invalid_grant"


def test_code_used_twice(caller: Caller) -> None:
    """A code that comes a second time revokes the session that it started."""
    code = caller.code()
    reply = caller.exchange(code).json
    assert caller.exchange(code).json["code"] == "invalid_grant"
    assert caller.me(reply["access_token"]).status == 401
    assert caller.refresh(reply["refresh_token"]).json["code"] == "invalid_grant"


# The rest of the API


def test_echo(sandbox: Sandbox, caller: Caller) -> None:
    """Any other path echoes what arrived, without the token."""
    token = sandbox.sign_in()["access_token"]
    headers = {"Authorization": f"Bearer {token}", "X-Thing": "Some"}
    answer = caller.call("PATCH", "/api/any/thing?a=1&b=%20", b"hello", headers)
    reply = answer.json
    assert {key: reply[key] for key in ("method", "path", "query", "length", "body")} == {
        "method": "PATCH",
        "path": "/api/any/thing",
        "query": "a=1&b=%20",
        "length": 5,
        "body": "hello",
    }
    assert reply["sha256"] == hashlib.sha256(b"hello").hexdigest()
    assert reply["headers"]["x-thing"] == "Some"
    assert token not in answer.body.decode()


@pytest.mark.parametrize("body", [b"\xff\x00", b"x" * 65_536, b"x" * 9_000_000])
def test_echo_of_odd_bodies(sandbox: Sandbox, caller: Caller, body: bytes) -> None:
    """A body that is not UTF-8, or has 64 KiB and more, is measured but not echoed."""
    reply = caller.get("/api/upload", sandbox.sign_in()["access_token"], "PUT", body).json
    assert (reply["body"], reply["length"], reply["sha256"]) == (
        None,
        len(body),
        hashlib.sha256(body).hexdigest(),
    )


def test_chunked_request(sandbox: Sandbox, caller: Caller) -> None:
    """A chunked body is put together, and the connection is good for another request."""
    token = sandbox.sign_in()["access_token"]
    reply = caller.get("/api/upload", token, "POST", iter([b"one,", b"two" * 30_000, b",three"])).json
    assert (reply["headers"]["transfer-encoding"], reply["length"]) == ("chunked", 90_010)
    assert caller.me(token).status == 200


def test_unauthorized_upload(caller: Caller) -> None:
    """A refused upload is read to its end, so that the next request on the connection is understood."""
    assert caller.get("/api/upload", None, "POST", b"x" * 5_000_000).status == 401
    kept = caller.connection.sock
    assert caller.get("/api/upload", None, "POST", iter([b"x" * 100])).json["code"] == "unauthorized"
    assert caller.connection.sock is kept


def test_head(sandbox: Sandbox, caller: Caller) -> None:
    """HEAD says how long the body would be, and sends none."""
    token = sandbox.sign_in()["access_token"]
    for path in ("/api/thing", "/api/auth/me", "/api/stream"):
        assert (caller.get(path, token, "HEAD").status, caller.get(path, token, "HEAD").body) == (200, b"")
    assert int(caller.get("/api/thing", token, "HEAD").headers["Content-Length"]) > 0


@pytest.mark.parametrize("target", ["https://example.org/a?b=c", "/api/thing"])
def test_redirect(sandbox: Sandbox, caller: Caller, target: str) -> None:
    """`/api/redirect` goes anywhere, with the status that is asked for."""
    answer = caller.get(
        f"/api/redirect?{urlencode({'to': target, 'status': 307})}", sandbox.sign_in()["access_token"]
    )
    assert (answer.status, answer.headers["Location"]) == (307, target)


@pytest.mark.parametrize("query", ["", "to=", "to=/x&status=200", "to=/x&status=no", "to=%0d%0aX:1"])
def test_bad_redirect(sandbox: Sandbox, caller: Caller, query: str) -> None:
    """A redirect to nowhere, with another status or with a line break is refused."""
    answer = caller.get(f"/api/redirect?{query}", sandbox.sign_in()["access_token"])
    assert (answer.status, answer.json["code"]) == (400, "invalid_request")


def test_stream(sandbox: Sandbox, caller: Caller) -> None:
    """`/api/stream` sends known content in as many chunks as asked."""
    token = sandbox.sign_in()["access_token"]
    answer = caller.get("/api/stream?chunks=4", token)
    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert answer.body == b"chunk 0\nchunk 1\nchunk 2\nchunk 3\n"
    assert caller.get("/api/stream?chunks=-1", token).json["field"] == "chunks"


@pytest.mark.parametrize("status", [200, 204, 304, 418, 503, 599])
def test_status(sandbox: Sandbox, caller: Caller, status: int) -> None:
    """`/api/status` answers any final status and keeps the connection in step."""
    token = sandbox.sign_in()["access_token"]
    assert caller.get(f"/api/status/{status}", token).status == status
    assert caller.me(token).status == 200


def test_cookie(sandbox: Sandbox, caller: Caller) -> None:
    """`/api/cookie` sets what the query names."""
    answer = caller.get("/api/cookie?taste=sweet", sandbox.sign_in()["access_token"])
    assert answer.headers["Set-Cookie"] == "taste=sweet; Path=/"


@pytest.mark.parametrize("path", ["/", "/healthz", "/apis"])
def test_elsewhere(caller: Caller, path: str) -> None:
    """Outside /api there is nothing, token or not; also that answer has a request id."""
    answer = caller.get(path)
    assert (answer.status, answer.json["code"]) == (404, "not_found")
    assert answer.headers["X-Request-Id"]


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: no\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nno\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n1\r\nxyz\r\n",
    ],
)
def test_broken_framing(sandbox: Sandbox, head: bytes) -> None:
    """A body with broken framing is a 400, and the connection ends."""
    with connect(sandbox) as connection:
        connection.sendall(b"POST /api/thing HTTP/1.1\r\nHost: x\r\n" + head)
        with connection.makefile("rb") as stream:
            assert stream.read().startswith(b"HTTP/1.1 400 ")


# Faults


def test_failing_refresh(sandbox: Sandbox, caller: Caller) -> None:
    """A planned failure spends nothing, and the next calls succeed."""
    reply = sandbox.sign_in()
    sandbox.fail_next(2, status=503, retry_after=0.5, headers={"X-Thing": "Some"})
    first, second, third = (caller.refresh(reply["refresh_token"]) for _ in range(3))
    assert (first.status, first.json["code"], first.headers["Retry-After"], first.headers["X-Thing"]) == (
        503,
        "server_error",
        "0.5",
        "Some",
    )
    assert (second.status, third.status) == (503, 200)
    assert sandbox.counts == Counts(refresh_calls=3, rotations=1)


def test_planned_body(sandbox: Sandbox, caller: Caller) -> None:
    """A planned body is sent as it is, under the planned headers, and nothing is committed behind it."""
    reply = sandbox.sign_in()
    sandbox.fail_next(status=200, body=b"<html>", headers={"content-type": "text/html"}, retry_after="soon")
    answer = caller.refresh(reply["refresh_token"])
    assert (answer.status, answer.body, answer.headers.get_all("Content-Type")) == (
        200,
        b"<html>",
        ["text/html"],
    )
    assert answer.headers["Retry-After"] == "soon"
    assert sandbox.counts.rotations == 0


def test_rate_limit(sandbox: Sandbox, caller: Caller) -> None:
    """A 429 has the code that belongs to it."""
    sandbox.fail_next(status=429, retry_after=3)
    answer = caller.refresh("adh_rt_any")
    assert (answer.json["code"], answer.headers["Retry-After"]) == ("rate_limited", "3")


def test_faults_queue(sandbox: Sandbox, caller: Caller) -> None:
    """Faults come in the order in which they were planned."""
    sandbox.fail_next(status=500)
    sandbox.fail_next(2, status=502)
    assert [caller.refresh("adh_rt_any").status for _ in range(4)] == [500, 502, 502, 400]


@pytest.mark.parametrize("count", [None, math.inf])
def test_heal(sandbox: Sandbox, caller: Caller, count: float | None) -> None:
    """A fault without a count stays until `heal()`."""
    sandbox.fail_next(count, status=500)
    assert {caller.refresh("adh_rt_any").status for _ in range(5)} == {500}
    sandbox.heal()
    assert caller.refresh("adh_rt_any").status == 400


@pytest.mark.parametrize("on", ["refresh", "exchange", "revoke", "me", "api"])
def test_fault_endpoint(sandbox: Sandbox, caller: Caller, on: str) -> None:
    """A fault hits the endpoint that it was planned for and no other."""
    token = sandbox.sign_in()["access_token"]
    calls: dict[str, Callable[[], Answer]] = {
        "refresh": lambda: caller.refresh("adh_rt_any"),
        "exchange": lambda: caller.exchange("any"),
        "revoke": lambda: caller.revoke("adh_rt_any"),
        "me": lambda: caller.me(token),
        "api": lambda: caller.get("/api/thing", token),
    }
    sandbox.fail_next(status=500, on=on)
    assert [name for name, call in calls.items() if call().status == 500] == [on]


def test_drop_before(sandbox: Sandbox, caller: Caller) -> None:
    """Dropped before the commit, the connection ends and nothing was spent."""
    reply = sandbox.sign_in()
    sandbox.fail_next(drop="before")
    with pytest.raises(LOST):
        caller.refresh(reply["refresh_token"])
    assert sandbox.counts == Counts(refresh_calls=1)
    caller.close()
    assert caller.refresh(reply["refresh_token"]).status == 200


def test_drop_after(sandbox: Sandbox, caller: Caller) -> None:
    """Dropped after the commit, the token is spent although no reply came: a second try is a reuse."""
    reply = sandbox.sign_in()
    sandbox.fail_next(drop="after")
    with pytest.raises(LOST):
        caller.refresh(reply["refresh_token"])
    assert sandbox.counts.rotations == 1
    caller.close()
    assert caller.refresh(reply["refresh_token"]).json["code"] == "invalid_grant"
    assert sandbox.counts.reused == 1


def test_drop_after_with_grace(sandbox: Sandbox, caller: Caller) -> None:
    """With grace, the second try after a lost reply gets the pair that was lost."""
    sandbox.grace = 60.0
    reply = sandbox.sign_in()
    sandbox.fail_next(drop="after")
    with pytest.raises(LOST):
        caller.refresh(reply["refresh_token"])
    caller.close()
    assert caller.me(caller.refresh(reply["refresh_token"]).json["access_token"]).status == 200


def test_drop_midway(sandbox: Sandbox, caller: Caller) -> None:
    """Dropped midway, the head and half of the body arrive; the token is spent."""
    reply = sandbox.sign_in()
    sandbox.fail_next(drop="midway")
    with pytest.raises(http.client.IncompleteRead) as caught:
        caller.refresh(reply["refresh_token"])
    assert caught.value.partial.startswith(b'{"access_token"')
    assert sandbox.counts.rotations == 1


def test_drop_midway_without_a_body(sandbox: Sandbox, caller: Caller) -> None:
    """Where there is no body, half of the head arrives."""
    sandbox.fail_next(drop="midway", on="revoke")
    payload = json.dumps(caller.client("", token="adh_rt_any")).encode()
    with connect(sandbox) as connection:
        head = "POST /api/auth/revoke HTTP/1.1\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(payload)}\r\n\r\n"
        connection.sendall(head.encode() + payload)
        with connection.makefile("rb") as stream:
            received = stream.read()
    assert received.startswith(b"HTTP/1.1 204 ")
    assert b"\r\n\r\n" not in received


def test_delay_comes_after_the_commit(sandbox: Sandbox, others: ThreadPoolExecutor) -> None:
    """A delayed call has committed already while it waits, and `stop()` does not wait for it."""
    reply = sandbox.sign_in()
    sandbox.fail_next(delay=60.0)
    with closing(Caller(sandbox)) as caller:
        waiting = others.submit(caller.refresh, reply["refresh_token"])
        wait_until(lambda: sandbox.counts.rotations == 1)
        sandbox.stop()
        assert not server_threads()
        assert isinstance(waiting.exception(10), LOST)


def test_refresh_seconds(sandbox: Sandbox, caller: Caller) -> None:
    """The refresh endpoint takes `refresh_seconds`."""
    sandbox.refresh_seconds = 0.05
    began = time.monotonic()
    caller.refresh("adh_rt_any")
    assert time.monotonic() - began >= 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "a status, a drop or a delay"),
        ({"status": 500, "drop": "after"}, "status or drop"),
        ({"drop": "after", "retry_after": 1}, "give its status too"),
        ({"delay": 1.0, "body": b""}, "give its status too"),
        ({"status": 101}, "200 to 599"),
        ({"status": 500, "body": "text"}, "body must be bytes"),
        ({"delay": -1.0}, "delay"),
        ({"delay": math.inf}, "delay"),
        ({"drop": "sometimes"}, "drop must be one of"),
        ({"status": 500, "on": "login"}, "on must be one of"),
        ({"status": 500, "count": 0}, "count"),
        ({"status": 500, "count": 1.5}, "count"),
        ({"status": 500, "headers": {"X": "a\r\nb"}}, "control character"),
    ],
)
def test_contradictions(arguments: dict[str, Any], message: str) -> None:
    """A fault without an effect, with contradictions or for an unknown endpoint is refused when planned."""
    with pytest.raises(ValueError, match=message):
        Sandbox().fail_next(**arguments)


# Holds


def test_hold_before(sandbox: Sandbox, others: ThreadPoolExecutor) -> None:
    """A call that is held before its commit has spent nothing yet."""
    reply = sandbox.sign_in()
    with closing(Caller(sandbox)) as caller, sandbox.hold_next(at="before") as hold:
        waiting = others.submit(caller.refresh, reply["refresh_token"])
        hold.wait()
        assert sandbox.counts == Counts(refresh_calls=1)
        hold.release()
        assert waiting.result(10).status == 200


def test_hold_after(sandbox: Sandbox, caller: Caller, others: ThreadPoolExecutor) -> None:
    """A call that is held after its commit has spent its token; other calls go on meanwhile."""
    reply = sandbox.sign_in()
    with closing(Caller(sandbox)) as held, sandbox.hold_next() as hold:
        waiting = others.submit(held.refresh, reply["refresh_token"])
        hold.wait()
        assert sandbox.counts.rotations == 1
        assert caller.me(reply["access_token"]).status == 200
        assert not waiting.done()
    assert waiting.result(10).status == 200


def test_hold_and_drop(sandbox: Sandbox, others: ThreadPoolExecutor) -> None:
    """A hold and a fault on one call both happen, the hold first."""
    reply = sandbox.sign_in()
    sandbox.fail_next(drop="after")
    with closing(Caller(sandbox)) as caller, sandbox.hold_next() as hold:
        waiting = others.submit(caller.refresh, reply["refresh_token"])
        hold.wait()
        hold.release()
        assert isinstance(waiting.exception(10), LOST)


def test_hold_released_beforehand(sandbox: Sandbox, caller: Caller) -> None:
    """A hold that was released before the call came does not stop it."""
    hold = sandbox.hold_next(on="me")
    hold.release()
    assert caller.me().status == 401
    assert hold.reached.is_set()


def test_hold_that_no_call_reaches(sandbox: Sandbox) -> None:
    """Waiting for a call that does not come ends with a `TimeoutError`."""
    with pytest.raises(TimeoutError, match="no call came"):
        sandbox.hold_next().wait(timeout=0.01)


@pytest.mark.parametrize("arguments", [{"on": "login"}, {"at": "midway"}])
def test_hold_arguments(arguments: dict[str, str]) -> None:
    """A hold at a place that does not exist would never be reached, and is refused."""
    with pytest.raises(ValueError, match="must be one of"):
        Sandbox().hold_next(**arguments)


# The server itself


@pytest.mark.parametrize("at", ["before", "after"])
def test_stop_ends_held_calls(sandbox: Sandbox, others: ThreadPoolExecutor, at: str) -> None:
    """`stop()` ends the calls that are held; what had not been committed never is."""
    reply = sandbox.sign_in()
    with closing(Caller(sandbox)) as caller:
        hold = sandbox.hold_next(at=at)
        waiting = others.submit(caller.refresh, reply["refresh_token"])
        hold.wait()
        sandbox.stop()
        assert not server_threads()
        assert isinstance(waiting.exception(10), LOST)
    assert sandbox.counts.rotations == (at == "after")


def test_stop_closes_everything(caller: Caller, sandbox: Sandbox) -> None:
    """After `stop()` kept-alive connections are closed, the port is closed, and no thread is left."""
    caller.me()
    sandbox.stop()
    with pytest.raises(OSError):  # any of the ways in which a closed connection shows
        caller.me()
    caller.close()
    with pytest.raises(ConnectionRefusedError):
        caller.me()
    assert not server_threads()


def test_restart(sandbox: Sandbox, caller: Caller) -> None:
    """A stopped sandbox comes back at the same URL and still knows its sessions."""
    reply, url = sandbox.sign_in(), sandbox.url
    sandbox.stop()
    sandbox.stop()
    sandbox.start()
    assert sandbox.url == url
    assert caller.refresh(reply["refresh_token"]).status == 200


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork: run it on a POSIX system")
def test_drop_reaches_past_a_forked_child(sandbox: Sandbox, caller: Caller) -> None:
    """A connection ends for the client although a forked child holds a copy of the server's descriptors."""
    caller.me()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    try:
        sandbox.fail_next(on="me", drop="after")
        with pytest.raises(LOST):
            caller.me()
        sandbox.stop()
        with pytest.raises(ConnectionRefusedError):
            connect(sandbox)
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(child, 0)


def test_vanishing_client(sandbox: Sandbox, caller: Caller, capfd: pytest.CaptureFixture[str]) -> None:
    """Clients that leave in the middle of a request or before their answer cause no traceback."""
    for part in (b"", b"GET /api", b"POST /api/x HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc"):
        with connect(sandbox) as connection:
            connection.sendall(part)
    leaving = connect(sandbox)
    with sandbox.hold_next(on="me") as hold:
        leaving.sendall(b"GET /api/auth/me HTTP/1.1\r\n\r\n" * 2)
        hold.wait()
        leaving.close()
    assert caller.me().status == 401
    sandbox.stop()
    assert capfd.readouterr() == ("", "")


def test_burst(sandbox: Sandbox) -> None:
    """A hundred connections at once are all accepted without a retry of the handshake."""
    with ExitStack() as stack:
        for _ in range(100):
            # A full backlog makes the kernel try again after a whole second.
            stack.enter_context(connect(sandbox, timeout=0.9))


def test_tls() -> None:
    """With an `ssl_context` the sandbox speaks https, and one client's unfinished handshake does not stop
    another.
    """
    authority = trustme.CA()
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with Sandbox(ssl_context=server_context(authority)) as sandbox, connect(sandbox):
        assert sandbox.url.startswith("https://127.0.0.1:")
        with closing(
            http.client.HTTPSConnection(urlsplit(sandbox.url).netloc, timeout=10, context=trusting)
        ) as connection:
            connection.request(
                "GET",
                "/api/auth/me",
                headers={"Authorization": f"Bearer {sandbox.sign_in()['access_token']}"},
            )
            assert connection.getresponse().status == 200


def test_untrusted_tls(capfd: pytest.CaptureFixture[str]) -> None:
    """A client that refuses the certificate causes no traceback."""
    with (
        Sandbox(ssl_context=server_context(trustme.CA())) as sandbox,
        closing(http.client.HTTPSConnection(urlsplit(sandbox.url).netloc, timeout=10)) as connection,
        pytest.raises(ssl.SSLError),
    ):
        connection.request("GET", "/api/auth/me")
    assert capfd.readouterr() == ("", "")


def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


# Looking at it


def test_counts(sandbox: Sandbox, caller: Caller) -> None:
    """Calls that need a token are counted apart from the auth endpoints, and a snapshot does not change."""
    before, token = sandbox.counts, sandbox.sign_in()["access_token"]
    caller.me(token)
    caller.get("/api/thing")
    caller.get("/elsewhere")
    caller.refresh("adh_rt_any", client_id="other")
    assert sandbox.counts == Counts(requests=2, unauthorized=1, refresh_calls=1)
    assert before == Counts()


def test_log(sandbox: Sandbox, caller: Caller) -> None:
    """The log has every call in order, a dropped one without a status, and no query."""
    began = time.monotonic()
    caller.start()
    caller.me()
    sandbox.fail_next(drop="after", on="api")
    with pytest.raises(LOST):
        caller.get("/api/thing?secret=1")
    records = [(call.method, call.path, call.status) for call in sandbox.log]
    assert records == [
        ("GET", "/api/oauth/signin/start", 302),
        ("GET", "/api/auth/me", 401),
        ("GET", "/api/thing", None),
    ]
    assert began <= sandbox.log[0].time <= sandbox.log[-1].time <= time.monotonic()


def test_no_secrets(sandbox: Sandbox, caller: Caller) -> None:
    """Neither `repr` nor the log shows a token, a code or the client's secret."""
    reply, code = sandbox.sign_in(), caller.code()
    caller.refresh(reply["refresh_token"])
    caller.exchange(code)
    shown = repr([sandbox, sandbox.log, sandbox.counts, sandbox.hold_next()])
    assert sandbox.url in shown
    assert not [
        secret
        for secret in (reply["access_token"], reply["refresh_token"], code, "adh_", sandbox.client_secret)
        if secret in shown
    ]


def test_not_started() -> None:
    """Before the first start there is no URL, and `repr` works; a second start is a mistake."""
    sandbox = Sandbox()
    assert "not started" in repr(sandbox)
    with pytest.raises(RuntimeError, match="start it first"):
        _ = sandbox.url
    with sandbox, pytest.raises(RuntimeError, match="running already"):
        sandbox.start()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("token_life", -1.0),
        ("grace", math.nan),
        ("refresh_seconds", math.inf),
        ("error_shape", "xml"),
        ("redirect_uris", REDIRECT_URI),
    ],
)
def test_settings_are_checked(name: str, value: Any) -> None:
    """A wrong setting is refused at construction and when it is set later."""
    with pytest.raises(ValueError, match=name):
        Sandbox(**{name: value})
    with pytest.raises(ValueError, match=name):
        setattr(Sandbox(), name, value)


def test_code_life_is_checked() -> None:
    """Also the one setting that is no argument is checked."""
    with pytest.raises(ValueError, match="code_life"):
        Sandbox().code_life = -1.0


def test_token_file(sandbox: Sandbox, caller: Caller, tmp_path: Path) -> None:
    """The token file is an exchange reply, here as it came, private, and replaced atomically."""
    path = sandbox.write_token_file(tmp_path / "tokens.json", with_expiry=False)
    first = path.read_bytes()
    sandbox.write_token_file(path)
    assert sandbox.token_file == path
    assert path.read_bytes() != first
    assert set(json.loads(first)) == {"access_token", "refresh_token", "expires_in", "token_type", "scope"}
    assert caller.me(json.loads(first)["access_token"]).status == 200
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokens.json"]
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_token_file_has_its_expiry(sandbox: Sandbox, caller: Caller, tmp_path: Path) -> None:
    """As the library itself writes it, by the life of that token."""
    sandbox.token_life = 7.5
    before = time.time()
    reply = json.loads(sandbox.write_token_file(tmp_path / "tokens.json").read_bytes())
    assert before + 7.5 <= reply["expires_at"] <= time.time() + 7.5
    assert caller.me(reply["access_token"]).status == 200


def test_environment(sandbox: Sandbox, tmp_path: Path) -> None:
    """The environment names the server, the client and the token file."""
    assert sandbox.environment(tmp_path / "t.json") == {
        "ADH_BASE_URL": sandbox.url,
        "ADH_CLIENT_ID": "sandbox-client",
        "ADH_CLIENT_SECRET": "sandbox-secret",
        "ADH_TOKEN_FILE": str(tmp_path / "t.json"),
    }


def test_environment_of_a_relative_path(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable takes absolute paths only: a relative one is meant from the folder that is current now."""
    monkeypatch.chdir(tmp_path)
    assert sandbox.environment("t.json")["ADH_TOKEN_FILE"] == str(tmp_path / "t.json")
