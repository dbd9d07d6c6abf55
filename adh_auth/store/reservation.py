"""Space for the next content of a token file, reserved before the refresh token is sent.

Rule 3: same folder, mode 0600 from birth, full length, on disk. Rule 16: what a kill leaves there names the
token that it replaces, and is found by the next process.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress

if sys.platform != "win32":
    import fcntl

from ..common.notices import warn_loudly
from ..errors import TokenFileError
from ..tokens import Stored
from . import disk, file_checks
from .disk import (
    allocate,
    make_private,
    open_above_streams,
    read_all,
    retry_while_busy,
    sync,
    sync_folder,
    write_all,
)
from .file_checks import (
    BINARY,
    NOFOLLOW,
    NONBLOCK,
    UnsafeFile,
    keeps_modes,
    require_own_regular_file,
)
from .messages import reading, warn_of_mode, writing
from .record import Record

__all__ = ["Reservation", "ReservedFile", "is_held"]


class ReservedFile:
    """A file beside the target that takes the target's next content.

    It has one fixed name and is made under the rotation's lock, so that the next process finds what a kill
    leaves behind. It is locked while it is open: anybody may remove the lock file, see `is_held`.
    """

    def __init__(self, target: str, size: int) -> None:
        self.target = target
        self.path: str = reserved_path(target)
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
            # NFS and quotas report a lack of space no sooner than here.
            os.fsync(fd)
        except BaseException:
            self.discard()
            raise

    def fill(self, data: bytes) -> None:
        """Write the content durably. From here on a kill does not lose it: `left_behind` finds it."""
        self._content = data
        if self._fd is not None and not self._is_in_place():
            self._open_anew()
        fd = self._reopened() if self._fd is None else self._fd
        os.lseek(fd, 0, os.SEEK_SET)
        write_all(fd, data)
        os.ftruncate(fd, len(data))
        sync(fd)

    def _reopened(self) -> int:
        # An install that was refused has closed the file. It may hold the only copy of a pair, so it is kept.
        disk.move_folder_away(self.path)
        flags = os.O_RDWR | os.O_CREAT | NOFOLLOW | NONBLOCK | BINARY
        self._fd = fd = retry_while_busy(lambda: open_above_streams(self.path, flags))
        require_own_regular_file(os.fstat(fd))
        _hold(fd)
        make_private(fd)
        return fd

    def install(self) -> None:
        """Rename it to the target, durably."""
        if self._fd is not None and not self._is_in_place():
            self.fill(self._content)
        if sys.platform == "win32":
            self.close()  # Windows renames no file that is open
        try:
            retry_while_busy(lambda: os.replace(self.path, self.target))
        finally:
            self.close()  # not before: a process that finds it unlocked takes it for left behind
        sync_folder(self.target)

    def _is_in_place(self) -> bool:
        """Return whether the open file is still the one under its name.

        A cleaner of old files may have removed it, or another program put a file in its place.
        """
        assert self._fd is not None
        try:
            return os.path.samestat(os.fstat(self._fd), os.lstat(self.path))
        except OSError:
            return False

    def _open_anew(self) -> int:
        self.close()
        disk.move_folder_away(self.path)
        with suppress(FileNotFoundError):
            retry_while_busy(lambda: os.unlink(self.path))
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | NOFOLLOW | BINARY
        self._fd = fd = retry_while_busy(lambda: open_above_streams(self.path, flags))
        _hold(fd)
        make_private(fd)
        return fd

    def discard(self) -> None:
        """Remove it."""
        self.close()
        with suppress(OSError):
            os.unlink(self.path)

    def close(self) -> None:
        """Close it; the next process finds it with its content."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with suppress(OSError):  # a network file system may fail here; the content is synced already
                os.close(fd)


#: Every reserved file of this process.
_reserved_files: weakref.WeakSet[ReservedFile] = weakref.WeakSet()


def _close_reserved_files() -> None:
    # A flock belongs to the open file, which a forked child shares: it would last after the parent's end.
    for reserved in list(_reserved_files):
        reserved.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_reserved_files)


