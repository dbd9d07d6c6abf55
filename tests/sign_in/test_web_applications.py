"""The README's web applications: a user signs in, is called by name, lives through an expiry, signs out."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import requests

from adh_auth.testing import Sandbox

from ..support.clients import needs
from ..support.processes import PATIENCE, ROOT

pytestmark = [
    pytest.mark.web,
    # Warnings of the frameworks are not ours.
    pytest.mark.filterwarnings("ignore"),
]

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
ORIGIN = "http://localhost:8765"


class Answer(NamedTuple):
    """One answer: its status, the place that it leads to, and its text."""

    status: int
    leads_to: str | None
    text: str


#: Sends a method and a path as one browser, with its cookies, and follows no redirect.
Browser = Callable[[str, str], Answer]


def _fastapi(example: ModuleType) -> Browser:
    testclient = needs("fastapi.testclient", "web")
    client = testclient.TestClient(example.app, base_url=ORIGIN, follow_redirects=False)

    def send(method: str, path: str) -> Answer:
        answer = client.request(method, path)
        return Answer(answer.status_code, answer.headers.get("location"), answer.text)

    return send


def _flask(example: ModuleType) -> Browser:
    client = example.app.test_client()

    def send(method: str, path: str) -> Answer:
        answer = client.open(path, method=method, base_url=ORIGIN)
        return Answer(answer.status_code, answer.headers.get("Location"), answer.get_data(as_text=True))

    return send


def _django(example: ModuleType) -> Browser:
    from django.conf import settings
    from django.test import Client, override_settings

    urls = override_settings(ROOT_URLCONF=example.__name__)
    assert settings.configured
    client = Client(enforce_csrf_checks=False)

    def send(method: str, path: str) -> Answer:
        with urls:
            answer = getattr(client, method.lower())(path, HTTP_HOST="localhost:8765")
        return Answer(answer.status_code, answer.headers.get("Location"), answer.content.decode())

    return send


def _configure_django() -> None:
    import django
    from django.conf import settings

    if not settings.configured:
        settings.configure(
            SECRET_KEY="of the tests",
            ALLOWED_HOSTS=["localhost"],
            SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
            MIDDLEWARE=[
                "django.contrib.sessions.middleware.SessionMiddleware",
                "django.middleware.csrf.CsrfViewMiddleware",
            ],
        )
        django.setup()


FRAMEWORKS = {"fastapi": _fastapi, "flask": _flask, "django": _django}


@pytest.fixture(params=FRAMEWORKS)
def new_browser(
    request: pytest.FixtureRequest, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Browser]]:
    """Makes browsers that visit the README's example, which runs in a folder and an environment of its own."""
    name = request.param
    needs(name, "web")
    if name == "django":
        _configure_django()
    sandbox.redirect_uris = [ORIGIN + "/callback"]
    for variable, value in sandbox.environment(tmp_path / "nobodys.json").items():
        monkeypatch.setenv(variable, value)
    monkeypatch.chdir(tmp_path)
    example = _loaded(name, tmp_path)
    monkeypatch.setitem(sys.modules, example.__name__, example)
    yield lambda: FRAMEWORKS[name](example)
    assert not (tmp_path / "nobodys.json").exists()


def _loaded(framework: str, folder: Path) -> ModuleType:
    (code,) = (block for block in BLOCKS if "SignIn(" in block and f"from {framework}" in block)
    example = ModuleType(f"example_{framework}")
    exec(compile(code, str(folder / "example.py"), "exec"), vars(example))
    return example


def _at_the_platform(url: str | None) -> str:
    """Where the platform sends the browser: a path of the application."""
    assert url is not None
    location = requests.get(url, timeout=PATIENCE, allow_redirects=False).headers["Location"]
    assert location.startswith(ORIGIN + "/callback?")
    return location.removeprefix(ORIGIN)


def _sign_in(browser: Browser) -> str:
    assert browser("GET", "/").leads_to == "/sign-in"
    callback = _at_the_platform(browser("GET", "/sign-in").leads_to)
    assert browser("GET", callback).leads_to == "/"
    return callback


