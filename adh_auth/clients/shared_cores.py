"""One rotation core for all auth objects of a session in a store, in one process.

A web application makes one object per request and user. They share what was read, and one rotation.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

from ..rotation.core import Rotation

__all__ = ["KEPT", "SharedCore", "shared_core"]

#: Sessions whose cores stay although no auth object has them any more: the next request of the same user
#: must not read the store anew.
KEPT = 1000

#: Makes a core, given what finds a method of an auth object that is alive.
NewCore = Callable[[Callable[[str], Any]], Rotation]


class SharedCore:
    """A core, and the auth objects that share it. Any one that is alive carries its calls."""

    def __init__(self, new_core: NewCore) -> None:
        # Single operations on a set are atomic: a lock may be held when the process forks.
        self._users: set[weakref.ref[Any]] = set()
        users = self._users
        self.core: Rotation = new_core(lambda method: _found(users, method))

    def add(self, auth: object) -> None:
        """Let this one carry calls, as long as it lives."""
        self._users.add(weakref.ref(auth, self._users.discard))


def _found(users: set[weakref.ref[Any]], method: str) -> Any:
    """Return the method of one that is alive, None where there is none."""
    for reference in list(users):
        auth = reference()
        if auth is not None:
            return getattr(auth, method)
    return None


_all: weakref.WeakValueDictionary[Hashable, SharedCore] = weakref.WeakValueDictionary()
#: those that were used last, the latest at the end
_recent: dict[Hashable, SharedCore] = {}


def shared_core(auth: object, key: Hashable, new_core: NewCore) -> SharedCore:
    """Return the core of that `key`. `auth` carries its calls from now on, as others do."""
    shared = _all.get(key)
    if shared is None:
        # No lock, as above: of two threads one may get a core that nobody else has, and it works.
        shared = _all.setdefault(key, SharedCore(new_core))
    shared.add(auth)
    _keep(key, shared)
    return shared


def _keep(key: Hashable, shared: SharedCore) -> None:
    _recent.pop(key, None)
    _recent[key] = shared
    if len(_recent) > KEPT:
        with suppress(RuntimeError, KeyError, StopIteration):  # another thread does the same
            del _recent[next(iter(_recent))]
