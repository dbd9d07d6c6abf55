"""The README is the manual: each of its Python blocks runs, in a shell that points at the sandbox."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest

import adh_auth
from adh_auth import AdhAuth, AdhAuthError, AdhHttpxAuth, Event, SignIn, Started, Tokens, login
from adh_auth.testing import Call, Counts, Hold, Sandbox

from ..support.cli import adh
from ..support.clients import needs
from ..support.processes import PATIENCE, ROOT
from .test_layers import LAYERS

README = (ROOT / "README.md").read_text(encoding="utf-8")
T = TypeVar("T")

#: What a reader sees before the first scroll.
SCREEN = 35
HEAD = "\n".join(README.splitlines()[:SCREEN])
OPENS, CLOSES = "<details>", "</details>"
#: Bytes: what is open when the page loads, and all of it.
OPEN_LIMIT = 14 * 1024
WHOLE_LIMIT = 66 * 1024
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SHELL = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
#: What the clients call, the server's side of a hold, and an attribute that no argument sets.
INTERNAL = {
    "sync_auth_flow",
    "async_auth_flow",
    "auth_flow",
    "requires_request_body",
    "requires_response_body",
    "block",
    "reached",
    "code_life",
}


def environment(sandbox: Sandbox, token_file: Path) -> dict[str, str]:
    return {**os.environ, **sandbox.environment(token_file), "PYTHONPATH": str(ROOT)}


def folds(text: str) -> list[str]:
    """Each folded part, with its tags; an error where one is nested or does not end."""
    pieces = re.split(rf"^({OPENS}|{CLOSES})$", text, flags=re.MULTILINE)
    assert pieces[1::2] == [OPENS, CLOSES] * (len(pieces) // 4), "a fold that is nested, or not closed"
    return [OPENS + piece + CLOSES for piece in pieces[2::4]]


def open_part(text: str) -> str:
    """What is read without opening a fold."""
    for fold in folds(text):
        text = text.replace(fold, "")
    return text


def without_code(text: str) -> str:
    """A comment of a shell block looks like a heading."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


#: Options of the interpreter that runs a block.
STRICT = ("-W", "error::DeprecationWarning")
#: Packages of the users': such a block runs where they are installed.
PACKAGES = re.compile(
    r"(?<!\.)\b(responses|requests_mock|respx|vcr|fastapi|flask|django|websockets|aiohttp|niquests|prometheus_client)\b"
)
#: What must not be installed beside the others: it replaces urllib3.
APART = "niquests"
#: What a block leaves to its users, by a word in it.
USERS_PART = {
    "/whoami": """
from fastapi.testclient import TestClient
with TestClient(app) as browser:
    assert browser.get("/whoami").json()["name"]
""",
    "def open_feed(": """
import asyncio, os, httpx
from websockets.asyncio.server import serve

async def check(connection, request):
    header = {"Authorization": request.headers["Authorization"]}
    async with httpx.AsyncClient(headers=header) as client:
        answer = await client.get(os.environ["ADH_BASE_URL"] + "/api/auth/me")
    return None if answer.status_code == 200 else connection.respond(answer.status_code, answer.text)

async def main():
    async with serve(lambda socket: socket.send("hello"), "127.0.0.1", 0, process_request=check) as server:
        port = server.sockets[0].getsockname()[1]
        async with await open_feed(f"ws://127.0.0.1:{port}/feed") as feed:
            assert await feed.recv() == "hello"

asyncio.run(main())
""",
    "def add_token(": """
import os, httpx
given = []
add_token(None, lambda metadata, error: given.append((metadata, error)))
(((name, value),), error), = given
assert error is None
httpx.get(os.environ["ADH_BASE_URL"] + "/api/auth/me", headers={name: value}).raise_for_status()
""",
    "def count(": """
import threading
from prometheus_client import generate_latest
auth.refresh()
[thread.join() for thread in threading.enumerate() if thread.name == "adh-auth rotation"]
assert b'adh_rotations_total{kind="rotated"} 1.0' in generate_latest()
assert b"adh_rotation_seconds_count 1.0" in generate_latest()
""",
    "def alert(": """
from adh_auth import ReauthorizationRequired
class Pager(logging.Handler):
    def emit(self, record): print(record.getMessage())
logging.getLogger().addHandler(Pager())
try: auth.refresh()
except ReauthorizationRequired: pass
""",
}
#: What the server does in a block's time, by a word in it.
SERVERS_PART: dict[str, Callable[[Sandbox], None]] = {
    "rejected=": Sandbox.expire,
    "def alert(": Sandbox.revoke,
}
#: What a block prints.
PRINTED = {"def alert(": r"ADH session .*tokens\.json: refused: the refresh token .*", "niquests": ".*User"}


