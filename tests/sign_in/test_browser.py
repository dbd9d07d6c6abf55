"""The sign-in in a real browser."""

from __future__ import annotations

import html
import zlib
from pathlib import Path

import pytest

from adh_auth import TokenFile
from adh_auth.sign_in.listener import Listener
from adh_auth.testing import Sandbox

from ..support import browser as chromium
from ..support.cli import started
from ..support.processes import PATIENCE, assert_nothing_lost, free_port

pytestmark = pytest.mark.browser


@pytest.fixture
def redirect_uri(sandbox: Sandbox) -> str:
    """A registered one, with a free port."""
    uri = f"http://localhost:{free_port()}/callback"
    sandbox.redirect_uris = [uri]
    return uri


def test_signs_in(sandbox: Sandbox, redirect_uri: str, tmp_path: Path) -> None:
    """Chromium goes to the sandbox and comes back to the listener; it says that this worked, and the command
    greets the user.
    """
    program, token_file = chromium.found(), tmp_path / "tokens.json"
    options = ("--no-browser", "--redirect-uri", redirect_uri, "--token-file", str(token_file))
    with started("login", *options, env=sandbox.environment(token_file)) as command:
        page = chromium.page_of(program, _url_in(command.stdout))
        said, complaint = command.communicate(timeout=PATIENCE)
        assert (command.returncode, complaint) == (0, "")
    assert "You are signed in" in page
    assert "Hello Sandbox User" in said
    assert TokenFile(token_file).load().scope == "profile:read discussions:read"
    assert_nothing_lost(sandbox, token_file)


def test_shows_an_error(sandbox: Sandbox, redirect_uri: str, token_file: Path) -> None:
    """A code that is too old: the page and the command say the same, and the old file is untouched."""
    program, before = chromium.found(), token_file.read_bytes()
    sandbox.code_life = 0.0
    with started(
        "login", "--no-browser", "--redirect-uri", redirect_uri, env=sandbox.environment(token_file)
    ) as command:
        page = chromium.page_of(program, _url_in(command.stdout))
        _, complaint = command.communicate(timeout=PATIENCE)
        assert command.returncode == 1
    assert "The sign-in did not work" in page
    assert complaint.removeprefix("adh-auth: ").strip()[1:] in html.unescape(page)
    assert token_file.read_bytes() == before


@pytest.mark.parametrize(("scheme", "flag"), [("dark", "0"), ("light", "1")])
def test_the_page_follows_the_system(redirect_uri: str, tmp_path: Path, scheme: str, flag: str) -> None:
    """White at night is what people complain of; the listener's own policy lets the colours through."""
    program, picture = chromium.found(), tmp_path / "page.png"
    with Listener(redirect_uri):
        flags = [f"--blink-settings=preferredColorScheme={flag}"]
        chromium.picture_of(program, redirect_uri, str(picture), (900, 400), flags)
    assert _corner(picture.read_bytes()) == {"dark": (0x16, 0x19, 0x1D), "light": (255, 255, 255)}[scheme]


def _corner(png: bytes) -> tuple[int, ...]:
    """The colour of the first pixel. It has no neighbours, so no filter of PNG changes it."""
    data, at = b"", 8
    while at < len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += length + 12
    return tuple(zlib.decompress(data)[1:4])


def _url_in(output: object) -> str:
    lines = iter(output.readline, "")  # type: ignore[attr-defined]
    return str(next(line.strip() for line in lines if line.strip().startswith("http")))
