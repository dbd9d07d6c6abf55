"""No other user can read the session on disk.

What lies in its place neither hangs a refresh, nor signs it in as another user, nor is overwritten.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from adh_auth import AdhAuth, TokenFile, TokenFileError, Tokens
from adh_auth.store import disk, reservation
from adh_auth.store.record import SENDING, Record
from adh_auth.testing import Sandbox
from adh_auth.tokens import fingerprint

from ..support.privileges import STRANGER, gives_away

if sys.platform == "win32":
    pytest.skip("needs modes, owners and FIFOs: run it on a POSIX system", allow_module_level=True)

PAIR = Tokens("adh_mine", "adh_rt_mine")
# Whatever hangs, hangs in an open() or a read(): far longer than any of these takes.
pytestmark = pytest.mark.timeout(30)


def mode(path: Path | str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """Sets the umask until the end of the test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.fixture
def auth(arguments: dict[str, Any]) -> AdhAuth:
    return AdhAuth(**arguments)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of this user's that another user would like us to overwrite."""
    path = tmp_path / "victim"
    path.write_bytes(b"precious" * 1000)
    path.chmod(0o644)
    return path


def is_untouched(victim: Path) -> bool:
    return victim.read_bytes() == b"precious" * 1000 and mode(victim) == 0o644


# Modes.


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o277, 0o777])
def test_every_file_is_private_under_any_umask(
    mask: int, tmp_path: Path, sandbox: Sandbox, umask: Callable[[int], int]
) -> None:
    """After a sign-in and a refresh each file is 0600 and the folder that was made for them 0700."""
    umask(mask)
    folder = tmp_path / "made" / "here"
    TokenFile(folder / "tokens.json").save(Tokens.from_response(sandbox.sign_in()))
    _auth(sandbox, folder / "tokens.json").refresh()
    assert {path.name: mode(path) for path in folder.iterdir()} == dict.fromkeys(
        ("tokens.json", "tokens.json.lock", "tokens.json.record"), 0o600
    )
    assert mode(folder) == mode(folder.parent) == 0o700


