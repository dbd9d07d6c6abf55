"""The cellar of the token file: bounded reads, room reserved before it is needed, durable replacement.

Knows bytes, not tokens.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

if sys.platform != "win32":
    import fcntl

__all__ = [
    "NoModes",
    "Room",
    "Unfit",
    "is_held",
    "loose_mode",
    "patiently",
    "read_regular",
    "trouble_with_replacing",
    "write_block",
]

T = TypeVar("T")

#: Bytes. A token file is about one kilobyte; nobody's has a megabyte.
FILE_LIMIT = 1024 * 1024
PRIVATE = 0o600
#: On Windows a virus scanner or an indexer holds a file for a moment: access denied, sharing violation, lock
#: violation.
WINDOWS_MOMENTARY = (5, 32, 33)
#: Seconds after which such a refusal is no moment any more (NousResearch/hermes-agent#79793 settled on about
#: this).
PATIENCE = 2.5

_BINARY = getattr(os, "O_BINARY", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)


class Unfit(OSError):
    """A file that is not what a token file may be; the message is the reason."""


class NoModes(OSError):
    """A file system that can't make a file private; the message is what it says."""


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
        fd = patiently(lambda: os.open(path, os.O_RDONLY | _NONBLOCK | _BINARY))
    except OSError as refused:
        if refused.errno == errno.ENXIO:  # a socket
            raise Unfit("it is no regular file") from None
        raise
    try:
        status = os.fstat(fd)
        _require_ours(status)
        return _read_all(fd), status
    finally:
        os.close(fd)


def _require_ours(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Unfit("it is no regular file")
    if status.st_size > FILE_LIMIT:
        raise Unfit(f"it is larger than {FILE_LIMIT} bytes")
    if sys.platform != "win32" and status.st_uid not in (os.geteuid(), 0):
        raise Unfit(f"it belongs to another user (uid {status.st_uid})")


def _read_all(fd: int) -> bytes:
    chunks = []
    room = FILE_LIMIT + 1
    while room > 0 and (chunk := os.read(fd, min(room, 65536))):
        chunks.append(chunk)
        room -= len(chunk)
    if room <= 0:
        raise Unfit(f"it is larger than {FILE_LIMIT} bytes")
    return b"".join(chunks)


def trouble_with_replacing(path: str) -> str | None:
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
    fd = os.open(path, os.O_RDONLY | _NONBLOCK)
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


def make_file(path: str) -> None:
    """Make an empty file, as private as its file system can; one that is there stays as it is.

    Raises `OSError`.
    """
    with suppress(FileExistsError):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _BINARY, PRIVATE)
        try:
            with suppress(NoModes):
                _make_private(fd)
        finally:
            os.close(fd)


def write_block(path: str, block: bytes) -> None:
    """Write one small block in place, private from birth. Raises `OSError`."""
    _clear_away(path)
    fd = patiently(lambda: os.open(path, os.O_WRONLY | os.O_CREAT | _NOFOLLOW | _NONBLOCK | _BINARY, PRIVATE))
    try:
        status = os.fstat(fd)
        _require_ours(status)
        if (
            status.st_nlink > 1
        ):  # planted: what is written here would land in a file that is called something else, too
            raise Unfit(f"{path} has a second name")
        _make_private(fd)
        _write_all(fd, block)
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


class Room:
    """Room on disk for the next content of a file: same folder, mode 0600 from birth, full length.

    There is one name for it, taken under the rotation's lock: what a kill leaves behind is found, and used or
    removed, by the next. It is locked itself while it is open, for the other lock is a file that anybody may
    remove: see `is_held`.
    """

    def __init__(self, target: str, size: int) -> None:
        self.target = target
        self.path = room_path(target)
        if is_held(self.path):
            raise BlockingIOError(
                errno.EAGAIN, "another process is writing it, and its lock file was removed meanwhile"
            )
        self._fd: int | None = None
        self._content = b""
        _rooms.add(self)
        try:
            fd = self._open_anew()
            _allocate(fd, size)
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
            flags = os.O_RDWR | os.O_CREAT | _NOFOLLOW | _NONBLOCK | _BINARY
            self._fd = patiently(lambda: os.open(self.path, flags, PRIVATE))
            _require_ours(os.fstat(self._fd))
            _hold(self._fd)
            _make_private(self._fd)
        os.lseek(self._fd, 0, os.SEEK_SET)
        _write_all(self._fd, data)
        os.ftruncate(self._fd, len(data))
        _sync(self._fd)

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
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _BINARY
        self._fd = fd = patiently(lambda: os.open(self.path, flags, PRIVATE))
        _hold(fd)
        _make_private(fd)
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
_rooms: weakref.WeakSet[Room] = weakref.WeakSet()