def _hold(fd: int) -> None:
    if sys.platform != "win32":
        # Where the file system has no locks, the rotation's own lock was refused before.
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_held(path: str) -> bool:
    """Return whether a living process has that reserved file open, whoever holds the rotation's lock."""
    if sys.platform == "win32":
        return False  # Windows removes no file that is open, and so no lock file that is held
    try:
        fd = open_above_streams(path, os.O_RDWR | NOFOLLOW | NONBLOCK)
    except OSError:
        return False
    try:
        require_own_regular_file(os.fstat(fd))
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as refused:
        return refused.errno in (errno.EAGAIN, errno.EACCES)
    else:
        return False
    finally:
        os.close(fd)


def reserved_path(target: str) -> str:
    """Return the path of the file that takes the next content of `target`."""
    return target + ".new"


def left_behind(target: str) -> bytes | None:
    """Return what a killed process had written into its reserved file, None where there is nothing of ours.

    Raises `OSError`.
    """
    path = reserved_path(target)
    try:
        if stat.S_ISLNK(os.lstat(path).st_mode):
            return None
        data, status = disk.read_regular(path)
    except (FileNotFoundError, PermissionError, UnsafeFile):
        return None
    if status.st_nlink != 1 or not _is_private(path, status):
        return None
    return data.rstrip(b"\0")  # allocated space that was never written reads as zeros


def _is_private(path: str, status: os.stat_result) -> bool:
    if sys.platform == "win32":
        return True
    return status.st_uid == os.geteuid() and not (status.st_mode & 0o077 and keeps_modes(path))


def install_left_behind(target: str) -> None:
    """Finish the replacement that a kill cut short. Raises `OSError`."""
    fd = retry_while_busy(lambda: open_above_streams(reserved_path(target), os.O_RDWR | NOFOLLOW | BINARY))
    try:
        data = read_all(fd).rstrip(b"\0")
        os.ftruncate(fd, len(data))
        sync(fd)
    finally:
        os.close(fd)
    retry_while_busy(lambda: os.replace(reserved_path(target), target))
    sync_folder(target)


class Reservation:
    """The reserved file of one token file.

    `path`: the token file, for messages. `still_holds`: whether it still holds the refresh token of a pair;
    None where it can't be read as a token file. `note`: records an attempt.
    """

    def __init__(
        self,
        path: str,
        reserved: ReservedFile,
        still_holds: Callable[[Stored], bool | None],
        note: Callable[[Record], None],
    ) -> None:
        self._path = path
        self._reserved = reserved
        self._still_holds = still_holds
        self._note = note

    def replace(self, fresh: Stored, spent: Stored, record: Record) -> bool:
        """Write `fresh` durably, record the success, and return True.

        Rule 8: False where the file no longer holds the token that was `spent`; the newer state wins. A file
        that can't be read as a token file is left alone, and so is the pair beside it: it may be repaired.
        Raises `TokenFileError`.
        """
        self._fill(fresh.in_place_of(spent))
        with reading(self._path):
            held = self._still_holds(spent)
        if held is False:
            self.discard()
        if not held:
            return False
        self._install()
        try:
            self._note(record)
        except TokenFileError as error:  # the outcome is the same whether or not other processes learn of it
            warn_loudly(error.message)
        return True

    def write(self, session: Stored) -> None:
        """Write `session` durably, whatever the file holds. Raises `TokenFileError`."""
        self._fill(session)
        self._install()

    def _fill(self, content: Stored) -> None:
        with writing(self._path, "can't be rewritten"):
            self._reserved.fill(content.to_bytes())

    def _install(self) -> None:
        loose_before = file_checks.loose_mode(self._reserved.target)
        with writing(self._path, "can't be rewritten"):
            self._reserved.install()
        warn_of_mode(self._path, loose_before, file_checks.loose_mode(self._reserved.target))

    def leave(self) -> None:
        """Close the reserved file and leave its content to the next process."""
        self._reserved.close()

    def discard(self) -> None:
        """Remove the reserved file; nothing happens where it was used."""
        self._reserved.discard()