def test_every_file_is_private_from_birth(
    tmp_path: Path, sandbox: Sandbox, umask: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a moment too late: even where nothing is changed after its making, under an umask that leaves all
    bits.
    """
    umask(0)
    monkeypatch.setattr(os, "fchmod", lambda *_: None)
    monkeypatch.setattr(os, "chmod", lambda *_, **__: None)
    modes: list[int] = []
    install = reservation.ReservedFile.install

    def observed(reserved: reservation.ReservedFile) -> None:
        modes.append(mode(reserved.path))
        install(reserved)

    monkeypatch.setattr(reservation.ReservedFile, "install", observed)
    folder = tmp_path / "made"
    TokenFile(folder / "tokens.json").save(Tokens.from_response(sandbox.sign_in()))
    _auth(sandbox, folder / "tokens.json").refresh()
    assert modes == [0o600, 0o600]
    assert [mode(path) for path in folder.iterdir()] == [0o600] * 3
    assert mode(folder) == 0o700


def test_a_folder_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    """It is not ours to lock others out of."""
    tmp_path.chmod(0o755)
    TokenFile(tmp_path / "tokens.json").save(PAIR)
    assert mode(tmp_path) == 0o755


@pytest.mark.parametrize("loose", [0o644, 0o640, 0o604, 0o666])
def test_a_loose_file_is_tightened_at_the_next_write(
    loose: int, token_file: Path, auth: AdhAuth, caplog: pytest.LogCaptureFixture
) -> None:
    """With one warning, which says what the mode was; reading alone changes nothing."""
    token_file.chmod(loose)
    assert auth.tokens
    assert mode(token_file) == loose
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        auth.refresh()
        auth.refresh()
    assert mode(token_file) == 0o600
    for said in ([str(item.message) for item in caught], [item.getMessage() for item in caplog.records]):
        assert [f"mode {loose:04o}" in message and str(token_file) in message for message in said] == [True]


def test_a_loose_record_is_tightened(token_file: Path, auth: AdhAuth) -> None:
    """The record holds no secret, but another user who writes to it could keep us from refreshing."""
    record = Path(f"{token_file}.record")
    record.write_bytes(b"{}")
    record.chmod(0o666)
    auth.refresh()
    assert mode(record) == 0o600


# What may lie in the place of the token file.


@gives_away
def test_a_file_of_another_user_is_refused(token_file: Path, auth: AdhAuth, sandbox: Sandbox) -> None:
    """Its owner could read what we write there, and choose whose session we use."""
    os.chown(token_file, STRANGER, -1)
    before = token_file.read_bytes()
    for work in (lambda: auth.tokens, auth.refresh, lambda: TokenFile(token_file).save(PAIR), auth.revoke):
        with pytest.raises(TokenFileError, match="belongs to another user"):
            work()
    assert (token_file.read_bytes(), os.stat(token_file).st_uid) == (before, STRANGER)
    assert sandbox.counts.refresh_calls == 0


def _fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def _folder(path: Path) -> None:
    path.mkdir()


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _gigabyte(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 30)
    path.chmod(0o600)


def _socket(path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as bound:
        here = os.getcwd()
        os.chdir(path.parent)  # the path of a socket is 107 bytes at most
        try:
            bound.bind(path.name)
        finally:
            os.chdir(here)


@pytest.mark.parametrize(
    "put", [_fifo, _folder, _device, _gigabyte, _socket], ids=lambda put: put.__name__[1:]
)
def test_what_is_no_token_file_is_refused(
    put: Callable[[Path], None], token_file: Path, auth: AdhAuth, sandbox: Sandbox
) -> None:
    """No hang, no gigabyte in memory: an error names the file, and what lies there stays."""
    token_file.unlink()
    put(token_file)
    kind = os.lstat(token_file).st_mode
    tracemalloc.start()
    try:
        for work in (lambda: auth.tokens, auth.refresh, lambda: TokenFile(token_file).save(PAIR)):
            with pytest.raises(TokenFileError) as caught:
                work()
            assert str(token_file) in str(caught.value)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    assert os.lstat(token_file).st_mode == kind
    assert sandbox.counts.refresh_calls == 0


def test_a_file_that_grows_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size that it had when it was opened is no promise."""
    path = tmp_path / "tokens.json"
    _gigabyte(path)
    real = os.fstat

    def small(fd: int) -> os.stat_result:
        status = real(fd)
        return os.stat_result((*status[:6], 10, *status[7:]))

    monkeypatch.setattr(os, "fstat", small)
    with pytest.raises(TokenFileError, match="larger than"):
        TokenFile(path).load()


# What may lie beside it, planted by a user who can write to the folder.


@pytest.mark.parametrize("suffix", [".lock", ".record", ".new"])
def test_a_planted_symlink_leads_nowhere(
    suffix: str, token_file: Path, auth: AdhAuth, victim: Path, sandbox: Sandbox
) -> None:
    """The link is removed, and the pair lands in a file of our own. The file that it leads to is neither
    written, emptied nor made private.
    """
    os.symlink(victim, f"{token_file}{suffix}")
    auth.refresh()
    assert is_untouched(victim)
    assert not os.path.islink(f"{token_file}{suffix}")
    assert not token_file.is_symlink()
    assert mode(token_file) == 0o600
    assert sandbox.counts.rotations == 1


def test_a_symlink_to_nowhere_stops_no_refresh(token_file: Path, auth: AdhAuth) -> None:
    """It is removed, and nothing is made in the place that it names."""
    for suffix in (".lock", ".record", ".new"):
        os.symlink("nowhere", f"{token_file}{suffix}")
    auth.refresh()
    assert not token_file.with_name("nowhere").exists()


def test_a_lock_file_of_another_process_is_not_unlinked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has removed the link and made its lock file, between two looks of ours."""
    lock = tmp_path / "tokens.json.lock"
    lock.touch()
    seen = iter([True, False])
    monkeypatch.setattr(os.path, "islink", lambda _: next(seen))
    disk.remove_link(str(lock))
    assert lock.exists()


def test_a_folder_in_the_place_of_the_reserved_file(
    token_file: Path, auth: AdhAuth, sandbox: Sandbox
) -> None:
    """Whether it comes before a refresh or during it, it is moved away, and the pair is written."""
    reserved = Path(f"{token_file}.new")
    reserved.mkdir()
    auth.refresh()
    Path(f"{reserved}.old").rmdir()
    with sandbox.hold_next() as hold, ThreadPoolExecutor(1) as thread:
        pair = thread.submit(auth.refresh)
        hold.wait(10)
        reserved.unlink()
        reserved.mkdir()
        hold.release()
        assert pair.result(10) == TokenFile(token_file).load()
    assert Path(f"{reserved}.old").is_dir()


@pytest.mark.parametrize("suffix", [".lock", ".record"])
def test_a_planted_second_name_is_not_written_through(
    suffix: str, token_file: Path, auth: AdhAuth, victim: Path, sandbox: Sandbox
) -> None:
    """A hard link to another file of ours, in the place of a file that we write: that one is neither emptied
    nor overwritten.
    """
    os.link(victim, f"{token_file}{suffix}")
    with pytest.raises(TokenFileError, match="second name"):
        auth.refresh()
    assert is_untouched(victim)
    assert sandbox.counts.refresh_calls == 0


@pytest.mark.parametrize("suffix", [".lock", ".record", ".new"])
@pytest.mark.parametrize("put", [_fifo, _folder, _device], ids=lambda put: put.__name__[1:])
def test_nothing_beside_it_hangs_us(
    suffix: str, put: Callable[[Path], None], token_file: Path, auth: AdhAuth, sandbox: Sandbox
) -> None:
    """A FIFO, a folder or a device there: a pair or a typed error, and never a token that was spent for
    nothing.
    """
    put(Path(f"{token_file}{suffix}"))
    before = TokenFile(token_file).load()
    try:
        auth.refresh()
    except TokenFileError:
        assert TokenFile(token_file).load() == before
        assert sandbox.counts.rotations == 0
    else:
        assert TokenFile(token_file).load() != before


def _owned_by_another_user(reserved: Path) -> None:
    os.chown(reserved, STRANGER, -1)


def _readable_by_others(reserved: Path) -> None:
    reserved.chmod(0o644)


def _with_a_second_name(reserved: Path) -> None:
    os.link(reserved, f"{reserved}.other")


def _behind_a_symlink(reserved: Path) -> None:
    os.rename(reserved, f"{reserved}.other")
    reserved.symlink_to(f"{reserved}.other")


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(_owned_by_another_user, marks=gives_away),
        _readable_by_others,
        _with_a_second_name,
        _behind_a_symlink,
    ],
    ids=lambda plant: plant.__name__[1:],
)
def test_a_planted_pair_is_not_taken_for_one_left_behind(
    plant: Callable[[Path], None], token_file: Path, auth: AdhAuth, sandbox: Sandbox
) -> None:
    """The reserved file is read after a kill.

    A pair that another user has put there would sign us in as that user.
    """
    stored = TokenFile(token_file).load()
    TokenFile(token_file).note(
        Record(number=1, about=fingerprint(stored.refresh_token), state=SENDING, at=1.0, pid=1, host="here")
    )
    reserved = Path(f"{token_file}.new")
    reserved.write_text(json.dumps({"access_token": "adh_planted", "refresh_token": "adh_rt_planted"}))
    reserved.chmod(0o600)
    plant(reserved)
    assert auth.refresh().access_token != "adh_planted"
    assert sandbox.counts.rotations == 1


def test_a_check_of_a_planted_file_leaves_its_mode(token_file: Path) -> None:
    """Checking whether its file system keeps modes leaves the mode as it was.

    A planted file left private would pass for ours.
    """
    reserved = Path(f"{token_file}.new")
    reserved.write_text(json.dumps({"access_token": "adh_planted", "refresh_token": "adh_rt_planted"}))
    reserved.chmod(0o646)
    for _ in range(2):
        assert TokenFile(token_file).left_behind() is None
        assert mode(reserved) == 0o646


def test_a_reserved_file_in_use_is_not_taken(tmp_path: Path) -> None:
    """Two rotations at once, as the first one's lock file was removed before it reserved its file: the second
    is refused, the first succeeds.
    """
    target = str(tmp_path / "tokens.json")
    reserved = reservation.ReservedFile(target, 100)
    with pytest.raises(BlockingIOError, match="another process"):
        reservation.ReservedFile(target, 100)
    reserved.fill(b"a pair")
    reserved.install()
    assert Path(target).read_bytes() == b"a pair"
    reservation.ReservedFile(target, 100).discard()


def _symlink_to(victim: Path, reserved: str) -> None:
    os.symlink(victim, reserved)


def _other_users_file(victim: Path, reserved: str) -> None:
    Path(reserved).touch()
    os.chown(reserved, STRANGER, -1)


def _fifo_there(victim: Path, reserved: str) -> None:
    os.mkfifo(reserved)


@pytest.mark.parametrize(
    "plant",
    [_symlink_to, pytest.param(_other_users_file, marks=gives_away), _fifo_there],
    ids=lambda plant: plant.__name__[1:],
)
def test_the_only_copy_is_not_written_into_a_plant(
    plant: Callable[[Path, str], None], tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pair whose rename was refused is written again and again.

    A file planted in its place meanwhile is refused.
    """
    reserved = reservation.ReservedFile(str(tmp_path / "tokens.json"), 100)
    reserved.fill(b"a pair")
    with monkeypatch.context() as patched, pytest.raises(OSError, match="busy"):
        patched.setattr(os, "replace", _busy)
        reserved.install()
    os.unlink(reserved.path)
    plant(victim, reserved.path)
    with pytest.raises(OSError, match=r"."):
        reserved.fill(b"a pair")
    reserved.discard()
    assert is_untouched(victim)


def _busy(*_: object) -> None:
    raise OSError("busy")


def test_a_reader_never_meets_a_half_written_file(tmp_path: Path) -> None:
    """While it is replaced over and over, each read gives one pair or the other, and a private file."""
    file = TokenFile(tmp_path / "tokens.json")
    pairs = [Tokens(f"adh_{letter * 2000}", f"adh_rt_{letter}") for letter in "ab"]
    file.save(pairs[0])
    done = threading.Event()

    def rewrite() -> None:
        for number in range(60):
            file.save(pairs[number % 2])
        done.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    while not done.is_set():
        read = file.load()
        assert (read.access_token, read.refresh_token) in [
            (pair.access_token, pair.refresh_token) for pair in pairs
        ]
        assert mode(file.path) == 0o600
    writer.join()


def _auth(sandbox: Sandbox, path: Path) -> AdhAuth:
    return AdhAuth(
        path, client_id=sandbox.client_id, client_secret=sandbox.client_secret, base_url=sandbox.url
    )
