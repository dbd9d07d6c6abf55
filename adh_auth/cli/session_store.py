"""Where the session of a command is, by its options and the environment."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..clients.settings import open_session, resolve

if TYPE_CHECKING:
    from ..clients.settings import Settings
    from ..store.base import SessionStore

__all__ = ["open_store", "place_in", "settings_of"]


def place_in(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that say where the session is, as the auth classes take them."""
    return {"token_file": args.token_file, "store": args.store, "session": args.session}


def open_store(args: argparse.Namespace) -> SessionStore:
    """Return the session's place. Raises `ConfigurationError`."""
    return open_session(**place_in(args))


def settings_of(args: argparse.Namespace) -> Settings:
    """Return what a command that calls the API works with. Raises `ConfigurationError`."""
    return resolve(**place_in(args), client_id=args.client_id, client_secret=None, base_url=args.base_url)
