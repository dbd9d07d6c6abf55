"""What a program does not use, it does not import. Each case is a new interpreter that lists its modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from adh_auth.testing import Sandbox

from ..support.processes import PATIENCE, ROOT, child

CLIENTS = {"AdhAuth": "requests", "AdhHttpxAuth": "httpx", "AdhHttpx2Auth": "httpx2"}


def _brings(statement: str, after: str = "pass", folder: Path = ROOT) -> set[str]:
    """The modules that `statement` loads once `after` has run."""
    code = f"import sys\n{after}\nbefore = set(sys.modules)\n{statement}\nprint(*(set(sys.modules) - before))"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    return set(
        subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True, timeout=60
        ).stdout.split()
    )


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_that_is_not_used_is_not_imported(name: str) -> None:
    """A user of requests never imports httpx, nor the other way round."""
    assert not _brings(f"from adh_auth import {name}") & ({*CLIENTS.values()} - {CLIENTS[name]})


@pytest.mark.parametrize("name", CLIENTS)
def test_a_class_brings_no_commands_and_no_servers(name: str) -> None:
    """What only commands, the sandbox and another client's stack need is not loaded with a class."""
    build = f"from adh_auth import {name}\n{name}('tokens.json', client_id='i', client_secret='s')"
    # filelock 4.1, the last for Python 3.10, brings asyncio; a lock is needed all the same.
    brought = _brings(build, after=f"import {CLIENTS[name]}, filelock")
    assert not brought & {"adh_auth.sandbox", "adh_auth.cli", "adh_auth.sign_in", "adh_auth.rotation.status"}
    assert not brought & {"asyncio", "concurrent.futures", "multiprocessing", "http.server", "argparse"}


#: A first rotation that prints each module that is imported in the thread of a job.
FIRST_ROTATION = """
import os, sys, threading
import {client}
from adh_auth import {name}
{build}

class Finder:
    def find_spec(self, module, *_):
        if threading.current_thread().name == "adh-auth rotation":
            print(module, flush=True)

sys.meta_path.insert(0, Finder())
{call}
"""
#: The sandbox behind a transport that is not httpcore's.
BEHIND_WSGI = """
import urllib.error, urllib.request
def app(environ, start):
    headers = {"Authorization": environ["HTTP_AUTHORIZATION"]}
    try:
        url = os.environ["ADH_BASE_URL"] + environ["PATH_INFO"]
        urllib.request.urlopen(urllib.request.Request(url, headers=headers)).close()
    except urllib.error.HTTPError as refused:
        start("401 Unauthorized", [("Content-Type", "application/json")])
        with refused: return [refused.read()]
    start("200 OK", [])
    return [b"{}"]
client = httpx.Client(transport=httpx.WSGITransport(app=app))
"""
#: A call with that token, by a client of its own.
WITH_TOKEN = """
import requests
answer = requests.get(url, headers={"Authorization": f"Bearer {token}"})
"""
#: How each client is built, and how it makes one call; `url` of the sandbox.
CALLS = {
    "AdhAuth": ("client = requests.Session()", "answer = client.get(url, auth=AdhAuth())"),
    "AdhHttpxAuth": ("client = httpx.Client()", "answer = client.get(url, auth=AdhHttpxAuth())"),
    "AdhHttpx2Auth": ("client = httpx2.Client()", "answer = client.get(url, auth=AdhHttpx2Auth())"),
    "AdhHttpxAuth, asyncio": (
        "import anyio\nclient = httpx.AsyncClient(auth=AdhHttpxAuth())",
        "async def call(): return await client.get(url)\nanswer = anyio.run(call)",
    ),
    "AdhHttpxAuth, a transport of another kind": (
        BEHIND_WSGI,
        "answer = client.get(url, auth=AdhHttpxAuth())",
    ),
    "AdhHttpxAuth, trio": (
        "import anyio, trio\nclient = httpx.AsyncClient(auth=AdhHttpxAuth())",
        "async def call(): return await client.get(url)\nanswer = anyio.run(call, backend='trio')",
    ),
    "AdhHttpxAuth, get_token": (
        "auth = AdhHttpxAuth()",
        "token = auth.get_token(rejected=auth.tokens.access_token)\n" + WITH_TOKEN,
    ),
}


