"""SIGKILL at each step of a rotation, and at random moments: only the server's commit to the write is a window, and no client can close it."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from adh_auth import AdhAuth, ReauthorizationRequired, TokenFile
from adh_auth.testing import Sandbox

from .support import PATIENCE, assert_nothing_lost, child

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")

#: A process that refreshes once and kills itself just before, or just after, a step of that.
SUICIDE = """
import os, signal, sys
from adh_auth import AdhAuth, disk, rotation, steps

def die():
    os.kill(os.getpid(), signal.SIGKILL)

moment, name = {moment!r}, {name!r}

def stepwise(generator):
    def watched():
        value = None
        while True:
            try:
                step = generator.send(value)
            except StopIteration as end:
                return end.value
            if step.name == name and moment == "before":
                die()
            value = yield step
            if step.name == name and moment == "after":
                die()
    return drive(watched())

drive = rotation.drive
rotation.drive = stepwise
if name == "install":
    install, replace = disk.Room.install, os.replace
    disk.Room.install = lambda room: die() if moment == "before" else install(room)
    if moment == "after":
        def replaced(*paths):
            replace(*paths)
            die()
        os.replace = replaced
AdhAuth().refresh()
"""

#: Steps whose kill costs nothing: the token is unspent, or the pair is on disk already.
HARMLESS = [
    ("before", "lock"),
    ("after", "lock"),
    ("before", "reserve"),
    ("after", "reserve"),
    ("before", "note"),
    ("before", "send"),
    ("before", "install"),
    ("after", "install"),
    ("after", "write"),
    ("before", "unlock"),
    ("after", "unlock"),
]


def kill_at(moment: str, name: str, sandbox: Sandbox, token_file: Path) -> None:
    with child(SUICIDE.format(moment=moment, name=name), sandbox.environment(token_file)) as process:
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == -signal.SIGKILL, errors


@pytest.mark.parametrize(("moment", "name"), HARMLESS, ids=" ".join)
def test_a_kill_outside_the_window_costs_nothing(moment: str, name: str, sandbox: Sandbox, token_file: Path) -> None:
    """Killed before the POST, or once the reply has been put on disk: the file is valid, and whoever comes next goes on."""
    kill_at(moment, name, sandbox, token_file)
    json.loads(token_file.read_bytes())
    assert_nothing_lost(sandbox, token_file)
    AdhAuth(token_file, client_id=sandbox.client_id, client_secret=sandbox.client_secret, base_url=sandbox.url).refresh()
    assert_nothing_lost(sandbox, token_file)


@pytest.mark.filterwarnings("ignore:token file .* found beside it")
def test_a_kill_between_write_and_rename_is_repaired(sandbox: Sandbox, token_file: Path, arguments: dict[str, Any]) -> None:
    """The pair that lies beside the file is found by the next rotation, which needs no call of its own."""
    kill_at("before", "install", sandbox, token_file)
    assert sandbox.counts.rotations == 1
    spent = TokenFile(token_file).load()
    pair = AdhAuth(**arguments).refresh()
    assert pair.refresh_token != spent.refresh_token
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


def test_a_kill_in_the_window_is_told(sandbox: Sandbox, token_file: Path, arguments: dict[str, Any]) -> None:
    """Killed between the server's commit and the write, the session is lost; the error says that a reply was, and when."""
    hold = sandbox.hold_next(on="refresh", at="after")
    with child("from adh_auth import AdhAuth; AdhAuth().refresh()", sandbox.environment(token_file)) as process:
        hold.wait(PATIENCE)
        process.kill()
        process.wait(PATIENCE)
        hold.release()
    before = token_file.read_bytes()
    with pytest.raises(ReauthorizationRequired, match=r"was lost at .* ended before it had saved the reply") as caught:
        AdhAuth(**arguments).refresh()
    assert caught.value.reply_lost_at is not None
    assert token_file.read_bytes() == before


def test_a_lost_reply_is_recovered_where_the_server_has_a_grace_window(sandbox: Sandbox, token_file: Path, arguments: dict[str, Any]) -> None:
    """The next process tries the same token again: on a server that forgives it, nothing is lost."""
    sandbox.grace = 60.0
    hold = sandbox.hold_next(on="refresh", at="after")
    with child("from adh_auth import AdhAuth; AdhAuth().refresh()", sandbox.environment(token_file)) as process:
        hold.wait(PATIENCE)
        process.kill()
        process.wait(PATIENCE)
        hold.release()
    AdhAuth(**arguments).refresh()
    assert_nothing_lost(sandbox, token_file)


