"""Moves a session from a token file to a store, under the locks of both. A kill at any point loses nothing.

The file is marked first, so that no process refreshes from it while the store may have the session; then the
store gets it; the file is retired last. Run again after a kill, it goes on where it ended.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..errors import AdhAuthError
from ..store.folder import SESSION_KEY
from ..store.moved import MOVED_FROM, note_of_move
from ..store.token_file import SAVE_TIMEOUT, TokenFile
from ..tokens import MOVING_TO, Stored, Tokens, fingerprint

if TYPE_CHECKING:
    from ..store.base import SessionStore
    from ..store.record import Record

__all__ = ["move_session"]


def move_session(file: TokenFile, store: SessionStore) -> Tokens:
    """Move the session of `file` to `store`, once a refresh in flight has ended, and return its pair.

    Raises `TokenStoreError`, and `LockTimeout` after 45 seconds.
    """
    with file.locked(SAVE_TIMEOUT):
        session, record = _read(file)
        mark = fingerprint(session.tokens.refresh_token)
        if not _has_it(store, mark):
            file.mark_moving(session, store.name)
            _hand_over(file, session, store, record)
        facts = store.facts_for_errors()
        file.retire(note_of_move(facts["store"], facts["session"]))
    return session.tokens


def _read(file: TokenFile) -> tuple[Stored, Record]:
    """Return the session and its record, the pair of a process that was killed included."""
    modified_at = os.stat(file.path).st_mtime if file.exists() else 0.0
    stored, record = file.read_patiently(), file.record()
    if file.recover(stored, record) is not None:
        stored, record = file.read_patiently(), file.record()
    if stored.tokens.expires_at is not None:
        return stored, record
    # An exchange reply as it came: its time counts from when it was saved.
    tokens = Tokens.from_response(stored.mapping, now=modified_at)
    return Stored.of(tokens, {}, stored.mapping), record


def _hand_over(file: TokenFile, session: Stored, store: SessionStore, record: Record) -> None:
    mark = fingerprint(session.tokens.refresh_token)
    kept = {name: value for name, value in session.mapping.items() if name not in (MOVING_TO, SESSION_KEY)}
    try:
        store.take_over(Stored(session.tokens, {**kept, MOVED_FROM: mark}), record)
    except AdhAuthError:
        if not _may_have_it(store, mark):
            file.mark_moving(session, None)
        raise


def _has_it(store: SessionStore, mark: str) -> bool:
    """Return whether an earlier run has brought this pair there: it may be spent, and must not come again."""
    return store.exists() and store.look().stored.mapping.get(MOVED_FROM) == mark


def _may_have_it(store: SessionStore, mark: str) -> bool:
    try:
        return _has_it(store, mark)
    except AdhAuthError:
        return True