@pytest.mark.parametrize("outcome", ["rotated", "refused", "failed", "unreachable"])
@pytest.mark.parametrize("how", CALLS)
def test_a_rotation_imports_nothing(how: str, outcome: str, sandbox: Sandbox, token_file: Path) -> None:
    """Threads import badly beside forks, at the end of a program, and after privileges were dropped (rule
    17).
    """
    name = how.partition(",")[0]
    build, call = CALLS[how]
    call = f"try:\n    exec({call!r})\n    print(answer.status_code)\n"
    call = f"url = os.environ['ADH_BASE_URL'] + '/api/auth/me'\n{call}"
    call += "except Exception as error:\n    print(type(error).__name__)"
    sandbox.expire()
    if outcome == "refused":
        sandbox.fail_next(status=400, body=b'{"code": "invalid_grant"}')
    if outcome == "failed":
        sandbox.fail_next(status=404)
    if outcome == "unreachable":
        sandbox.fail_next(status=503, headers={"Retry-After": "40"})
    code = FIRST_ROTATION.format(client=CLIENTS[name], name=name, build=build, call=call)
    with child(code, sandbox.environment(token_file)) as process:
        output, errors = process.communicate(timeout=PATIENCE)
    expected = {"rotated": "200", "refused": "ReauthorizationRequired"}.get(outcome, "RefreshFailed")
    assert output.split() == [expected], errors


def test_the_face_alone_loads_nothing() -> None:
    """The package is a list of names until one of them is asked for."""
    assert {name for name in _brings("import adh_auth") if name.startswith("adh_auth")} == {"adh_auth"}


def test_a_client_that_is_not_installed_is_named_with_its_extra() -> None:
    """httpx2 comes with an extra: without it, the error names what to install."""
    code = """
import sys
sys.modules["httpx2"] = None
try: from adh_auth import AdhHttpx2Auth
except ModuleNotFoundError as error: print(error, error.name)
"""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert output == 'AdhHttpx2Auth needs httpx2: pip install "adh-auth[httpx2]" httpx2\n'


#: An interpreter without httpx2 that does one thing.
WITHOUT_HTTPX2 = "import sys\nsys.modules['httpx2'] = None\nimport adh_auth\n"


@pytest.mark.parametrize(
    "what",
    [
        "from adh_auth import *\nAdhAuth, AdhHttpxAuth, Tokens, login",
        "import pydoc\nassert 'AdhHttpxAuth' in pydoc.render_doc(adh_auth)",
        "import inspect\nassert 'AdhAuth' in dict(inspect.getmembers(adh_auth))",
        "assert not hasattr(adh_auth, 'AdhHttpx2Auth')\nassert hasattr(adh_auth, 'AdhAuth')",
        "assert 'AdhHttpx2Auth' not in adh_auth.__all__ + dir(adh_auth)",
        "assert getattr(adh_auth, 'AdhHttpx2Auth', 7) == 7",
        "import doctest\ndoctest.testmod(adh_auth)",
        "from unittest import mock\nmock.create_autospec(adh_auth)",
    ],
)
def test_nothing_raises_without_httpx2(what: str) -> None:
    """It is an extra: what looks at the whole package works in the plain install."""
    _brings(what, after=WITHOUT_HTTPX2)


def test_an_attribute_that_needs_httpx2_says_so() -> None:
    """As an AttributeError, with the command that installs it."""
    what = "try: adh_auth.AdhHttpx2Auth\nexcept AttributeError as error: print(error)"
    assert "adh-auth[httpx2]" in " ".join(_brings(what, after=WITHOUT_HTTPX2))


def test_a_star_brings_every_name() -> None:
    """Where httpx2 is installed, its class too."""
    check = (
        "assert {*adh_auth.__all__} <= {*globals(), *dir(adh_auth)} and AdhHttpx2Auth and adh_auth.AdhAuth"
    )
    _brings(f"import adh_auth\nfrom adh_auth import *\n{check}")


def test_a_misspelt_name_is_refused() -> None:
    """At run time as ever."""
    import adh_auth

    with pytest.raises(AttributeError, match="has no attribute 'AdhAuht'"):
        adh_auth.AdhAuht  # type: ignore[attr-defined]  # noqa: B018
