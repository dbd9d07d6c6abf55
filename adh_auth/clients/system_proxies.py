"""Whether the operating system may be asked for its proxies."""

from __future__ import annotations

import os
import sys
from urllib.request import getproxies_environment

__all__ = ["must_not_ask_the_system"]

_forked = False


def must_not_ask_the_system() -> bool:
    """Return whether asking would crash this process: in a forked child on macOS.

    urllib asks the SystemConfiguration framework there, which is not safe after a fork
    (python/cpython#105912). It does not ask if an environment variable names a proxy, or the hosts that need
    none.
    """
    return _forked and sys.platform == "darwin" and not getproxies_environment()


def _mark_as_forked() -> None:
    global _forked  # noqa: PLW0603 - a fact about this process
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_as_forked)
