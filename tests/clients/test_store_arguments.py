"""`store` and `session`: arguments, environment, and what is refused. No URL is shown anywhere."""

from __future__ import annotations

import copy
import gc
import pickle
import traceback
from pathlib import Path
from typing import Any

import pytest
import requests

from adh_auth import (
    AdhAuth,
    AdhHttpx2Auth,
    AdhHttpxAuth,
    ConfigurationError,
    StoreError,
    Tokens,
    TokenStore,
    login,
)
from adh_auth.store.folder import file_name
from adh_auth.testing import MemoryRegister, Sandbox

from ..support.processes import PATIENCE

CLASSES = (AdhAuth, AdhHttpxAuth, AdhHttpx2Auth)
APP: dict[str, Any] = {"client_id": "id", "client_secret": "s3cret", "base_url": "https://api.example.com"}
PAIR = Tokens("adh_A", "adh_rt_A")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for sessions."""
    return tmp_path / "adh"


@pytest.mark.parametrize("cls", CLASSES)
def test_an_argument_names_store_and_session(cls: Any, folder: Path) -> None:
    """The session is in the store."""
    auth = cls(store=folder.as_uri(), session="reports", **APP)
    assert auth.token_file == str(folder / file_name("reports"))
    TokenStore(folder.as_uri(), "reports").save(PAIR)
    assert auth.tokens == PAIR


def test_the_environment_names_store_and_session(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    """An argument beats it, one by one."""
    monkeypatch.setenv("ADH_STORE", folder.as_uri())
    assert AdhAuth(**APP).token_file == str(folder / file_name("default"))
    monkeypatch.setenv("ADH_SESSION", "reports")
    assert AdhAuth(**APP).token_file == str(folder / file_name("reports"))
    assert AdhAuth(session="other", **APP).token_file == str(folder / file_name("other"))
    other = tmp_path / "other"
    assert AdhAuth(store=other.as_uri(), **APP).token_file == str(other / file_name("reports"))
    assert AdhAuth(tmp_path / "tokens.json", **APP).token_file == str(tmp_path / "tokens.json")


def test_a_variable_that_names_a_file_gives_way_to_an_argument(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    """Only where neither is given do two variables contradict each other."""
    monkeypatch.setenv("ADH_STORE", folder.as_uri())
    monkeypatch.setenv("ADH_TOKEN_FILE", str(tmp_path / "tokens.json"))
    assert AdhAuth(tmp_path / "x.json", **APP).token_file == str(tmp_path / "x.json")
    assert AdhAuth(store=folder.as_uri(), **APP).token_file == str(folder / file_name("default"))
    cases: tuple[dict[str, Any], ...] = ({}, {"session": "reports"})
    for arguments in cases:
        with pytest.raises(ConfigurationError, match="ADH_STORE and ADH_TOKEN_FILE are both set") as caught:
            AdhAuth(**arguments, **APP)
        assert caught.value.setting == "ADH_STORE"


def test_a_session_alone_means_nothing(tmp_path: Path) -> None:
    """It names the variable; a token file holds one session."""
    with pytest.raises(ConfigurationError, match="set ADH_STORE"):
        AdhAuth(session="reports", **APP)
    with pytest.raises(ConfigurationError, match="give token_file or session, not both"):
        AdhAuth(tmp_path / "tokens.json", session="reports", **APP)


@pytest.mark.parametrize("session", ["", "a" * 201, "a\nb", "a\x00b", "\u200e", 7, b"x"])
def test_a_senseless_session(session: Any, folder: Path) -> None:
    """1 to 200 printable characters."""
    with pytest.raises(ConfigurationError, match="session must be 1 to 200 printable characters") as caught:
        AdhAuth(store=folder.as_uri(), session=session, **APP)
    assert caught.value.setting == "session"


@pytest.mark.parametrize("session", ["a", "a" * 200, "日本 😀", "../x"])
def test_a_session_of_any_printable_characters(session: str, folder: Path) -> None:
    """Unicode, blanks and slashes included."""
    assert AdhAuth(store=folder.as_uri(), session=session, **APP).token_file


BAD = ("mysql://app:p4ss@db/app", "app:p4ss@db", "p4ss", "", "://p4ss", "http://p4ss")


@pytest.mark.parametrize("url", BAD)
@pytest.mark.parametrize("cls", CLASSES)
def test_an_unknown_scheme_shows_nothing_of_the_url(cls: Any, url: str) -> None:
    """Neither in the message nor in a traceback that shows local variables."""
    with pytest.raises(
        ConfigurationError, match="store must be a URL that begins with one of file"
    ) as caught:
        cls(store=url, **APP)
    assert caught.value.setting == "store"
    assert caught.value.__context__ is None
    shown = "".join(
        traceback.TracebackException.from_exception(caught.value, capture_locals=True).format(chain=True)
    )
    package = shown.split("test_store_arguments.py")[-1].split("\n", 15)[-1]
    assert "p4ss" not in str(caught.value)
    assert "p4ss" not in package


def test_store_and_token_file_together(folder: Path, tmp_path: Path) -> None:
    """One place only."""
    with pytest.raises(ConfigurationError, match="give token_file or store, not both"):
        AdhAuth(tmp_path / "tokens.json", store=folder.as_uri(), **APP)
    with pytest.raises(ConfigurationError, match="give token_file or store, not both"):
        login(tmp_path / "tokens.json", store=folder.as_uri(), **APP)


def test_an_object_that_is_no_store() -> None:
    """Its type is named."""
    with pytest.raises(ConfigurationError, match=r"a store of adh_auth\.stores, not Session"):
        AdhAuth(store=requests.Session(), **APP)


def test_a_pickle_has_the_url_only_if_it_was_an_argument(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    """What came from the environment is read from that of the process that loads the pickle."""
    given = AdhAuth(store=folder.as_uri(), session="reports", **APP)
    again = pickle.loads(pickle.dumps(given))
    assert again.token_file == copy.deepcopy(given).token_file == given.token_file
    monkeypatch.setenv("ADH_STORE", folder.as_uri())
    assert str(folder).encode() not in pickle.dumps(AdhAuth(**APP))
    pickled = pickle.dumps(AdhAuth(session="reports", **APP))
    assert str(folder).encode() not in pickled
    monkeypatch.setenv("ADH_STORE", (tmp_path / "elsewhere").as_uri())
    assert pickle.loads(pickled).token_file == str(tmp_path / "elsewhere" / file_name("reports"))


def test_a_pickle_of_a_store_from_the_environment_is_no_other_session(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """Where it is loaded it has the same name, and without a store it does not become a token file."""
    monkeypatch.setenv("ADH_STORE", folder.as_uri())
    monkeypatch.setenv("ADH_SESSION", "reports")
    pickled = pickle.dumps(AdhAuth(**APP))
    monkeypatch.setenv("ADH_SESSION", "another")
    assert pickle.loads(pickled).token_file == str(folder / file_name("reports"))
    monkeypatch.delenv("ADH_STORE")
    with pytest.raises(ConfigurationError, match="set ADH_STORE"):
        pickle.loads(pickled)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("place", ["file", "store"])
def test_a_copy_has_the_settings_of_its_original(
    place: str, cls: Any, copied: Any, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """Whatever has become of the environment since; its pickle holds no secret from there all the same."""
    for name, value in APP.items():
        monkeypatch.setenv(f"ADH_{name.upper()}", value)
    monkeypatch.setenv(
        *(("ADH_STORE", folder.as_uri()) if place == "store" else ("ADH_TOKEN_FILE", str(folder)))
    )
    auth = cls()
    for name in ("ADH_CLIENT_ID", "ADH_CLIENT_SECRET", "ADH_STORE", "ADH_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ADH_BASE_URL", "https://elsewhere.example")
    twin = copied(copied(auth))
    assert repr(twin) == repr(auth)
    assert (twin.token_file, twin.base_url) == (auth.token_file, auth.base_url)
    assert APP["client_secret"].encode() not in pickle.dumps(twin)


def test_a_key_that_is_set_later_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same process, for what is opened then: with none, with one, and with another."""
    pytest.importorskip("cryptography")
    register = MemoryRegister()
    plain = TokenStore(register, "reports")
    tokens = Tokens("adh_one", "adh_rt_one")
    monkeypatch.setenv("ADH_STORE_KEY", "A" * 43 + "=")
    encrypting = TokenStore(register, "reports")
    encrypting.save(tokens)
    assert encrypting.load() == tokens
    with pytest.raises(StoreError, match="there is no key"):
        plain.load()
    monkeypatch.setenv("ADH_STORE_KEY", "B" * 43 + "=")
    with pytest.raises(StoreError, match="another key"):
        TokenStore(register, "reports").load()
    auths = []
    for key in ("A", "B"):
        monkeypatch.setenv("ADH_STORE_KEY", key * 43 + "=")
        auths.append(AdhAuth(store=register, session="reports", **APP))
    assert auths[0].tokens == tokens
    with pytest.raises(StoreError, match="another key"):
        _ = auths[1].tokens


