"""SIGKILL at every step of a rotation and at 200 random moments.

Rules 3 and 4: the session is lost only between the server's commit and our write.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest

from adh_auth import ReauthorizationRequired, TokenFile, TokenFileError, Tokens
from adh_auth.common import limits
from adh_auth.store import disk
from adh_auth.testing import Sandbox

from ..support.faults import ONE_CALL, auth_for, get, wait_until
from ..support.processes import PATIENCE, assert_nothing_lost, child

#: A call whose process kills itself at one exact moment: "before" or "after" a step of the rotation, or
#: inside the replacement.
SUICIDE = (
    ONE_CALL
    + """
import signal
from adh_auth.rotation import attempt, transaction
from adh_auth.store import disk, reservation
moment = os.environ["MOMENT"]
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
def step(name, work, real=transaction.Step):
    def watched():
        if moment == "before " + name: die()
        value = work()
        if moment == "after " + name: die()
        return value
    return real(name, watched)
transaction.Step = attempt.Step = step
def half(reserved, data):
    os.write(reserved._fd, data[: len(data) // 2])
    die()
if moment == "in the middle of the content": reservation.ReservedFile.fill = half
if moment == "with the content, before its length": os.ftruncate = die
if moment == "before the rename": os.replace = die
if moment == "after the rename": reservation.sync_folder = die
call()
print("alive")
"""
)

#: Nothing was sent yet, or the pair is on disk, in the temporary file beside the token file at least.
HARMLESS = [
    *(
        "before " + name
        for name in ("look", "lock", "reread", "recover", "reserve", "note", "send", "unlock")
    ),
    *("after " + name for name in ("lock", "reserve", "note", "write", "unlock")),
    "with the content, before its length",
    "before the rename",
    "after the rename",
]
#: The server has committed, and the new pair is nowhere but in the process.
THE_WINDOW = ["after send", "before write", "in the middle of the content"]


def _killed(sandbox: Sandbox, token_file: Path, moment: str) -> int:
    """Return the process id of a process that was killed at that moment."""
    sandbox.expire()
    with child(SUICIDE, {**sandbox.environment(token_file), "MOMENT": moment}) as process:
        said = process.communicate(timeout=PATIENCE)
        assert process.returncode == -signal.SIGKILL, said
    return process.pid


@pytest.mark.parametrize("moment", HARMLESS)
def test_killed_where_nothing_is_lost(sandbox: Sandbox, token_file: Path, moment: str) -> None:
    """A kill before the token is sent, or after the new pair is on disk, costs nothing: the next client goes
    on, and spends nothing twice.
    """
    _killed(sandbox, token_file, moment)
    TokenFile(token_file).load()
    assert get(sandbox, auth_for(sandbox)) == 200
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)
    assert not Path(f"{token_file}.new").exists()


@pytest.mark.parametrize("moment", THE_WINDOW)
def test_killed_in_the_window(sandbox: Sandbox, token_file: Path, moment: str) -> None:
    """Between the commit and the disk no client can help: the file still parses, and the error says which
    process ended with the reply.
    """
    before = token_file.read_bytes()
    pid = _killed(sandbox, token_file, moment)
    assert token_file.read_bytes() == before
    with pytest.raises(
        ReauthorizationRequired, match=f"process {pid} on .* ended before it had saved the reply"
    ):
        auth_for(sandbox).refresh()
    assert sandbox.counts.refresh_calls == 2
    sandbox.write_token_file(token_file)
    assert_nothing_lost(sandbox, token_file, reused=1)


@pytest.mark.parametrize("moment", THE_WINDOW)
def test_killed_in_the_window_with_grace(sandbox: Sandbox, token_file: Path, moment: str) -> None:
    """On a server with a grace window not even that costs the session."""
    sandbox.grace = 60
    _killed(sandbox, token_file, moment)
    assert get(sandbox, auth_for(sandbox)) == 200
    assert_nothing_lost(sandbox, token_file)


def test_sign_in_just_before_the_recovery(
    sandbox: Sandbox, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed process has left does not replace a sign-in that comes while it is read."""
    _killed(sandbox, token_file, "before the rename")
    newer: list[bytes] = []

    def left_behind(file: TokenFile, real: Callable[[TokenFile], Any] = TokenFile.left_behind) -> Any:
        found = real(file)
        newer.append(sandbox.write_token_file(token_file).read_bytes())
        return found

    monkeypatch.setattr(TokenFile, "left_behind", left_behind)
    assert get(sandbox, auth_for(sandbox)) == 200
    assert [token_file.read_bytes()] == newer
    assert_nothing_lost(sandbox, token_file)


def test_leftover_that_cant_be_read_for_the_moment(
    sandbox: Sandbox, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process without a free descriptor does not go on as if there were no pair beside the file.

    It would send the spent token again.
    """
    _killed(sandbox, token_file, "before the rename")

    def read(path: str, real: Callable[[str], Any] = disk.read_regular) -> Any:
        if path.endswith(".new"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path)

    monkeypatch.setattr(disk, "read_regular", read)
    with pytest.raises(TokenFileError, match="Too many open files"):
        auth_for(sandbox).refresh()
    monkeypatch.undo()
    assert_nothing_lost(sandbox, token_file)
    assert sandbox.counts.refresh_calls == 1


def test_killed_after_the_commit(sandbox: Sandbox, token_file: Path) -> None:
    """A process that is killed while it waits for the reply leaves a file that parses; the error names it."""
    sandbox.expire()
    with sandbox.hold_next() as hold, child(ONE_CALL + "call()", sandbox.environment(token_file)) as process:
        hold.wait(PATIENCE)
        process.kill()
        process.wait(PATIENCE)
    TokenFile(token_file).load()
    with pytest.raises(ReauthorizationRequired, match=f"process {process.pid} on"):
        auth_for(sandbox).refresh()


def test_killed_holder_frees_its_waiters(sandbox: Sandbox, token_file: Path) -> None:
    """A waiter for a holder that is killed goes on at once, not after a timeout."""
    sandbox.expire()
    sandbox.fail_next(drop="before")  # or the killed process's token would be spent
    with sandbox.hold_next(at="before") as hold, ThreadPoolExecutor(4) as threads:
        with child(ONE_CALL + "call()", sandbox.environment(token_file)) as holder:
            hold.wait(PATIENCE)
            waiters = [threads.submit(get, sandbox, auth_for(sandbox)) for _ in range(4)]
            wait_until(lambda: sandbox.counts.unauthorized == 5)
            holder.kill()
            holder.wait(PATIENCE)
            started = time.monotonic()
            assert [waiter.result(PATIENCE) for waiter in waiters] == [200] * 4
            assert time.monotonic() - started < limits.LOCK_TIMEOUT / 4
    assert sandbox.counts.rotations == 1
    assert_nothing_lost(sandbox, token_file)


def test_leftovers_do_not_pile_up(sandbox: Sandbox, token_file: Path) -> None:
    """After any number of kills there is one lock file, one record and at most one temporary file.

    A success leaves no temporary file.
    """
    for moment in ("after reserve", "before send", "after reserve", "after lock", "before the rename"):
        _killed(sandbox, token_file, moment)
        names = {path.name for path in token_file.parent.glob("*tokens*")}
        assert names <= {"tokens.json", "tokens.json.lock", "tokens.json.record", "tokens.json.new"}
    auth_for(sandbox).refresh()
    assert_nothing_lost(sandbox, token_file)
    assert {path.name for path in token_file.parent.glob("*tokens*")} == {
        "tokens.json",
        "tokens.json.lock",
        "tokens.json.record",
    }


# At random moments.

#: Reads a line of seconds, forks a process that rotates in a loop and reports its steps, and kills it then.
#: Prints one line for each kill.
NURSERY = """
import codecs, os, signal, sys, time
import filelock, requests
from adh_auth import AdhAuth
from adh_auth.rotation import attempt, detached, transaction
from adh_auth.store import reservation
codecs.lookup("idna")

def rotate(report):
    def step(name, work, real=transaction.Step):
        def watched():
            os.write(report, name.encode() + b"\\n")
            return work()
        return real(name, watched)
    def fill(reserved, data, real=reservation.ReservedFile.fill):
        real(reserved, data)
        os.write(report, b"filled\\n")
    transaction.Step = attempt.Step = detached.Step = step
    reservation.ReservedFile.fill = fill
    auth = AdhAuth(detached=os.environ.get("DETACHED") == "1" or None)
    while True:
        auth.refresh()

for line in sys.stdin:
    listening, report = os.pipe()
    pid = os.fork()
    if pid == 0:
        try: rotate(report)
        finally: os._exit(1)
    os.close(report)
    first = os.read(listening, 1)
    time.sleep(float(line))
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    with os.fdopen(listening, "rb") as rest: last = (first + rest.read()).split(b"\\n")[-2:][0].decode()
    print(os.waitstatus_to_exitcode(status), pid, last, flush=True)
"""
KILLS, LANES = 200, 4
#: The last step that a killed process reported: sent and not answered, or answered and not on disk yet.
WHERE_IT_MAY_BE_LOST = ("send", "write")
#: Seconds. A rotation takes about a hundredth of one here, and twice that on a loaded machine.
LATEST_KILL = 0.04


def test_killed_at_200_random_moments(
    sandbox: Sandbox, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Wherever a kill falls, the file parses. The session is lost only between the sending of the token and
    the filled temporary file.
    """
    with ThreadPoolExecutor(LANES) as threads:
        lanes = threads.map(
            lambda lane: _killed_at_random(sandbox, tmp_path / str(lane), seed=lane), range(LANES)
        )
        fell = [moment for lane in lanes for moment in lane]
    assert len(fell) == KILLS
    # At many different steps, or the delays are wrong for this machine.
    assert len(set(fell)) >= 5
    record_property("kills", {moment: fell.count(moment) for moment in sorted(set(fell))})


def _killed_at_random(sandbox: Sandbox, folder: Path, seed: int) -> list[str]:
    token_file, random, fell = folder / "tokens.json", Random(seed), [""]
    folder.mkdir()
    _sign_in(sandbox, token_file)
    with child(NURSERY, sandbox.environment(token_file)) as nursery:
        for _ in range(KILLS // LANES):
            pid, moment = _kill(nursery, random.uniform(0, LATEST_KILL))
            TokenFile(token_file).load()
            try:
                auth_for(sandbox, token_file).refresh()
            except ReauthorizationRequired as lost:
                # A call in flight when its sender was killed may reach the server after the next client's.
                # That counts as a reuse one rotation later: the same window, noticed late.
                assert moment in WHERE_IT_MAY_BE_LOST or fell[-1] == "send", (
                    f"killed at {moment}, before at {fell[-1]}: {lost}"
                )
                assert moment not in WHERE_IT_MAY_BE_LOST or f"process {pid} on" in lost.message
                _sign_in(sandbox, token_file)
            fell.append(moment)
    names = {path.name for path in folder.iterdir()}
    assert names <= {"tokens.json", "tokens.json.lock", "tokens.json.record"}
    return fell[1:]


def _sign_in(sandbox: Sandbox, token_file: Path) -> None:
    # Not write_token_file, which remembers the last path for all threads.
    TokenFile(token_file).save(Tokens.from_response(sandbox.sign_in()))


def _kill(nursery: subprocess.Popen[str], after: float) -> tuple[str, str]:
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    nursery.stdin.write(f"{after}\n")
    nursery.stdin.flush()
    code, pid, moment = nursery.stdout.readline().split(" ", 2)
    assert int(code) == -signal.SIGKILL, moment
    return pid, moment.strip()


# At random moments, with the refresh in a process of its own.


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="needs descriptors that a child inherits")
def test_killed_at_200_random_moments_detached(
    sandbox: Sandbox, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """SIGKILL of the program, wherever it falls: nothing is lost on a strict server, and no token is sent twice."""
    with ThreadPoolExecutor(LANES) as threads:
        lanes = threads.map(
            lambda lane: _killed_detached(sandbox, tmp_path / str(lane), seed=lane), range(LANES)
        )
        fell = [moment for lane in lanes for moment in lane]
    assert len(fell) == KILLS
    # Before the helper has started, and while it works.
    assert {"start helper", "listen"} <= set(fell), {moment: fell.count(moment) for moment in fell}
    assert sandbox.counts.reused == sandbox.counts.refused == 0
    record_property("kills", {moment: fell.count(moment) for moment in sorted(set(fell))})


def _killed_detached(sandbox: Sandbox, folder: Path, seed: int) -> list[str]:
    token_file, random, fell = folder / "tokens.json", Random(seed), []
    folder.mkdir()
    _sign_in(sandbox, token_file)
    environment = {**sandbox.environment(token_file), "DETACHED": "1"}
    with child(NURSERY, environment) as nursery:
        # Longer than one rotation takes on this machine just now, so that kills fall on all of it.
        latest = 1.5 * _seconds_of_a_rotation(sandbox, token_file)
        for _ in range(KILLS // LANES):
            fell.append(_kill(nursery, random.uniform(0, latest))[1])
            auth_for(sandbox, token_file, detached=False).refresh()
    assert {path.name for path in folder.iterdir()} == {
        "tokens.json",
        "tokens.json.lock",
        "tokens.json.record",
    }
    return fell


def _seconds_of_a_rotation(sandbox: Sandbox, token_file: Path) -> float:
    auth = auth_for(sandbox, token_file, detached=True)
    auth.refresh()
    started = time.monotonic()
    auth.refresh()
    return time.monotonic() - started
