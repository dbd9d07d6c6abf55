"""The lock of one rotation, between processes."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import filelock

if sys.platform != "win32":
    import fcntl

from ..common.fork_safety import OwnDescriptor, no_fork
from ..common.guarded_logs import with_guarded_logs
from ..common.lazy_imports import load_lazy_imports
from ..common.text import capitalized
from . import disk, file_checks, reservation
from .file_checks import NOFOLLOW
from .remedies import login_command_line, remedy_for, system_reason

if TYPE_CHECKING:
    from .token_file import TokenFile

__all__ = ["RotationLock"]

load_lazy_imports("filelock")

#: errno values by which a file system says that it has no locks.
NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP})


def _module() -> Any:
    return sys.modules.get("filelock", filelock)


def _usable_filelock() -> Any:
    """filelock, imported anew where eventlet has spoilt it.

    ``eventlet.monkey_patch()`` after our import gives its Condition another lock, but not the methods that
    the Condition has taken from the old one: each use raises RuntimeError (eventlet 0.40; it asks to be
    called before any other import).
    """
    module = _module()
    if "eventlet" in sys.modules:
        try:
            module.FileLock(os.devnull)
        except RuntimeError:
            for name in [name for name in sys.modules if name.partition(".")[0] == "filelock"]:
                del sys.modules[name]
            module = import_module("filelock")
    return module


class RotationLock:
    """A kernel lock beside the token file, built for one rotation: one that is built before a fork raises in
    the child.
    """

    def __init__(self, target: str, file: TokenFile) -> None:
        self.path = target + ".lock"
        self._room = reservation.reserved_path(target)
        self._file = file
        self._lock: Any = None

    def take(self) -> bool:
        """Take it if it is free.

        Raises `TokenFileError` where there are no real locks, or the file can't be made.
        """
        problem: OSError | NotImplementedError
        try:
            if self._lock is None:
                file_checks.refuse_second_name(
                    self.path
                )  # filelock 4.1, the last for Python 3.10, empties the file
                # Not by filelock, which sets a mode: a file system (FUSE) that refuses modes does not lack
                # locks.
                disk.make_file(self.path)
                # No soft fallback: a marker file that a kill leaves behind would lock everybody out
                # (claude-code#62600).
                self._lock = _usable_filelock().FileLock(
                    self.path, fallback_to_soft=False, thread_local=False
                )
            with_guarded_logs(self._lock.acquire, blocking=False)
            # Held by somebody whose lock file was removed (by a cleaner of old files, or a user whom
            # `LockTimeout` told of it): the token would be sent twice.
            if not reservation.is_held(self._room):
                return True
            with_guarded_logs(self._lock.release, force=True)
            return False
        except _module().Timeout:
            return False
        except (OSError, NotImplementedError) as refused:
            problem = refused
        if isinstance(problem, NotImplementedError) or problem.errno in NO_LOCKS:
            what, step = f"lies on a file system without real locks ({self.path})", "Keep it on a local disk"
        elif isinstance(problem, file_checks.Unfit):
            what, step = f"can't be locked: {problem}", "Move that away"
        elif isinstance(problem, FileNotFoundError):
            what, step = (
                "is missing, and so is its folder",
                capitalized(login_command_line(str(self._file.path))),
            )
        else:
            what, step = f"can't be locked: {self.path}: {system_reason(problem)}", remedy_for(problem)
        raise self._file.error(what, step)

    def release(self) -> None:
        """Release it; nothing happens where it is not held."""
        lock, self._lock = self._lock, None
        if lock is not None:
            with_guarded_logs(lock.release, force=True)

    def descriptor(self) -> OwnDescriptor | None:
        """Return a copy of the locked descriptor for a helper to inherit; None where there is none."""
        fd = _locked_descriptor(self._lock)
        if fd is None or sys.platform == "win32":
            return None
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


def _locked_descriptor(lock: Any) -> int | None:
    """Return filelock's descriptor of a lock that is held.

    filelock 4.0 to 4.3 show it to nobody but a callback, `on_acquired`, which needs Python 3.11.
    """
    fd = getattr(getattr(lock, "_context", None), "lock_file_fd", None)
    return fd if isinstance(fd, int) else None
