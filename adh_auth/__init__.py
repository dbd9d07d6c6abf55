"""Keeps a Python program signed in to the Agentic Developer Hub (ADH) API. Each name is loaded when it is first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import (
        AdhAuthError as AdhAuthError,
    )
    from .errors import (
        ConfigurationError as ConfigurationError,
    )
    from .errors import (
        LockTimeout as LockTimeout,
    )
    from .errors import (
        ReauthorizationRequired as ReauthorizationRequired,
    )
    from .errors import (
        RefreshFailed as RefreshFailed,
    )
    from .errors import (
        TokenFileError as TokenFileError,
    )
    from .for_httpx import AdhHttpxAuth as AdhHttpxAuth
    from .for_httpx2 import AdhHttpx2Auth as AdhHttpx2Auth
    from .for_requests import AdhAuth as AdhAuth
    from .sign_in import login as login
    from .token_file import TokenFile as TokenFile
    from .tokens import Tokens as Tokens

__version__ = "0.1.0"

# A requests user never imports httpx, nor the other way round.
_HOME = {
    "AdhAuth": "for_requests",
    "AdhHttpxAuth": "for_httpx",
    "AdhHttpx2Auth": "for_httpx2",
    "TokenFile": "token_file",
    "Tokens": "tokens",
    "login": "sign_in",
    "AdhAuthError": "errors",
    "ConfigurationError": "errors",
    "TokenFileError": "errors",
    "LockTimeout": "errors",
    "RefreshFailed": "errors",
    "ReauthorizationRequired": "errors",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
