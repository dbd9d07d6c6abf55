"""Loads what an import has put off.

Rule 17: what a rotation needs is imported with the class, not in its thread.
"""

from __future__ import annotations

import sys
import types
from contextlib import suppress

__all__ = ["load_lazy_imports"]


def load_lazy_imports(package: str) -> None:
    """Load every part of `package` that its modules import lazily (PEP 810, Python 3.15 and later).

    A lazy import runs in the thread that first uses the name: filelock's ran in that of the first rotation.
    """
    lazy = getattr(types, "LazyImportType", None)
    if lazy is None:
        return
    loaded = 0
    while loaded != len(sys.modules):  # what is loaded here puts off imports of its own
        loaded = len(sys.modules)
        for name, module in list(sys.modules.items()):
            if name == package or name.startswith(f"{package}."):
                _resolve(module, lazy)


def _resolve(module: types.ModuleType, lazy: type) -> None:
    for name, value in list(vars(module).items()):
        if type(value) is lazy:
            with suppress(ImportError):  # an optional part: its first use raises
                getattr(module, name)
