"""Many real processes of mixed kinds on one token file."""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from adh_auth.testing import Sandbox

from ..support.processes import PATIENCE, assert_nothing_lost, child

#: Seconds that the load runs, and that a token lives.
LOAD, LIFE = 10.0, 1.0

WORKER = """
import json, sys, threading, time
kind, url, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
counts = {"ok": 0, "failed": []}

def requests_work(until):
    import requests
    from adh_auth import AdhAuth
    with requests.Session() as session:
        session.auth = AUTH
        while time.monotonic() < until:
            note(lambda: session.get(url, timeout=30).status_code)
            time.sleep(0.01)

def httpx_work(until):
    with CLIENT.Client(auth=AUTH, timeout=30) as client:
        while time.monotonic() < until:
            note(lambda: client.get(url).status_code)
            time.sleep(0.01)

def async_work(until):
    import anyio
    async def main():
        async with CLIENT.AsyncClient(auth=AUTH, timeout=30) as client:
            while time.monotonic() < until:
                status = (await client.get(url)).status_code
                note(lambda: status)
                await anyio.sleep(0.01)
    anyio.run(main)

def note(get):
    try:
        status = get()
        if status == 200:
            counts["ok"] += 1
        else:
            counts["failed"].append(status)
    except Exception as error:
        counts["failed"].append(repr(error)[:300])

if kind == "requests":
    from adh_auth import AdhAuth
    AUTH, work = AdhAuth(), requests_work
elif kind == "httpx2":
    import httpx2 as CLIENT
    from adh_auth import AdhHttpx2Auth
    AUTH, work = AdhHttpx2Auth(), httpx_work
else:
    import httpx as CLIENT
    from adh_auth import AdhHttpxAuth
    AUTH, work = AdhHttpxAuth(), httpx_work if kind == "httpx" else async_work
print("ready", flush=True)
sys.stdin.readline()
until = time.monotonic() + seconds
threads = [threading.Thread(target=work, args=(until,)) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps(counts), flush=True)
"""


def test_eight_processes_of_four_threads_share_one_file(tmp_path: Path) -> None:
    """Ten seconds of one-second tokens: no request fails, one refresh per expiry, no token is used twice."""
    kinds = ["requests", "httpx", "async", "httpx2"] * 2
    with Sandbox(token_life=LIFE) as sandbox, ExitStack() as children:
        path = sandbox.write_token_file(tmp_path / "tokens.json")
        code = f"import sys; sys.argv = ['w', *sys.argv[1:]]\n{WORKER}"
        workers = []
        for kind in kinds:
            argued = code.replace(
                "sys.argv = ['w', *sys.argv[1:]]",
                f"sys.argv = ['w', {kind!r}, {sandbox.url + '/api/auth/me'!r}, '{LOAD}']",
            )
            workers.append(children.enter_context(child(argued, sandbox.environment(path))))
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        started = time.monotonic()
        sums: list[dict[str, Any]] = []
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        for worker in workers:
            output, errors = worker.communicate(timeout=LOAD + PATIENCE)
            assert worker.returncode == 0, errors
            sums.append(json.loads(output))
        elapsed = time.monotonic() - started
        assert [item["failed"] for item in sums] == [[]] * len(kinds)
        assert all(item["ok"] > 20 for item in sums)
        counts = sandbox.counts
        assert counts.reused == 0
        assert counts.refresh_calls == counts.rotations
        # One refresh per expiry: no token was replaced before its life was over.
        assert LOAD / LIFE / 2 <= counts.rotations <= elapsed / LIFE + 1
        sandbox.token_life = 3600.0
        assert_nothing_lost(sandbox, path)


def test_the_interpreter_is_the_one_under_test() -> None:
    """Children run on the Python that runs the tests."""
    with child("import sys; print(sys.version_info[:2])") as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert output.strip() == str(tuple(sys.version_info[:2]))
