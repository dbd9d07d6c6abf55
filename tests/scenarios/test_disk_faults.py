"""The disk: full, read-only, forbidden, limited, mounted file by file, without locks, refusing for a moment,
failing after the spend.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from adh_auth import AdhAuth, ReauthorizationRequired, TokenFile, TokenFileError
from adh_auth.common import limits
from adh_auth.rotation import attempt
from adh_auth.store import disk, reservation
from adh_auth.testing import Sandbox

from ..support.faults import ONE_CALL, auth_for, get, wait_until
from ..support.privileges import DROP, need_ordinary_rights
from ..support.processes import PATIENCE, assert_nothing_lost, child

# Where the next pair can't be written: no refresh call, an error that says what to do, the old pair intact.


@contextmanager
def mounted(target: Path, *arguments: str) -> Iterator[None]:
    """A mount for as long as the block lasts; the test is skipped where this user may mount nothing."""
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", *arguments, str(target)], check=False, capture_output=True).returncode
    ):
        pytest.skip("needs a mount: run as root, a container with --privileged")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(target)], check=True)


@pytest.fixture
def small_disk(sandbox: Sandbox, tmp_path: Path) -> Iterator[Path]:
    """A token file on a file system of half a megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    with mounted(folder, "-t", "tmpfs", "-o", "size=512k,mode=0700", "tmpfs"):
        yield sandbox.write_token_file(folder / "tokens.json")


def assert_refused_before_spending(
    sandbox: Sandbox, token_file: Path, call: Callable[[], None], *words: str
) -> None:
    """Reading works as long as the token does; then zero refresh calls, the old pair intact, and an error
    with these words.
    """
    before = token_file.read_bytes()
    sandbox.expire()
    with pytest.raises(TokenFileError) as caught:
        call()
    assert sandbox.counts.refresh_calls == 0
    assert token_file.read_bytes() == before
    for word in (str(token_file), *words):
        assert word in str(caught.value)


def test_full_file_system(sandbox: Sandbox, small_disk: Path) -> None:
    """A full disk is found out before the token is spent; freed, it is used without a restart."""
    auth, ballast = auth_for(sandbox, small_disk), small_disk.with_name("ballast")
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert get(sandbox, auth) == 200
    assert_refused_before_spending(
        sandbox, small_disk, lambda: _get(sandbox, auth), "No space left on device", "Free some space"
    )
    ballast.unlink()
    assert get(sandbox, auth) == 200
    assert_nothing_lost(sandbox, small_disk)


def test_read_only_mount(sandbox: Sandbox, small_disk: Path) -> None:
    """A read-only mount is found out before the token is spent; mounted writable, it is used without a
    restart.
    """
    auth = auth_for(sandbox, small_disk)
    subprocess.run(["mount", "-o", "remount,ro", small_disk.parent], check=True)
    assert get(sandbox, auth) == 200
    assert_refused_before_spending(
        sandbox,
        small_disk,
        lambda: _get(sandbox, auth),
        "Read-only file system",
        "Mount its file system writable",
    )
    subprocess.run(["mount", "-o", "remount,rw", small_disk.parent], check=True)
    assert get(sandbox, auth) == 200
    assert_nothing_lost(sandbox, small_disk)


def test_bind_mounted_token_file(sandbox: Sandbox, token_file: Path, tmp_path: Path) -> None:
    """A token file that is itself a mount point (`docker -v tokens.json:…`) can't be replaced, which is found
    out before the spend.
    """
    spot = tmp_path / "inside" / "tokens.json"
    spot.parent.mkdir()
    spot.touch(0o600)
    with mounted(spot, "--bind", str(token_file)):
        auth = auth_for(sandbox, spot)
        assert get(sandbox, auth) == 200
        assert_refused_before_spending(
            sandbox, spot, lambda: _get(sandbox, auth), "mounted as a single file", "mount its folder instead"
        )
    assert_nothing_lost(sandbox, token_file)


