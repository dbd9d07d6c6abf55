"""Arguments and environment of the auth classes."""

from __future__ import annotations

import ast
import copy
import inspect
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
import requests

import adh_auth
from adh_auth import AdhAuth, AdhHttpx2Auth, AdhHttpxAuth, ConfigurationError, TokenFile
from adh_auth.clients.base import BaseAuth

from ..support.processes import ROOT

CLASSES = (AdhAuth, AdhHttpxAuth, AdhHttpx2Auth)
FULL: dict[str, Any] = {
    "client_id": "id",
    "client_secret": "s3cret-value",
    "base_url": "https://api.example.com",
}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("variable", ["ADH_CLIENT_ID", "ADH_CLIENT_SECRET"])
def test_a_missing_setting_is_named(cls: Any, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing id or secret is a ConfigurationError that names the variable, when the object is built."""
    monkeypatch.setenv("ADH_CLIENT_ID", "id")
    monkeypatch.setenv("ADH_CLIENT_SECRET", "secret")
    monkeypatch.setenv(variable, "")
    with pytest.raises(ConfigurationError, match=variable) as caught:
        cls()
    assert caught.value.setting == variable


@pytest.mark.parametrize("cls", CLASSES)
def test_everything_from_the_environment(cls: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without arguments the environment and the default token file count."""
    monkeypatch.setenv("ADH_CLIENT_ID", "id")
    monkeypatch.setenv("ADH_CLIENT_SECRET", "secret")
    assert cls().token_file == str(tmp_path / ".config" / "adh" / "tokens.json")
    monkeypatch.setenv("ADH_TOKEN_FILE", str(tmp_path / "elsewhere.json"))
    assert cls().token_file == str(tmp_path / "elsewhere.json")


@pytest.mark.parametrize("cls", CLASSES)
def test_what_is_missing_is_named_at_once(cls: Any) -> None:
    """A first run meets one error for id and secret, in the words of the library."""
    with pytest.raises(ConfigurationError) as raised:
        cls()
    assert raised.value.message == (
        "client_id and client_secret are missing: set ADH_CLIENT_ID and ADH_CLIENT_SECRET to those of your "
        "OAuth app, or pass client_id= and client_secret="
    )


@pytest.mark.parametrize("cls", CLASSES)
def test_the_api_is_known_to_the_object(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script takes the address from the settings: argument, environment, default, without a slash."""
    app = {"client_id": "i", "client_secret": "s"}
    assert cls("t.json", **app).base_url == "https://api.agenticdeveloperhub.com"
    monkeypatch.setenv("ADH_BASE_URL", "https://one.example/")
    assert cls("t.json", **app).base_url == "https://one.example"
    assert cls("t.json", **app, base_url="https://two.example").base_url == "https://two.example"


def test_a_default_never_depends_on_the_current_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A relative XDG_CONFIG_HOME is ignored, a relative ADH_TOKEN_FILE refused, and an argument means the
    folder of now.
    """
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert TokenFile().path == tmp_path / ".config" / "adh" / "tokens.json"
    monkeypatch.setenv("ADH_TOKEN_FILE", "tokens.json")
    with pytest.raises(ConfigurationError, match="ADH_TOKEN_FILE"):
        TokenFile()
    monkeypatch.chdir(tmp_path)
    named = TokenFile("tokens.json")
    monkeypatch.chdir("/")
    assert named.path == tmp_path / "tokens.json"


def test_a_tilde_is_the_home_folder(tmp_path: Path) -> None:
    """`~` is expanded; a user who does not exist is refused."""
    assert TokenFile("~/t.json").path == tmp_path / "t.json"
    with pytest.raises(ConfigurationError):
        TokenFile("~nobody-of-that-name/t.json")


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", ["refresh_ahead", "lock_timeout"])
@pytest.mark.parametrize("value", [0, -1, "60", True, float("nan"), float("inf")])
def test_senseless_seconds_are_refused(cls: Any, name: str, value: Any) -> None:
    """Weak options are refused when the object is built."""
    with pytest.raises(ConfigurationError, match=name):
        cls("t.json", **FULL, **{name: value})


@pytest.mark.parametrize("cls", CLASSES)
def test_a_class_describes_its_arguments(cls: Any) -> None:
    """Its docstring begins with the common part, which has each argument and the unit of each number."""
    assert inspect.cleandoc(cls.__doc__).startswith(inspect.cleandoc(BaseAuth.__doc__ or "!") + "\n\nFor ")
    described = cls.__doc__.split("\n\n")[1]
    for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
        about = re.search(
            rf"^ *(?:`\w+`, )*`{name}`.*?:(.*?)(?=^ *`\w+`[:,]|\Z)", described, re.DOTALL | re.MULTILINE
        )
        assert about, name
        assert ("float" in parameter.annotation) == ("seconds" in about[1]), name


@pytest.mark.parametrize("cls", CLASSES)
def test_a_class_is_documented_where_it_is_written(cls: Any) -> None:
    """An IDE shows a docstring only if it is a plain string below the name."""
    tree = ast.parse(inspect.getsource(sys.modules[cls.__module__]))
    (node,) = (item for item in tree.body if isinstance(item, ast.ClassDef))
    assert ast.get_docstring(node) == inspect.cleandoc(cls.__doc__)


@pytest.mark.parametrize("cls", CLASSES)
def test_all_but_the_first_are_keyword_only(cls: Any) -> None:
    """Two strings in a row would be mixed up."""
    with pytest.raises(TypeError):
        cls("t.json", "id", "secret")


@pytest.mark.parametrize(
    ("cls", "client"),
    [
        (AdhAuth, httpx.Client()),
        (AdhHttpxAuth, requests.Session()),
        (AdhHttpx2Auth, httpx.Client()),
        (AdhAuth, object()),
    ],
)
def test_a_refresh_via_of_another_library_is_refused(cls: Any, client: Any) -> None:
    """`refresh_via` must be a client of the same library."""
    with pytest.raises(ConfigurationError, match="refresh_via"):
        cls("t.json", **FULL, refresh_via=client)


@pytest.mark.parametrize("cls", CLASSES)
def test_building_one_does_no_io(cls: Any, tmp_path: Path) -> None:
    """No I/O, no thread: a missing file is found by the first use."""
    threads = threading.active_count()
    auth = cls(tmp_path / "not" / "there.json", **FULL)
    assert threading.active_count() == threads
    assert not (tmp_path / "not").exists()
    assert auth.token_file == str(tmp_path / "not" / "there.json")


@pytest.mark.parametrize("cls", CLASSES)
def test_it_pickles_and_copies(cls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle carries the secret only if it was passed, and never the tokens; a copy is as good as the
    original.
    """
    auth = cls(tmp_path / "t.json", **FULL)
    for other in (pickle.loads(pickle.dumps(auth)), copy.copy(auth), copy.deepcopy(auth)):
        assert type(other) is cls
        assert repr(other) == repr(auth)
    monkeypatch.setenv("ADH_CLIENT_ID", "id")
    monkeypatch.setenv("ADH_CLIENT_SECRET", "from-the-environment")
    assert b"from-the-environment" not in pickle.dumps(cls(tmp_path / "t.json"))


@pytest.mark.parametrize("cls", CLASSES)
def test_repr_shows_no_secret(cls: Any) -> None:
    """The file and the API, and nothing else."""
    auth = cls("/x/t.json", **FULL)
    assert repr(auth).startswith(f"{cls.__name__}('/x/t.json'")
    assert "s3cret-value" not in repr(auth) + repr(vars(auth))


def test_a_class_in_the_wrong_client_names_the_right_one() -> None:
    """AdhAuth in httpx, AdhHttpxAuth in requests or httpx2, and so on: a TypeError that says what to use."""
    clients: dict[str, Any] = {
        "AdhAuth": requests.Session(),
        "AdhHttpxAuth": httpx.Client(),
        "AdhHttpx2Auth": httpx2.Client(),
    }
    for cls in CLASSES:
        for right, client in clients.items():
            if right == cls.__name__:
                continue
            with pytest.raises(TypeError, match=rf"\b{right}\b"):
                client.request("GET", "https://api.example.com/", auth=cls("/x/t.json", **FULL))


def test_an_unknown_name_is_an_attribute_error() -> None:
    """Lazy loading does not invent names."""
    with pytest.raises(AttributeError):
        adh_auth.NoSuchName  # type: ignore[attr-defined]  # noqa: B018
    assert "AdhAuth" in dir(adh_auth)
    assert os.path.basename(adh_auth.__file__ or "") == "__init__.py"


#: A user without a passwd entry, as containers have them. What is needed is imported before, for this user
#: may not read the library.
HOMELESS = """
import os, sys
import requests
from adh_auth import AdhAuth, ConfigurationError
import pwd
if os.geteuid() == 0: os.setgid(54321); os.setuid(54321)
else: pwd.getpwuid = {}.__getitem__
try: print(AdhAuth(*sys.argv[1:], client_id="i", client_secret="s").token_file)
except ConfigurationError as error: print(error.setting, error)
"""


NO_HOME = "ADH_TOKEN_FILE no home folder is known"


@pytest.mark.parametrize(
    ("environment", "arguments", "printed"),
    [
        (
            {},
            [],
            NO_HOME + " for this user, so there is no default token file: set ADH_TOKEN_FILE",
        ),
        ({"HOME": ""}, [], NO_HOME),
        ({"HOME": "relative"}, [], NO_HOME),
        ({"XDG_CONFIG_HOME": "relative"}, [], NO_HOME),
        ({"XDG_CONFIG_HOME": "/x"}, [], "/x/adh/tokens.json"),
        ({"ADH_TOKEN_FILE": "/x/t.json"}, [], "/x/t.json"),
        ({"HOME": "/x"}, [], "/x/.config/adh/tokens.json"),
        ({}, ["/x/t.json"], "/x/t.json"),
        ({}, ["~/t.json"], "token_file token_file '~/t.json': no home folder is known"),
    ],
)
def test_no_home_folder(environment: dict[str, str], arguments: list[str], printed: str) -> None:
    """No path was given, so the error names none: it names the variable that helps."""
    bare = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HOME", "XDG_CONFIG_HOME", "ADH_TOKEN_FILE")
    }
    done = subprocess.run(
        [sys.executable, "-c", HOMELESS, *arguments],
        env={**bare, "PYTHONPATH": str(ROOT), **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith(printed), done


def test_the_command_line_without_a_home_folder() -> None:
    """It prints the error in one line, and its exit code is not 0."""
    bare = {
        name: value for name, value in os.environ.items() if name not in ("XDG_CONFIG_HOME", "ADH_TOKEN_FILE")
    }
    done = subprocess.run(
        [sys.executable, "-m", "adh_auth", "status"],
        env={**bare, "PYTHONPATH": str(ROOT), "HOME": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode not in (0, None)
    assert "set ADH_TOKEN_FILE" in done.stderr
    assert "Traceback" not in done.stderr
