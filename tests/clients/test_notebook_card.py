"""The card of an auth object in a notebook, and its repr."""

from __future__ import annotations

import itertools
import time
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from adh_auth import (
    AdhAuth,
    AdhAuthError,
    AdhHttpx2Auth,
    AdhHttpxAuth,
    ConfigurationError,
    RefreshFailed,
    TokenFile,
    Tokens,
)
from adh_auth.clients import notebook_card as card_module
from adh_auth.errors import LockTimeout
from adh_auth.testing import Sandbox

from ..support import browser as chromium


class _Reader(HTMLParser):
    """The texts of a page, and its tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def facts_of(html: str) -> dict[str, str]:
    """The rows of a card, and its headline as "state"."""
    texts = _Reader(html.partition("</style>")[2]).texts
    return {"state": texts[3].strip(), **dict(itertools.pairwise(texts[4:]))}


@pytest.fixture(params=[AdhAuth, AdhHttpxAuth, AdhHttpx2Auth], ids=lambda cls: cls.__name__)
def auth(request: pytest.FixtureRequest, arguments: dict[str, Any]) -> Any:
    return request.param(**arguments)


def test_signed_in(auth: Any, token_file: Path, sandbox: Sandbox) -> None:
    """It names the class, the file and the API, and shows the expiry, the last rotation and no failure."""
    auth.refresh()
    shown = facts_of(auth._repr_html_())
    assert shown["state"] == "signed in"
    assert shown["token file"] == str(token_file)
    assert shown["API"] == sandbox.url
    assert shown["expires"].endswith("(in 59 min)")
    assert "by process" in shown["last rotation"]
    assert shown["last failure"] == "none"
    state = "signed in, expires in 59 min, rotated 0 s ago"
    assert repr(auth) == f"{type(auth).__name__}('{token_file}', base_url='{sandbox.url}', state='{state}')"


def test_showing_it_sends_nothing(auth: Any, sandbox: Sandbox, token_file: Path) -> None:
    """Neither the card nor the repr sends anything or makes a file."""
    before = sorted(token_file.parent.iterdir())
    auth._repr_html_()
    repr(auth)
    assert sandbox.log == []
    assert sorted(token_file.parent.iterdir()) == before


def test_signed_out(auth: Any, sandbox: Sandbox) -> None:
    """A refused session says so, with the command that brings it back."""
    sandbox.revoke()
    with pytest.raises(AdhAuthError):
        auth.refresh()
    shown = facts_of(auth._repr_html_())
    assert shown["state"] == "not signed in"
    assert "invalid_grant" in shown["last failure"]
    assert "adh-auth login" in shown["what to do"]
    assert "not signed in, the refresh token was refused" in repr(auth)


def test_a_failure_that_may_pass(auth: Any, sandbox: Sandbox) -> None:
    """An outage leaves the session signed in; the card shows it."""
    sandbox.fail_next(None, status=429, retry_after=3600)
    with pytest.raises(RefreshFailed):
        auth.refresh()
    shown = facts_of(auth._repr_html_())
    assert shown["state"] == "signed in, with a problem"
    assert "HTTP 429" in shown["last failure"]
    assert "the last refresh failed" in repr(auth)


def test_a_refresh_under_way(auth: Any, sandbox: Sandbox) -> None:
    """Another process's refresh in flight is shown, not waited for."""
    with sandbox.hold_next() as hold:
        job = auth._core.refresh_now()
        hold.wait()
        assert facts_of(auth._repr_html_())["state"] == "signed in, a refresh is under way"
    job.join()


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"access_token": "adh_secret"}'])
def test_no_usable_file(auth: Any, token_file: Path, content: bytes | None) -> None:
    """A missing or broken file is shown with the next step."""
    token_file.unlink()
    if content is not None:
        token_file.write_bytes(content)
    shown = facts_of(auth._repr_html_())
    assert shown["state"] == "not signed in"
    assert "adh-auth login" in shown["last failure"]
    assert "adh_secret" not in auth._repr_html_() + repr(auth)
    assert "state='not signed in'" in repr(auth)


