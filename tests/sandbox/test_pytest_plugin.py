"""The fixtures of the pytest plugin, in runs of pytest of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..support.processes import PATIENCE, ROOT

PYTEST = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--strict-markers", "-W", "error"]
PLUGIN = ["-p", "adh_auth.pytest_plugin"]


def environment() -> dict[str, str]:
    """Nothing but the plugin that is named; a user who has sessions of his own elsewhere."""
    others = {"ADH_BASE_URL": "https://api.example", "ADH_STORE": "redis://api.example", "ADH_SESSION": "a"}
    return {**os.environ, **others, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def run(folder: Path, code: str, *options: str, conftest: str = "") -> subprocess.CompletedProcess[str]:
    """Run the test file of a user."""
    (folder / "test_user.py").write_text(COMMON + code, encoding="utf-8")
    (folder / "conftest.py").write_text(conftest, encoding="utf-8")
    return subprocess.run(
        [*PYTEST, *PLUGIN, *options, "--rootdir", str(folder), str(folder)],
        env=environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )


def passes(done: subprocess.CompletedProcess[str], number: int) -> None:
    """That many tests have passed, and none has not."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{number} passed in" in done.stdout


#: What the users' tests below have in common.
COMMON = """
import json, os, requests
import pytest
from adh_auth import AdhAuth

def call(**arguments):
    url = os.environ["ADH_BASE_URL"] + "/api/auth/me"
    return requests.get(url, auth=AdhAuth(**arguments), timeout=30)
"""


def test_the_fixture_is_signed_in(tmp_path: Path) -> None:
    """It runs, is signed in, and the environment points at it and at nothing else."""
    code = """
def test_it(adh_sandbox, tmp_path):
    assert adh_sandbox.token_file.parent == tmp_path
    assert os.environ["ADH_TOKEN_FILE"] == str(adh_sandbox.token_file)
    assert not {"ADH_STORE", "ADH_SESSION"} & set(os.environ)
    adh_sandbox.expire()
    assert call().history[0].status_code == 401
    assert adh_sandbox.counts.rotations == 1

def test_it_is_undone():
    assert os.environ["ADH_BASE_URL"] == "https://api.example"
    assert os.environ["ADH_STORE"] == "redis://api.example"
"""
    passes(run(tmp_path, code), 2)


def test_loading_the_plugin_loads_no_server() -> None:
    """Every run of pytest loads it, where the package is installed."""
    check = "import sys, adh_auth.pytest_plugin; "
    check += "sys.exit(bool({'adh_auth.testing', 'adh_auth.sandbox', 'http.server', 'requests'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", check], env=environment(), check=True, timeout=PATIENCE)


def test_a_marker_gives_it_options(tmp_path: Path) -> None:
    """All that the sandbox takes; the nearest marker wins, each for its own options; the first expiry is
    stored.
    """
    code = """
pytestmark = pytest.mark.adh_sandbox(error_shape="nested", client_id="everywhere")

@pytest.mark.adh_sandbox(token_life=2, error_shape="oauth")
class TestClass:
    @pytest.mark.adh_sandbox(grace=3, error_shape="code")
    def test_nearest(self, adh_sandbox):
        assert (adh_sandbox.token_life, adh_sandbox.grace, adh_sandbox.error_shape) == (2, 3, "code")
        assert os.environ["ADH_CLIENT_ID"] == adh_sandbox.client_id == "everywhere"
        stored = json.loads(adh_sandbox.token_file.read_text())
        assert stored["expires_in"] == 2 and "expires_at" in stored

    def test_next(self, adh_sandbox):
        assert (adh_sandbox.grace, adh_sandbox.error_shape) == (0, "oauth")

def test_far(adh_sandbox):
    assert (adh_sandbox.token_life, adh_sandbox.error_shape) == (3600, "nested")

@pytest.mark.parametrize("adh_sandbox", [{"error_shape": "code"}, {"error_shape": "header"}], indirect=True)
def test_each(adh_sandbox, request):
    assert adh_sandbox.error_shape == request.node.callspec.params["adh_sandbox"]["error_shape"]
    adh_sandbox.expire()
    assert call().ok
"""
    passes(run(tmp_path, code), 5)


