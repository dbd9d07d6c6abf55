"""The card of an auth object in a notebook, and its repr."""

from __future__ import annotations

import html
import itertools
import json
import re
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
    """The texts of a page, its tags, and the styles of each."""

    def __init__(self, card: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.styles: list[tuple[str, dict[str, str]]] = []
        self.feed(card)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert {name for name, _ in attrs} <= {"style", "scope"}, "a class is nothing without a <style>"
        self.styles.append((tag, _properties(dict(attrs).get("style") or "")))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def _properties(style: str) -> dict[str, str]:
    return dict(part.split(":", 1) for part in style.split(";")) if style else {}


def facts_of(card: str) -> dict[str, str]:
    """The rows of a card, its headline as "state", and the colour of its dot."""
    reader = _Reader(card)
    dot = next(style for tag, style in reader.styles if tag == "span")
    filled = dot["background"] != "transparent"
    colour = f"{'filled' if filled else 'hollow'} {dot['border'].rpartition(' ')[2]}"
    return {"state": reader.texts[2].strip(), "dot": colour, **dict(itertools.pairwise(reader.texts[3:]))}


GREEN, GREY, AMBER, RED = "filled #2da44e", "hollow #808080", "filled #bf7d00", "filled #e5484d"


@pytest.fixture(params=[AdhAuth, AdhHttpxAuth, AdhHttpx2Auth], ids=lambda cls: cls.__name__)
def auth(request: pytest.FixtureRequest, arguments: dict[str, Any]) -> Any:
    return request.param(**arguments)


def test_signed_in(auth: Any, token_file: Path, sandbox: Sandbox) -> None:
    """It names the class, the file and the API, and shows the expiry, the last rotation and no failure."""
    auth.refresh()
    shown = facts_of(auth._repr_html_())
    assert (shown["state"], shown["dot"]) == ("signed in", GREEN)
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
    assert (shown["state"], shown["dot"]) == ("not signed in", RED)
    assert "invalid_grant" in shown["last failure"]
    assert "adh-auth login" in shown["what to do"]
    assert "not signed in, the refresh token was refused" in repr(auth)


def test_a_failure_that_may_pass(auth: Any, sandbox: Sandbox) -> None:
    """An outage leaves the session signed in; the card shows it."""
    sandbox.fail_next(None, status=429, retry_after=3600)
    with pytest.raises(RefreshFailed):
        auth.refresh()
    shown = facts_of(auth._repr_html_())
    assert (shown["state"], shown["dot"]) == ("signed in, with a problem", AMBER)
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
    shown = facts_of(auth._repr_html_())
    assert shown["expired"].endswith("(1 min ago)")
    assert (shown["state"], shown["dot"]) == ("signed in, the next request refreshes the token", GREY)
    assert "expired, the next request refreshes it" in repr(auth)
    TokenFile(token_file).save(Tokens("adh_a", "adh_rt_a", None))
    shown = facts_of(auth._repr_html_())
    assert (shown["expires"], shown["dot"]) == ("not stored; the API says when", GREEN)
    assert "no expiry known" in repr(auth)


def test_everything_is_escaped(arguments: dict[str, Any], tmp_path: Path) -> None:
    """A file's name is text, whatever it holds; line breaks and lone surrogates are gone."""
    name = "<img src=x onerror='alert(1)'>&\n\udcff.json"
    shown = AdhAuth(**{**arguments, "token_file": str(tmp_path / name)})._repr_html_()
    assert set(_Reader(shown).tags) == {"div", "b", "span", "table", "tr", "th", "td"}
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


#: What JupyterLab's sanitizer leaves of a style (its `sanitizer.ts`): a value that is no match is taken out.
LENGTH = r"(0|[0-9.]+(px|em|%))"
COLOUR = r"(#[0-9a-f]{6}|rgba\(\d+,\d+,\d+,0?\.\d+\)|transparent)"
KEPT = {
    "background": COLOUR,
    "border": rf"0|{LENGTH} solid {COLOUR}",
    "border-collapse": "collapse",
    "border-radius": LENGTH,
    "box-sizing": "border-box",
    "display": "inline-block",
    "font-size": LENGTH,
    "font-weight": "normal|bold",
    "height": LENGTH,
    "line-height": r"[0-9.]+",
    "margin": rf"{LENGTH}( {LENGTH}){{0,3}}",
    "max-width": rf"{LENGTH}|none",
    "opacity": r"0?\.[0-9]+",
    "overflow-wrap": "normal|break-word",
    "padding": rf"{LENGTH}( {LENGTH}){{0,3}}",
    "table-layout": "auto",
    "text-align": "left",
    "vertical-align": "top|baseline",
    "white-space": "normal|nowrap",
    "width": rf"{LENGTH}|auto",
    "word-break": "normal",
}


def test_an_untrusted_notebook_keeps_every_style(auth: Any) -> None:
    """Each stands on its element, in a property and a value that JupyterLab leaves alone."""
    reader = _Reader(auth._repr_html_())
    assert "style" not in reader.tags
    for tag, style in reader.styles:
        for name, value in style.items():
            assert re.fullmatch(KEPT[name], value), (tag, name, value)


@pytest.mark.parametrize("dot", [GREEN, GREY, AMBER, RED])
@pytest.mark.parametrize("back", ["#ffffff", "#111111"])
def test_a_dot_is_seen_on_light_and_on_dark(dot: str, back: str) -> None:
    """WCAG 2.1, 1.4.11: a contrast of 3 for what is no text."""
    lighter, darker = sorted((_luminance(dot.split()[1]), _luminance(back)), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 3


def _luminance(colour: str) -> float:
    """WCAG's relative luminance."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


#: What JupyterLab and nbconvert do to a table, and Streamlit and marimo in their ways.
NOTEBOOK_STYLE = """
body { background: BACK; color: TEXT; font: 20px serif }
table { margin-left: auto; margin-right: auto; width: 100%; table-layout: fixed; border: 3px solid red }
td, th, tr { text-align: right; vertical-align: middle; padding: 0.5em; line-height: 2; white-space: normal }
tr, td, th { border: 1px solid blue; max-width: none }
tbody tr:nth-child(even) { background: #808080 }
"""
#: Reports what the browser has made of a card.
MEASURE = """
const card = document.querySelector("table").parentElement, left = (e) => e.getBoundingClientRect().left
const cell = getComputedStyle(document.querySelectorAll("tr")[1].querySelector("td"))
const row = getComputedStyle(document.querySelectorAll("tr")[1])
document.title = JSON.stringify({
  indent: left(document.querySelector("table")) - left(card.querySelector("b")),
  cells: left(document.querySelector("th")) - left(card.querySelector("b")),
  align: cell.textAlign, colour: cell.color, body: getComputedStyle(document.body).color,
  back: [cell.backgroundColor, row.backgroundColor], border: cell.borderTopWidth + row.borderTopWidth,
})
"""


@pytest.mark.browser
@pytest.mark.parametrize(("back", "text"), [("#fff", "#222"), ("#111", "#eee")], ids=["light", "dark"])
def test_a_notebooks_own_styles_do_not_move_the_card(back: str, text: str, arguments: dict[str, Any]) -> None:
    """In Chromium: the table stands at the left, its text has the page's colour, no row a background."""
    style = NOTEBOOK_STYLE.replace("BACK", back).replace("TEXT", text)
    card = AdhAuth(**arguments)._repr_html_()
    page = f"<meta charset='utf-8'><style>{style}</style><body>{card}<script>{MEASURE}</script></body>"
    seen = chromium.page_of(chromium.found(), "data:text/html;charset=utf-8," + urllib.parse.quote(page))
    found = json.loads(html.unescape(re.findall("<title>(.*?)</title>", seen)[0]))
    assert (found["indent"], found["cells"], found["align"]) == (0, 0, "left")
    assert found["colour"] == found["body"]
    assert found["back"] == ["rgba(0, 0, 0, 0)"] * 2
    assert found["border"] == "0px0px"
