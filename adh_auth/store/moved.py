"""A token file whose session was moved to a store: what it says to those who still use it."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from ..common.text import one_line
from ..errors import TokenFileError
from ..tokens import MOVING_TO, Stored
from . import disk
from .messages import token_file_error
from .remedies import shell_quoted

__all__ = ["MOVED_FROM", "MOVED_TO", "half_moved", "moved", "note_of_move"]

#: The key of a session that says from which refresh token it was moved, as a fingerprint.
MOVED_FROM = "adh_moved_from"
#: The key of a file that holds no session any more.
MOVED_TO = "adh_moved_to"
#: Characters of a store's name that a message quotes.
MAX_NAME = 500


def note_of_move(store: str, session: str) -> bytes:
    """Return the content of a file whose session is in a store now."""
    return json.dumps({MOVED_TO: {"store": store, "session": session}}).encode("ascii") + b"\n"


def moved(path: str) -> TokenFileError | None:
    """Return the error for a token file whose session has moved; None where it does not say so."""
    with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
        mapping: Any = json.loads(disk.read_regular(path)[0])
        place = mapping[MOVED_TO]
        store, session = _quotable(place["store"]), _quotable(place["session"])
        return token_file_error(
            path,
            f"holds no session any more: it was moved to session {session} of {store}",
            f"Use it there: set ADH_STORE to the URL of that store, and ADH_SESSION={shell_quoted(session)}",
        )
    return None


def half_moved(path: str, stored: Stored) -> TokenFileError:
    """Return the error for a session that is about to move: it is not refreshed in two places."""
    destination = _quotable(stored.mapping[MOVING_TO])
    return token_file_error(
        path,
        f"is being moved to {destination}, so its session is not refreshed here",
        f"If that was cut short, run it again: adh-auth save {shell_quoted(path)} --store …",
    )


def _quotable(name: object) -> str:
    # What the file says is not trusted.
    return one_line(str(name))[:MAX_NAME]
