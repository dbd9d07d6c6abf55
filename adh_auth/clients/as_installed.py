"""Whether the code that a call goes through is that of the installed packages.

A mock, a recorder or a company's own TLS has replaced a part of it. A process of its own would go round that:
a test would reach the real API, and a patched network would not be used.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable
from typing import Any

__all__ = ["is_as_installed"]

#: What watches calls and lets them through: the call is the same without it.
WATCHERS = ("sentry_sdk", "opentelemetry")

#: Below each client: names as "module:name".
NETWORK = (
    "socket:socket",
    "socket:create_connection",
    "socket:getaddrinfo",
    "ssl:SSLContext",
    "ssl:SSLSocket",
    "ssl:create_default_context",
)


def is_as_installed(names: Iterable[str]) -> bool:
    """Return whether each class and function is as its module made it. `names`: as "module:name".

    What was never imported can't have been replaced.
    """
    return all(_is_original(*name.split(":")) for name in (*names, *NETWORK))


def _is_original(module_name: str, name: str) -> bool:
    module = sys.modules.get(module_name)
    if module is None:
        return True
    found = vars(module).get(name)
    if isinstance(found, type):
        # Every method: a mock replaces one of them, and which differs from mock to mock.
        # httpx names its classes by its package alone.
        return _package(found.__module__) == _package(module_name) and all(
            _is_original_member(member, module) for member in vars(found).values()
        )
    return _is_original_function(found, module)


def _is_original_member(member: Any, module: types.ModuleType) -> bool:
    if isinstance(member, property):
        return all(
            part is None or _is_original_function(part, module)
            for part in (member.fget, member.fset, member.fdel)
        )
    if isinstance(member, (classmethod, staticmethod)):
        return _is_original_function(member.__func__, module)
    if isinstance(member, type):
        return _package(member.__module__) in {_package(module.__name__), "http", "builtins"}
    if callable(member):
        return _is_original_function(member, module)
    kind = type(member).__module__
    return _is_standard(kind) or _package(kind) == _package(module.__name__)


def _is_original_function(function: Any, module: types.ModuleType) -> bool:
    if isinstance(function, types.FunctionType):
        owner = function.__globals__.get("__name__", "")
        if function.__globals__ is vars(module):
            return True
        if _package(owner) in WATCHERS or owner == "contextlib":
            original = getattr(function, "__wrapped__", None)
            return original is None or _is_original_function(original, module)
        # Some are put together from functions of their package or of the standard library.
        return _package(owner) == _package(module.__name__) or _is_standard(owner)
    wrapper = getattr(function, "_self_wrapper", None)  # wrapt's
    if wrapper is not None and _package(getattr(wrapper, "__module__", "") or "") in WATCHERS:
        return _is_original_function(function.__wrapped__, module)
    return _is_standard(type(function).__module__)


def _is_standard(name: str) -> bool:
    # unittest.mock is part of the standard library, too.
    return _package(name) in sys.stdlib_module_names and not name.startswith("unittest")


def _package(name: str) -> str:
    return name.partition(".")[0]
