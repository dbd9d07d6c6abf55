"""What `detached=True` adds to the one request that waits for a refresh, over a thread; both in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from adh_auth import AdhAuth, TokenFile, Tokens

from .measure import CLIENT, Sizes, above, session_of, taking_turns
from .server import Remote, sandbox_elsewhere
from .table import Row

#: Milliseconds.
LIMIT = 80.0
PAIRS = 20


def measure(sizes: Sizes, folder: Path) -> list[Row]:
    """A request that meets an expiry, each kind on a session of its own."""
    with sandbox_elsewhere() as sandbox:
        contenders = {
            name: _request(sandbox, folder / f"{name}.json", detached)
            for name, detached in (("thread", False), ("process", True))
        }
        found = taking_turns(contenders, min(PAIRS, sizes.rounds))
    added = above(found["thread"], found["process"])
    value = (
        f"{median(found['thread']):.0f} ms in a thread, {median(found['process']):.0f} ms with detached=True: "
        f"{added:.0f} ms more (median of {len(found['thread'])} pairs)"
    )
    return [Row("a refresh that no kill reaches", "requests", value, f"≤ {LIMIT:g} ms more", added <= LIMIT)]


def _request(sandbox: Remote, path: Path, detached: bool) -> Callable[[], float]:
    TokenFile(path).save(Tokens.from_response(sandbox.ask("sign_in")))
    session = session_of(AdhAuth(path, **CLIENT, base_url=sandbox.url, detached=detached))

    def milliseconds() -> float:
        sandbox.ask("expire")
        started = time.perf_counter()
        assert session.get(sandbox.url + "/api/auth/me", timeout=60).status_code == 200
        return 1000 * (time.perf_counter() - started)

    return milliseconds
