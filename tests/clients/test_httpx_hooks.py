"""Response hooks of the caller's run below the auth flow: what one hides by raising, reading or closing must
not cost the session.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from adh_auth import ReauthorizationRequired, TokenFile, Tokens
from adh_auth.testing import Sandbox

from ..support.clients import Family
from ..support.httpx_client import Twin
from ..support.processes import PATIENCE


class OfTheCallers(Exception):
    """An error that says nothing of the response."""


def asked(sandbox: Sandbox) -> int:
    """How often the API was asked for the user, which no test here does itself."""
    return sum(call.path == "/api/auth/me" for call in sandbox.log)


async def status_of(client: Any, url: str) -> Any:
    """The status, or the class of what was raised."""
    try:
        return (await client.get(url)).status_code
    except Exception as error:
        return type(error).__name__


def hooks(twin: Twin) -> dict[str, Callable[[Any], Any]]:
    """Ways in which a hook raises on a 401."""

    async def raise_for_status(response: Any) -> None:
        response.raise_for_status()

    async def read_first(response: Any) -> None:
        await twin.read(response)
        response.raise_for_status()

    async def own_error(response: Any) -> None:
        if response.status_code >= 400:
            raise OfTheCallers

    async def from_another(response: Any) -> None:
        try:
            response.raise_for_status()
        except twin.family.module.HTTPStatusError as error:
            raise OfTheCallers from error

    async def without_a_context(response: Any) -> None:
        try:
            response.raise_for_status()
        except twin.family.module.HTTPStatusError:
            raise OfTheCallers from None

    return {
        hook.__name__: hook
        for hook in (raise_for_status, read_first, own_error, from_another, without_a_context)
    }


@pytest.mark.parametrize(
    "name", ["raise_for_status", "read_first", "own_error", "from_another", "without_a_context"]
)
@pytest.mark.parametrize("shape", ["code", "header"])
def test_at_most_the_first_call_after_an_expiry_raises(
    sandbox: Sandbox, twin: Twin, name: str, shape: str
) -> None:
    """A hook that raises on the 401 hides it from the flow; the next call goes through, every time."""
    if shape == "header":
        sandbox.error_shape = shape

    async def work(client: Any) -> None:
        for _ in range(3):
            assert await status_of(client, sandbox.url + "/api/x") == 200
            sandbox.expire()
            assert await status_of(client, sandbox.url + "/api/x") in ("HTTPStatusError", "OfTheCallers")
            assert await status_of(client, sandbox.url + "/api/x") == 200

    twin.run(work, event_hooks={"response": [twin.hook(hooks(twin)[name])]})
    assert sandbox.counts.rotations == 3
    # Only where neither header nor body could be read is the API asked, once.
    assert asked(sandbox) == (0 if shape == "header" or name == "read_first" else 3)


def test_no_call_raises_where_the_expiry_was_known(sandbox: Sandbox, twin: Twin, token_file: Path) -> None:
    """Once a hook has hidden a 401, a stored expiry leads to a refresh before the request is sent."""

    async def work(client: Any) -> None:
        sandbox.expire()
        assert await status_of(client, sandbox.url + "/api/x") == "HTTPStatusError"
        for _ in range(3):
            assert await status_of(client, sandbox.url + "/api/x") == 200
            sandbox.expire()
            end_on_file(token_file)

    twin.run(work, event_hooks={"response": [twin.hook(hooks(twin)["raise_for_status"])]})
    assert (sandbox.counts.rotations, sandbox.counts.unauthorized) == (3, 2)  # the second: the question


def end_on_file(token_file: Path) -> None:
    pair = TokenFile(token_file).load()
    TokenFile(token_file).save(Tokens(pair.access_token, pair.refresh_token, expires_at=1.0))


@pytest.mark.parametrize("body", [b'{"code": "insufficient_scope"}', b"", b"<html>"])
@pytest.mark.parametrize("name", ["raise_for_status", "read_first"])
def test_only_token_expired_spends_a_refresh(sandbox: Sandbox, twin: Twin, name: str, body: bytes) -> None:
    """A hidden 401 of another code costs one question at most, and no refresh."""

    async def work(client: Any) -> None:
        sandbox.fail_next(on="api", status=401, body=body)
        assert await status_of(client, sandbox.url + "/api/x") == "HTTPStatusError"
        assert await status_of(client, sandbox.url + "/api/x") == 200
        assert await status_of(client, sandbox.url + "/api/x") == 200

    twin.run(work, event_hooks={"response": [twin.hook(hooks(twin)[name])]})
    assert sandbox.counts.refresh_calls == 0
    assert asked(sandbox) == (1 if name == "raise_for_status" else 0)


@pytest.mark.parametrize(
    "answer", [{"status": 503}, {"status": 401, "body": b'{"code": "no"}'}, {"drop": "before"}]
)
def test_a_question_without_an_answer_changes_nothing(
    sandbox: Sandbox, twin: Twin, answer: dict[str, Any]
) -> None:
    """Where the API does not say token_expired, the request goes out as before and no refresh is spent."""

    async def work(client: Any) -> None:
        sandbox.fail_next(on="api", status=401, body=b"{}")
        assert await status_of(client, sandbox.url + "/api/x") == "HTTPStatusError"
        sandbox.fail_next(on="me", **answer)
        assert await status_of(client, sandbox.url + "/api/x") == 200

    twin.run(work, event_hooks={"response": [twin.hook(hooks(twin)["raise_for_status"])]})
    assert (sandbox.counts.refresh_calls, asked(sandbox)) == (0, 1)


def test_a_request_hook_that_raises_marks_nothing(sandbox: Sandbox, twin: Twin) -> None:
    """It has seen no answer, even while another 401 is being handled: nothing is asked, and nothing is
    refreshed.
    """
    fail = [True]

    async def refuse(_: Any) -> None:
        if fail.pop():
            raise OfTheCallers

    async def work(client: Any) -> None:
        try:
            raise OfTheCallers
        except OfTheCallers:
            assert await status_of(client, sandbox.url + "/api/x") == "OfTheCallers"
        fail.extend([False] * 2)
        assert await status_of(client, sandbox.url + "/api/x") == 200

    twin.run(work, event_hooks={"request": [twin.hook(refuse)]})
    assert (sandbox.counts.requests, sandbox.counts.refresh_calls) == (1, 0)


def test_a_connection_that_fails_marks_nothing(sandbox: Sandbox, twin: Twin) -> None:
    """Without an answer there is nothing to conclude."""

    async def work(client: Any) -> None:
        sandbox.fail_next(on="api", drop="before")
        assert await status_of(client, sandbox.url + "/api/x") in ("RemoteProtocolError", "ReadError")
        assert await status_of(client, sandbox.url + "/api/x") == 200

    twin.run(work)
    assert (asked(sandbox), sandbox.counts.refresh_calls) == (0, 0)


@pytest.mark.anyio
async def test_a_task_that_is_cancelled_in_a_hook_marks_nothing(
    sandbox: Sandbox, family: Family, arguments: dict[str, Any]
) -> None:
    """Neither a question nor a refresh follows; the next request meets the expiry itself."""
    entered = anyio.Event()
    waiting = [True]

    async def wait(_: Any) -> None:
        if waiting:
            waiting.clear()
            entered.set()
            await anyio.sleep(PATIENCE)

    sandbox.expire()
    async with family.module.AsyncClient(
        auth=family.auth(**arguments), event_hooks={"response": [wait]}
    ) as client:
        async with anyio.create_task_group() as group:
            group.start_soon(client.get, sandbox.url + "/api/x")
            await entered.wait()
            group.cancel_scope.cancel()
        assert (sandbox.counts.refresh_calls, asked(sandbox)) == (0, 0)
        assert (await client.get(sandbox.url + "/api/x")).status_code == 200
    # Had it been marked, the refresh would have come before the request, or a question.
    assert (sandbox.counts.unauthorized, asked(sandbox)) == (2, 0)


def test_an_interrupt_in_a_hook_marks_nothing(
    sandbox: Sandbox, family: Family, arguments: dict[str, Any]
) -> None:
    """Ctrl-C says nothing of the answer."""
    interrupts = [KeyboardInterrupt]

    def interrupt(_: Any) -> None:
        if interrupts:
            raise interrupts.pop()

    sandbox.expire()
    with family.module.Client(auth=family.auth(**arguments), event_hooks={"response": [interrupt]}) as client:
        with pytest.raises(KeyboardInterrupt):
            client.get(sandbox.url + "/api/x")
        assert client.get(sandbox.url + "/api/x").status_code == 200
    assert (sandbox.counts.unauthorized, asked(sandbox)) == (2, 0)


@pytest.mark.parametrize("way", ["consumed", "closed"])
def test_a_hook_that_keeps_the_body_to_itself(sandbox: Sandbox, twin: Twin, way: str) -> None:
    """A hook that reads the stream of a 401 to its end, or closes it, leaves no code: the API is asked, and
    no call fails.
    """

    async def keep(response: Any) -> None:
        if response.status_code != 401:
            return
        if way == "closed":
            await response.aclose() if twin.kind != "sync" else response.close()
        elif twin.kind == "sync":
            list(response.iter_raw())
        else:
            [chunk async for chunk in response.aiter_raw()]

    async def work(client: Any) -> None:
        sandbox.expire()
        answer = await client.get(sandbox.url + "/api/x")
        assert answer.status_code == 200
        assert [past.status_code for past in answer.history] == [401]

    twin.run(work, event_hooks={"response": [twin.hook(keep)]})
    assert (sandbox.counts.rotations, asked(sandbox)) == (1, 1)


def test_an_expiry_behind_a_redirect(sandbox: Sandbox, twin: Twin) -> None:
    """The hop that met it is known by its own request."""

    async def work(client: Any) -> None:
        sandbox.fail_next(on="me", status=401, body=b'{"code": "token_expired"}')
        assert await status_of(client, sandbox.url + "/api/redirect?to=/api/auth/me") == "HTTPStatusError"
        assert await status_of(client, sandbox.url + "/api/redirect?to=/api/auth/me") == 200

    async def raise_on_a_401(response: Any) -> None:
        if response.status_code == 401:
            await twin.read(response)
            response.raise_for_status()

    twin.run(work, follow_redirects=True, event_hooks={"response": [twin.hook(raise_on_a_401)]})
    assert sandbox.counts.rotations == 1


def test_another_servers_401_marks_nothing(sandbox: Sandbox, twin: Twin) -> None:
    """Behind a redirect to another host, a hidden 401 is that host's."""
    with Sandbox() as other:

        async def work(client: Any) -> None:
            url = sandbox.url + f"/api/redirect?to={other.url}/api/x"
            assert await status_of(client, url) == "HTTPStatusError"
            assert await status_of(client, sandbox.url + "/api/x") == 200

        async def raise_on_a_401(response: Any) -> None:
            if response.status_code == 401:
                response.raise_for_status()

        twin.run(work, follow_redirects=True, event_hooks={"response": [twin.hook(raise_on_a_401)]})
    assert (asked(sandbox), sandbox.counts.refresh_calls) == (0, 0)