def test_a_users_whole_story(sandbox: Sandbox, new_browser: Callable[[], Browser], tmp_path: Path) -> None:
    """Sign in, call `me` as that user, an expiry, a sign-out."""
    ada = new_browser()
    _sign_in(ada)
    assert "Sandbox User" in ada("GET", "/").text
    sandbox.expire()
    assert "Sandbox User" in ada("GET", "/").text
    assert (sandbox.counts.rotations, sandbox.counts.reused) == (1, 0)
    assert len(list((tmp_path / "users").glob("*.json"))) == 1
    assert ada("POST", "/sign-out").status == 200
    assert sandbox.counts.revocations == 1
    assert ada("GET", "/").leads_to == "/sign-in"
    _sign_in(ada)


def test_each_user_has_a_session_of_their_own(
    sandbox: Sandbox, new_browser: Callable[[], Browser], tmp_path: Path
) -> None:
    """What one does is not seen by the other."""
    ada, bob = new_browser(), new_browser()
    _sign_in(ada)
    _sign_in(bob)
    assert len(list((tmp_path / "users").glob("*.json"))) == 2
    ada("POST", "/sign-out")
    assert "Sandbox User" in bob("GET", "/").text


def test_a_reload_of_the_callback_is_no_error(sandbox: Sandbox, new_browser: Callable[[], Browser]) -> None:
    """The person is signed in already; the code is sent once."""
    ada = new_browser()
    callback = _sign_in(ada)
    assert ada("GET", callback).leads_to == "/"
    assert sandbox.counts.exchanges == 1
    assert "Sandbox User" in ada("GET", "/").text


def test_two_tabs(sandbox: Sandbox, new_browser: Callable[[], Browser]) -> None:
    """The first tab ends its sign-in last."""
    ada = new_browser()
    first, second = (_at_the_platform(ada("GET", "/sign-in").leads_to) for _ in range(2))
    assert ada("GET", second).leads_to == "/"
    assert ada("GET", first).leads_to == "/"
    assert "Sandbox User" in ada("GET", "/").text


def test_the_first_of_two_tabs(sandbox: Sandbox, new_browser: Callable[[], Browser]) -> None:
    """It is not the latest state that counts."""
    ada = new_browser()
    first, _ = (_at_the_platform(ada("GET", "/sign-in").leads_to) for _ in range(2))
    assert ada("GET", first).leads_to == "/"
    assert sandbox.counts.exchanges == 1


def test_another_browsers_answer_signs_nobody_in(
    sandbox: Sandbox, new_browser: Callable[[], Browser], tmp_path: Path
) -> None:
    """A link to somebody's callback leads to a sign-in of one's own."""
    ada, bob = new_browser(), new_browser()
    callback = _at_the_platform(bob("GET", "/sign-in").leads_to)
    ada("GET", "/sign-in")
    assert ada("GET", callback).leads_to == "/sign-in"
    assert sandbox.counts.exchanges == 0
    assert not (tmp_path / "users").exists()


def test_a_parameter_that_comes_twice_counts_for_nothing(
    sandbox: Sandbox, new_browser: Callable[[], Browser]
) -> None:
    """Each framework would show one of the two, and not all the same one."""
    ada = new_browser()
    for position in ("{0}&state=another", "/callback?state=another&{1}"):
        callback = _at_the_platform(ada("GET", "/sign-in").leads_to)
        assert ada("GET", position.format(callback, callback.partition("?")[2])).leads_to == "/sign-in"
    assert sandbox.counts.exchanges == 0


def test_a_denial_and_an_outage_are_told(sandbox: Sandbox, new_browser: Callable[[], Browser]) -> None:
    """In words of the application's, without a path or a code in them."""
    ada = new_browser()
    sandbox.deny_next()
    for _ in range(2):
        answer = ada("GET", _at_the_platform(ada("GET", "/sign-in").leads_to))
        assert (answer.status, "You are not signed in." in answer.text) == (502, True)
        sandbox.fail_next(on="exchange", status=503)


def test_a_session_that_has_ended_leads_to_a_new_one(
    sandbox: Sandbox, new_browser: Callable[[], Browser]
) -> None:
    """`invalid_grant`: the user signs in again, into the same file."""
    ada = new_browser()
    _sign_in(ada)
    sandbox.expire()
    sandbox.fail_next(status=400, body=b'{"code": "invalid_grant"}')
    assert ada("GET", "/").leads_to == "/sign-in"
    callback = _at_the_platform(ada("GET", "/sign-in").leads_to)
    assert ada("GET", callback).leads_to == "/"
    assert "Sandbox User" in ada("GET", "/").text
