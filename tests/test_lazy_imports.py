"""What a program does not use, it does not import. Each case is a new interpreter that lists its modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .support import ROOT

CLIENTS = {"AdhAuth": "requests", "AdhHttpxAuth": "httpx", "AdhHttpx2Auth": "httpx2"}
#: What only a rotation needs: its steps, their decisions and records, the lock, and what filelock stands on.
ROTATION = {"filelock", *(f"adh_auth.{room}" for room in ("steps", "attempt", "plan", "decide", "attempts", "rotation_lock"))}


def _brings(statement: str, after: str = "pass", folder: Path = ROOT) -> set[str]:
    """The modules that `statement` loads once `after` has run."""
    code = f"import sys\n{after}\nbefore = set(sys.modules)\n{statement}\nprint(*(set(sys.modules) - before))"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    return set(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=60).stdout.split())


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_that_is_not_used_is_not_imported(name: str) -> None:
    """A user of requests never imports httpx, nor the other way round."""
    assert not _brings(f"from adh_auth import {name}") & ({*CLIENTS.values()} - {CLIENTS[name]})


@pytest.mark.parametrize("name", CLIENTS)
def test_what_only_a_rotation_needs_is_left_to_it(name: str) -> None:
    """Building an auth object brings no lock, no steps, no event loop and no other client's stack."""
    build = f"from adh_auth import {name}\n{name}('tokens.json', client_id='i', client_secret='s')"
    brought = _brings(build, after=f"import {CLIENTS[name]}")
    assert not brought & {*ROTATION, "adh_auth.tokens", "adh_auth.sandbox", "adh_auth.cli"}
    assert not brought & {"dataclasses", "inspect", "asyncio", "anyio", "concurrent.futures", "multiprocessing", "http.server"}


def test_a_live_pair_is_used_without_them_too(tmp_path: Path) -> None:
    """The first look at the file brings the value that a pair is, and nothing of a rotation."""
    (tmp_path / "tokens.json").write_text('{"access_token": "a", "refresh_token": "r"}')
    look = "AdhAuth('tokens.json', client_id='i', client_secret='s').tokens"
    brought = _brings(look, after="from adh_auth import AdhAuth", folder=tmp_path)
    assert "adh_auth.tokens" in brought
    assert not brought & ROTATION


def test_the_face_alone_loads_nothing() -> None:
    """The package is a list of names until one of them is asked for."""
    assert {name for name in _brings("import adh_auth") if name.startswith("adh_auth")} == {"adh_auth"}


def test_a_client_that_is_not_installed_is_told_with_its_extra() -> None:
    """httpx2 comes with an extra: whoever has not installed that reads what to install."""
    code = "import sys\nsys.modules['httpx2'] = None\ntry: from adh_auth import AdhHttpx2Auth\nexcept ModuleNotFoundError as error: print(error, error.name)"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert told == 'AdhHttpx2Auth needs httpx2: pip install "adh-auth[httpx2]" httpx2\n'
