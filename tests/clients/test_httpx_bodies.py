"""Rules 10 and 11 in httpx and httpx2: which bodies are sent again, and what becomes of a 401's body."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import io
import pickle
import tempfile
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiofiles
import anyio
import pytest
import trio

from adh_auth import RefreshFailed, TokenFile, Tokens
from adh_auth.clients.base import WaitBudget
from adh_auth.testing import Sandbox

from ..support.clients import Family
from ..support.httpx_client import Twin
from ..support.processes import PATIENCE
from ..support.raw_server import OLD, Answer, RawServer, Seen, rotating

BODY = b"line of data\n" * 1_000
DIGEST = hashlib.sha256(BODY).hexdigest()
#: Bytes before the position of a file when the client gets it.
SKIPPED = b"skipped"


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    """Return a file whose first bytes are not to be sent."""
    path = tmp_path / "upload.bin"
    path.write_bytes(SKIPPED + BODY)
    return path


@asynccontextmanager
async def opened(kind: str, path: Path) -> AsyncIterator[Any]:
    """Return an asynchronous file at its position behind the skipped bytes."""
    if kind == "aiofiles":
        async with aiofiles.open(path, "rb") as file:
            await file.seek(len(SKIPPED))
            yield file
        return
    file = await (anyio.open_file(path, "rb") if kind == "anyio" else trio.open_file(path, "rb"))
    try:
        await file.seek(len(SKIPPED))
        yield file
    finally:
        await file.aclose()


FILES = [("anyio", "asyncio"), ("anyio", "trio"), ("aiofiles", "asyncio"), ("trio", "trio")]
each_file = pytest.mark.parametrize(("kind", "backend"), FILES)


@each_file
def test_an_asynchronous_file_is_sent_again_whole(
    sandbox: Sandbox, family: Family, arguments: dict[str, Any], upload: Path, kind: str, backend: str
) -> None:
    """It is rewound by awaiting, to where it was; the second send is the same body to the last byte."""

    async def main() -> None:
        async with (
            family.module.AsyncClient(auth=family.auth(**arguments)) as client,
            opened(kind, upload) as file,
        ):
            sandbox.expire()
            answer = await client.put(sandbox.url + "/api/echo", content=file)
            assert (answer.status_code, answer.json()["sha256"]) == (200, DIGEST)

    anyio.run(main, backend=backend)
    assert (sandbox.counts.unauthorized, sandbox.counts.rotations) == (1, 1)


@each_file
def test_an_asynchronous_file_that_is_closed_meanwhile(
    sandbox: Sandbox, family: Family, arguments: dict[str, Any], upload: Path, kind: str, backend: str
) -> None:
    """A body that cannot be rewound is not sent: the caller gets the 401, readable; the next call works."""

    async def main() -> None:
        async with opened(kind, upload) as file:

            async def close(response: Any) -> None:
                await (file.close() if kind == "aiofiles" else file.aclose())

            async with family.module.AsyncClient(
                auth=family.auth(**arguments), event_hooks={"response": [close]}
            ) as client:
                sandbox.expire()
                answer = await client.put(sandbox.url + "/api/echo", content=file)
                assert (answer.status_code, answer.json()["code"]) == (401, "token_expired")
                assert (await client.get(sandbox.url + "/api/echo")).status_code == 200

    anyio.run(main, backend=backend)
    assert (sandbox.counts.requests, sandbox.counts.rotations) == (2, 1)


class NotSeekable(io.BytesIO):
    def seekable(self) -> bool:
        return False

    def seek(self, *_: Any) -> int:
        raise io.UnsupportedOperation("seek")


class Tells:
    """A file with `seek` and `tell` but without `seekable`, as many wrappers are."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def __getattr__(self, name: str) -> Any:
        if name not in ("read", "seek", "tell", "__iter__"):
            raise AttributeError(name)
        return getattr(self._file, name)

    def __iter__(self) -> Any:
        return iter(self._file)


class GoesNowhere(io.BytesIO):
    """Once it is read from, its seek succeeds and does nothing."""

    started = False

    def read(self, *arguments: Any) -> bytes:
        self.started = True
        return super().read(*arguments)

    def seek(self, *arguments: Any) -> int:
        return 0 if self.started else super().seek(*arguments)


def spooled(data: bytes) -> Any:
    file = tempfile.SpooledTemporaryFile()  # noqa: SIM115 - the caller closes it
    file.write(data)
    file.seek(0)
    return file


