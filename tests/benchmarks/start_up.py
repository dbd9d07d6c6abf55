"""What the import costs after the client's own, each time in a new interpreter with compiled modules, as pip
leaves them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from ..support.processes import ROOT
from .measure import Sizes, taking_turns, write_pair
from .table import Row

LIMIT = 25.0
OURS = (("requests", "AdhAuth"), ("httpx", "AdhHttpxAuth"), ("httpx2", "AdhHttpx2Auth"))
PEERS = (
    ("Authlib", "from authlib.integrations.requests_client import OAuth2Session"),
    ("requests_oauth2client", "from requests_oauth2client import OAuth2Client"),
    ("singleflight-auth", "from singleflight_auth import RequestsSingleFlightAuth"),
    ("google-auth", "from google.auth.transport.requests import AuthorizedSession"),
)


def measure(sizes: Sizes, folder: Path) -> list[Row]:
    """Return the milliseconds of each import statement."""
    write_pair(folder / "tokens.json")
    contenders: dict[str, Callable[[], float]] = {}
    goals = {}
    for client, name in OURS:
        what = f"from adh_auth import {name}, after import {client}"
        contenders[what] = _import(client, f"from adh_auth import {name}", folder)
        goals[what] = LIMIT
    first = f"from adh_auth import {OURS[0][1]}; AdhAuth().tokens, after import requests"
    contenders[first] = _import("requests", _FIRST_LOOK, folder)
    for name, statement in PEERS:
        if find_spec(statement.split()[1].partition(".")[0]) is not None:
            contenders[f"{name}, after import requests"] = _import("requests", statement, folder)
    found = taking_turns(contenders, sizes.starts)
    return [_row(what, median(values), goals.get(what)) for what, values in found.items()]


#: The import is not all: the first read of the file imports dataclasses, which requests does not.
_FIRST_LOOK = "from adh_auth import AdhAuth\nAdhAuth('tokens.json', client_id='i', client_secret='s').tokens"


def _row(what: str, milliseconds: float, limit: float | None) -> Row:
    goal = ("", None) if limit is None else (f"≤ {limit:g} ms", milliseconds <= limit)
    return Row("start-up", what, f"{milliseconds:.1f} ms", *goal)


def _import(client: str, statement: str, folder: Path) -> Callable[[], float]:
    code = (
        f"import {client}, time\nstart = time.perf_counter()\n{statement}\nprint(time.perf_counter() - start)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment.update(PYTHONPATH=str(ROOT), PYTHONPYCACHEPREFIX=str(folder))

    def once() -> float:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        return float(done.stdout) * 1000

    return once
