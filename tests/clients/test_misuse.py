"""Calls that can't be meant as they stand: a `TypeError` that names the class and says what was meant."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
import requests

from adh_auth import AdhAuth, AdhHttpx2Auth, AdhHttpxAuth, ConfigurationError, Tokens
from adh_auth.clients.base import BaseAuth
from adh_auth.testing import Sandbox

from ..support.clients import CLIENTS, EveryClient

CLASSES = (AdhAuth, AdhHttpxAuth, AdhHttpx2Auth)
URL = "https://api.example.com/"
TOKEN = "adh_ThisIsAnAccessTokenThatNobodyMaySee"


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
@pytest.mark.parametrize("cls", CLASSES)
def test_a_class_without_parentheses(cls: Any, client: EveryClient) -> None:
    """The message names the class that was passed, and the one for that client."""
    with pytest.raises(TypeError) as caught:
        client.get(cls, URL)
    right = client.auth.__name__
    assert str(caught.value).startswith(f"{cls.__name__} was passed to ")
    assert f"write auth={right}() with parentheses" in str(caught.value)


#: an argument that there is not, and what its message says
UNKNOWN = {
    "token": "adh-auth login",
    "access_token": "TokenFile",
    "refresh_token": "TokenFile",
    "path": "did you mean token_file?",
    "timeout": "did you mean lock_timeout?",
    "url": "did you mean base_url?",
    "dsn": "did you mean store?",
    "user_id": "did you mean session?",
    "secret": "did you mean client_secret?",
    "on_refresh": "did you mean on_event?",
    "clientid": "did you mean client_id?",
    "client_sceret": "did you mean client_secret?",
    "Base_URL": "did you mean base_url?",
    "scope": "adh_auth.login()",
    "verify": "refresh_via",
    "quux": "there are base_url, client_id, client_secret",
}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("word", UNKNOWN)
def test_an_argument_that_there_is_not(cls: Any, word: str) -> None:
    """The class that was called is named, not the one that it is made of."""
    with pytest.raises(TypeError) as caught:
        cls(**{word: TOKEN})
    assert str(caught.value).startswith(f"{cls.__name__}() has no argument {word!r}: ")
    assert UNKNOWN[word] in str(caught.value)
    assert TOKEN not in str(caught.value)


#: what is passed in place of a path
FIRST: dict[str, tuple[Callable[[], Any], str]] = {
    "token": (lambda: TOKEN, "not a token"),
    "tokens": (lambda: Tokens(TOKEN, "adh_rt_x"), "not a token"),
    "reply": (lambda: {"access_token": TOKEN}, "not a token"),
    "url": (lambda: f"postgresql://app:{TOKEN}@db/app", "pass that of a store as store="),
    "session": (requests.Session, "pass auth=AdhAuth() to the client"),
    "httpx": (httpx.Client, "pass auth=AdhHttpxAuth() to the client"),
    "httpx2": (httpx2.AsyncClient, "pass auth=AdhHttpx2Auth() to the client"),
}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("how", ["by place", "by name"])
@pytest.mark.parametrize("what", FIRST)
def test_what_is_no_path(cls: Any, how: str, what: str) -> None:
    """A token would be looked for as a file, and quoted in the error."""
    make, said = FIRST[what]
    with pytest.raises(TypeError) as caught:
        cls(make()) if how == "by place" else cls(token_file=make())
    assert str(caught.value).startswith(f"{cls.__name__}() takes ")
    assert said in str(caught.value)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_session_of_a_client(cls: Any) -> None:
    """Not a name, but the very thing that the auth object is for."""
    with pytest.raises(
        TypeError, match="takes no session of requests: set auth=AdhAuth\\(\\) on that session"
    ):
        cls(session=requests.Session())


@pytest.mark.parametrize("cls", CLASSES)
def test_more_than_one_without_a_name(cls: Any) -> None:
    """Two strings in a row would be mixed up."""
    with pytest.raises(TypeError, match=rf"{cls.__name__}\(\) takes only the token file without a name"):
        cls("tokens.json", "id", "secret")


def test_no_traceback_shows_what_was_passed() -> None:
    """With the locals of every frame of this library (rule 13)."""

    def passed(name: str) -> Any:
        return {"token": TOKEN, "client_secret": "s3cret-value"}[name]

    kind: Any = AdhAuth
    calls: tuple[Callable[[], Any], ...] = (
        lambda: kind(token=passed("token"), client_secret=passed("client_secret")),
        lambda: kind(passed("token"), client_secret=passed("client_secret")),
        lambda: kind(client_id=passed("token"), client_secret=passed("client_secret"), lock_timeout=-1),
    )
    for call in calls:
        with pytest.raises((TypeError, ConfigurationError)) as caught:
            call()
        shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        ours = [frame for frame in shown.stack if f"{Path('adh_auth') / 'clients'}" in frame.filename]
        assert ours
        assert "s3cret-value" not in str([frame.locals for frame in ours])
        if isinstance(caught.value, TypeError):
            assert TOKEN not in str([frame.locals for frame in ours])


@pytest.mark.parametrize("cls", CLASSES)
def test_the_signature_is_what_it_was(cls: Any) -> None:
    """For IDEs, notebooks and `help`."""
    parameters = inspect.signature(cls).parameters
    assert next(iter(parameters)) == "token_file"
    assert {"client_id", "client_secret", "on_event"} < set(parameters)
    assert {parameter.kind.name for parameter in parameters.values()} == {
        "POSITIONAL_OR_KEYWORD",
        "KEYWORD_ONLY",
    }
    assert BaseAuth.__init__.__name__ == "__init__"


def test_a_file_that_begins_like_a_token(sandbox: Sandbox, tmp_path: Path) -> None:
    """Short names, and those with a dot, are names."""
    for name in ("adh_tokens", "adh_tokens_of_the_nightly_reports.json"):
        auth = AdhAuth(str(tmp_path / name), client_id="i", client_secret="s")
        assert str(auth.token_file).endswith(name)
        assert str(AdhAuth(name, client_id="i", client_secret="s").token_file).endswith(name)
