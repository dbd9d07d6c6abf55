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
            mark, rows = _mark(status, now), _rows(status, now)
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
    if _has_expired(expires_at, now):
        return "expired, the next request refreshes it"
    return f"expires in {format_duration(expires_at - now)}"


def _has_expired(expires_at: float | None, now: float) -> bool:
    return expires_at is not None and expires_at <= now


def _mark(status: Status, now: float) -> CardRow:
    """Return the kind of the card's dot, and its headline."""
    if not status.signed_in:
        return "bad", "not signed in"
    if status.refresh_in_flight:
        return "unsure", "signed in, a refresh is under way"
    if status.last_failure or status.store.problem:
        return "unsure", "signed in, with a problem"
    if _has_expired(status.pair.expires_at, now):
        return "due", "signed in, the next request refreshes the token"
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
    label = "expired" if _has_expired(expires_at, now) else "expires"
    rows = [(label, expiry), ("last rotation", last), ("last failure", failed)]
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
        f"<tr style='{_ROW}'><th scope='row' style='{_LABEL}'>{_safe(name)}</th>"
        f"<td style='{_CELL}'>{_safe(text)}</td></tr>"
        for name, text in rows
    )
    kind, words = mark
    # The words keep the text's colour: no red is read well on every background.
    head = f"<div><b>{_safe(title)}</b> <span style='{_DOT}{_COLOURS[kind]}'></span> {_safe(words)}</div>"
    return f"<div style='{_CARD}'>{head}<table style='{_TABLE}'>{cells}</table></div>"


def _safe(text: str) -> str:
    """Return untrusted text as HTML on one line. A lone surrogate would break the notebook's message."""
    return escape(one_line(text))


# Every style stands on its element: JupyterLab takes <style> out of a notebook that is not trusted. It also
# takes out each value that it does not know: var(), currentColor, inherit, `overflow-wrap: anywhere`.
# No background and no text colour: what lies behind the card has the theme's, light or dark, and the text
# inherits what is read well on it. JupyterLab and nbconvert centre a table, align its cells to the right and
# colour every second row.
_CARD = (
    "display:inline-block;max-width:60em;padding:0.7em 1em;border:1px solid rgba(128,128,128,0.5);"
    "border-radius:6px;font-size:13px;line-height:1.5;text-align:left"
)
_TABLE = (
    "margin:0.4em 0 0 0;border:0;border-collapse:collapse;background:transparent;font-size:13px;width:auto;"
    "table-layout:auto"
)
_ROW = "background:transparent;border:0"
_CELL = (
    "padding:0.1em 0 0.1em 0;border:0;background:transparent;text-align:left;vertical-align:top;"
    "white-space:normal;overflow-wrap:break-word;word-break:normal;max-width:none"
)
_LABEL = (
    "padding:0.1em 1.2em 0.1em 0;border:0;background:transparent;text-align:left;vertical-align:top;"
    "white-space:nowrap;font-weight:normal;opacity:0.7"
)
# Not a character: its size is the font's.
_DOT = (
    "display:inline-block;width:0.7em;height:0.7em;box-sizing:border-box;border-radius:50%;"
    "margin:0 0.1em 0 0.5em;vertical-align:baseline;border:2px solid "
)
#: Each has a contrast of 3 at least on white and on black. A token that has expired is a hollow dot.
_COLOURS = {
    "good": "#2da44e;background:#2da44e",
    "due": "#808080;background:transparent",
    "unsure": "#bf7d00;background:#bf7d00",
    "bad": "#e5484d;background:#e5484d",
}
