"""Imports that wait until they are needed, in a program whose other threads may fork meanwhile."""

from __future__ import annotations

import os
import threading

__all__ = ["importing"]

#: Held around an import inside a function. A child of a fork in the midst of one would have the module's lock and not the thread that
#: holds it, and wait for it for ever. Re-entrant, for a signal handler that forks.
importing = threading.RLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=importing.acquire, after_in_parent=importing.release, after_in_child=importing.release)