def test_a_whole_story_in_a_folder(sandbox: Sandbox, folder: Path) -> None:
    """Two users of a web application, each with a session: an expiry, a refresh, a sign-out."""
    app: dict[str, Any] = {
        "client_id": sandbox.client_id,
        "client_secret": sandbox.client_secret,
        "base_url": sandbox.url,
    }
    for user in ("user/1", "user/2"):
        TokenStore(folder.as_uri(), user).save(Tokens.from_response(sandbox.sign_in()))
    sandbox.expire()
    for user in ("user/1", "user/2"):
        auth = AdhAuth(store=folder.as_uri(), session=user, **app)
        assert requests.get(sandbox.url + "/api/auth/me", auth=auth, timeout=PATIENCE).status_code == 200
        assert TokenStore(folder.as_uri(), user).load() == auth.tokens
    assert sandbox.counts.refresh_calls == 2
    AdhAuth(store=folder.as_uri(), session="user/1", **app).revoke()
    assert not (folder / file_name("user/1")).exists()
    assert (folder / file_name("user/2")).exists()
    gc.collect()


URL = "postgresql://app:p4ssw0rd@h:1/db"


@pytest.mark.parametrize(
    "fails",
    [
        lambda: AdhAuth(store=URL, **APP, session="x" * 201),
        lambda: AdhHttpxAuth("t.json", store=URL, **APP),
        lambda: AdhAuth(store=URL, client_secret="s"),
        lambda: login(store=URL, **APP, session="x" * 201),
        lambda: TokenStore(URL, "x" * 201),
        lambda: AdhAuth(session="x" * 201, **APP),
        lambda: AdhAuth(**APP, lock_timeout=-1),
    ],
)
def test_no_traceback_shows_the_url(monkeypatch: pytest.MonkeyPatch, fails: Any) -> None:
    """Nor does any local variable of this package's frames, whichever argument or variable is wrong."""
    monkeypatch.setenv("ADH_STORE", URL)
    with pytest.raises(ConfigurationError) as caught:
        fails()
    for frame, _ in traceback.walk_tb(caught.value.__traceback__):
        if str(frame.f_globals["__name__"]).startswith("adh_auth"):
            shown = {name: repr(value) for name, value in frame.f_locals.items()}
            assert not any("p4ssw0rd" in text for text in shown.values()), (frame.f_code.co_name, shown)
