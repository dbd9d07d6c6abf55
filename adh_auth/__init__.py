"""Keeps a Python program signed in to the Agentic Developer Hub (ADH) API.

Each name is loaded when it is first asked for.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType, ModuleType

    from .errors import (
        AdhAuthError,
        ConfigurationError,
        LockTimeout,
        ReauthorizationRequired,
        RefreshFailed,
        StoreError,
        TokenFileError,
        TokenStoreError,
    )
    from .events import Event
    from .for_httpx import AdhHttpxAuth
    from .for_httpx2 import AdhHttpx2Auth
    from .for_requests import AdhAuth
    from .sign_in.flow import login
    from .sign_in.two_steps import SignIn, Started
    from .store.token_file import TokenFile
    from .stores import TokenStore
    from .tokens import Tokens

__version__ = "0.1.0"

__all__ = [
    "AdhAuth",
    "AdhAuthError",
    "AdhHttpx2Auth",
    "AdhHttpxAuth",
    "ConfigurationError",
    "Event",
    "LockTimeout",
    "ReauthorizationRequired",
    "RefreshFailed",
    "SignIn",
    "Started",
    "StoreError",
    "TokenFile",
    "TokenFileError",
    "TokenStore",
    "TokenStoreError",
    "Tokens",
    "login",
]


_NAMES = frozenset(__all__)

# Hidden from type checkers: with a `__getattr__`, any misspelt name is an Any to them.
if not TYPE_CHECKING:
    # Made when it is asked for: it tells whether httpx2 is installed, and the search for that takes time.
    del __all__

    def __getattr__(name: str) -> Any:
        if name == "__all__":
            value = _names_here()
        elif name in _NAMES:
            value = _loaded(name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})


def _names_here() -> list[str]:
    """Return the names that `from adh_auth import *` brings: that for httpx2 where it is installed."""
    from importlib.util import find_spec

    return sorted(_NAMES if find_spec("httpx2") else _NAMES - {"AdhHttpx2Auth"})


def _loaded(name: str) -> Any:
    try:
        return getattr(_home_of(name), name)
    except ModuleNotFoundError as error:
        # `from adh_auth import AdhHttpx2Auth` says what to install; hasattr, help and inspect expect an
        # AttributeError.
        if error.name != "httpx2" or _is_from_import(sys._getframe(2)):  # noqa: SLF001 - of `__getattr__`
            raise
        missing = str(error)
    raise AttributeError(missing)


def _is_from_import(caller: FrameType) -> bool:
    """Return whether it is Python's own import system that asks for a name."""
    return caller.f_code.co_name == "_handle_fromlist"


def _home_of(name: str) -> ModuleType:
    # A requests user never imports httpx, nor the other way round. PyInstaller and Nuitka find imports in the
    # source: they miss a module that is named by a string.
    home: ModuleType
    if name == "AdhAuth":
        from . import for_requests as home
    elif name == "AdhHttpxAuth":
        from . import for_httpx as home
    elif name == "AdhHttpx2Auth":
        from . import for_httpx2 as home
    elif name == "Event":
        from . import events as home
    elif name == "TokenFile":
        from .store import token_file as home
    elif name == "TokenStore":
        from . import stores as home
    elif name == "Tokens":
        from . import tokens as home
    elif name == "login":
        from .sign_in import flow as home
    elif name in ("SignIn", "Started"):
        from .sign_in import two_steps as home
    else:
        from . import errors as home
    return home
