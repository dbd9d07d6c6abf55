"""What a token file may be, and what the system says of a file."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress

if sys.platform != "win32":
    pass

import sys

from ..common.limits import MAX_READ_BYTES

__all__ = ["NoModes", "Unfit", "loose_mode", "problem_with_replacing", "problem_with_rewriting"]

PRIVATE = 0o600

BINARY = getattr(os, "O_BINARY", 0)
NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
NONBLOCK = getattr(os, "O_NONBLOCK", 0)


class Unfit(OSError):
    """A file that is not what a token file may be; the message is the reason."""


class NoModes(OSError):
    """A file system that can't make a file private; the message is what it says."""


def require_ours(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Unfit("it is no regular file")
    if status.st_size > MAX_READ_BYTES:
        raise Unfit(f"it is larger than {MAX_READ_BYTES} bytes")
    if sys.platform != "win32" and status.st_uid not in (os.geteuid(), 0):
        raise Unfit(f"it belongs to another user (uid {status.st_uid})")


def problem_with_replacing(path: str) -> str | None:
    """Why the file at `path` could not be replaced by a rename, as far as that can be told without doing it;
    None for a missing file.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    if sys.platform != "win32" and status.st_uid != os.geteuid():
        return f"it belongs to another user (uid {status.st_uid})"
    # The mode is the owner's word even where root could override it; access() adds read-only mounts and the
    # immutable flag.
    if not status.st_mode & stat.S_IWUSR or not os.access(path, os.W_OK):
        return "it is read-only"
    if _is_mounted_file(path):
        return "it is mounted as a single file, which can't be replaced (mount its folder instead)"
    return None


def _is_mounted_file(path: str) -> bool:
    """Whether the file itself is a mount point (``docker -v tokens.json:…``): renaming onto it answers EBUSY,
    after the token is spent.

    Linux tells each descriptor's mount id in /proc (proc_pid_fdinfo(5)). stat can't tell: a bind mount has
    its source's device.
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
        # As bytes: a first `open(encoding=...)` would look up a codec, and import, in a rotation's thread.
        with open(f"/proc/self/fdinfo/{fd}", "rb") as lines:
            return next((line for line in lines if line.startswith(b"mnt_id:")), None)
    finally:
        os.close(fd)


def refuse_second_name(path: str) -> None:
    """Raise `Unfit` for a file that goes by another name, too: planted, for what we do to this one happens to
    that.
    """
    with suppress(FileNotFoundError):
        if os.lstat(path).st_nlink > 1:
            raise Unfit(f"{path} has a second name")


def keeps_modes(path: str) -> bool:
    """Whether that file, which others can reach, could have been private: where no file can, its mode says
    nothing of who made it.
    """
    fd = os.open(path, os.O_RDONLY | NOFOLLOW | NONBLOCK)
    try:
        before = stat.S_IMODE(os.fstat(fd).st_mode)
        os.fchmod(fd, PRIVATE)
        kept = stat.S_IMODE(os.fstat(fd).st_mode) == PRIVATE
        os.fchmod(fd, before)  # a plant that looked private would be believed the next time
        return kept
    except OSError:
        return False
    finally:
        os.close(fd)


def loose_mode(path: str) -> int:
    """The mode of a file that others can read or write; 0 for a private one."""
    if sys.platform == "win32":
        return 0
    with suppress(OSError):
        mode = stat.S_IMODE(os.stat(path).st_mode)
        return mode if mode & 0o077 else 0
    return 0


def problem_with_rewriting(target: str) -> str | None:
    """Why the file, links followed, could not be locked and replaced, as far as that can be told without
    doing it.
    """
    if obstacle := problem_with_replacing(target):
        return obstacle
    if not os.access(os.path.dirname(target), os.W_OK):
        return "its folder is read-only"
    return problem_with_writing(target + ".lock")


def problem_with_writing(companion: str, *, ours: bool = False) -> str | None:
    """Why a file beside the token file stops the next rotation: a run under sudo leaves root's.

    `ours`: only its owner may use it.
    """
    try:
        status = os.stat(companion)
    except OSError:  # what is missing is made then
        return None
    foreign = ours and sys.platform != "win32" and status.st_uid != os.geteuid()
    if os.access(companion, os.R_OK | os.W_OK) and not foreign:
        return None
    details = "" if sys.platform == "win32" else f" (mode {mode_of(status)}, owner {name_of(status.st_uid)})"
    return f"{companion} can't be written by this user{details}"


def mode_of(status: os.stat_result) -> str:
    return f"{stat.S_IMODE(status.st_mode):04o}"


def name_of(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a container often has a user without a name
        return f"uid {uid}"
