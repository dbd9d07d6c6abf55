"""AdhHttpxAuth and AdhHttpx2Auth: an expiry in the middle of anything, in sync and async twins on asyncio and
trio.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from adh_auth import ReauthorizationRequired, TokenFile, TokenFileError
from adh_auth.testing import Sandbox

from ..support.clients import Family
from ..support.httpx_client import Twin


def test_an_expiry_is_not_noticed(sandbox: Sandbox, twin: Twin) -> None:
    """The caller sees a 200; `history` holds the 401 and `elapsed` is set."""

    async def work(client: Any) -> None:
        sandbox.expire()
        answer = await client.get(sandbox.url + "/api/auth/me")
        assert answer.status_code == 200
        assert [item.status_code for item in answer.history] == [401]
        assert answer.history[0].json()["code"] == "token_expired"
        assert answer.elapsed > timedelta(0)
        assert (await client.get(sandbox.url + "/api/auth/me")).history == []

    twin.run(work)
    assert sandbox.counts.rotations == 1


@pytest.mark.parametrize("shape", ["nested", "oauth", "header"])
def test_every_shape_of_the_401(sandbox: Sandbox, twin: Twin, shape: str) -> None:
    """The code is found in all the shapes that the platform's material attests."""
    sandbox.error_shape = shape
    sandbox.expire()

    async def work(client: Any) -> None:
        assert (await client.get(sandbox.url + "/api/auth/me")).status_code == 200

    twin.run(work)


@pytest.mark.parametrize(
    "body", [b'{"code": "token_expired_not"}', b"<html>token_expired</html>", b"", b"x" * 100_000]
)
def test_any_other_401_is_the_callers(sandbox: Sandbox, twin: Twin, body: bytes) -> None:
    """A 401 of another code is handed over untouched, readable to the last byte, and spends no refresh."""
    sandbox.fail_next(on="me", status=401, body=body)

    async def work(client: Any) -> None:
        answer = await client.get(sandbox.url + "/api/auth/me")
        assert answer.status_code == 401
        assert answer.content == body

    twin.run(work)
    assert sandbox.counts.refresh_calls == 0


def test_retried_once_exactly(sandbox: Sandbox, twin: Twin) -> None:
    """A second 401 goes to the caller."""
    sandbox.fail_next(5, on="me", status=401, body=b'{"code": "token_expired"}')

    async def work(client: Any) -> None:
        assert (await client.get(sandbox.url + "/api/auth/me")).status_code == 401

    twin.run(work)
    assert sandbox.counts.rotations == 1


BODIES: dict[str, dict[str, Any]] = {
    "bytes": {"content": b"\x00\xff" * 5000},
    "text": {"content": "grüße"},
    "json": {"json": {"a": [1, 2, {"b": None}]}},
    "form": {"data": {"a": "1", "b": ["2", "3"]}},
    "multipart": {"files": {"f": ("n.txt", b"content" * 100)}, "data": {"k": "v"}},
    "none": {},
}


@pytest.mark.parametrize("name", BODIES)
def test_the_same_body_is_sent_again(sandbox: Sandbox, twin: Twin, name: str) -> None:
    """Bytes, JSON, forms and multipart arrive byte for byte after an expiry."""

    async def work(client: Any) -> None:
        headers = {"Content-Type": "multipart/form-data; boundary=fixed"} if name == "multipart" else {}
        plain = (await client.post(sandbox.url + "/api/echo", headers=headers, **BODIES[name])).json()
        sandbox.expire()
        answer = await client.post(sandbox.url + "/api/echo", headers=headers, **BODIES[name])
        assert answer.status_code == 200
        assert [item.status_code for item in answer.history] == [401]
        assert (answer.json()["sha256"], answer.json()["length"]) == (plain["sha256"], plain["length"])

    twin.run(work)


def test_multipart_files_are_sent_again(sandbox: Sandbox, twin: Twin) -> None:
    """A file inside a multipart body is sent again as it was."""

    async def work(client: Any) -> None:
        sandbox.expire()
        answer = await client.post(
            sandbox.url + "/api/echo", files={"f": ("n", io.BytesIO(b"whole" * 10_000))}
        )
        assert answer.json()["length"] > 50_000

    twin.run(work)


def test_files_are_sent_again_from_where_they_stood(
    sandbox: Sandbox, family: Family, arguments: dict[str, Any]
) -> None:
    """A seekable body is rewound to where it stood, not to its start."""
    body = io.BytesIO(b"skipped" + b"sent" * 50_000)
    body.seek(7)
    sandbox.expire()
    with family.module.Client(auth=family.auth(**arguments)) as client:
        answer = client.post(sandbox.url + "/api/echo", content=body, headers={"Content-Length": "200000"})
    assert answer.json()["sha256"] == hashlib.sha256(b"sent" * 50_000).hexdigest()


