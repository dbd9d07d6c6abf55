"""For tests of faults: wait for a state without an event, calls through a new client, an aged session."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import requests

from adh_auth import AdhAuth, TokenFile
from adh_auth.testing import Sandbox

from .processes import PATIENCE

#: A script that makes one call and prints the status, or the class of the error and its message.
ONE_CALL = """
import os, requests
from adh_auth import AdhAuth, TokenFile
def call():
    try:
        url = os.environ["ADH_BASE_URL"] + "/api/auth/me"
        print(requests.get(url, auth=AdhAuth(), timeout=60).status_code, flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that another thread or process fulfils. Raises `TimeoutError`."""
    never = threading.Event()
    for _ in range(int(PATIENCE / 0.01)):
        if condition():
            return
        never.wait(0.01)
    raise TimeoutError("the condition was not fulfilled in time")


def auth_for(sandbox: Sandbox, token_file: str | os.PathLike[str] | None = None, **more: Any) -> AdhAuth:
    """Return a new auth object for the sandbox."""
    path = Path(token_file or sandbox.token_file)
    return AdhAuth(
        path, client_id=sandbox.client_id, client_secret=sandbox.client_secret, base_url=sandbox.url, **more
    )


def near_its_end(token_file: str | os.PathLike[str], seconds: float = 30.0) -> None:
    """Leave the session of the file so many seconds, and remove the record of when its life began."""
    file = TokenFile(token_file)
    file.save(replace(file.load(), expires_at=time.time() + seconds))
    Path(f"{token_file}.record").unlink(missing_ok=True)


def grown_older(token_file: str | os.PathLike[str], seconds: float) -> None:
    """Make the session of the file as old as it will be in so many seconds."""
    file = TokenFile(token_file)
    pair, record = file.load(), file.record()
    assert pair.expires_at is not None
    assert record.rotated_at is not None
    file.save(replace(pair, expires_at=pair.expires_at - seconds))
    file.note(replace(record, at=record.at - seconds, rotated_at=record.rotated_at - seconds))


def get(sandbox: Sandbox, auth: AdhAuth) -> int:
    """Return the status of a call that needs a live token."""
    return requests.get(sandbox.url + "/api/auth/me", auth=auth, timeout=PATIENCE).status_code
