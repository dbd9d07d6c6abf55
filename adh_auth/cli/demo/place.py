"""Where the processes of the demo have their session: a token file, or a store as for several machines."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...common.secret import Secret
from ...errors import ConfigurationError, TokenStoreError
from ...store.factory import session_in
from ...store.record import Record
from ...store.token_file import TokenFile
from ...tokens import Tokens

if TYPE_CHECKING:
    from ...store.base import SessionStore
    from ...testing import Sandbox

__all__ = ["Place", "file_in", "session_in_store"]

#: Variables that say where a session is.
VARIABLES = ("ADH_TOKEN_FILE", "ADH_STORE", "ADH_SESSION")


@dataclass(frozen=True)
class Place:
    """The place of the session. `variables`: what names it in the environment of the processes."""

    store: SessionStore
    variables: dict[str, Secret]

    @property
    def is_for_machines(self) -> bool:
        """Whether each process stands for a machine."""
        return "ADH_STORE" in self.variables

    @property
    def store_name(self) -> str | None:
        """What the store is called, without user and password; None for a token file."""
        return self.store.facts_for_errors().get("store")

    @property
    def summary(self) -> str:
        """The beginning of a sentence: who shares what."""
        if self.is_for_machines:
            return f"Several processes, as if on as many machines, share one session in {self.store_name}"
        return "Several processes share one token file"

    def environment(self, sandbox: Sandbox) -> dict[str, str]:
        """Return the environment of a process that works there."""
        # The user's proxy can't reach the 127.0.0.1 of this machine.
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        whole = {**kept, **sandbox.environment(os.devnull)}
        variables = {name: value.reveal() for name, value in self.variables.items()}
        return {**{name: value for name, value in whole.items() if name not in VARIABLES}, **variables}

    def sign_in(self, sandbox: Sandbox) -> None:
        """Issue the first pair. Raises `TokenStoreError`."""
        reply = sandbox.sign_in()
        self.store.save_mapping(reply, Tokens.from_response(reply))

    def record(self, last: Record) -> Record:
        """Return what is recorded of the last rotation now; `last` where that can't be read."""
        if isinstance(self.store, TokenFile):
            return self.store.record()
        try:
            return self.store.look().record
        except TokenStoreError:
            return last


def file_in(folder: str) -> Place:
    """Return a token file in `folder`."""
    file = TokenFile(os.path.join(folder, "tokens.json"))
    return Place(file, {"ADH_TOKEN_FILE": Secret(str(file.path))})


@contextmanager
def session_in_store(url: Secret) -> Iterator[Place]:
    """Return a session of its own in the store at `url` ("": ``$ADH_STORE``), which is signed out at the end.

    Raises `ConfigurationError` and `TokenStoreError`.
    """
    url = url if url.reveal() else Secret(os.environ.get("ADH_STORE", ""))
    if not url.reveal():
        raise ConfigurationError("store is missing: pass store= or set ADH_STORE", setting="ADH_STORE")
    name = f"adh-auth demo {os.getpid()}@{socket.gethostname()}"
    store = session_in(url, name)
    store.make_ready()
    try:
        yield Place(store, {"ADH_STORE": url, "ADH_SESSION": Secret(name)})
    finally:
        store.delete()
