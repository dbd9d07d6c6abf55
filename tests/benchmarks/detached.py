"""What `detached=True` adds to the one request that waits for a refresh, against a thread; the two in turn."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

from adh_auth import AdhAuth

from .measure import CLIENT, Sizes, session_of
from .server import sandbox_elsewhere
from .table import Row

LIMIT = 80.0
PAIRS = 20


def measure(sizes: Sizes, folder: Path) -> list[Row]:
    """Requests that meet an expiry, each kind on a session of its own."""
    with sandbox_elsewhere() as sandbox:
        requests = {}
        for detached in (False, True):
            path = folder / f"{detached}.json"
            sandbox.write_token_file(path)
            requests[detached] = _Requests(
                sandbox, AdhAuth(path, **CLIENT, base_url=sandbox.url, detached=detached)
            )
        for number in range(PAIRS + 1):
            for request in requests.values():
                request.run(counted=number > 0)
    thread, helper = (1000 * median(request.seconds) for request in requests.values())
    added = helper - thread
    value = (
        f"{thread:.0f} ms in a thread, {helper:.0f} ms detached: +{added:.0f} ms (median of {PAIRS} pairs)"
    )
    return [Row("detached", "a request that waits", value, f"≤ {LIMIT:g} ms more", added <= LIMIT)]