def test_no_secret(auth: Any, sandbox: Sandbox, token_file: Path) -> None:
    """Neither tokens nor the client secret are in it."""
    pair = TokenFile(token_file).load()
    shown = auth._repr_html_() + repr(auth)
    for secret in (pair.access_token, pair.refresh_token, sandbox.client_secret):
        assert secret not in shown


def test_an_expiry_that_is_over_or_unknown(auth: Any, token_file: Path) -> None:
    """An expired token is no sign-out, and an unknown expiry no problem."""
    TokenFile(token_file).save(Tokens("adh_a", "adh_rt_a", time.time() - 90))
    assert facts_of(auth._repr_html_())["expires"].endswith("(1 min ago)")
    assert "expired, the next request refreshes it" in repr(auth)
    TokenFile(token_file).save(Tokens("adh_a", "adh_rt_a", None))
    assert facts_of(auth._repr_html_())["expires"] == "not stored; the API says when"
    assert "no expiry known" in repr(auth)


def test_everything_is_escaped(arguments: dict[str, Any], tmp_path: Path) -> None:
    """A file's name is text, whatever it holds; line breaks and lone surrogates are gone."""
    name = "<img src=x onerror='alert(1)'>&\n\udcff.json"
    shown = AdhAuth(**{**arguments, "token_file": str(tmp_path / name)})._repr_html_()
    assert set(_Reader(shown).tags) == {"style", "div", "b", "span", "table", "tr", "th", "td"}
    assert "&lt;img src=x onerror=&#x27;alert(1)&#x27;&gt;&amp; " in shown
    shown.encode()


@pytest.mark.parametrize("error", [LockTimeout("busy"), ZeroDivisionError("adh_secret"), RecursionError()])
def test_never_raises(auth: Any, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """An error while the session is read costs the card its content, never the cell its result."""

    def fail(*_: object) -> Any:
        raise error

    monkeypatch.setattr(card_module, "status_of", fail)
    monkeypatch.setattr(TokenFile, "load", fail)
    assert type(error).__name__ in auth._repr_html_() or "busy" in auth._repr_html_()
    assert "adh_secret" not in auth._repr_html_() + repr(auth)


def test_an_object_that_was_never_built() -> None:
    """A traceback that shows a refused constructor's frame gets a repr, too."""
    refused = AdhAuth.__new__(AdhAuth)
    with pytest.raises(ConfigurationError):
        refused.__init__(base_url="ftp://x")  # type: ignore[misc]
    assert repr(refused) == "<AdhAuth>"


#: Name, background of the page, what Jupyter's theme sets on it, and what the system prefers (0: dark).
JUPYTER_DARK = (
    "--jp-layout-color1:#111;--jp-ui-font-color1:#fff;--jp-ui-font-color2:#bbb;"
    "--jp-border-color2:#444;--jp-success-color0:#388e3c"
)
THEMES = (("light", "#fff", "", 1), ("dark", "#0d1117", "", 0), ("jupyter-dark", "#111", JUPYTER_DARK, 1))


@pytest.mark.browser
def test_pictures(arguments: dict[str, Any], tmp_path: Path) -> None:
    """Chromium draws the card in light, in dark and in Jupyter's dark theme, and the three differ."""
    program, auth = chromium.found(), AdhAuth(**arguments)
    auth.refresh()
    lost = AdhAuth(**{**arguments, "token_file": str(tmp_path / "lost.json")})
    drawn = set()
    for name, back, variables, preferred in THEMES:
        cards = f"{auth._repr_html_()}<p>{lost._repr_html_()}"
        page = f"<meta charset='utf-8'><body style='background:{back};{variables}'>{cards}</body>"
        address = "data:text/html;charset=utf-8," + urllib.parse.quote(page)
        picture = tmp_path / f"{name}.png"
        chromium.picture_of(
            program, address, str(picture), (900, 420), [f"--blink-settings=preferredColorScheme={preferred}"]
        )
        drawn.add(picture.read_bytes())
    assert len(drawn) == 3
    assert all(image.startswith(b"\x89PNG") for image in drawn)