def pieces() -> Iterator[bytes]:
    yield b"one"
    yield b"two"


async def async_pieces() -> AsyncIterator[bytes]:
    yield b"one"
    yield b"two"


def one_shot(twin: Twin, kind: str) -> Any:
    if twin.kind != "sync":
        return async_pieces()
    return pieces() if kind == "generator" else map(bytes, [b"one", b"two"])


@pytest.mark.parametrize("kind", ["generator", "iterator"])
def test_a_one_shot_body_is_never_sent_again_empty(sandbox: Sandbox, twin: Twin, kind: str) -> None:
    """It meets a 401: the rotation happens, the caller gets the 401, and the next request works; nothing
    hangs.
    """

    async def work(client: Any) -> None:
        sandbox.expire()
        answer = await client.post(sandbox.url + "/api/echo", content=one_shot(twin, kind))
        assert answer.status_code == 401
        again = await client.post(sandbox.url + "/api/echo", content=one_shot(twin, kind))
        assert again.json()["body"] == "onetwo"

    twin.run(work)
    assert sandbox.counts.rotations == 1


def test_a_one_shot_body_is_not_sent_with_a_dead_token(
    sandbox: Sandbox, twin: Twin, token_file: Path
) -> None:
    """Where the expiry on file is past, the rotation comes before a body that can be sent only once."""
    pair = TokenFile(token_file).load()
    TokenFile(token_file).save(type(pair)(pair.access_token, pair.refresh_token, expires_at=1.0))
    sandbox.expire()

    async def work(client: Any) -> None:
        answer = await client.post(sandbox.url + "/api/echo", content=one_shot(twin, "generator"))
        assert answer.json()["body"] == "onetwo"

    twin.run(work)
    assert sandbox.counts.unauthorized == 0


def test_a_stream_stays_a_stream(sandbox: Sandbox, family: Family, arguments: dict[str, Any]) -> None:
    """After an expiry a streamed response is still unread."""
    sandbox.expire()
    with (
        family.module.Client(auth=family.auth(**arguments)) as client,
        client.stream("GET", sandbox.url + "/api/stream?chunks=3") as answer,
    ):
        assert not answer.is_stream_consumed
        assert b"".join(answer.iter_bytes()) == b"chunk 0\nchunk 1\nchunk 2\n"


@pytest.mark.anyio
async def test_an_async_stream_stays_a_stream(
    sandbox: Sandbox, family: Family, arguments: dict[str, Any]
) -> None:
    """The same for a task."""
    sandbox.expire()
    async with (
        family.module.AsyncClient(auth=family.auth(**arguments)) as client,
        client.stream("GET", sandbox.url + "/api/stream?chunks=3") as answer,
    ):
        assert not answer.is_stream_consumed
        assert b"".join([chunk async for chunk in answer.aiter_bytes()]) == b"chunk 0\nchunk 1\nchunk 2\n"


def test_a_redirect_after_the_resend_carries_the_new_token(sandbox: Sandbox, twin: Twin) -> None:
    """A redirect within the API goes on with the new token."""
    sandbox.kills_old_access = True
    sandbox.expire()

    async def work(client: Any) -> None:
        answer = await client.get(sandbox.url + "/api/redirect", params={"to": "/api/auth/me"})
        assert answer.status_code == 200

    twin.run(work, follow_redirects=True)
    assert (sandbox.counts.rotations, sandbox.counts.unauthorized) == (1, 1)


def test_a_redirected_post_is_not_posted_twice(sandbox: Sandbox, twin: Twin) -> None:
    """An expiry behind a 303 sends the hop again that met it, not the POST before."""
    sandbox.fail_next(on="me", status=401, body=b'{"code": "token_expired"}')

    async def work(client: Any) -> None:
        answer = await client.post(
            sandbox.url + "/api/redirect", params={"to": "/api/auth/me", "status": "303"}, json={"a": 1}
        )
        assert answer.status_code == 200
        assert answer.json()["name"]

    twin.run(work, follow_redirects=True)
    assert sandbox.counts.requests == 3


