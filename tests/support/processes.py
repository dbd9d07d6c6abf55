"""Child processes that are always reaped, a free port, and the check that no session was lost."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import requests

from adh_auth import AdhAuth, TokenFile
from adh_auth.testing import Sandbox

#: Seconds that a test waits for an event before it fails. Events come in milliseconds; a loaded machine takes
#: longer.
PATIENCE = 30.0

ROOT = Path(__file__).resolve().parent.parent.parent


def free_port() -> int:
    """Return a port that no program listens on.

    It is outside the range from which Linux takes ports for connections (32768 to 60999).
    """
    for port in random.sample(range(20000, 32000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("no port is free")


@contextmanager
def child(
    code: str, environment: Mapping[str, str] | None = None, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs `code`; killed and reaped at the end. Its pipes are text."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=options.pop("cwd", ROOT),
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        **options,
    )
    with reaped(process):
        yield process


@contextmanager
def reaped(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill and reap the process at the end, and close its pipes."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def assert_nothing_lost(sandbox: Sandbox, token_file: Path, *, reused: int = 0) -> None:
    """A new client on the same file gets a 200, the server has seen no token twice, the file is valid."""
    TokenFile(token_file).load()
    json.loads(token_file.read_bytes())
    auth = AdhAuth(
        token_file, client_id=sandbox.client_id, client_secret=sandbox.client_secret, base_url=sandbox.url
    )
    answer = requests.get(sandbox.url + "/api/auth/me", auth=auth, timeout=PATIENCE)
    assert answer.status_code == 200
    assert sandbox.counts.reused == reused
