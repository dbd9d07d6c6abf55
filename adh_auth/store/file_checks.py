"""Checks of a file: whether it may be a token file, who can read it, whether it can be replaced.

Rule 14: nothing here changes a file that it checks.
"""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress

from ..common.limits import MAX_READ_BYTES

__all__ = ["ModesUnsupported", "UnsafeFile", "loose_mode", "problem_with_replacing", "problem_with_rewriting"]

PRIVATE = 0o600

BINARY = getattr(os, "O_BINARY", 0)
NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
NONBLOCK = getattr(os, "O_NONBLOCK", 0)


class UnsafeFile(OSError):
    """The file may not be a token file; the message is the reason."""


class ModesUnsupported(OSError):
    """The file system can't make a file private; the message is the system's reason."""


def require_own_regular_file(status: os.stat_result) -> None:
    """Raise `UnsafeFile` unless it is a regular file of ours or root's, of a token file's size."""
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeFile("it is not a regular file")
    if status.st_size > MAX_READ_BYTES:
        raise UnsafeFile(f"it is larger than {MAX_READ_BYTES} bytes")
    if sys.platform != "win32" and status.st_uid not in (os.geteuid(), 0):
        raise UnsafeFile(f"it belongs to another user (uid {status.st_uid})")


def problem_with_replacing(path: str) -> str | None:
    """Return why a rename could not replace the file at `path`; None where it could, or there is no file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    if sys.platform != "win32" and status.st_uid != os.geteuid():
        return f"it belongs to another user (uid {status.st_uid})"
    # Root could write to it, but its owner has made it read-only. access() adds read-only mounts and the
    # immutable flag.
    if not status.st_mode & stat.S_IWUSR or not os.access(path, os.W_OK):
        return "it is read-only"
    if _is_mounted_file(path):
        return "it is mounted as a single file, which can't be replaced (mount its folder instead)"
    return None


def _is_mounted_file(path: str) -> bool:
    """Return whether the file itself is a mount point (``docker -v tokens.json:…``).

    A rename onto it fails with EBUSY, after the token is spent. Linux shows each descriptor's mount id in
    /proc (proc_pid_fdinfo(5)); stat shows nothing, as a bind mount has its source's device.
    """
    if sys.platform != "linux":
        return False
    try:
        return _mount_id(path) != _mount_id(os.path.dirname(path) or ".")
    except OSError:
        return False


def _mount_id(path: str) -> bytes | None:
    fd = os.open(path, os.O_RDONLY | NONBLOCK)
    try:
        # As bytes: the first open with an encoding imports its codec, and a rotation's thread must not
        # import.
        with open(f"/proc/self/fdinfo/{fd}", "rb") as lines:
            return next((line for line in lines if line.startswith(b"mnt_id:")), None)
    finally:
        os.close(fd)


def refuse_hard_link(path: str) -> None:
    """Raise `UnsafeFile` for a file with a second hard link: another user may have planted it.

    What we do to this file would happen to the other one.
    """
    with suppress(FileNotFoundError):
        if os.lstat(path).st_nlink > 1:
            raise UnsafeFile(f"{path} has a second name")


def keeps_modes(path: str) -> bool:
    """Return whether the file system of `path` keeps a mode of 0600. Tries it, and restores the mode.

    Where it does not, a mode that lets others in says nothing about who made the file.
    """
    fd = os.open(path, os.O_RDONLY | NOFOLLOW | NONBLOCK)
    try:
        before = stat.S_IMODE(os.fstat(fd).st_mode)
        os.fchmod(fd, PRIVATE)
        kept = stat.S_IMODE(os.fstat(fd).st_mode) == PRIVATE
        os.fchmod(fd, before)  # a planted file left private would pass for ours the next time
        return kept
    except OSError:
        return False
    finally:
        os.close(fd)


def loose_mode(path: str) -> int:
    """Return the mode of a file that others can read or write, 0 for a private or missing one."""
    if sys.platform == "win32":
        return 0
    with suppress(OSError):
        mode = stat.S_IMODE(os.stat(path).st_mode)
        return mode if mode & 0o077 else 0
    return 0


def problem_with_rewriting(target: str) -> str | None:
    """Return why the file could not be locked and replaced, None where it could.

    `target`: its path with links followed.
    """
    if problem := problem_with_replacing(target):
        return problem
    if not os.access(os.path.dirname(target), os.W_OK):
        return "its folder is read-only"
    return problem_with_writing(target + ".lock")


def problem_with_writing(companion: str, *, ours: bool = False) -> str | None:
    """Return why a file beside the token file stops the next rotation, None where it does not.

    A run under sudo leaves files of root's. `ours`: only the owner may use it.
    """
    try:
        status = os.stat(companion)
    except OSError:  # a missing one is made by the rotation
        return None
    foreign = ours and sys.platform != "win32" and status.st_uid != os.geteuid()
    if os.access(companion, os.R_OK | os.W_OK) and not foreign:
        return None
    details = (
        "" if sys.platform == "win32" else f" (mode {format_mode(status)}, owner {user_name(status.st_uid)})"
    )
    return f"{companion} can't be written by this user{details}"


def format_mode(status: os.stat_result) -> str:
    """Return the mode in four octal digits."""
    return f"{stat.S_IMODE(status.st_mode):04o}"


def user_name(uid: int) -> str:
    """Return the name of a user, or the number of one without a name."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a container's user often has no passwd entry
        return f"uid {uid}"
