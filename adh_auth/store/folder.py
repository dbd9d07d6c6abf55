"""A folder as a store, for one machine: a token file for each session, as ``file:///var/lib/app/adh``.

Each is a token file in all respects. Its name never is the session's as it stands: `../x`, `CON`, `Ada`
beside `ada` on a file system without case. The file itself says whose it is.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ..common.secret import Secret
from ..errors import ConfigurationError, MalformedTokens
from ..tokens import Stored, Tokens
from . import disk
from .remedies import shell_quoted
from .token_file import TokenFile

if TYPE_CHECKING:
    from .record import Record

__all__ = ["SESSION_KEY", "SessionFile", "file_name", "folder_in", "session_file", "sessions_in"]

#: The key under which a file of the folder says which session it holds.
SESSION_KEY = "adh_session"
#: Characters of a session's name that its file's name shows.
READABLE = 40
#: Hexadecimal digits of the hash: 80 bits, for a user may choose the name of a session.
DIGITS = 20


class SessionFile(TokenFile):
    """The token file of one session in a folder."""

    def __init__(self, folder: str, session: str) -> None:
        super().__init__(os.path.join(folder, file_name(session)))
        self._folder = folder
        self.session = session

    def __repr__(self) -> str:
        return f"SessionFile({self._folder!r}, {self.session!r})"

    def facts_for_errors(self) -> dict[str, str]:
        """Return the attributes by which an error names it: the file, its folder as a store, its session."""
        return {**super().facts_for_errors(), "store": f"file://{self._folder}", "session": self.session}

    def sign_in_command(self) -> str:
        """Return the command that makes the file, as the end of a sentence."""
        store, session = shell_quoted(f"file://{self._folder}"), shell_quoted(self.session)
        return f"sign in with: adh-auth login --store {store} --session {session}"

    def save_mapping(self, mapping: dict[str, Any], tokens: Tokens) -> None:
        """Do as `TokenFile.save_mapping`; the file says which session it holds."""
        session = Stored(tokens, {**mapping, SESSION_KEY: self.session})
        del mapping  # a traceback with locals shows the arguments of every frame
        super().save_mapping(dict(session.mapping), tokens)

    def take_over(self, session: Stored, record: Record) -> None:
        """Do as `TokenFile.take_over`; the file says which session it holds."""
        super().take_over(Stored(session.tokens, {**session.mapping, SESSION_KEY: self.session}), record)

    def _checked(self, stored: Stored) -> Stored:
        if stored.mapping.get(SESSION_KEY, self.session) != self.session:
            raise self.error("holds another session", "Move it away and sign in again")
        return stored


def session_file(url: Secret, session: str) -> SessionFile:
    """Return the token file of a session in the folder that a ``file:`` URL names.

    Raises `ConfigurationError`.
    """
    return SessionFile(folder_in(url), session)


def folder_in(url: Secret) -> str:
    """Return the absolute path of the folder that a ``file:`` URL names. Raises `ConfigurationError`."""
    path = _path_in(url)
    if path is None:
        raise ConfigurationError(
            "store must name an absolute folder, as in file:///var/lib/app/adh", setting="store"
        )
    return path


def _path_in(url: Secret) -> str | None:
    try:
        parts = urlsplit(url.reveal())
        path = url2pathname(parts.path)
    except ValueError:
        return None
    is_here = parts.netloc in ("", "localhost") and not parts.query and not parts.fragment
    return os.path.abspath(path) if is_here and os.path.isabs(path) and "\0" not in path else None


def file_name(session: str) -> str:
    """Return the file's name for a session: a readable part, and a hash of the whole name."""
    readable = re.sub(r"[^a-z0-9_.]+", "-", session[:READABLE].lower(), flags=re.ASCII).strip("-.")
    digest = hashlib.sha256(session.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]
    return f"{readable or 'session'}-{digest}.json"


def sessions_in(folder: str) -> list[str]:
    """Return the names of the sessions in a folder, sorted. Raises `OSError` where it can't be listed."""
    found = []
    for name in os.listdir(folder):
        if name.endswith(".json"):
            with suppress(OSError, MalformedTokens):
                mapping = Stored.from_bytes(disk.read_regular(os.path.join(folder, name))[0]).mapping
                session = mapping.get(SESSION_KEY)
                if isinstance(session, str) and file_name(session) == name:
                    found.append(session)
    return sorted(found)