#: What a block uses, and the package that it needs for it.
UNNAMED = {"httpx_mock": "pytest_httpx", "SessionMiddleware": "itsdangerous"}


def packages(code: str) -> set[str]:
    """What the block needs beside this library and the clients; some name a package of theirs nowhere."""
    imports = "\n".join(re.findall(r"^(?:import|from) .*$", code, re.MULTILINE))
    unnamed = {name for used, name in UNNAMED.items() if used in code}
    return {*PACKAGES.findall(imports), *unnamed}


def numbered() -> Iterator[Any]:
    for number, code in enumerate(PYTHON):
        needed = packages(code)
        marks = [getattr(pytest.mark, APART if APART in needed else extra(code))] if needed else []
        yield pytest.param(number, marks=marks, id=str(number))


def extra(code: str) -> str:
    """The extra that brings them. What the web applications do is in tests/sign_in/test_web_applications.py."""
    return "web" if "SignIn(" in code else "clients"


@pytest.mark.parametrize("number", list(numbered()))
def test_a_python_block_runs(number: int, sandbox: Sandbox, token_file: Path, tmp_path: Path) -> None:
    """The block runs as it stands, in its own folder, in a shell at the sandbox; one with a test under pytest."""
    for package in packages(PYTHON[number]):
        needs(package, APART if package == APART else extra(PYTHON[number]))
    _, serve = _of_block(SERVERS_PART, number) or (None, lambda _: None)
    serve(sandbox)
    name = written(PYTHON[number], tmp_path)
    command = pytest_command(tmp_path, name) if name.startswith("test_") else [sys.executable, *STRICT, name]
    surroundings: Any = {"cwd": tmp_path, "env": environment(sandbox, token_file), "timeout": PATIENCE}
    done = subprocess.run(command, capture_output=True, text=True, check=False, **surroundings)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = _of_block(PRINTED, number)
    assert expected is None or re.search(expected[1], done.stdout), done.stdout


def _of_block(parts: Mapping[str, T], number: int) -> tuple[str, T] | None:
    return next(((word, part) for word, part in parts.items() if word in PYTHON[number]), None)


def written(code: str, folder: Path) -> str:
    """The name of the file with the block; the README's conftest.py lies beside a test."""
    code += "".join(part for word, part in USERS_PART.items() if word in code)
    name = "test_block.py" if "def test_" in code else "block.py"
    files = {name: code}
    if name == "test_block.py":
        files["conftest.py"] = next(block for block in PYTHON if block.startswith("# conftest.py\n"))
    for path, text in files.items():
        (folder / path).write_text(text, encoding="utf-8")
    return name


def pytest_command(folder: Path, name: str) -> list[str]:
    """As users run it, with the fixture of a package that may not be installed."""
    plugin = [] if "adh_auth" in _entry_points() else ["-p", "adh_auth.pytest_plugin"]
    options = ["-q", "-p", "no:cacheprovider", *plugin, "--rootdir", str(folder)]
    return [sys.executable, "-m", "pytest", *options, name]


def _entry_points() -> set[str]:
    from importlib.metadata import entry_points

    return {point.name for point in entry_points(group="pytest11")}