@pytest.mark.parametrize("make", [io.BytesIO, Tells, spooled], ids=lambda make: make.__name__)
@pytest.mark.parametrize("where", ["content", "files"])
def test_a_file_of_any_make_is_sent_again_whole(
    sandbox: Sandbox, family: Family, arguments: dict[str, Any], make: Callable[[bytes], Any], where: str
) -> None:
    """A file with `seek` and `tell` is rewound, whether or not it has `seekable`."""
    with (
        family.module.Client(auth=family.auth(**arguments)) as client,
        make(BODY) if make is spooled else io.BytesIO() as kept,
    ):
        file = kept if make is spooled else make(BODY)
        plain = client.post(sandbox.url + "/api/echo", headers=BOUNDARY, **body_of(where, file)).json()
        file.seek(0)
        sandbox.expire()
        answer = client.post(sandbox.url + "/api/echo", headers=BOUNDARY, **body_of(where, file))
    assert (answer.status_code, answer.json()["sha256"]) == (200, plain["sha256"])
    assert [past.status_code for past in answer.history] == [401]


BOUNDARY = {"Content-Type": "multipart/form-data; boundary=fixed"}


def body_of(where: str, file: Any) -> dict[str, Any]:
    return {"content": file} if where == "content" else {"files": {"f": ("n", file)}}


@pytest.mark.parametrize("make", [NotSeekable, GoesNowhere])
def test_a_file_that_cannot_go_back_is_never_sent_short(
    sandbox: Sandbox, family: Family, arguments: dict[str, Any], make: Any
) -> None:
    """The caller gets the 401; the rotation has happened."""
    sandbox.expire()
    with family.module.Client(auth=family.auth(**arguments)) as client:
        answer = client.post(sandbox.url + "/api/echo", content=make(BODY))
    assert (answer.status_code, answer.json()["code"]) == (401, "token_expired")
    assert (sandbox.counts.requests, sandbox.counts.rotations) == (1, 1)


def test_a_form_whose_file_cannot_go_back_is_never_sent_short(sandbox: Sandbox, twin: Twin) -> None:
    """The same for a file among the fields of a form."""

    async def work(client: Any) -> None:
        sandbox.expire()
        answer = await client.post(sandbox.url + "/api/echo", files={"f": ("n", NotSeekable(BODY))})
        assert (answer.status_code, answer.json()["code"]) == (401, "token_expired")

    twin.run(work)
    assert (sandbox.counts.requests, sandbox.counts.rotations) == (1, 1)


@pytest.mark.parametrize(
    "data", [bytearray(b"whole"), memoryview(b"whole"), b"whole"], ids=lambda data: type(data).__name__
)
def test_a_buffer_is_a_body_that_can_be_sent_again(sandbox: Sandbox, twin: Twin, data: Any) -> None:
    """A buffer is repeatable as the stream of a request that the caller has built."""
    module = twin.family.module

    async def work(client: Any) -> None:
        sandbox.expire()
        headers = {"Content-Length": "5", "Host": sandbox.url.partition("://")[2]}
        request = module.Request(
            "POST", sandbox.url + "/api/echo", stream=module.ByteStream(data), headers=headers
        )
        answer = await client.send(request)
        assert (answer.status_code, answer.json()["body"]) == (200, "whole")

    twin.run(work)
    assert (sandbox.counts.unauthorized, sandbox.counts.rotations) == (1, 1)


def test_a_stream_of_another_make_is_sent_once(sandbox: Sandbox, twin: Twin) -> None:
    """It is unknown what it reads from, whatever its attributes are called."""
    module = twin.family.module

    class Once(module.SyncByteStream, module.AsyncByteStream):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self._stream = [b"whole"]

        def __iter__(self) -> Any:
            yield self._stream.pop()

        async def __aiter__(self) -> Any:
            yield self._stream.pop()

    async def work(client: Any) -> None:
        sandbox.expire()
        headers = {"Content-Length": "5", "Host": sandbox.url.partition("://")[2]}
        answer = await client.send(
            module.Request("POST", sandbox.url + "/api/echo", stream=Once(), headers=headers)
        )
        assert answer.status_code == 401

    twin.run(work)
    assert sandbox.counts.rotations == 1


def test_an_asynchronous_file_in_a_synchronous_client(
    family: Family, sandbox: Sandbox, arguments: dict[str, Any], upload: Path
) -> None:
    """The client's own error, and no coroutine that was never awaited."""

    async def main() -> None:
        async with opened("anyio", upload) as file:
            with (
                family.module.Client(auth=family.auth(**arguments)) as client,
                pytest.raises(RuntimeError, match="async request"),
            ):
                client.put(sandbox.url + "/api/echo", content=file)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        anyio.run(main)
        gc.collect()
    assert [str(item.message) for item in caught if "never awaited" in str(item.message)] == []


