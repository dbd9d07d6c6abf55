"""Whether the system may be asked for its proxies."""

from __future__ import annotations

import os
import sys
from urllib.request import getproxies_environment

__all__ = ["must_not_ask_the_system"]

_forked = False


def must_not_ask_the_system() -> bool:
    """Whether to ask for the proxies of the system's settings would end this process: in a forked child on
    macOS.

    There urllib asks the SystemConfiguration framework, which is not safe after a fork
    (python/cpython#105912). Where a variable names a proxy, or the hosts that need none, urllib takes the
    variables' word and does not ask.
    """
    return _forked and sys.platform == "darwin" and not getproxies_environment()


def _note_the_fork() -> None:
    global _forked  # noqa: PLW0603 - the one fact about this process
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_the_fork)
