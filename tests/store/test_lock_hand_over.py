"""The lock in the hands of a helper: a contract with filelock, from 4.0 to the newest."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adh_auth import TokenFile
from adh_auth.store.file_lock import RotationLock
from adh_auth.store.inherited_lock import InheritedLock

from ..support.processes import PATIENCE, child

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs descriptors that a child inherits")


@pytest.fixture
def lock(tmp_path: Path) -> RotationLock:
    return _lock(tmp_path)


def _lock(folder: Path) -> RotationLock:
    return TokenFile(folder / "tokens.json").lock()


def _is_free(folder: Path) -> bool:
    other = _lock(folder)
    if not other.take():
        return False
    other.release()
    return True


def test_the_copy_holds_it(lock: RotationLock, tmp_path: Path) -> None:
    """Neither `release` nor the end of the object unlocks it; the end of the last copy does."""
    assert lock.take()
    copy = lock.descriptor()
    assert copy is not None
    assert copy.number() >= 3
    lock.hand_over()
    lock.release()
    assert not _is_free(tmp_path)
    del lock
    gc.collect()
    assert not _is_free(tmp_path)
    copy.close()
    assert _is_free(tmp_path)


def test_it_is_inherited(lock: RotationLock, tmp_path: Path) -> None:
    """A process that inherited the descriptor holds the lock until its end."""
    assert lock.take()
    copy = lock.descriptor()
    assert copy is not None
    holder = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[copy.number()]
    )
    copy.close()
    lock.hand_over()
    assert not _is_free(tmp_path)
    holder.communicate(b"\n")
    assert _is_free(tmp_path)


def test_the_same_object_takes_it_again(lock: RotationLock, tmp_path: Path) -> None:
    """A job waits for the lock that it has handed over."""
    assert lock.take()
    copy = lock.descriptor()
    lock.hand_over()
    assert not lock.take()
    assert copy is not None
    copy.close()
    assert lock.take()
    lock.release()


def test_a_lock_that_is_not_handed_over_is_held_as_before(lock: RotationLock, tmp_path: Path) -> None:
    """The copy alone changes nothing: its end does not unlock, and a release does."""
    assert lock.take()
    copy = lock.descriptor()
    assert copy is not None
    copy.close()
    assert not _is_free(tmp_path)
    Path(lock.path).rename(tmp_path / "aside")
    with pytest.raises(FileNotFoundError):
        lock.hand_over()
    (tmp_path / "aside").rename(lock.path)
    assert not _is_free(tmp_path)
    lock.release()
    assert _is_free(tmp_path)


def test_no_exit_hook_unlocks_it(tmp_path: Path) -> None:
    """filelock releases at the interpreter's end what it knows of."""
    code = f"""
import os, subprocess, sys
from adh_auth import TokenFile
lock = TokenFile({str(tmp_path / "tokens.json")!r}).lock()
assert lock.take()
copy = lock.descriptor()
subprocess.Popen([sys.executable, "-c", "input()"], pass_fds=[copy.number()])
lock.hand_over()
"""
    with child(code) as program:
        assert program.stdin is not None
        wait_for = program.wait(PATIENCE)
        assert wait_for == 0
        assert not _is_free(tmp_path)


def test_an_inherited_lock_is_unlocked_for_stray_copies(lock: RotationLock, tmp_path: Path) -> None:
    """A process that was forked at the wrong moment may have a copy of the descriptor."""
    assert lock.take()
    copy = lock.descriptor()
    assert copy is not None
    stray, inherited = os.dup(copy.number()), InheritedLock(lock.path, os.dup(copy.number()))
    copy.close()
    lock.hand_over()
    assert inherited.take()
    inherited.release()
    inherited.release()
    assert not inherited.take()
    assert _is_free(tmp_path)
    os.close(stray)