# The connection of a 401.


def test_a_small_pool_waits_for_no_refresh(sandbox: Sandbox, twin: Twin) -> None:
    """While the refresh hangs, the only connection of the pool serves others."""
    limits = twin.family.module.Limits(max_connections=1)
    sandbox.expire()
    asked: list[int] = []

    async def work(client: Any) -> None:
        async def one() -> None:
            asked.append((await client.get(sandbox.url + "/api/x")).status_code)

        with sandbox.hold_next() as hold:
            async with anyio.create_task_group() as group:
                group.start_soon(one)
                await anyio.to_thread.run_sync(hold.wait)
                asked.append((await client.get(sandbox.url + "/api/x", auth=None)).status_code)
                hold.release()

    if twin.kind != "sync":
        twin.run(work, limits=limits)
    else:
        with (
            twin.family.module.Client(auth=twin.auth, timeout=PATIENCE, limits=limits) as client,
            sandbox.hold_next() as hold,
        ):
            thread = threading.Thread(
                target=lambda: asked.append(client.get(sandbox.url + "/api/x").status_code)
            )
            thread.start()
            hold.wait()
            asked.append(client.get(sandbox.url + "/api/x", auth=None).status_code)
            hold.release()
            thread.join(PATIENCE)
    assert asked == [401, 200]