def _close_rooms() -> None:
    # They are the parent's. A copy of the descriptor would hold its lock after the parent is gone.
    for room in list(_rooms):
        room.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_rooms)


def _hold(fd: int) -> None:
    if sys.platform != "win32":
        with suppress(OSError):  # a second guard: where there are no locks, the first has said so
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_held(path: str) -> bool:
    """Whether a living process has that room open: a rotation is under way, whoever has the lock."""
    if sys.platform == "win32":
        return False  # no file that is open is removed there, the lock neither
    try:
        fd = os.open(path, os.O_RDWR | _NOFOLLOW | _NONBLOCK)
    except OSError:
        return False
    try:
        _require_ours(os.fstat(fd))
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as refused:
        return refused.errno in (errno.EAGAIN, errno.EACCES)
    else:
        return False
    finally:
        os.close(fd)


def room_path(target: str) -> str:
    """Where the next content of `target` is prepared."""
    return target + ".new"


def left_behind(target: str) -> bytes | None:
    """What a process that was killed had put into its room; None where there is nothing of ours."""
    try:
        if stat.S_ISLNK(os.lstat(room_path(target)).st_mode):
            return None
        data, status = read_regular(room_path(target))
    except (FileNotFoundError, PermissionError, Unfit):
        return None
    private = sys.platform == "win32" or (
        status.st_uid == os.geteuid() and not (status.st_mode & 0o077 and _keeps_modes(room_path(target)))
    )
    # Allocated room that was never written reads as zeros.
    return data.rstrip(b"\0") if private and status.st_nlink == 1 else None


def _keeps_modes(path: str) -> bool:
    """Whether that file, which others can reach, could have been private: where no file can, its mode says
    nothing of who made it.
    """
    fd = os.open(path, os.O_RDONLY | _NOFOLLOW | _NONBLOCK)
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


def install_left_behind(target: str) -> None:
    """Finish the replacement that a kill cut short."""
    fd = patiently(lambda: os.open(room_path(target), os.O_RDWR | _NOFOLLOW | _BINARY))
    try:
        data = _read_all(fd).rstrip(b"\0")
        os.ftruncate(fd, len(data))
        _sync(fd)
    finally:
        os.close(fd)
    patiently(lambda: os.replace(room_path(target), target))
    sync_folder(target)


def sync_folder(path: str) -> None:
    """Make a rename durable: the name lives in the folder.

    Some file systems can't, and then there is nothing to do about it.
    """
    if sys.platform == "win32":
        return
    with suppress(OSError):
        fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            _sync(fd)
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


def _make_private(fd: int) -> None:
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


def loose_mode(path: str) -> int:
    """The mode of a file that others can read or write; 0 for a private one."""
    if sys.platform == "win32":
        return 0
    with suppress(OSError):
        mode = stat.S_IMODE(os.stat(path).st_mode)
        return mode if mode & 0o077 else 0
    return 0


def _sync(fd: int) -> None:
    # On macOS fsync() leaves the data in the drive's own cache; not every file system there has the other
    # (fcntl(2)).
    if sys.platform != "win32" and (full := getattr(fcntl, "F_FULLFSYNC", None)) is not None:
        with suppress(OSError):
            fcntl.fcntl(fd, full)
            return
    os.fsync(fd)


def _allocate(fd: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            # PyPy returns the error, and raises none.
            if refused := os.posix_fallocate(fd, 0, size):  # type: ignore[func-returns-value]
                raise OSError(refused, os.strerror(refused))
            return
        except OSError as refusal:
            if refusal.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    _write_all(fd, bytes(size))


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
