"""What the tests share: a strict sandbox, a token file of its session, and the httpx family one by one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adh_auth.testing import Sandbox

from .support import skips
from .support.clients import FAMILY, Family
from .support.httpx_client import Twin


def pytest_configure() -> None:
    """A shell's ``&`` starts a program with SIGINT ignored, and its children inherit that: the tests of
    Ctrl-C would wait for nothing.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Hundreds of children would compile the package anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_xdist_auto_num_workers() -> int:
    """Two for each core: half of what a test does is to wait for another process, a socket or a disk."""
    return min(2 * (os.cpu_count() or 1), 16)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the settings, the proxies or the session of the user who runs it."""
    for name in (
        "ADH_TOKEN_FILE",
        "ADH_CLIENT_ID",
        "ADH_CLIENT_SECRET",
        "ADH_BASE_URL",
        "ADH_STORE",
        "ADH_SESSION",
        "ADH_STORE_KEY",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "SSL_CERT_FILE",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A running sandbox."""
    with Sandbox() as running:
        yield running


@pytest.fixture
def token_file(sandbox: Sandbox, tmp_path: Path) -> Path:
    """A token file with a session of the sandbox."""
    return sandbox.write_token_file(tmp_path / "tokens.json")


@pytest.fixture
def arguments(sandbox: Sandbox, token_file: Path) -> dict[str, Any]:
    """The arguments that an auth object needs to work with the sandbox."""
    return {
        "token_file": str(token_file),
        "client_id": sandbox.client_id,
        "client_secret": sandbox.client_secret,
        "base_url": sandbox.url,
    }


@pytest.fixture(params=FAMILY, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    """httpx and httpx2, each with its auth class."""
    chosen: Family = request.param
    return chosen


@pytest.fixture(params=["sync", "asyncio", "trio"])
def twin(request: pytest.FixtureRequest, family: Family, arguments: dict[str, Any]) -> Twin:
    """A client of each kind with an auth object for the sandbox."""
    return Twin(request.param, family, family.auth(**arguments))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Every `@pytest.mark.anyio` test runs on asyncio and on trio."""
    return str(request.param)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what was skipped, and how many runs the simulation made; with xdist, what a test prints does not
    get here.
    """
    for line in skips.in_lines(
        (report.nodeid, report.longrepr[2]) for report in terminalreporter.stats.get("skipped", ())
    ):
        terminalreporter.write_line(line)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if (
                getattr(report, "when", "") == "call"
                and "test_every_order" in report.nodeid
                and report.user_properties
            ):
                terminalreporter.write_line(
                    "simulated: " + ", ".join(str(value) for _, value in report.user_properties)
                )
