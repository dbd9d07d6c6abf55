"""File-system layer: bounded reads, files that are private from birth, durable writes. Handles bytes only."""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

if sys.platform != "win32":
    import fcntl

from ..common.limits import MAX_READ_BYTES
from .file_checks import (
    BINARY,
    NOFOLLOW,
    NONBLOCK,
    PRIVATE,
    ModesUnsupported,
    UnsafeFile,
    require_own_regular_file,
)

__all__ = ["open_above_streams", "read_regular", "retry_while_busy", "write_block"]

T = TypeVar("T")
#: Windows error codes while a virus scanner or an indexer has a file open: access denied, sharing violation,
#: lock violation.
WINDOWS_BUSY_ERRORS = (5, 32, 33)
#: Seconds after which such an error is raised (NousResearch/hermes-agent#79793 settled on about this).
BUSY_TIMEOUT = 2.5
#: The descriptor of stderr.
HIGHEST_STANDARD_STREAM = 2


def retry_while_busy(work: Callable[[], T]) -> T:
    """Return what `work` returns. What Windows refuses for a moment is tried for `BUSY_TIMEOUT` seconds."""
    slept, pause = 0.0, 0.01
    while True:
        try:
            return work()
        except PermissionError as refused:
            # Counted, as freezegun stops the clock of a user's test.
            if getattr(refused, "winerror", None) not in WINDOWS_BUSY_ERRORS or slept + pause > BUSY_TIMEOUT:
                raise
        time.sleep(pause)
        slept += pause
        pause = min(2 * pause, 0.2)


def open_above_streams(path: str, flags: int, mode: int = PRIVATE) -> int:
    """Return the descriptor of a file to write, 3 or above. Raises `OSError`.

    A program may have closed its standard streams with nothing in their place. A file that got one of their
    numbers would get what the program prints, too.
    """
    fd = os.open(path, flags, mode)
    if sys.platform == "win32" or fd > HIGHEST_STANDARD_STREAM:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, HIGHEST_STANDARD_STREAM + 1)
    finally:
        os.close(fd)


def read_regular(path: str) -> tuple[bytes, os.stat_result]:
    """Return the content and the status of a regular file of ours (or root's).

    Raises `OSError`, and `UnsafeFile` for a file of another kind or owner.
    """
    # Without O_NONBLOCK, opening a FIFO waits for a writer for ever.
    try:
        fd = retry_while_busy(lambda: os.open(path, os.O_RDONLY | NONBLOCK | BINARY))
    except OSError as refused:
        if refused.errno == errno.ENXIO:  # a socket
            raise UnsafeFile("it is not a regular file") from None
        raise
    try:
        status = os.fstat(fd)
        require_own_regular_file(status)
        return read_all(fd), status
    finally:
        os.close(fd)


def read_all(fd: int) -> bytes:
    """Return the rest of an open file. Raises `OSError`, and `UnsafeFile` beyond `MAX_READ_BYTES`."""
    chunks = []
    left = MAX_READ_BYTES + 1
    while left > 0 and (chunk := os.read(fd, min(left, 65536))):
        chunks.append(chunk)
        left -= len(chunk)
    if left <= 0:
        raise UnsafeFile(f"it is larger than {MAX_READ_BYTES} bytes")
    return b"".join(chunks)


def make_file(path: str) -> None:
    """Make an empty file, as private as its file system allows. An existing one stays as it is.

    Raises `OSError`.
    """
    with suppress(FileExistsError):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW | BINARY, PRIVATE)
        try:
            with suppress(ModesUnsupported):
                make_private(fd)
        finally:
            os.close(fd)


def write_block(path: str, block: bytes) -> None:
    """Write one small block in place, private from birth. Raises `OSError`."""
    _move_away_what_is_no_file(path)
    fd = retry_while_busy(
        lambda: open_above_streams(path, os.O_WRONLY | os.O_CREAT | NOFOLLOW | NONBLOCK | BINARY)
    )
    try:
        status = os.fstat(fd)
        require_own_regular_file(status)
        # A hard link planted by another user: the block would be written into another file of ours.
        if status.st_nlink > 1:
            raise UnsafeFile(f"{path} has a second name")
        make_private(fd)
        write_all(fd, block)
        # The rest of a longer block would make this one unreadable.
        if status.st_size > len(block):
            os.ftruncate(fd, len(block))
    finally:
        os.close(fd)


def _move_away_what_is_no_file(path: str) -> None:
    """Rename a folder in the place of the block, unlink a symbolic link, a FIFO or a socket.

    Any of them there would make every later refresh fail.
    """
    move_folder_away(path)
    with suppress(FileNotFoundError):
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            retry_while_busy(lambda: os.unlink(path))


def move_folder_away(path: str) -> None:
    """Rename a folder in the place of a file of ours. Raises `OSError`."""
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            os.rename(path, path + ".old")


def remove_link(path: str) -> None:
    """Unlink a symbolic link in the place of a lock file, never the file of another process."""
    if sys.platform == "win32" or not os.path.islink(path):
        return
    with suppress(OSError):  # what takes the lock reports it
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            # Of two processes that see the link, the second would unlink the file that the first has locked.
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.islink(path):
                os.unlink(path)
        finally:
            os.close(folder)


def sync_folder(path: str) -> None:
    """Make a rename durable: the folder holds the name. Some file systems can't, which is no error."""
    if sys.platform == "win32":
        return
    with suppress(OSError):
        fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            sync(fd)
        finally:
            os.close(fd)


def make_folder(path: str) -> None:
    """Make the folder of `path` and the missing ones above it, each 0700. Raises `OSError`."""
    folder = os.path.dirname(path)
    if not folder or os.path.isdir(folder):
        return
    make_folder(folder)
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
        os.chmod(folder, 0o700)  # a umask like 0277 takes bits of the owner's


def make_private(fd: int) -> None:
    """Make an open file 0600. Raises `ModesUnsupported` where it stays readable by others."""
    # A mode given to open() is cut by the umask and ignored for a file that exists.
    if sys.platform == "win32":
        return
    try:
        os.fchmod(fd, PRIVATE)
    except OSError as refused:
        # FAT, exFAT and some network and FUSE mounts refuse it. Mounted with fmask=0077, their files are
        # private all the same.
        if os.fstat(fd).st_mode & 0o077:
            raise ModesUnsupported(refused.strerror) from None


def sync(fd: int) -> None:
    """Make the content of an open file durable. Raises `OSError`."""
    # On macOS fsync() leaves the data in the drive's cache. Not every file system there has F_FULLFSYNC
    # (fcntl(2)).
    if sys.platform != "win32" and (full := getattr(fcntl, "F_FULLFSYNC", None)) is not None:
        with suppress(OSError):
            fcntl.fcntl(fd, full)
            return
    os.fsync(fd)


def allocate(fd: int, size: int) -> None:
    """Make the file system set aside `size` bytes for an open file. Raises `OSError`."""
    if hasattr(os, "posix_fallocate"):
        try:
            # PyPy returns the error number instead of raising.
            if refused := os.posix_fallocate(fd, 0, size):  # type: ignore[func-returns-value]
                raise OSError(refused, os.strerror(refused))
            return
        except OSError as refusal:
            if refusal.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    write_all(fd, bytes(size))


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`: one os.write may write less. Raises `OSError`."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
