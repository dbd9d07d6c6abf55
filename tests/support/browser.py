"""A headless Chromium for the tests that need one; without it they are skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable

import pytest

from .processes import PATIENCE

#: No sandbox: containers run as root. No network of its own: the pages are on this machine.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
)


def found() -> str:
    """Return the program; skip the test where there is none."""
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    path = next((path for name in names if name and (path := shutil.which(name))), None)
    if path is None:
        pytest.skip("needs a Chromium: apt-get install chromium, or name one in CHROMIUM")
    return path


def run(program: str, *arguments: str) -> str:
    """Return what it writes to stdout."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        return subprocess.run(
            [program, *FLAGS, f"--user-data-dir={profile}", *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
        ).stdout


def page_of(program: str, url: str) -> str:
    """Return the page that it ends on, as HTML."""
    return run(program, "--dump-dom", url)


def picture_of(program: str, url: str, path: str, size: tuple[int, int], flags: Iterable[str] = ()) -> None:
    """Write a screenshot to `path`, a PNG file."""
    run(program, f"--screenshot={path}", f"--window-size={size[0]},{size[1]}", *flags, url)
