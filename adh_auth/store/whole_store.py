"""A whole store, as ``adh-auth store`` sets it up, checks it and lists it: a register, or a folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..common.secret import Secret
from ..common.text import capitalized
from ..errors import StoreError, replaced_errors
from . import disk
from .factory import FILE_SCHEME, open_register, scheme_of
from .folder import SessionFile, folder_in, sessions_in
from .patience import READ_PATIENCE, SystemClock, patiently
from .register import RegisterRefused, RegisterUnavailable, TableMissing
from .remedies import remedy_for, system_reason

if TYPE_CHECKING:
    from .register import Register

__all__ = ["WholeStore", "table_of", "whole_store"]

T = TypeVar("T")

#: What a name begins with whose store has a table.
WITH_TABLE = "postgresql"
#: The session of a folder that `check` locks and reserves space for.
CHECKED = "adh-auth store check"


class WholeStore(Protocol):
    """All sessions of a store. Each method raises `TokenStoreError`.

    `name`: without user and password.
    """

    name: str

    def init(self) -> None:
        """Make what is missing: the table, the folder."""

    def check(self) -> list[str]:
        """Prove that writing works and lasts. Return warnings, each a sentence: what a crash may lose."""

    def sessions(self) -> list[str]:
        """Return the names of the sessions that are signed in, sorted."""


def whole_store(store: Any) -> WholeStore:
    """Return what a URL, as a `Secret`, names; or a register. Raises `ConfigurationError`."""
    if isinstance(store, Secret) and scheme_of(store) == FILE_SCHEME:
        return _Folder(folder_in(store))
    return _Sessions(open_register(store))


def table_of(name: str) -> str | None:
    """Return the statement that makes the table of the store of that `name`; None where it needs none."""
    if not name.startswith(WITH_TABLE):
        return None
    from .postgresql import TABLE

    return TABLE


class _Sessions:
    """All sessions of a register."""

    def __init__(self, register: Register) -> None:
        self.name = register.name
        self._register = register

    def init(self) -> None:
        self._tried(self._register.create, "can't be set up")

    def check(self) -> list[str]:
        return self._tried(self._register.check, "does not work")

    def sessions(self) -> list[str]:
        return self._tried(self._register.sessions, "can't be read")

    def _tried(self, work: Callable[[], T], problem: str) -> T:
        with replaced_errors(
            (RegisterUnavailable, RegisterRefused), by=lambda error: self._error(problem, error)
        ):
            return patiently(lambda _: work(), READ_PATIENCE, SystemClock())

    def _error(self, problem: str, error: Exception) -> StoreError:
        what = f"session store {self.name}"
        if isinstance(error, TableMissing):
            return StoreError(f"{what} has no table yet. Make it with: adh-auth store init", store=self.name)
        next_step = getattr(error, "next_step", "") or "try again later"
        return StoreError(f"{what} {problem}: {error}. {capitalized(next_step)}", store=self.name)


class _Folder:
    """All sessions of a folder."""

    def __init__(self, folder: str) -> None:
        self.name = f"file://{folder}"
        self._folder = folder

    def init(self) -> None:
        with replaced_errors(OSError, by=lambda refused: self._error("can't be made", refused)):
            disk.make_folder(os.path.join(self._folder, "session"))

    def check(self) -> list[str]:
        file = SessionFile(self._folder, CHECKED)
        file.require_writable()
        with file.locked(1.0):
            file.reserve().discard()
        return []

    def sessions(self) -> list[str]:
        with replaced_errors(OSError, by=lambda refused: self._error("can't be read", refused)):
            return sessions_in(self._folder)

    def _error(self, problem: str, refused: OSError) -> StoreError:
        return StoreError(
            f"session store {self.name} {problem}: {system_reason(refused)}. {remedy_for(refused)}",
            store=self.name,
        )
