"""Keeps a Python program signed in to the Agentic Developer Hub (ADH) API.

Each name is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

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
    from .for_httpx import AdhHttpxAuth
    from .for_httpx2 import AdhHttpx2Auth
    from .for_requests import AdhAuth
    from .sign_in.flow import login
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
    "LockTimeout",
    "ReauthorizationRequired",
    "RefreshFailed",
    "StoreError",
    "TokenFile",
    "TokenFileError",
    "TokenStore",
    "TokenStoreError",
    "Tokens",
    "login",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(_home_of(name), name)
    return value


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
    elif name == "TokenFile":
        from .store import token_file as home
    elif name == "TokenStore":
        from . import stores as home
    elif name == "Tokens":
        from . import tokens as home
    elif name == "login":
        from .sign_in import flow as home
    else:
        from . import errors as home
    return home


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
