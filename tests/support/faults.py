"""What the tests of faults share: waiting for a state that no event announces, and calls through a fresh
client.
"""

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

#: A script that makes one call and prints what it came to: the status, or the error's class, then its
#: message.
ONE_CALL = """
import os, requests
from adh_auth import AdhAuth, TokenFile
def call():
    try:
        print(requests.get(os.environ["ADH_BASE_URL"] + "/api/auth/me", auth=AdhAuth(), timeout=60).status_code, flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread or process brings about."""
    never = threading.Event()
    for _ in range(int(PATIENCE / 0.01)):
        if condition():
            return
        never.wait(0.01)
    raise TimeoutError("it did not come to that")


def auth_for(sandbox: Sandbox, token_file: str | os.PathLike[str] | None = None, **more: Any) -> AdhAuth:
    """An auth object of its own for the sandbox."""
    path = Path(token_file or sandbox.token_file)
    return AdhAuth(
        path, client_id=sandbox.client_id, client_secret=sandbox.client_secret, base_url=sandbox.url, **more
    )


def near_its_end(token_file: str | os.PathLike[str], seconds: float = 30.0) -> None:
    """The session of the file, with so many seconds left and without a word about when its life began."""
    file = TokenFile(token_file)
    file.save(replace(file.load(), expires_at=time.time() + seconds))
    Path(f"{token_file}.record").unlink(missing_ok=True)


def grown_older(token_file: str | os.PathLike[str], seconds: float) -> None:
    """The session of the file as it will be in so many seconds."""
    file = TokenFile(token_file)
    pair, record = file.load(), file.record()
    assert pair.expires_at is not None
    assert record.rotated_at is not None
    file.save(replace(pair, expires_at=pair.expires_at - seconds))
    file.note(replace(record, at=record.at - seconds, rotated_at=record.rotated_at - seconds))


def get(sandbox: Sandbox, auth: AdhAuth) -> int:
    """The status of a call that needs a live token."""
    return requests.get(sandbox.url + "/api/auth/me", auth=auth, timeout=PATIENCE).status_code