def test_refresh_ahead_can_be_tried(tmp_path: Path) -> None:
    """The first token has its expiry stored: one that is near is refreshed behind a request's back."""
    code = """
@pytest.mark.adh_sandbox(token_life=30)
def test_ahead(adh_sandbox):
    auth = AdhAuth(refresh_ahead=60)
    with adh_sandbox.hold_next(at="before") as hold:
        answer = requests.get(adh_sandbox.url + "/api/auth/me", auth=auth, timeout=30)
        hold.wait()
    auth.refresh()  # it shares the refresh in flight
    assert (answer.status_code, answer.history) == (200, [])
    assert (adh_sandbox.counts.rotations, adh_sandbox.counts.unauthorized) == (1, 0)
"""
    passes(run(tmp_path, code), 1)


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ("token_live=2", "token_live"),
        ('error_shape="x"', "error_shape must be one of"),
        ("2", "keyword arguments only"),
    ],
)
def test_a_marker_that_is_wrong_is_said_in_a_line(mark: str, said: str, tmp_path: Path) -> None:
    """An option that there is not, a value that is none: no traceback of ours."""
    code = f"""
@pytest.mark.adh_sandbox({mark})
def test_it(adh_sandbox):
    pass
"""
    done = run(tmp_path, code)
    assert done.returncode == 1
    assert said in done.stdout
    assert "1 error in" in done.stdout
    assert "pytest_plugin.py" not in done.stdout


def test_the_marker_is_known(tmp_path: Path) -> None:
    """`pytest --markers` explains it, and `--fixtures` the fixtures."""
    assert "adh_sandbox(**options)" in run(tmp_path, "", "--markers").stdout
    fixtures = run(tmp_path, "", "--fixtures").stdout
    for name in ("adh_sandbox", "adh_sandbox_factory", "adh_sandbox_session", "adh_sandbox_options"):
        assert f"\n{name} " in fixtures


def test_a_factory_makes_several(tmp_path: Path) -> None:
    """Each runs, has a session and a file of its own; the environment points at the last; all are stopped."""
    code = """
made = []

def test_two(adh_sandbox_factory):
    one, two = adh_sandbox_factory(client_id="one"), adh_sandbox_factory(client_id="two", token_life=5)
    made.extend([one, two])
    assert one.url != two.url and one.token_file != two.token_file
    assert (os.environ["ADH_BASE_URL"], os.environ["ADH_CLIENT_ID"]) == (two.url, "two")
    assert call().ok
    first = AdhAuth(one.token_file, base_url=one.url, client_id="one", client_secret=one.client_secret)
    one.expire()
    assert requests.get(one.url + "/api/auth/me", auth=first, timeout=30).ok
    assert (one.counts.rotations, two.counts.rotations) == (1, 0)
    with pytest.raises(TypeError):
        adh_sandbox_factory(token_live=2)

def test_they_have_stopped():
    for sandbox in made:
        with pytest.raises(requests.ConnectionError):
            requests.get(sandbox.url, timeout=30)
    assert os.environ["ADH_BASE_URL"] == "https://api.example"
"""
    passes(run(tmp_path, code), 2)


def test_one_for_the_session(tmp_path: Path) -> None:
    """The same in every test, for fixtures of a wider scope, too; a test with its own uses that meanwhile."""
    code = """
@pytest.fixture(scope="module")
def name(adh_sandbox_session):
    return call().json()["name"]

def test_first(name, adh_sandbox_session):
    assert name == "Sandbox User"
    assert os.environ["ADH_BASE_URL"] == adh_sandbox_session.url

def test_own(adh_sandbox_session, adh_sandbox):
    assert os.environ["ADH_BASE_URL"] == adh_sandbox.url != adh_sandbox_session.url

def test_again(adh_sandbox_session):
    assert os.environ["ADH_BASE_URL"] == adh_sandbox_session.url
    assert adh_sandbox_session.counts.requests == 1
    assert adh_sandbox_session.token_life == 77
"""
    conftest = """
import pytest
@pytest.fixture(scope="session")
def adh_sandbox_options():
    return {"token_life": 77}
"""
    passes(run(tmp_path, code, conftest=conftest), 3)


@pytest.mark.parametrize(
    ("plugin", "fixture", "missing"),
    [
        ("monkeypatch", "adh_sandbox", "monkeypatch"),
        ("tmpdir", "adh_sandbox", "tmp_path"),
        ("monkeypatch", "adh_sandbox_factory", "monkeypatch"),
        ("tmpdir", "adh_sandbox_factory", "tmp_path"),
        ("tmpdir", "adh_sandbox_session", "tmp_path_factory"),
    ],
)
def test_a_plugin_that_is_off_is_named(plugin: str, fixture: str, missing: str, tmp_path: Path) -> None:
    """Without a plugin of pytest's own, the test's error says which one and what to do."""
    done = run(tmp_path, f"def test_it({fixture}): pass\n", "-p", f"no:{plugin}")
    assert done.returncode == 1
    assert f"{fixture} needs pytest's fixture {missing}: run without -p no:{plugin}" in done.stdout
    assert "pytest_plugin.py" not in done.stdout


def test_the_session_needs_no_monkeypatch(tmp_path: Path) -> None:
    """What works is not refused."""
    passes(run(tmp_path, "def test_it(adh_sandbox_session): assert call().ok\n", "-p", "no:monkeypatch"), 1)