@pytest.mark.parametrize(("connections", "count"), [(1, 1), (10, 20)])
def test_the_very_same_client_carries_the_refresh(
    sandbox: Sandbox, family: Family, arguments: dict[str, Any], connections: int, count: int
) -> None:
    """Threads over a small pool whose client is its own `refresh_via`: no thread waits for a connection
    that another holds.
    """
    sandbox.expire()
    statuses: list[Any] = []
    limits = family.module.Limits(max_connections=connections)
    with family.module.Client(limits=limits, timeout=PATIENCE) as client:
        client.auth = family.auth(**arguments, refresh_via=client)

        def work() -> None:
            try:
                statuses.append(client.get(sandbox.url + "/api/x").status_code)
            except Exception as error:
                statuses.append(type(error).__name__)

        threads = [threading.Thread(target=work) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    # httpcore 1.0 now and then closes a connection that another thread has just taken, without any auth, too.
    assert set(statuses) <= {200, "ReadError"}
    assert statuses.count(200) >= count - 2
    assert sandbox.counts.refresh_calls == 1


# A 401 whose body breaks off or stalls.


def torn(head: str, start: bytes, stall: bool) -> Callable[[Any, threading.Event], None]:
    def stream(wire: Any, closing: threading.Event) -> None:
        wire.write(
            b"HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
            + f"{head}\r\n".encode()
            + start
        )
        wire.flush()
        if stall:
            closing.wait(PATIENCE)

    return stream


def answering(first: Callable[[Any, threading.Event], None]) -> Callable[[Seen], Answer]:
    def answer(seen: Seen) -> Answer:
        usual = rotating(seen)
        return Answer(stream=first) if usual.status == 401 else usual

    return answer


@pytest.fixture
def torn_auth(tmp_path: Path, family: Family) -> Callable[[RawServer], Any]:
    TokenFile(tmp_path / "t.json").save(Tokens(OLD["access_token"], OLD["refresh_token"]))
    return lambda api: family.auth(tmp_path / "t.json", client_id="i", client_secret="s", base_url=api.url)


@pytest.mark.parametrize("stall", [False, True], ids=["broken", "stalls"])
@pytest.mark.parametrize("kind", ["sync", "asyncio", "trio"])
@pytest.mark.parametrize("timeout", [0.5, None])
def test_a_401_that_breaks_off_is_the_callers(
    family: Family,
    torn_auth: Callable[[RawServer], Any],
    kind: str,
    stall: bool,
    timeout: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`stream()` returns the response, and reading it raises; `get()` raises the client's error."""
    monkeypatch.setattr("adh_auth.clients.httpx_body.PEEK_SECONDS", 0.5)
    kinds = (
        (family.module.ReadTimeout,)
        if stall
        else (family.module.RemoteProtocolError, family.module.ReadError)
    )
    with RawServer(answering(torn("", b'{"cod', stall))) as api:
        twin = Twin(kind, family, torn_auth(api))

        async def streamed() -> None:
            if kind == "sync":
                with (
                    family.module.Client(auth=twin.auth, timeout=timeout) as client,
                    client.stream("GET", api.url + "/api/x") as answer,
                ):
                    assert answer.status_code == 401
                    with pytest.raises(kinds) as raised:
                        answer.read()
            else:
                async with (
                    family.module.AsyncClient(auth=twin.auth, timeout=timeout) as client,
                    client.stream("GET", api.url + "/api/x") as answer,
                ):
                    assert answer.status_code == 401
                    with pytest.raises(kinds) as raised:
                        await answer.aread()
            assert raised.value.request.url == api.url + "/api/x"

        async def read(client: Any) -> None:
            with pytest.raises(kinds) as raised:
                await client.get(api.url + "/api/x")
            assert raised.value.request.url == api.url + "/api/x"

        anyio.run(streamed, backend="trio" if kind == "trio" else "asyncio")
        twin.run(read, timeout=timeout)
        assert not api.to("/api/auth/refresh")


@pytest.mark.parametrize("stall", [False, True], ids=["broken", "stalls"])
@pytest.mark.parametrize("kind", ["sync", "asyncio", "trio"])
def test_a_code_in_the_header_needs_no_body(
    family: Family,
    torn_auth: Callable[[RawServer], Any],
    kind: str,
    stall: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the code in `WWW-Authenticate`, the request is sent again and the stalled body is cut off."""
    monkeypatch.setattr("adh_auth.clients.httpx_body.PEEK_SECONDS", PATIENCE)
    challenge = 'WWW-Authenticate: Bearer error="token_expired"\r\n'

    async def work(client: Any) -> None:
        started = time.monotonic()
        answer = await client.get(api.url + "/api/x")
        assert answer.status_code == 200
        assert [past.content for past in answer.history] == [b""]
        assert time.monotonic() - started < PATIENCE / 4

    with RawServer(answering(torn(challenge, b"{", stall))) as api:
        Twin(kind, family, torn_auth(api)).run(work, timeout=None)
        assert len(api.to("/api/auth/refresh")) == 1


@pytest.mark.parametrize("kind", ["sync", "asyncio", "trio"])
def test_a_read_time_out_is_the_callers_again(
    family: Family, torn_auth: Callable[[RawServer], Any], kind: str
) -> None:
    """The second send has the time-out that the caller gave."""
    seen: list[Any] = []

    async def work(client: Any) -> None:
        await client.get(api.url + "/api/x")

    with RawServer() as api:
        twin = Twin(kind, family, torn_auth(api))

        async def note(request: Any) -> None:
            seen.append(dict(request.extensions["timeout"]))

        twin.run(work, timeout=7.0, event_hooks={"request": [twin.hook(note)]})
    assert seen == [dict.fromkeys(("connect", "read", "write", "pool"), 7.0)] * 2


# Cookies.


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
@pytest.mark.parametrize(
    ("own", "sent"), [(None, "node=7"), ("mine=1", "mine=1; node=7"), ("node=6; mine=1", "mine=1; node=7")]
)
def test_a_cookie_of_the_401_goes_with_the_second_send(
    family: Family, torn_auth: Callable[[RawServer], Any], kind: str, own: str | None, sent: str
) -> None:
    """The request's other cookies are sent again, from the client's jar or the caller's own header."""

    def answer(seen: Seen) -> Answer:
        usual = rotating(seen)
        if usual.status == 401:
            usual.headers["Set-Cookie"] = "node=7; Path=/"
        return usual

    async def work(client: Any) -> None:
        answer = await client.get(api.url + "/api/x", headers={} if own is None else {"Cookie": own})
        assert answer.status_code == 200

    with RawServer(answer) as api:
        Twin(kind, family, torn_auth(api)).run(work)
        assert [seen.headers.get("cookie") for seen in api.to("/api/x")] == [own, sent]


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_a_response_that_went_through_an_expiry_is_pickled(
    family: Family, torn_auth: Callable[[RawServer], Any], kind: str
) -> None:
    """joblib, disk caches and process pools pickle it: no cookie jar, which has a lock, is on the 401."""

    def answer(seen: Seen) -> Answer:
        usual = rotating(seen)
        usual.headers["Set-Cookie"] = "node=7; Path=/"
        return usual

    async def work(client: Any) -> None:
        answers.append(await client.get(api.url + "/api/x"))

    answers: list[Any] = []
    with RawServer(answer) as api:
        Twin(kind, family, torn_auth(api)).run(work)
    (found,) = answers
    assert [past.status_code for past in found.history] == [401]
    assert pickle.loads(pickle.dumps(found)).status_code == 200


# A `refresh_via` on another event loop.


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("is_same", [False, True], ids=["another client", "the very client"])
def test_an_async_client_in_use_elsewhere_spends_nothing(
    sandbox: Sandbox,
    arguments: dict[str, Any],
    family: Family,
    backend: str,
    is_same: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its connections belong to another loop, and the reply would be lost: the error comes before the token
    is sent.
    """
    monkeypatch.setattr("adh_auth.rotation.attempt.PAUSES", ())

    async def main() -> None:
        async with family.module.AsyncClient() as via, family.module.AsyncClient() as other:
            await via.get(sandbox.url + "/api/x")
            client = via if is_same else other
            client.auth = family.auth(**arguments, refresh_via=via)
            sandbox.expire()
            with pytest.raises(RefreshFailed, match="a client of its own"):
                await client.get(sandbox.url + "/api/auth/me")

    anyio.run(main, backend=backend)
    assert sandbox.counts.refresh_calls == 0


# The caller's time-out.


@pytest.mark.parametrize("known", [False, True], ids=["after the 401", "before it is sent"])
def test_the_callers_time_out_bounds_the_wait(
    sandbox: Sandbox, twin: Twin, token_file: Path, known: bool
) -> None:
    """`timeout=1` raises RefreshFailed after a second; the job goes on, and the next call has its pair."""
    if known:
        pair = TokenFile(token_file).load()
        TokenFile(token_file).save(Tokens(pair.access_token, pair.refresh_token, expires_at=1.0))
        twin.auth = twin.family.auth(str(token_file), refresh_ahead=1, **settings_of(sandbox))
    sandbox.expire()

    async def work(client: Any) -> None:
        with sandbox.hold_next() as hold:
            started = time.monotonic()
            with pytest.raises(twin.family.module.HTTPError, match="goes on, try again later"):
                await client.get(sandbox.url + "/api/x", timeout=1)
            assert 0.9 < time.monotonic() - started < PATIENCE / 3
            hold.release()
        assert (await client.get(sandbox.url + "/api/x")).status_code == 200

    twin.run(work)
    assert sandbox.counts.refresh_calls == 1


def settings_of(sandbox: Sandbox) -> dict[str, Any]:
    return {"client_id": sandbox.client_id, "client_secret": sandbox.client_secret, "base_url": sandbox.url}


def test_several_waits_share_one_patience() -> None:
    """The first may take all the seconds, the next only those that are left."""
    patience = WaitBudget(0.05)
    assert patience.left() == 0.05
    time.sleep(0.06)
    assert patience.left() == 0.0


# An adopted pair.


def test_an_adopted_pair_that_is_expired_is_rotated_away(
    sandbox: Sandbox, twin: Twin, token_file: Path
) -> None:
    """Another process's pair is sent the second time. If it has expired, too, this request refreshes."""
    ours = twin.family.auth(str(token_file), **settings_of(sandbox))
    before = ours.tokens

    async def work(client: Any) -> None:
        assert (await client.get(sandbox.url + "/api/x")).status_code == 200
        fresh = twin.family.auth(str(token_file), **settings_of(sandbox)).refresh()
        TokenFile(token_file).save(before)
        sandbox.expire()

        async def replace(response: Any) -> None:
            if response.request.headers["Authorization"] == f"Bearer {before.access_token}":
                TokenFile(token_file).save(fresh)

        client_hooks.append(twin.hook(replace))
        answer = await client.get(sandbox.url + "/api/x")
        assert [past.status_code for past in answer.history] == [401, 401]
        assert answer.status_code == 200

    client_hooks: list[Any] = []

    async def each(response: Any) -> None:
        for hook in client_hooks:
            value = hook(response)
            if asyncio.iscoroutine(value):
                await value

    twin.run(work, event_hooks={"response": [twin.hook(each)]})
    assert (sandbox.counts.rotations, sandbox.counts.reused) == (2, 0)


def test_head_with_an_expiry_on_file(sandbox: Sandbox, twin: Twin, token_file: Path) -> None:
    """A 401 without body or code counts as an expiry if the stored expiry has passed, once for a pair."""
    pair = TokenFile(token_file).load()
    sandbox.expire()

    async def work(client: Any) -> None:
        assert (await client.head(sandbox.url + "/api/x")).status_code == 401
        TokenFile(token_file).save(Tokens(pair.access_token, pair.refresh_token, expires_at=1.0))
        assert (await client.head(sandbox.url + "/api/x")).status_code == 200

    twin.run(work)
    assert sandbox.counts.rotations == 1
