"""The cellar of the token file: bounded reads, room reserved before it is needed, durable replacement.

Knows bytes, not tokens.
"""

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
from .file_checks import BINARY, NOFOLLOW, NONBLOCK, PRIVATE, NoModes, Unfit, require_ours

__all__ = ["patiently", "read_regular", "write_block"]

T = TypeVar("T")
#: On Windows a virus scanner or an indexer holds a file for a moment: access denied, sharing violation, lock
#: violation.
WINDOWS_MOMENTARY = (5, 32, 33)
#: Seconds after which such a refusal is no moment any more (NousResearch/hermes-agent#79793 settled on about
#: this).
PATIENCE = 2.5


def patiently(work: Callable[[], T]) -> T:
    """Do `work`, again for a while where Windows refuses it for the moment."""
    slept, pause = 0.0, 0.01
    while True:
        try:
            return work()
        except PermissionError as refused:
            # Counted, for a test may have stopped the clock.
            if getattr(refused, "winerror", None) not in WINDOWS_MOMENTARY or slept + pause > PATIENCE:
                raise
        time.sleep(pause)
        slept += pause
        pause = min(2 * pause, 0.2)


def read_regular(path: str) -> tuple[bytes, os.stat_result]:
    """The content and the state of a regular file of ours (or root's).

    Raises `OSError`, `Unfit` among them.
    """
    # Without O_NONBLOCK, opening a FIFO waits for a writer for ever.
    try:
        fd = patiently(lambda: os.open(path, os.O_RDONLY | NONBLOCK | BINARY))
    except OSError as refused:
        if refused.errno == errno.ENXIO:  # a socket
            raise Unfit("it is no regular file") from None
        raise
    try:
        status = os.fstat(fd)
        require_ours(status)
        return read_all(fd), status
    finally:
        os.close(fd)


def read_all(fd: int) -> bytes:
    chunks = []
    room = MAX_READ_BYTES + 1
    while room > 0 and (chunk := os.read(fd, min(room, 65536))):
        chunks.append(chunk)
        room -= len(chunk)
    if room <= 0:
        raise Unfit(f"it is larger than {MAX_READ_BYTES} bytes")
    return b"".join(chunks)


def make_file(path: str) -> None:
    """Make an empty file, as private as its file system can; one that is there stays as it is.

    Raises `OSError`.
    """
    with suppress(FileExistsError):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW | BINARY, PRIVATE)
        try:
            with suppress(NoModes):
                make_private(fd)
        finally:
            os.close(fd)


def write_block(path: str, block: bytes) -> None:
    """Write one small block in place, private from birth. Raises `OSError`."""
    _clear_away(path)
    fd = patiently(lambda: os.open(path, os.O_WRONLY | os.O_CREAT | NOFOLLOW | NONBLOCK | BINARY, PRIVATE))
    try:
        status = os.fstat(fd)
        require_ours(status)
        if (
            status.st_nlink > 1
        ):  # planted: what is written here would land in a file that is called something else, too
            raise Unfit(f"{path} has a second name")
        make_private(fd)
        write_all(fd, block)
        if status.st_size > len(
            block
        ):  # what is left of a longer one would make the whole unreadable, for ever
            os.ftruncate(fd, len(block))
    finally:
        os.close(fd)


def _clear_away(path: str) -> None:
    """Make way where something else than a file stands in the place of a record: nothing depends on that but
    courtesy.
    """
    with suppress(FileNotFoundError):
        mode = os.lstat(path).st_mode
        if stat.S_ISDIR(mode):
            os.rename(path, path + ".old")
        elif stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            patiently(lambda: os.unlink(path))


def sync_folder(path: str) -> None:
    """Make a rename durable: the name lives in the folder.

    Some file systems can't, and then there is nothing to do about it.
    """
    if sys.platform == "win32":
        return
    with suppress(OSError):
        fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            sync(fd)
        finally:
            os.close(fd)


def make_folder(path: str) -> None:
    """Make the folder of `path`, and those above it that are missing, each 0700 whatever the umask."""
    folder = os.path.dirname(path)
    if not folder or os.path.isdir(folder):
        return
    make_folder(folder)
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
        os.chmod(folder, 0o700)  # the umask may have taken bits of our own


def make_private(fd: int) -> None:
    # A mode given to open() is cut by the umask and ignored for a file that exists.
    if sys.platform == "win32":
        return
    try:
        os.fchmod(fd, PRIVATE)
    except OSError as refused:
        # FAT, exFAT and some network and FUSE mounts refuse it. Mounted with a mask for others (fmask=0077),
        # they are private enough.
        if os.fstat(fd).st_mode & 0o077:
            raise NoModes(refused.strerror) from None


def sync(fd: int) -> None:
    # On macOS fsync() leaves the data in the drive's own cache; not every file system there has the other
    # (fcntl(2)).
    if sys.platform != "win32" and (full := getattr(fcntl, "F_FULLFSYNC", None)) is not None:
        with suppress(OSError):
            fcntl.fcntl(fd, full)
            return
    os.fsync(fd)


def allocate(fd: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            # PyPy returns the error, and raises none.
            if refused := os.posix_fallocate(fd, 0, size):  # type: ignore[func-returns-value]
                raise OSError(refused, os.strerror(refused))
            return
        except OSError as refusal:
            if refusal.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    write_all(fd, bytes(size))


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