def test_every_python_block_is_among_those_that_run() -> None:
    """A fence that is indented would be missed here, and one that touches a tag is not rendered."""
    assert len(PYTHON) == README.count("```python")
    for fence in re.finditer(r"^```.*?^```$", README, re.MULTILINE | re.DOTALL):
        assert README[: fence.start()].endswith("\n\n"), fence.group()
        assert README[fence.end() :].startswith("\n\n"), fence.group()


def test_the_first_screen_has_what_the_first_minutes_need() -> None:
    """The first two commands are demo and tests; the installation and both snippets follow."""
    commands = re.findall(r"^```sh\n(.*?)^```", HEAD, re.MULTILINE | re.DOTALL)[0].splitlines()
    assert "adh-auth demo" in commands[0]
    assert "-m pytest" in commands[1]
    assert any(command.startswith("pip install ") for command in commands)
    snippets = re.findall(r"^```python\n(.*?)^```", HEAD, re.MULTILINE | re.DOTALL)
    assert "requests.Session()" in snippets[0]
    assert "httpx.Client(" in snippets[1]
    # A shell that points at the sandbox runs them as they stand.
    assert all("auth.base_url" in snippet for snippet in snippets)


def test_sign_in_comes_before_the_first_snippet() -> None:
    """Nobody meets a snippet that needs a session before the two ways to get one."""
    before = HEAD[: HEAD.index("```python")]
    assert before.index("export ADH_CLIENT_ID") < before.index("adh-auth login")
    assert "adh-auth sandbox" in before


def test_what_is_open_is_short() -> None:
    """The rest is folded; a README that grows without end is not read."""
    assert len(open_part(README).encode()) <= OPEN_LIMIT
    assert len(README.encode()) <= WHOLE_LIMIT


def test_every_fold_closes_and_says_what_is_in_it() -> None:
    """Browsers call a <details> without <summary> "Details"; Markdown needs blank lines inside the tags."""
    assert len(folds(README)) == README.count(OPENS) == README.count(CLOSES) > 20
    for fold in folds(README):
        assert re.match(rf"{OPENS}\n<summary>\S.*\S</summary>\n\n", fold), fold[:200]
        assert fold.endswith(f"\n\n{CLOSES}"), fold[-200:]


def test_no_heading_is_folded() -> None:
    """A link leads to where the reader can see; a fold stands under an open heading."""
    assert not [fold for fold in folds(README) if re.search(r"^#", without_code(fold), re.MULTILINE)]


def test_the_shell_blocks_name_commands_that_exist(sandbox: Sandbox, tmp_path: Path) -> None:
    """Every `adh-auth` command of a shell block, and of the table, has a --help that answers."""
    text = "\n".join(SHELL) + README[README.index("## Command line") :]
    named = set(re.findall(r"adh-auth ([a-z]+)", text))
    assert {"login", "status", "token", "demo"} <= named
    for command in sorted(named):
        done = adh(command, "--help", env=sandbox.environment(tmp_path / "tokens.json"), cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)


def test_the_table_is_the_one_that_init_makes() -> None:
    """Whoever copies it gets what the programs need, with the right to use it."""
    from adh_auth.store.postgresql import TABLE

    assert TABLE in README
    assert "GRANT SELECT, INSERT, UPDATE ON adh_auth_session" in README


def test_the_reference_has_what_a_store_of_ones_own_needs() -> None:
    """Each argument of the stores, each operation of a register."""
    from adh_auth import stores

    reference = README[README.index("## Reference") : README.index("## Numbers")]
    known = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", reference))))
    for kind in (stores.PostgresStore, stores.RedisStore):
        assert set(inspect.signature(kind).parameters) <= known
    operations = {name for name in vars(stores.Register) if not name.startswith("_")}
    assert operations | set(stores.__all__) <= known


