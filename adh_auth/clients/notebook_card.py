"""What an auth object shows of its session: a card in a notebook, and a few words in its ``repr``.

Rule 13: no secret is shown. Nothing is sent, and nothing is ever raised.
"""

from __future__ import annotations

import time
from html import escape
from typing import TYPE_CHECKING

from ..common.text import format_duration, format_time_relative, one_line
from ..errors import AdhAuthError
from ..rotation.status import Status, status_of
from ..store.record import FAILED, UNSAVED

if TYPE_CHECKING:
    from ..store.base import SessionStore

__all__ = ["card", "in_short"]

#: Of a store that this process has not read yet.
UNREAD = "not read yet"
#: A label, and the words beside it.
CardRow = tuple[str, str]


def card(title: str, store: SessionStore, base_url: str) -> str:
    """Return the session as HTML. The state is read from the files, as ``adh-auth status`` reads it.

    Of a store behind a network it is what this process knows: a cell's result waits for no network.
    """
    now = time.time()
    try:
        if _is_unread(store):
            mark, rows = ("unsure", UNREAD), []
        else:
            status = status_of(store, now)
            mark, rows = _mark(status), _rows(status, now)
    except AdhAuthError as error:
        mark, rows = ("bad", "not signed in"), [("last failure", error.message)]
    except Exception as error:  # noqa: BLE001 - a card must not cost the user the cell's result
        mark, rows = ("unsure", "the session can't be read"), [("last failure", type(error).__name__)]
    return _html(title, mark, [(store.kind, store.name), ("API", base_url), *rows])


def in_short(store: SessionStore) -> str:
    """Return the session in a few words. A few small files are read for it, and no network is used."""
    now = time.time()
    try:
        return UNREAD if _is_unread(store) else _in_words(status_of(store, now), now)
    except AdhAuthError:
        return "not signed in"
    except Exception as error:  # noqa: BLE001 - a repr must not raise
        return type(error).__name__


def _is_unread(store: SessionStore) -> bool:
    """Return whether this process knows nothing of the session without asking a network."""
    return store.reads_block and store.state() is None


def _in_words(status: Status, now: float) -> str:
    if not status.signed_in:
        return "not signed in, the refresh token was refused"
    words = ["signed in", _expiry(status.pair.expires_at, now)]
    if status.last_rotation is not None:
        words.append(f"rotated {format_duration(now - status.last_rotation.at)} ago")
    if status.last_attempt == UNSAVED:
        words.append("the new pair could not be written")
    if status.last_attempt == FAILED:
        words.append("the last refresh failed")
    return ", ".join(words)


def _expiry(expires_at: float | None, now: float) -> str:
    if expires_at is None:
        return "no expiry known"
    if expires_at > now:
        return f"expires in {format_duration(expires_at - now)}"
    return "expired, the next request refreshes it"


def _mark(status: Status) -> CardRow:
    """Return the class of the card's dot, and its headline."""
    if not status.signed_in:
        return "bad", "not signed in"
    if status.refresh_in_flight:
        return "unsure", "signed in, a refresh is under way"
    if status.last_failure or status.store.problem:
        return "unsure", "signed in, with a problem"
    return "good", "signed in"


def _rows(status: Status, now: float) -> list[CardRow]:
    expires_at, rotation, failure = status.pair.expires_at, status.last_rotation, status.last_failure
    expiry, last, failed = "not stored; the API says when", "none recorded", "none"
    if expires_at is not None:
        expiry = format_time_relative(expires_at, now)
    if rotation is not None:
        last = f"{format_time_relative(rotation.at, now)} by process {rotation.pid}"
    if failure is not None:
        failed = f"{format_time_relative(failure.at, now)}: {failure.what}"
    rows = [("expires", expiry), ("last rotation", last), ("last failure", failed)]
    if failure is not None:
        rows.append(("what to do", failure.next_step))
    if status.store.problem:
        rows.append(
            (
                f"the {status.kind.rpartition(' ')[2]}",
                f"can't be rewritten at the next rotation: {status.store.problem}",
            )
        )
    return rows


def _html(title: str, mark: CardRow, rows: list[CardRow]) -> str:
    cells = "".join(
        f"<tr><th scope='row'>{_safe(name)}</th><td>{_safe(text)}</td></tr>" for name, text in rows
    )
    kind, words = mark
    # The words keep the text's colour: no red is read well on every background.
    head = f"<div><b>{_safe(title)}</b> <span class='adh-{kind}'>●</span> {_safe(words)}</div>"
    return f"<style>{_STYLE}</style><div class='adh-card'>{head}<table>{cells}</table></div>"


def _safe(text: str) -> str:
    """Return untrusted text as HTML on one line. A lone surrogate would break the notebook's message."""
    return escape(one_line(text))


# Jupyter and VS Code say which theme is on; elsewhere the system does. Both colours are always set, so that
# the card can be read whatever lies behind it. Where a viewer takes the style away, a plain table is left.
_STYLE = """
.adh-card {
  --adh-back: var(--jp-layout-color1, var(--vscode-editor-background, #fff));
  --adh-text: var(--jp-ui-font-color1, var(--vscode-editor-foreground, #1f2328));
  --adh-soft: var(--jp-ui-font-color2, var(--vscode-descriptionForeground, #59636e));
  --adh-line: var(--jp-border-color2, var(--vscode-panel-border, #d1d9e0));
  --adh-good: var(--jp-success-color0, #1a7f37);
  --adh-unsure: var(--jp-warn-color0, #8a5a00);
  --adh-bad: var(--jp-error-color0, #c21c2c);
  display: inline-block; max-width: 60em; padding: .7em 1em;
  border: 1px solid var(--adh-line); border-radius: 6px;
  background: var(--adh-back); color: var(--adh-text);
  font: 13px/1.5 var(--jp-ui-font-family, system-ui, sans-serif);
}
@media (prefers-color-scheme: dark) {
  .adh-card {
    --adh-back: var(--jp-layout-color1, var(--vscode-editor-background, #16191d));
    --adh-text: var(--jp-ui-font-color1, var(--vscode-editor-foreground, #e6e8eb));
    --adh-soft: var(--jp-ui-font-color2, var(--vscode-descriptionForeground, #9aa4af));
    --adh-line: var(--jp-border-color2, var(--vscode-panel-border, #3b434c));
    --adh-good: var(--jp-success-color0, #4cc26b);
    --adh-unsure: var(--jp-warn-color0, #e0a63a);
    --adh-bad: var(--jp-error-color0, #ff7b72);
  }
}
.adh-card table {
  border: 0; border-collapse: collapse; margin: .4em 0 0; font: inherit; color: inherit; background: none
}
.adh-card tr, .adh-card th, .adh-card td { background: none !important; border: 0 }
.adh-card th { color: var(--adh-soft); font-weight: normal; white-space: nowrap }
.adh-card th, .adh-card td {
  padding: .1em 1.2em .1em 0; text-align: left; vertical-align: top; overflow-wrap: anywhere
}
.adh-card div span { margin-left: .6em }
.adh-good { color: var(--adh-good) }
.adh-unsure { color: var(--adh-unsure) }
.adh-bad { color: var(--adh-bad) }
"""
