"""The lock of one rotation, between processes.

Rule 15: a kernel lock through filelock, built for each rotation, and no marker file that a kill leaves
behind.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

import filelock

if sys.platform != "win32":
    import fcntl

from ..common.fork_safety import OwnDescriptor, no_fork
from ..common.guarded_logs import with_guarded_logs
from ..common.lazy_imports import load_lazy_imports
from . import disk, file_checks, reservation
from .file_checks import NOFOLLOW

__all__ = ["LockUnavailable", "RotationLock"]

load_lazy_imports("filelock")


class LockUnavailable(Exception):
    """The lock can't be taken, whoever holds it.

    `cause`: what the system or filelock raised.
    """

    def __init__(self, cause: OSError | NotImplementedError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _filelock_module() -> Any:
    return sys.modules.get("filelock", filelock)


def _usable_filelock() -> Any:
    """Return filelock, imported anew where eventlet has broken it.

    ``eventlet.monkey_patch()`` after our import gives filelock's Condition another lock, but not the methods
    that the Condition took from the old one. Each use then raises RuntimeError (eventlet 0.40, which asks to
    be called before any other import).
    """
    module = _filelock_module()
    if "eventlet" in sys.modules:
        try:
            module.FileLock(os.devnull)
        except RuntimeError:
            for name in [name for name in sys.modules if name.partition(".")[0] == "filelock"]:
                del sys.modules[name]
            module = import_module("filelock")
    return module


class RotationLock:
    """A kernel lock on a file beside the token file, built for one rotation.

    filelock refuses, in a forked child, a lock that was built before the fork.
    """

    def __init__(self, target: str) -> None:
        self.path: str = target + ".lock"
        #: what a helper knows it by
        self.identity: str = self.path
        self._reserved_path = reservation.reserved_path(target)
        self._lock: Any = None

    def take(self) -> bool:
        """Take the lock and return True, or return False where it is held.

        Raises `LockUnavailable` where there are no real locks, or the lock file can't be made.
        """
        try:
            return self._take()
        except _filelock_module().Timeout:
            return False
        except (OSError, NotImplementedError) as refused:
            raise LockUnavailable(refused) from refused

    def _take(self) -> bool:
        if self._lock is None:
            self._lock = self._prepare()
        with_guarded_logs(self._lock.acquire, blocking=False)
        # The holder's lock file may have been removed, by a cleaner of old files or by a user who read of it
        # in `LockTimeout`. A lock on a new file excludes nobody then, and the token would be sent twice.
        if not reservation.is_held(self._reserved_path):
            return True
        with_guarded_logs(self._lock.release, force=True)
        return False

    def _prepare(self) -> Any:
        disk.remove_link(self.path)
        # filelock 4.1, the last for Python 3.10, empties the file that it locks.
        file_checks.refuse_hard_link(self.path)
        # filelock sets a mode on the file that it makes. A FUSE file system that refuses modes may have
        # locks.
        disk.make_file(self.path)
        # Without fallback_to_soft=False, filelock writes a marker file where there are no kernel locks. One
        # that a kill leaves behind locks everybody out (claude-code#62600).
        return _usable_filelock().FileLock(self.path, fallback_to_soft=False, thread_local=False)

    def release(self) -> None:
        """Release the lock; nothing happens where it is not held."""
        lock, self._lock = self._lock, None
        if lock is not None:
            with_guarded_logs(lock.release, force=True)

    def descriptor(self) -> OwnDescriptor:
        """Return a copy of the locked descriptor for a helper to inherit. Raises `OSError`."""
        fd = _locked_descriptor(self._lock)
        if fd is None or sys.platform == "win32":
            raise OSError(errno.EBADF, "the lock is in no descriptor")
        with no_fork():
            # 3 and above: where the standard streams are closed, the lock is one of their numbers, and the
            # helper gets streams of its own there.
            return OwnDescriptor(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))

    def hand_over(self) -> None:
        """Forget the lock without unlocking it: a process that inherited its descriptor holds it from now on.

        Raises `OSError` where that can't be done; then it is held as before.
        """
        fd = _locked_descriptor(self._lock)
        assert fd is not None, "whoever hands it over has taken it"
        unlocked = os.open(self.path, os.O_RDWR | NOFOLLOW)
        try:
            # All copies of a descriptor share one lock: an unlock by filelock, in `release`, its exit hook or
            # its `__del__`, would free the helper's. So filelock gets another opening of the file to unlock.
            os.dup2(unlocked, fd, inheritable=False)
        finally:
            os.close(unlocked)
        with suppress(Exception):  # it is the helper's, whatever filelock makes of this
            self.release()

    def take_back(self) -> None:
        """Do nothing: the end of a helper unlocks it."""


def _locked_descriptor(lock: Any) -> int | None:
    """Return filelock's descriptor of a lock that is held.

    filelock 4.0 to 4.3 show it to nobody but a callback, `on_acquired`, which needs Python 3.11.
    """
    fd = getattr(getattr(lock, "_context", None), "lock_file_fd", None)
    return fd if isinstance(fd, int) else None
