"""What `detached=True` adds to the one request that waits for a refresh, over a thread; both in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from adh_auth import AdhAuth, Tokens, TokenStore

from .measure import CLIENT, Sizes, above, session_of, taking_turns
from .server import Remote, sandbox_elsewhere
from .stores import found_servers
from .table import Row

#: Milliseconds, over the file.
LIMIT = 80.0
PAIRS = 20


def measure(sizes: Sizes, folder: Path) -> list[Row]:
    """A request that meets an expiry, each kind on a session of its own, over the file and over each store."""
    with sandbox_elsewhere() as sandbox, found_servers() as urls:
        return [
            _row(sandbox, name, store, min(PAIRS, sizes.rounds))
            for name, store in {"the file": f"file://{folder}/sessions", **urls}.items()
        ]


def _row(sandbox: Remote, name: str, store: str, pairs: int) -> Row:
    contenders = {
        kind: _request(sandbox, store, kind, detached)
        for kind, detached in (("thread", False), ("process", True))
    }
    found = taking_turns(contenders, pairs)
    added = above(found["thread"], found["process"])
    value = (
        f"{median(found['thread']):.0f} ms in a thread, {median(found['process']):.0f} ms with detached=True: "
        f"{added:.0f} ms more (median of {len(found['thread'])} pairs)"
    )
    row = Row("a refresh that no kill reaches", f"requests over {name}", value)
    return row._replace(goal=f"≤ {LIMIT:g} ms more", met=added <= LIMIT) if name == "the file" else row


def _request(sandbox: Remote, store: str, name: str, detached: bool) -> Callable[[], float]:
    TokenStore(store, name).save(Tokens.from_response(sandbox.ask("sign_in")))
    auth = AdhAuth(store=store, session=name, **CLIENT, base_url=sandbox.url, detached=detached)
    session = session_of(auth)

    def milliseconds() -> float:
        sandbox.ask("expire")
        started = time.perf_counter()
        assert session.get(sandbox.url + "/api/auth/me", timeout=60).status_code == 200
        return 1000 * (time.perf_counter() - started)

    return milliseconds