def test_the_curl_line_works(sandbox: Sandbox, token_file: Path, tmp_path: Path) -> None:
    """`adh-auth token` prints a token that works now, and nothing else."""
    sandbox.expire()
    done = adh("token", env=sandbox.environment(token_file), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    import requests

    header = {"Authorization": f"Bearer {done.stdout.strip()}"}
    answer: Any = requests.get(sandbox.url + "/api/auth/me", headers=header, timeout=PATIENCE)
    assert answer.status_code == 200


def test_every_link_within_leads_somewhere() -> None:
    """A link to a section, of Markdown or HTML, finds its heading."""
    links = set(re.findall(r"\]\(#([^)]+)\)", README)) | set(re.findall(r'href="#([^"]+)"', README))
    assert len(links) > 5
    assert links <= set(_anchors())


def _anchors() -> Iterator[str]:
    for heading in re.findall(r"^#+ (.*)$", without_code(README), re.MULTILINE):
        yield re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-")


def test_the_faults_table_names_tests_that_exist() -> None:
    """Each row of "What can go wrong" names its tests as `pytest -k` takes them."""
    section = README[README.index("## What can go wrong") : README.index("## Limits")]
    tests = _names_of_tests()
    rows = re.findall(r"^\|.*\| (.*) \|$", section, re.MULTILINE)
    faults = [row for row in rows if row not in ("`pytest -k`", "---")]
    assert len(faults) > 45
    for row in faults:
        for name in re.findall(r"`(\w+)`", row) or [row]:
            assert any(name in test for test in tests), name


def _names_of_tests() -> set[str]:
    texts = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    pattern = re.compile(r"^ *(?:async )?def (test_\w+)\(", re.MULTILINE)
    return {name for text in texts for name in pattern.findall(text)}


def test_the_reference_has_every_public_name() -> None:
    """With each method, argument and attribute that a user may touch."""
    reference = README[README.index("## Reference") : README.index("## Numbers")]
    arguments = README[README.index("## Arguments") : README.index("## Errors")]
    summaries = re.findall(r"<code>([^<]+)</code>", reference)
    known = set(re.findall(r"\w+", " ".join([*re.findall(r"`([^`]+)`", reference + arguments), *summaries])))
    missing = set(_public_names()) - known - {"self"}
    assert not missing


def test_contributing_shows_the_layers() -> None:
    """The block of "Contributing" has the layers of the import rule that exist, line by line."""
    section = README[README.index("## Contributing") :]
    block = re.findall(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[0]
    shown = [re.findall(r"(?:^|\| )(\w+)", line) for line in block.splitlines()]
    layers = [[name for name in names if _exists(name)] for names in LAYERS if names != ("__main__",)]
    assert shown == layers


def _exists(name: str) -> bool:
    package = ROOT / "adh_auth"
    return (package / name).is_dir() or (package / f"{name}.py").is_file()


def _public_names() -> Iterator[str]:
    yield from adh_auth.__all__
    for function in (
        AdhAuth,
        login,
        SignIn,
        SignIn.finish,
        Tokens,
        Tokens.from_response,
        Sandbox,
        Sandbox.fail_next,
    ):
        yield from inspect.signature(function).parameters
    for kind in (
        AdhAuth,
        AdhHttpxAuth,
        Event,
        SignIn,
        Started,
        Tokens,
        Sandbox,
        Hold,
        *_errors(AdhAuthError),
    ):
        for base in kind.__mro__:
            if base.__module__.startswith("adh_auth"):
                names = {*vars(base), *base.__annotations__} - INTERNAL
                yield from (name for name in names if not name.startswith("_"))
    yield from (*Counts.__dataclass_fields__, *Call.__dataclass_fields__)
    yield from ("load", "save", "delete", "path")


def _errors(kind: type[AdhAuthError]) -> Iterator[type[AdhAuthError]]:
    yield kind
    for kinder in kind.__subclasses__():
        if kinder.__module__ == kind.__module__:
            yield from _errors(kinder)