def test_a_transport_that_raises_on_a_401(sandbox: Sandbox, twin: Twin) -> None:
    """A retrying transport that raises for the status hides the 401 as a hook does."""
    module = twin.family.module

    class Raising(module.HTTPTransport):  # type: ignore[misc, name-defined]
        def handle_request(self, request: Any) -> Any:
            return raised(super().handle_request(request), request)

    class AsyncRaising(module.AsyncHTTPTransport):  # type: ignore[misc, name-defined]
        async def handle_async_request(self, request: Any) -> Any:
            return raised(await super().handle_async_request(request), request)

    def raised(response: Any, request: Any) -> Any:
        response.request = request
        response.raise_for_status()
        return response

    async def work(client: Any) -> None:
        sandbox.expire()
        assert await status_of(client, sandbox.url + "/api/x") == "HTTPStatusError"
        assert await status_of(client, sandbox.url + "/api/x") == 200

    twin.run(work, transport=Raising() if twin.kind == "sync" else AsyncRaising())
    assert sandbox.counts.rotations == 1


def test_threads_share_one_question(sandbox: Sandbox, family: Family, arguments: dict[str, Any]) -> None:
    """Threads that meet a doubtful pair ask the API once, and all go through."""
    statuses: list[int] = []
    with family.module.Client(
        auth=family.auth(**arguments), event_hooks={"response": [lambda r: r.raise_for_status()]}
    ) as client:
        sandbox.expire()
        with pytest.raises(family.module.HTTPStatusError):
            client.get(sandbox.url + "/api/x")
        threads = [
            threading.Thread(target=lambda: statuses.append(client.get(sandbox.url + "/api/x").status_code))
            for _ in range(10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert statuses == [200] * 10
    assert (sandbox.counts.rotations, asked(sandbox)) == (1, 1)


def test_the_question_passes_no_hook(sandbox: Sandbox, family: Family, arguments: dict[str, Any]) -> None:
    """Neither the caller's hooks nor those of `refresh_via` see it, even where both are the same client."""
    seen: list[str] = []

    def note(request: Any) -> None:
        seen.append(request.url.path)

    def raise_for_status(response: Any) -> None:
        seen.append(f"{response.url.path} {response.status_code}")
        response.raise_for_status()

    with family.module.Client(event_hooks={"request": [note], "response": [raise_for_status]}) as client:
        client.auth = family.auth(**arguments, refresh_via=client)
        sandbox.expire()
        with pytest.raises(family.module.HTTPStatusError):
            client.get(sandbox.url + "/api/x")
        assert client.get(sandbox.url + "/api/x").status_code == 200
    assert asked(sandbox) == 1
    assert seen == ["/api/x", "/api/x 401", "/api/auth/refresh", "/api/x", "/api/x 200"]


def test_a_hook_of_the_carrier_hides_no_refusal(
    sandbox: Sandbox, family: Family, arguments: dict[str, Any]
) -> None:
    """A `refresh_via` whose hook raises for the status still learns that the session has ended."""
    sandbox.revoke()
    with family.module.Client(event_hooks={"response": [lambda r: r.raise_for_status()]}) as carrier:
        with pytest.raises(ReauthorizationRequired):
            family.auth(**arguments, refresh_via=carrier).refresh()
