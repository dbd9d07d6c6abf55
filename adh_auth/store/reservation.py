"""Space for the next content of a token file, reserved before it is needed."""

from __future__ import annotations

import errno
import os
import stat
import sys
import weakref
from contextlib import suppress

if sys.platform != "win32":
    import fcntl

from typing import TYPE_CHECKING

from ..common.notices import warn_loudly
from ..tokens import Stored
from . import disk, file_checks
from .disk import allocate, make_private, patiently, read_all, sync, sync_folder, write_all
from .file_checks import BINARY, NOFOLLOW, NONBLOCK, PRIVATE, Unfit, keeps_modes, require_ours

if TYPE_CHECKING:
    from .token_file import TokenFile

__all__ = ["ReservedFile", "is_held"]


class ReservedFile:
    """Room on disk for the next content of a file: same folder, mode 0600 from birth, full length.

    There is one name for it, taken under the rotation's lock: what a kill leaves behind is found, and used or
    removed, by the next. It is locked itself while it is open, for the other lock is a file that anybody may
    remove: see `is_held`.
    """

    def __init__(self, target: str, size: int) -> None:
        self.target = target
        self.path = reserved_path(target)
        if is_held(self.path):
            raise BlockingIOError(
                errno.EAGAIN, "another process is writing it, and its lock file was removed meanwhile"
            )
        self._fd: int | None = None
        self._content = b""
        _reserved_files.add(self)
        try:
            fd = self._open_anew()
            allocate(fd, size)
            # NFS and quotas say "no space" no sooner than here.
            os.fsync(fd)
        except BaseException:
            self.discard()
            raise

    def fill(self, data: bytes) -> None:
        """Put the content there, durably. From here on a kill does not lose it: `left_behind` finds it."""
        self._content = data
        if self._fd is not None and not self._is_in_place():
            self._open_anew()
        if (
            self._fd is None
        ):  # an install that was refused has closed it; what it holds must not be lost for that
            flags = os.O_RDWR | os.O_CREAT | NOFOLLOW | NONBLOCK | BINARY
            self._fd = patiently(lambda: os.open(self.path, flags, PRIVATE))
            require_ours(os.fstat(self._fd))
            _hold(self._fd)
            make_private(self._fd)
        os.lseek(self._fd, 0, os.SEEK_SET)
        write_all(self._fd, data)
        os.ftruncate(self._fd, len(data))
        sync(self._fd)

    def install(self) -> None:
        """Make it the file, durably."""
        if self._fd is not None and not self._is_in_place():
            self.fill(self._content)
        if sys.platform == "win32":
            self.close()  # no file that is open is renamed there
        try:
            patiently(lambda: os.replace(self.path, self.target))
        finally:
            self.close()  # not before: who finds it unlocked takes it for left behind
        sync_folder(self.target)

    def _is_in_place(self) -> bool:
        """Whether the prepared file is still the one under its name: a cleaner of old files may have removed
        it, or put another there.
        """
        assert self._fd is not None
        try:
            return os.path.samestat(os.fstat(self._fd), os.lstat(self.path))
        except OSError:
            return False

    def _open_anew(self) -> int:
        self.close()
        with suppress(FileNotFoundError):
            patiently(lambda: os.unlink(self.path))
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | NOFOLLOW | BINARY
        self._fd = fd = patiently(lambda: os.open(self.path, flags, PRIVATE))
        _hold(fd)
        make_private(fd)
        return fd

    def discard(self) -> None:
        """Give the room back."""
        self.close()
        with suppress(OSError):
            os.unlink(self.path)

    def close(self) -> None:
        """Leave the room to whoever comes next, with what is in it."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with suppress(OSError):  # what it holds has been synced
                os.close(fd)


#: every room of this process
_reserved_files: weakref.WeakSet[ReservedFile] = weakref.WeakSet()


def _close_reserved_files() -> None:
    # They are the parent's. A copy of the descriptor would hold its lock after the parent is gone.
    for room in list(_reserved_files):
        room.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_reserved_files)


def _hold(fd: int) -> None:
    if sys.platform != "win32":
        with suppress(OSError):  # a second guard: where there are no locks, the first has said so
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_held(path: str) -> bool:
    """Whether a living process has that room open: a rotation is under way, whoever has the lock."""
    if sys.platform == "win32":
        return False  # no file that is open is removed there, the lock neither
    try:
        fd = os.open(path, os.O_RDWR | NOFOLLOW | NONBLOCK)
    except OSError:
        return False
    try:
        require_ours(os.fstat(fd))
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as refused:
        return refused.errno in (errno.EAGAIN, errno.EACCES)
    else:
        return False
    finally:
        os.close(fd)


def reserved_path(target: str) -> str:
    """Where the next content of `target` is prepared."""
    return target + ".new"


def left_behind(target: str) -> bytes | None:
    """What a process that was killed had put into its room; None where there is nothing of ours."""
    try:
        if stat.S_ISLNK(os.lstat(reserved_path(target)).st_mode):
            return None
        data, status = disk.read_regular(reserved_path(target))
    except (FileNotFoundError, PermissionError, Unfit):
        return None
    private = sys.platform == "win32" or (
        status.st_uid == os.geteuid() and not (status.st_mode & 0o077 and keeps_modes(reserved_path(target)))
    )
    # Allocated room that was never written reads as zeros.
    return data.rstrip(b"\0") if private and status.st_nlink == 1 else None


def install_left_behind(target: str) -> None:
    """Finish the replacement that a kill cut short."""
    fd = patiently(lambda: os.open(reserved_path(target), os.O_RDWR | NOFOLLOW | BINARY))
    try:
        data = read_all(fd).rstrip(b"\0")
        os.ftruncate(fd, len(data))
        sync(fd)
    finally:
        os.close(fd)
    patiently(lambda: os.replace(reserved_path(target), target))
    sync_folder(target)


class Reservation:
    """Room for the next pair of one token file."""

    def __init__(self, file: TokenFile, room: ReservedFile) -> None:
        self._file = file
        self._room = room

    def replace(self, fresh: Stored, spent: Stored | None = None) -> bool:
        """Write `fresh`, durably; False where the file no longer holds the token that was `spent`: the newer
        state wins.

        Where the file is none that can be read, it is left alone, and the pair beside it: it may be repaired
        yet.
        """
        file = self._file
        content = fresh if spent is None else fresh.in_place_of(spent)
        file.on_disk(lambda: self._room.fill(content.to_bytes()), "rewritten")
        if spent is not None:
            held = file.on_disk(lambda: file.still_holds(spent), "read")
            if held is False:
                self.discard()
            if not held:
                return False
        loose = file_checks.loose_mode(self._room.target)
        file.on_disk(self._room.install, "rewritten")
        _warn_of_mode(str(file.path), loose, file_checks.loose_mode(self._room.target))
        return True

    def leave(self) -> None:
        """Leave the room with what is in it to whoever comes next."""
        self._room.close()

    def discard(self) -> None:
        """Give the room back; nothing happens where it was used."""
        self._room.discard()


#: token files on file systems without modes that have been warned of: they would be at each refresh
_warned_of: set[str] = set()


def _warn_of_mode(path: str, before: int, after: int) -> None:
    if after and path not in _warned_of:
        _warned_of.add(path)
        warn_loudly(
            f"token file {path} can be read by others (mode {after:04o}): its file system keeps no modes. Keep the file on one that does"
        )
    elif before and not after:
        warn_loudly(
            f"token file {path} could be read by others (mode {before:04o}); it is private now (0600)"
        )