def test_token_file_marked_read_only(sandbox: Sandbox, token_file: Path) -> None:
    """A file that its owner has made read-only is not replaced, though its folder would allow that."""
    token_file.chmod(0o400)
    auth = auth_for(sandbox)
    assert get(sandbox, auth) == 200
    assert_refused_before_spending(
        sandbox, token_file, lambda: _get(sandbox, auth), "read-only", "Make it writable"
    )
    token_file.chmod(0o600)
    assert_nothing_lost(sandbox, token_file)


@pytest.fixture
def forbidden_folder(sandbox: Sandbox, tmp_path: Path) -> Iterator[Path]:
    """A token file that can be read and written, in a folder where nothing can be made."""
    need_ordinary_rights()
    folder = tmp_path / "forbidden"
    folder.mkdir()
    token_file = sandbox.write_token_file(folder / "tokens.json")
    folder.chmod(0o555)
    yield token_file
    folder.chmod(0o700)


@pytest.mark.parametrize("lock_exists", [False, True])
def test_folder_without_write_permission(sandbox: Sandbox, forbidden_folder: Path, lock_exists: bool) -> None:
    """Where the folder takes no new file, that is found out before the spend, whether at the lock or at the
    reserved room.
    """
    if lock_exists:
        lock = Path(f"{forbidden_folder}.lock")
        forbidden_folder.parent.chmod(0o755)
        lock.touch()
        forbidden_folder.parent.chmod(0o555)
    code = DROP + ONE_CALL + "import sys\ncall(); sys.stdin.readline(); call()"
    with child(code, sandbox.environment(forbidden_folder)) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "200"

        def call() -> None:
            _raise_what_it_says(process.communicate("\n", timeout=PATIENCE)[0])

        assert_refused_before_spending(
            sandbox, forbidden_folder, call, "Permission denied", "write access to its folder"
        )


