"""Real notebooks in real kernels: an expiry in a cell, an interrupt of a refresh, two kernels on one file."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from adh_auth import TokenFile
from adh_auth.testing import Sandbox

from ..support.clients import needs
from ..support.faults import wait_until
from ..support.processes import PATIENCE, ROOT, assert_nothing_lost, free_port

nbclient, nbformat, _ = (needs(name, "notebooks") for name in ("nbclient", "nbformat", "ipykernel"))

pytestmark = [
    pytest.mark.notebooks,
    # Warnings of Jupyter's own packages are not ours.
    pytest.mark.filterwarnings("ignore"),
]

SIGN_ON = """
import httpx, os, requests
from adh_auth import AdhAuth, AdhHttpxAuth
ME = os.environ["ADH_BASE_URL"] + "/api/auth/me"
session = requests.Session()
session.auth = AdhAuth()
client = httpx.AsyncClient(auth=AdhHttpxAuth(), timeout=60)
"""
CALLS = {"requests": "answer = session.get(ME)", "httpx": "answer = await client.get(ME)"}
SHOW = "print(answer.status_code, [past.status_code for past in answer.history])"


class Kernel:
    """A running kernel, and the notebook of what was executed in it."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def run(self, source: str) -> Any:
        """Execute a cell, and return it with its outputs. An error in it is an output, too."""
        cells = self._client.nb.cells
        cells.append(nbformat.v4.new_code_cell(source))
        await self._client.async_execute_cell(cells[-1], len(cells) - 1)
        return cells[-1]

    async def say(self, source: str) -> str:
        """Return what a cell writes to stdout."""
        cell = await self.run(source)
        assert [output for output in cell.outputs if output.output_type == "error"] == []
        return "".join(output.text for output in cell.outputs if output.get("name") == "stdout").strip()

    async def interrupt(self) -> None:
        """Interrupt the kernel as the stop button does."""
        await self._client.km.interrupt_kernel()

    async def kill(self) -> None:
        """End the kernel as a restart in the middle of a cell does: by SIGKILL."""
        await self._client.km.shutdown_kernel(now=True)

    def saved(self, path: Path) -> str:
        """Return the notebook as it is saved."""
        nbformat.write(self._client.nb, path)
        return path.read_text()


@asynccontextmanager
async def kernel(environment: dict[str, str]) -> AsyncIterator[Kernel]:
    """Return a kernel that has the sandbox's environment."""
    notebook = nbformat.v4.new_notebook()
    client = nbclient.NotebookClient(notebook, kernel_name="python3", timeout=2 * PATIENCE, allow_errors=True)
    async with client.async_setup_kernel(env={**os.environ, **environment, "PYTHONPATH": str(ROOT)}):
        yield Kernel(client)


@pytest.fixture
def environment(sandbox: Sandbox, token_file: Path) -> dict[str, str]:
    return sandbox.environment(token_file)


