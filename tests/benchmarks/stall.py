"""Latency across rotations: with `refresh_ahead`, without it, and with long-lived tokens, in slices."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from statistics import median, quantiles

from adh_auth import AdhAuth

from .measure import CLIENT, Sizes, session_of
from .server import Remote, sandbox_elsewhere
from .table import Row

LIMIT = 1.1
#: Seconds. A rotation each second and a half, far more often than any server asks for, so that p99 can see
#: it.
LIFE, AHEAD = 3.0, 1.5
REFRESH = 0.1
#: Seconds between two requests: the load is one that the machine can carry.
PACE = 0.002
KINDS = {
    "long-lived tokens": (3600.0, None),
    "refresh_ahead": (LIFE, AHEAD),
    "reactive": (LIFE - AHEAD, None),
}


def measure(sizes: Sizes, folder: Path) -> list[Row]:
    """Return the rows of three loads on three sandboxes."""
    with ExitStack() as stack:
        loads = {
            name: stack.enter_context(_load(folder / name, life, ahead))
            for name, (life, ahead) in KINDS.items()
        }
        for number in range(sizes.slices + 1):
            for load in loads.values():
                load.run(sizes.slice_seconds, counted=number > 0)
        return _rows(loads)


def _rows(loads: dict[str, Load]) -> list[Row]:
    base = loads["long-lived tokens"]
    rows = []
    for name, load in loads.items():
        # Slice by slice: the machine's own tail latency varies with time.
        ratio = median(p99(ours) / p99(theirs) for ours, theirs in zip(load.slices, base.slices, strict=True))
        seconds = list(chain.from_iterable(load.slices))
        value = (
            f"p99 {p99(seconds) * 1000:.2f} ms, {ratio:.2f} of long-lived; "
            f"longest {max(seconds) * 1000:.0f} ms; "
            f"{load.rotations} rotations, {load.unauthorized} × 401 in {len(seconds)} requests"
        )
        ours = name == "refresh_ahead"
        goal = (f"p99 ≤ {LIMIT:g}, no 401", ratio <= LIMIT and load.unauthorized == 0) if ours else ("", None)
        rows.append(Row("no stall", name, value, *goal))
    return rows


class Load:
    """One client that sends requests at an even pace, and its server."""

    def __init__(self, sandbox: Remote, auth: AdhAuth) -> None:
        self._sandbox = sandbox
        self._auth = auth
        self._session = session_of(auth)
        self.slices: list[list[float]] = []
        self.rotations = self.unauthorized = 0

    def run(self, seconds: float, *, counted: bool) -> None:
        """One slice.

        It begins with a new pair: the one of the slice before has grown old while others had their turn.
        """
        self._auth.refresh()
        before = self._sandbox.counts
        taken = list(self._paced(seconds))
        after = self._sandbox.counts
        if counted:
            self.slices.append(taken)
            self.rotations += after.rotations - before.rotations
            self.unauthorized += after.unauthorized - before.unauthorized

    def _paced(self, seconds: float) -> Iterator[float]:
        until = time.monotonic() + seconds
        while (start := time.monotonic()) < until:
            assert self._session.get(self._sandbox.url + "/api/auth/me").status_code == 200
            yield time.monotonic() - start
            time.sleep(PACE)


def p99(seconds: list[float]) -> float:
    """Seconds."""
    return quantiles(seconds, n=100, method="inclusive")[98]


@contextmanager
def _load(path: Path, life: float, ahead: float | None) -> Iterator[Load]:
    with sandbox_elsewhere(refresh_seconds=REFRESH, token_life=life) as sandbox:
        sandbox.ask("write_token_file", path)
        yield Load(sandbox, AdhAuth(path, base_url=sandbox.url, refresh_ahead=ahead, **CLIENT))