def test_another_host_is_left_alone(sandbox: Sandbox, twin: Twin) -> None:
    """Requests of the same client to other hosts keep the caller's header, and spend no refresh."""

    async def work(client: Any) -> None:
        with Sandbox() as other:
            answer = await client.get(other.url + "/api/auth/me", headers={"Authorization": "Bearer theirs"})
            assert answer.status_code == 401
            assert answer.request.headers["Authorization"] == "Bearer theirs"

    twin.run(work)
    assert sandbox.counts.refresh_calls == 0


def test_event_hooks_never_see_the_refresh(
    sandbox: Sandbox, family: Family, arguments: dict[str, Any]
) -> None:
    """The refresh passes neither the caller's hooks nor `history`."""
    seen: list[str] = []
    hooks = {"request": [lambda request: seen.append(request.url.path)]}
    sandbox.expire()
    with family.module.Client(auth=family.auth(**arguments), event_hooks=hooks) as client:
        client.get(sandbox.url + "/api/auth/me")
    assert seen == ["/api/auth/me", "/api/auth/me"]


@pytest.mark.anyio
async def test_many_tasks_one_refresh(sandbox: Sandbox, family: Family, arguments: dict[str, Any]) -> None:
    """Tasks that meet one expiry share one refresh."""
    sandbox.expire()
    statuses: list[int] = []
    async with family.module.AsyncClient(auth=family.auth(**arguments)) as client:

        async def work() -> None:
            statuses.append((await client.get(sandbox.url + "/api/auth/me")).status_code)

        async with anyio.create_task_group() as group:
            for _ in range(40):
                group.start_soon(work)
    assert statuses == [200] * 40
    assert sandbox.counts.refresh_calls == 1


def test_errors_are_the_clients_too(sandbox: Sandbox, twin: Twin, token_file: Path) -> None:
    """What comes out of a call is also the client's HTTPError, with its request."""
    sandbox.revoke()
    sandbox.fail_next(on="me", status=401, body=b'{"code": "token_expired"}')

    async def work(client: Any) -> None:
        with pytest.raises(twin.family.module.HTTPError) as refused:
            await client.get(sandbox.url + "/api/auth/me")
        assert isinstance(refused.value, ReauthorizationRequired)
        assert refused.value.request.url.path == "/api/auth/me"
        token_file.unlink()
        with pytest.raises(twin.family.module.HTTPError) as missing:
            await client.get(sandbox.url + "/api/auth/me")
        assert isinstance(missing.value, TokenFileError)

    twin.run(work)


def test_refresh_and_revoke(sandbox: Sandbox, twin: Twin, token_file: Path) -> None:
    """`refresh` and `arefresh` force one; `revoke` and `arevoke` revoke on the server and remove the file."""

    async def work(_: Any) -> None:
        before = twin.auth.tokens
        assert await twin.refresh() == twin.auth.tokens != before
        await twin.revoke()

    twin.run(work)
    assert (sandbox.counts.rotations, sandbox.counts.revocations) == (1, 1)
    assert not token_file.exists()


def test_dead_by_the_clock_refreshes_first(
    sandbox: Sandbox, twin: Twin, arguments: dict[str, Any], token_file: Path
) -> None:
    """With refresh_ahead a pair that is dead by the clock is rotated before the request."""
    pair = TokenFile(token_file).load()
    TokenFile(token_file).save(type(pair)(pair.access_token, pair.refresh_token, expires_at=1.0))
    twin.auth = twin.family.auth(**arguments, refresh_ahead=60)

    async def work(client: Any) -> None:
        assert (await client.get(sandbox.url + "/api/auth/me")).status_code == 200

    twin.run(work)
    assert (sandbox.counts.rotations, sandbox.counts.unauthorized) == (1, 0)


def test_a_call_through_refresh_via(sandbox: Sandbox, family: Family, arguments: dict[str, Any]) -> None:
    """`refresh_via` carries the refresh, even when an auth sits on it."""
    seen: list[str] = []
    with family.module.Client(
        event_hooks={"request": [lambda request: seen.append(request.url.path)]}
    ) as carrier:
        auth = family.auth(**arguments, refresh_via=carrier)
        carrier.auth = auth
        sandbox.expire()
        with family.module.Client(auth=auth) as client:
            assert client.get(sandbox.url + "/api/auth/me").status_code == 200
    assert seen == ["/api/auth/refresh"]


def test_a_pool_of_one_is_not_starved(sandbox: Sandbox, twin: Twin) -> None:
    """The connection of a 401 is released before the request is sent again."""

    async def work(client: Any) -> None:
        for _ in range(3):
            sandbox.expire()
            assert (await client.get(sandbox.url + "/api/auth/me")).status_code == 200

    twin.run(work, limits=twin.family.module.Limits(max_connections=1))