def test_both_clients_in_one_notebook(
    sandbox: Sandbox, token_file: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """requests and `await client.get` go through an expiry, the card is shown, and the saved notebook holds
    no secret.
    """
    secrets = [sandbox.client_secret]

    async def main() -> None:
        async with kernel(environment) as running:
            await running.say(SIGN_ON)
            for call in CALLS.values():
                secrets.extend(_tokens(token_file))
                sandbox.expire()
                assert await running.say(f"{call}\n{SHOW}") == "200 [401]"
            shown = await running.run("session.auth")
            assert "<b>AdhAuth</b>" in shown.outputs[0].data["text/html"]
            assert "signed in" in shown.outputs[0].data["text/plain"]
            await running.run("client.auth")
            secrets.extend(_tokens(token_file))
            sandbox.revoke()
            refused = await running.run("%xmode Verbose\nsession.auth.refresh()")
            assert refused.outputs[-1].ename == "ReauthorizationRequired"
            saved = running.saved(tmp_path / "saved.ipynb")
        assert not [secret for secret in secrets if secret in saved]

    anyio.run(main)
    assert sandbox.counts.rotations == 2


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_interrupt_in_a_slow_refresh(
    sandbox: Sandbox, token_file: Path, environment: dict[str, str], call: str
) -> None:
    """The stop button ends the cell and not the refresh: the next cell works, with the pair that came."""

    async def main() -> None:
        async with kernel(environment) as running, anyio.create_task_group() as tasks:
            await running.say(SIGN_ON)
            sandbox.expire()
            with sandbox.hold_next() as hold:
                interrupted = _Cell()
                tasks.start_soon(interrupted.run_in, running, call)
                await anyio.to_thread.run_sync(hold.wait, PATIENCE)
                await running.interrupt()
                if call == CALLS["requests"]:
                    await (
                        interrupted.ended.wait()
                    )  # while the refresh is still held; an await is interrupted only when its loop wakes up
            await interrupted.ended.wait()
            if call == CALLS["requests"]:
                assert interrupted.outputs[-1].ename == "KeyboardInterrupt"
            assert (await running.say(f"{call}\n{SHOW}")).startswith("200")

    anyio.run(main)
    assert sandbox.counts.rotations == 1
    assert_nothing_lost(sandbox, token_file)


class _Cell:
    """A cell that runs beside the test."""

    def __init__(self) -> None:
        self.ended = anyio.Event()
        self.outputs: list[Any] = []

    async def run_in(self, running: Kernel, source: str) -> None:
        self.outputs = (await running.run(source)).outputs
        self.ended.set()


def test_two_kernels_on_one_file(sandbox: Sandbox, token_file: Path, environment: dict[str, str]) -> None:
    """Two notebooks that meet one expiry refresh once, and both go on."""

    async def main() -> None:
        async with kernel(environment) as one, kernel(environment) as other:
            said: list[str] = []

            async def call(running: Kernel, source: str) -> None:
                said.append(await running.say(f"{source}\n{SHOW}"))

            for running in (one, other):
                await running.say(SIGN_ON)
            sandbox.expire()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call, one, CALLS["requests"])
                tasks.start_soon(call, other, CALLS["httpx"])
        assert [line[:3] for line in said] == ["200", "200"]

    anyio.run(main)
    assert sandbox.counts.rotations == 1
    assert_nothing_lost(sandbox, token_file)


@pytest.mark.skipif(sys.platform == "win32", reason="needs descriptors that a child inherits")
def test_a_kernel_restart_in_mid_refresh(
    sandbox: Sandbox, token_file: Path, environment: dict[str, str]
) -> None:
    """With `detached=True`, the refresh that a cell waits for outlives the kernel."""

    async def main() -> None:
        async with kernel(environment) as running:
            await running.say(SIGN_ON)
            sandbox.expire()
            with sandbox.hold_next() as hold:
                await running.say(
                    "import threading\nsession.auth = AdhAuth(detached=True)\n"
                    "threading.Thread(target=session.get, args=(ME,)).start()"
                )
                await anyio.to_thread.run_sync(hold.wait, PATIENCE)
                await running.kill()

    anyio.run(main)
    wait_until(lambda: TokenFile(token_file).record().state == "done")
    assert sandbox.counts.rotations == sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


def test_signs_in_from_a_notebook(
    sandbox: Sandbox, token_file: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """`adh_auth.login()` in a cell, where a loop runs already, opens the browser and greets; neither code nor
    token is saved.
    """
    uri = f"http://localhost:{free_port()}/callback"
    sandbox.redirect_uris = [uri]
    browser = f"{shlex.quote(sys.executable)} -c 'import sys, requests; requests.get(sys.argv[1])' %s"

    async def main() -> None:
        async with kernel({**environment, "BROWSER": browser}) as running:
            said = await running.say(f"import adh_auth\ntokens = adh_auth.login(redirect_uri={uri!r})")
            assert "Hello Sandbox User" in said
            assert (
                (await running.run("tokens"))
                .outputs[0]
                .data["text/plain"]
                .startswith("Tokens(access_token=<")
            )
            saved = running.saved(tmp_path / "saved.ipynb")
        assert not [token for token in _tokens(token_file) if token in saved]
        assert "code=" not in saved

    anyio.run(main)
    assert sandbox.counts.exchanges == 1
    assert_nothing_lost(sandbox, token_file)


def _tokens(path: Path) -> list[str]:
    pair = TokenFile(path).load()
    return [pair.access_token, pair.refresh_token]