def test_a_killed_holder_frees_its_waiters_at_once(sandbox: Sandbox, token_file: Path) -> None:
    """A process that waits for the lock goes on as soon as the holder is killed, long before its time-out."""
    holding = "import sys; from adh_auth import TokenFile; lock = TokenFile().lock(); print(lock.take(), flush=True); sys.stdin.readline()"
    with child(holding, sandbox.environment(token_file)) as holder, child(WAITER, sandbox.environment(token_file)) as waiter:
        assert holder.stdout is not None
        assert waiter.stdout is not None
        assert waiter.stdin is not None
        assert holder.stdout.readline() == "True\n"
        waiter.stdin.write("go\n")
        waiter.stdin.flush()
        assert waiter.stdout.readline() == "waiting\n"
        killed_at = time.monotonic()
        holder.kill()
        output, errors = waiter.communicate(timeout=PATIENCE)
        assert output.strip() == "refreshed", errors
    assert time.monotonic() - killed_at < 20, "it waited for its time-out"
    assert_nothing_lost(sandbox, token_file)


#: Says when it has found the lock taken.
WAITER = """
import sys
from adh_auth import AdhAuth, steps
from adh_auth.token_file import RotationLock
take = RotationLock.take
def told(lock):
    taken = take(lock)
    if not taken and not told.said:
        told.said = True
        print("waiting", flush=True)
    return taken
told.said = False
RotationLock.take = told
sys.stdin.readline()
AdhAuth().refresh()
print("refreshed", flush=True)
"""


def test_nothing_piles_up(sandbox: Sandbox, token_file: Path) -> None:
    """Whatever the kills left behind, one lock, one record and no more lie beside the file after the next rotation."""
    for moment, name in (("after", "reserve"), ("before", "send"), ("after", "reserve")):
        kill_at(moment, name, sandbox, token_file)
    AdhAuth(token_file, client_id=sandbox.client_id, client_secret=sandbox.client_secret, base_url=sandbox.url).refresh()
    names = sorted(path.name for path in token_file.parent.iterdir() if path.is_file())
    assert names == ["tokens.json", "tokens.json.lock", "tokens.json.record"]


#: Forks processes that do nothing but refresh, kills each at a random moment, and looks at what is left.
NURSERY = """
import json, os, random, signal, sys, time, warnings
warnings.simplefilter("ignore")
import filelock, requests
from adh_auth import AdhAuth, ReauthorizationRequired
path, kills, seed = sys.argv[1:4]
dice = random.Random(int(seed))
for _ in range(int(kills)):
    pid = os.fork()
    if pid == 0:
        auth = AdhAuth()
        while True:
            auth.refresh()
    time.sleep(dice.uniform(0.0, 0.04))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    json.loads(open(path, "rb").read())
    try:
        AdhAuth().refresh()
    except ReauthorizationRequired as error:
        assert error.reply_lost_at is not None, str(error)
        print("lost", flush=True)
        sys.stdin.readline()
print("done", flush=True)
"""


def test_two_hundred_kills_at_random_moments(
    sandbox: Sandbox, token_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file always parses; the session is lost only where the server had committed and the reply was never written."""
    lost = 0
    code = NURSERY.replace("sys.argv[1:4]", repr([str(token_file), "200", "20261123"]))
    with child(code, sandbox.environment(token_file)) as nursery:
        assert nursery.stdout is not None
        assert nursery.stdin is not None
        while (line := nursery.stdout.readline()) == "lost\n":
            lost += 1
            # Reuse is what the strict server makes of the second try: one for each reply that was lost, and for nothing else.
            assert sandbox.counts.reused == lost
            sandbox.write_token_file(token_file)
            nursery.stdin.write("signed in\n")
            nursery.stdin.flush()
        assert line == "done\n", nursery.communicate(timeout=PATIENCE)[1]
    rotations = sandbox.counts.rotations
    with capsys.disabled():
        print(f"\n200 kills at random moments, {rotations} rotations: {lost} fell between the server's commit and the write")
    assert rotations > 100
    assert_nothing_lost(sandbox, token_file, reused=lost)