def test_limit_on_file_sizes(sandbox: Sandbox, token_file: Path) -> None:
    """A limit that the next pair might not fit into (`RLIMIT_FSIZE`, and quotas like it) is found out before
    the spend.
    """
    code = ONE_CALL + "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\ncall()"

    def call() -> None:
        with child(code, sandbox.environment(token_file)) as process:
            _raise_what_it_says(process.communicate(timeout=PATIENCE)[0])

    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert_refused_before_spending(sandbox, token_file, call, "File too large", "ulimit -f")
    assert_nothing_lost(sandbox, token_file)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_file_system_without_locks(
    sandbox: Sandbox, token_file: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Without kernel locks no process goes on, and no marker file takes their place."""

    def flock(fd: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    auth = auth_for(sandbox)
    assert get(sandbox, auth) == 200
    assert_refused_before_spending(
        sandbox, token_file, lambda: _get(sandbox, auth), "without real locks", "Keep it on a local disk"
    )
    monkeypatch.undo()
    assert_nothing_lost(sandbox, token_file)


# File systems that keep no modes, or refuse to be asked for one. No image of such a one can be mounted
# everywhere: a process that makes each file 0777, whatever it asks for, stands for it.

MODELESS = """
import errno, os, stat, sys
def open_for_all(path, flags, mode=0o777, *, real=os.open, **more):
    return real(path, flags, 0o777, **more)
def fchmod(fd, mode):
    if CODE: raise OSError(CODE, os.strerror(CODE))
os.umask(0)
os.open, os.fchmod, CODE = open_for_all, fchmod, int(sys.argv[1])
"""


def _on_modeless(sandbox: Sandbox, token_file: Path, code: str, refusal: int = 0) -> tuple[str, str]:
    """What a program on such a file system says.

    `refusal`: the errno of each fchmod, 0 for one that changes nothing.
    """
    program = MODELESS.replace("int(sys.argv[1])", str(refusal)) + ONE_CALL + code
    with child(program, sandbox.environment(token_file)) as process:
        said, errors = process.communicate(timeout=PATIENCE)
    return said, errors


def test_file_system_without_modes(sandbox: Sandbox, token_file: Path) -> None:
    """NTFS, WSL's `/mnt/c`, CIFS: said once for a program and a file, whatever the number of refreshes, and
    never that it is private now.
    """
    token_file.chmod(0o777)
    said, errors = _on_modeless(
        sandbox, token_file, "AdhAuth().refresh(); AdhAuth().refresh(); AdhAuth().refresh(); call()"
    )
    assert said == "200\n"
    assert (
        errors.count("mode 0777): its file system keeps no modes") == 2
    )  # the log's last resort, and the warning
    assert errors.count("UserWarning") == 1
    assert "is private now" not in errors
    assert sandbox.counts.refresh_calls == 3
    assert_nothing_lost(sandbox, token_file)


def test_a_kill_on_a_file_system_without_modes(sandbox: Sandbox, token_file: Path) -> None:
    """The pair beside the file is found there as elsewhere, though others can reach it: no file there can be
    private.
    """
    token_file.chmod(0o777)
    sandbox.expire()
    _on_modeless(
        sandbox,
        token_file,
        "from adh_auth.store import reservation\n"
        "reservation.ReservedFile.install = lambda _: os._exit(9)\ncall()",
    )
    assert stat.S_IMODE(os.stat(f"{token_file}.new").st_mode) == 0o777
    assert _on_modeless(sandbox, token_file, "call()")[0] == "200\n"
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


refusals = pytest.mark.parametrize(
    "refusal", [errno.EPERM, errno.ENOTSUP, errno.EROFS, errno.ENOSYS, errno.EINVAL], ids=errno.errorcode.get
)


@refusals
def test_file_system_that_refuses_modes(sandbox: Sandbox, token_file: Path, refusal: int) -> None:
    """FAT and exFAT: reading works, the refusal is found before the spend, and the file system is named as
    its cause.
    """
    token_file.chmod(0o777)
    assert _on_modeless(sandbox, token_file, "call()", refusal)[0] == "200\n"

    def call() -> None:
        _raise_what_it_says(_on_modeless(sandbox, token_file, "call()", refusal)[0])

    assert_refused_before_spending(
        sandbox, token_file, call, "its file system can't make it private", os.strerror(refusal), "umask=077"
    )
    assert_nothing_lost(sandbox, token_file)


@refusals
def test_file_system_that_refuses_modes_and_is_private(
    sandbox: Sandbox, token_file: Path, refusal: int
) -> None:
    """Mounted so that only its owner can read it, such a one will do: there is nothing to be changed."""
    sandbox.expire()
    private = (
        "os.open, make = lambda path, flags, mode=0, **more: make(path, flags, 0o700, **more), "
        "open_for_all.__kwdefaults__['real']\n"
    )
    said, errors = _on_modeless(sandbox, token_file, private + "call(); AdhAuth().refresh()", refusal)
    assert (said, errors) == ("200\n", "")
    assert sandbox.counts.refresh_calls == 2
    assert_nothing_lost(sandbox, token_file)


def test_a_lock_file_that_refuses_its_mode_is_no_lack_of_locks(sandbox: Sandbox, token_file: Path) -> None:
    """FUSE says ENOSYS of both; what stands in the way is the mode, and that is what is said."""
    sandbox.expire()
    said, _ = _on_modeless(sandbox, token_file, "call()", errno.ENOSYS)
    assert "without real locks" not in said
    assert "can't make it private" in said


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_allocation_that_returns_its_error(
    sandbox: Sandbox, token_file: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """PyPy's `posix_fallocate` raises nothing: a full disk is found out before the spend all the same."""
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: code, raising=False)
    assert_refused_before_spending(
        sandbox, token_file, lambda: _get(sandbox, auth_for(sandbox)), os.strerror(code)
    )
    monkeypatch.undo()
    assert_nothing_lost(sandbox, token_file)


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_allocation_that_returns_that_it_cant(
    sandbox: Sandbox, token_file: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The space is then reserved by writing, as where the error is raised."""
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: code, raising=False)
    sandbox.expire()
    assert get(sandbox, auth_for(sandbox)) == 200
    assert_nothing_lost(sandbox, token_file)


@pytest.mark.parametrize("refused", [False, True])
def test_the_drive_is_asked_to_write_where_that_can_be_said(
    sandbox: Sandbox, token_file: Path, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    """macOS: `fsync` leaves the pair in the drive's cache, `F_FULLFSYNC` does not; a file system that refuses
    it gets an `fsync`.
    """
    asked, synced = [], []

    def control(fd: int, command: int, *rest: Any, real: Callable[..., Any] = fcntl.fcntl) -> Any:
        if command != 51:
            return real(fd, command, *rest)
        asked.append(os.fstat(fd).st_ino)
        if refused:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        return 0

    def fsync(fd: int, real: Callable[[int], None] = os.fsync) -> None:
        synced.append(os.fstat(fd).st_ino)
        real(fd)

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", control)
    monkeypatch.setattr(os, "fsync", fsync)
    sandbox.expire()
    assert get(sandbox, auth_for(sandbox)) == 200
    pair, folder = os.stat(token_file).st_ino, os.stat(token_file.parent).st_ino
    assert asked == [pair, folder]  # the pair before its rename, the folder after it
    assert synced == ([pair, pair, folder] if refused else [pair])  # the first is that of the reserved file


def _get(sandbox: Sandbox, auth: AdhAuth) -> None:
    get(sandbox, auth)


def _raise_what_it_says(line: str) -> None:
    kind, _, message = line.strip().partition(" ")
    assert kind == "TokenFileError", line
    raise TokenFileError(message)


# A write that fails after the spend.


class BadDisk:
    """Refuses at one step of the replacement until it is healed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
        self.bad = True
        self.refused = threading.Event()
        monkeypatch.setattr(attempt, "SAVE_PAUSES", (0.05,))
        if step == "rename":
            monkeypatch.setattr(os, "replace", self._unless_bad(os.replace))
        elif step == "fill":
            monkeypatch.setattr(
                reservation.ReservedFile, "fill", self._unless_bad(reservation.ReservedFile.fill)
            )
        else:
            monkeypatch.setattr(
                reservation.ReservedFile,
                "fill",
                self._before_a_bad_read(reservation.ReservedFile.fill, monkeypatch),
            )

    def _unless_bad(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def refusing(*arguments: Any) -> Any:
            if self.bad:
                self.refused.set()
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return work(*arguments)

        return refusing

    def _before_a_bad_read(
        self, fill: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., None]:
        """Once the reserved file is filled, the token file can't be read any more: the process has no
        descriptor left, say.
        """
        read = disk.read_regular

        def filled(reserved: reservation.ReservedFile, data: bytes) -> None:
            fill(reserved, data)
            monkeypatch.setattr(disk, "read_regular", self._unless_bad(read) if self.bad else read)

        return filled


each_step = pytest.mark.parametrize("step", ["rename", "fill", "read"])


@each_step
def test_write_that_fails_after_the_spend(
    sandbox: Sandbox,
    token_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: str,
) -> None:
    """This process goes on with the new pair, says so loudly, and writes it as soon as the disk is back."""
    before = token_file.read_bytes()
    bad, auth = BadDisk(monkeypatch, step), auth_for(sandbox)
    sandbox.expire()
    with pytest.warns(UserWarning, match="could not be written"):
        assert get(sandbox, auth) == 200
    assert get(sandbox, auth) == 200
    assert token_file.read_bytes() == before
    assert str(token_file) in caplog.text
    bad.bad = False
    wait_until(lambda: token_file.read_bytes() != before)
    monkeypatch.undo()
    assert_nothing_lost(sandbox, token_file)
    wait_until(lambda: "could be written again" in caplog.text)
    assert sandbox.counts.refresh_calls == 1


def test_nobody_else_spends_the_dead_token_meanwhile(
    sandbox: Sandbox, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one process holds the only copy of the pair, the others send nothing; their error says who has it
    and why.
    """
    bad, auth = BadDisk(monkeypatch, "rename"), auth_for(sandbox)
    sandbox.expire()
    with pytest.warns(UserWarning, match="could not be written"):
        assert get(sandbox, auth) == 200
    with child(ONE_CALL + "call()", sandbox.environment(token_file)) as other:
        said = other.communicate(timeout=PATIENCE)[0]
    assert said.startswith("TokenFileError")
    assert f"process {os.getpid()}" in said
    assert os.strerror(errno.EIO) in said
    assert sandbox.counts.refresh_calls == 1
    bad.bad = False
    wait_until(lambda: TokenFile(token_file).record().state == "done")
    assert_nothing_lost(sandbox, token_file)


def test_unsaved_pair_that_expires(
    sandbox: Sandbox, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the pair that could not be written expires too, its owner gets the reason at once."""
    token_file.write_text(json.dumps({**json.loads(token_file.read_bytes()), "expires_at": time.time() - 1}))
    bad, auth = BadDisk(monkeypatch, "rename"), auth_for(sandbox)
    sandbox.expire()
    with pytest.warns(UserWarning, match="could not be written"):
        assert get(sandbox, auth) == 200
    started = time.monotonic()
    with pytest.raises(TokenFileError, match="could not write it"):
        auth.refresh()
    assert time.monotonic() - started < limits.LOCK_TIMEOUT / 2
    bad.bad = False
    wait_until(lambda: TokenFile(token_file).record().state == "done")
    assert_nothing_lost(sandbox, token_file)


#: A process whose renames are refused, so that it holds the only copy; then it reads what to do.
UNSAVED = (
    ONE_CALL
    + """
import errno, sys, warnings
from adh_auth.store import disk, reservation
warnings.simplefilter("ignore")
real, healed = {target}, False
def refuse(*arguments):
    if healed: return real(*arguments)
    raise OSError(errno.EIO, "bad disk")
{target} = refuse
call()
healed = sys.stdin.readline().strip() == "heal"
"""
)


@contextmanager
def _unsaved(target: str, sandbox: Sandbox, token_file: Path) -> Iterator[subprocess.Popen[str]]:
    """A program that goes on with a pair which `target` keeps from being written."""
    with child(UNSAVED.replace("{target}", target), sandbox.environment(token_file)) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "200"
        yield process


@pytest.mark.parametrize("target", ["os.replace", "reservation.ReservedFile.fill"])
def test_program_that_ends_with_an_unsaved_pair(sandbox: Sandbox, token_file: Path, target: str) -> None:
    """A program that ends before its pair is written tries once more on its way out."""
    sandbox.expire()
    with _unsaved(target, sandbox, token_file) as process:
        process.communicate("heal\n", timeout=PATIENCE)
        assert process.returncode == 0
    assert_nothing_lost(sandbox, token_file)
    assert sandbox.counts.refresh_calls == 1


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_unsaved_pair_that_lies_beside_the_file(sandbox: Sandbox, token_file: Path, end: str) -> None:
    """Where the pair is in the reserved file, the next process finds it there though its owner
    has ended or been killed.
    """
    sandbox.expire()
    with _unsaved("os.replace", sandbox, token_file) as process:
        _end(process, end)
    with pytest.warns(UserWarning, match="was found beside it"):
        assert_nothing_lost(sandbox, token_file)
    assert sandbox.counts.refresh_calls == 1


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_unsaved_pair_that_is_gone(sandbox: Sandbox, token_file: Path, end: str) -> None:
    """Where the pair was in memory only and its owner is gone, the next process's error says when and by whom
    the token had been spent.
    """
    sandbox.expire()
    with _unsaved("reservation.ReservedFile.fill", sandbox, token_file) as process:
        _end(process, end)
    with pytest.raises(ReauthorizationRequired, match=f"lost at .*process {process.pid} on") as caught:
        get(sandbox, auth_for(sandbox))
    assert caught.value.reply_lost_at is not None
    assert sandbox.counts.refresh_calls == 2


def _end(process: subprocess.Popen[str], end: str) -> None:
    if end == "kill":
        process.send_signal(signal.SIGKILL)
    process.communicate("\n" if end == "exit" else None, timeout=PATIENCE)


# Windows' momentary refusals.


def _refusal(winerror: int) -> PermissionError:
    refusal = PermissionError(errno.EACCES, "refused for the moment")
    refusal.winerror = winerror  # type: ignore[attr-defined, unused-ignore]
    return refusal


def _refusing(work: Callable[..., Any], refusals: list[PermissionError], name: str) -> Callable[..., Any]:
    def sometimes(*arguments: Any, **named: Any) -> Any:
        if os.fspath(arguments[0]).endswith(name) and refusals:
            raise refusals.pop()
        return work(*arguments, **named)

    return sometimes


@pytest.mark.parametrize("winerror", disk.WINDOWS_BUSY_ERRORS)
def test_rename_refused_for_a_moment(
    sandbox: Sandbox, token_file: Path, monkeypatch: pytest.MonkeyPatch, winerror: int
) -> None:
    """A rename that a virus scanner holds up is tried again until it works, without a word to the caller."""
    refusals = [_refusal(winerror) for _ in range(4)]
    monkeypatch.setattr(os, "replace", _refusing(os.replace, refusals, ".new"))
    sandbox.expire()
    assert get(sandbox, auth_for(sandbox)) == 200
    assert not refusals
    assert_nothing_lost(sandbox, token_file)
    assert sandbox.counts.refresh_calls == 1


@pytest.mark.parametrize("winerror", disk.WINDOWS_BUSY_ERRORS)
def test_read_refused_for_a_moment(
    sandbox: Sandbox, token_file: Path, monkeypatch: pytest.MonkeyPatch, winerror: int
) -> None:
    """A read that meets another process's replacement is tried again until it works."""
    refusals = [_refusal(winerror) for _ in range(4)]
    monkeypatch.setattr(os, "open", _refusing(os.open, refusals, "tokens.json"))
    assert get(sandbox, auth_for(sandbox)) == 200
    assert not refusals


@pytest.mark.parametrize("call", ["unlink", "open"])
def test_reservation_refused_for_a_moment(
    sandbox: Sandbox, token_file: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """What a killed process has left behind may be held up by a scanner when it is cleared away, or opened,
    too.
    """
    leftover = Path(f"{token_file}.new")
    leftover.touch(0o600)
    refusals = [_refusal(32) for _ in range(2)]
    sandbox.expire()
    with monkeypatch.context() as patched:
        # Windows needs no such check; here the reserved file is opened for it, too, which takes a refusal for
        # a no.
        patched.setattr(reservation, "is_held", lambda _: False)
        real, refusing = getattr(os, call), _refusing(getattr(os, call), refusals, ".new")

        def of_the_reservation(path: Any, *rest: Any, **named: Any) -> Any:
            # The first to open it reads what was left behind.
            return (real if rest and not rest[0] & os.O_EXCL else refusing)(path, *rest, **named)

        patched.setattr(os, call, of_the_reservation)
        assert get(sandbox, auth_for(sandbox)) == 200
    assert not refusals
    assert_nothing_lost(sandbox, token_file)
    assert sandbox.counts.refresh_calls == 1


def test_refusal_that_lasts() -> None:
    """The tries come to an end after 2.5 seconds, and the refusal is raised."""

    def work() -> None:
        raise _refusal(5)

    started = time.monotonic()
    with pytest.raises(PermissionError):
        disk.retry_while_busy(work)
    assert disk.BUSY_TIMEOUT - 0.3 < time.monotonic() - started < disk.BUSY_TIMEOUT + 1.0


@pytest.mark.parametrize(
    "refusal", [_refusal(1314), PermissionError(errno.EACCES, "no")], ids=["a privilege", "POSIX"]
)
def test_other_refusals_are_final(refusal: PermissionError) -> None:
    """Only access denied, sharing violation and lock violation pass by themselves; anything else is raised at
    once.
    """
    calls = []

    def work() -> None:
        calls.append(1)
        raise refusal

    with pytest.raises(PermissionError):
        disk.retry_while_busy(work)
    assert len(calls) == 1
