"""A folder as a store: one token file for each session, whose name is never a path."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from adh_auth import ConfigurationError, TokenFileError, Tokens
from adh_auth.common.secret import Secret
from adh_auth.store.folder import DIGITS, READABLE, file_name, folder_in, session_file, sessions_in
from adh_auth.store.remedies import shell_quoted
from adh_auth.stores import TokenStore

PAIR = Tokens("adh_A", "adh_rt_A")
OTHER = Tokens("adh_B", "adh_rt_B")

NAMES = (
    "../x",
    "..",
    ".",
    "/etc/passwd",
    "CON",
    "Ada",
    "ada",
    "a/b",
    "a\\b",
    "ü",
    "日本",
    "a" * 200,
    "a" * 199,
    "😀",
    "-",
)


def url_of(folder: Path) -> str:
    return folder.as_uri()


@pytest.mark.parametrize("session", NAMES)
def test_a_session_is_never_a_path(session: str) -> None:
    """A readable part, a hyphen and a hash: a short name that any file system takes."""
    name = file_name(session)
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.-")
    assert name[0] not in ".-"
    assert name.endswith(".json")
    assert len(name) <= READABLE + 1 + DIGITS + len(".json")


def test_each_session_has_a_file_of_its_own(tmp_path: Path) -> None:
    """Also on a file system without case; all are kept, and listed by their own names."""
    assert len({file_name(session).lower() for session in NAMES}) == len(NAMES)
    folder = tmp_path / "new" / "adh"
    for number, session in enumerate(NAMES):
        TokenStore(url_of(folder), session).save(Tokens(f"adh_{number}", f"adh_rt_{number}"))
    for number, session in enumerate(NAMES):
        assert TokenStore(url_of(folder), session).load().access_token == f"adh_{number}"
    assert sessions_in(str(folder)) == sorted(NAMES)
    assert {path.parent for path in folder.rglob("*")} == {folder}


def test_the_folder_and_its_files_are_private(tmp_path: Path) -> None:
    """0700, and 0600 for each file."""
    folder = tmp_path / "adh"
    store = TokenStore(url_of(folder), "reports")
    store.save(PAIR)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_deleting_one_session_leaves_the_others(tmp_path: Path) -> None:
    """And one that is not there is no error."""
    first, second = (TokenStore(url_of(tmp_path), session) for session in ("first", "second"))
    first.save(PAIR)
    second.save(OTHER)
    first.delete()
    first.delete()
    assert second.load() == OTHER
    assert sessions_in(str(tmp_path)) == ["second"]


def test_an_unknown_session_says_how_to_sign_in(tmp_path: Path) -> None:
    """The command names store and session."""
    with pytest.raises(TokenFileError, match=r"is missing\. Sign in with: adh-auth login") as caught:
        TokenStore(url_of(tmp_path), "it's mine").load()
    assert str(caught.value).endswith(
        f"--store {shell_quoted(f'file://{tmp_path}')} --session 'it'\"'\"'s mine'"
    )
    assert caught.value.token_file == str(tmp_path / file_name("it's mine"))


def test_a_file_of_another_session_is_refused(tmp_path: Path) -> None:
    """A file that was renamed by hand signs nobody in as somebody else."""
    TokenStore(url_of(tmp_path), "first").save(PAIR)
    (tmp_path / file_name("first")).rename(tmp_path / file_name("second"))
    with pytest.raises(TokenFileError, match="holds another session"):
        TokenStore(url_of(tmp_path), "second").load()
    assert sessions_in(str(tmp_path)) == []


def test_a_file_that_was_put_there_by_hand_is_read(tmp_path: Path) -> None:
    """An exchange reply says nothing of a session."""
    (tmp_path / file_name("first")).write_text('{"access_token": "adh_A", "refresh_token": "adh_rt_A"}')
    (tmp_path / file_name("first")).chmod(0o600)
    (tmp_path / "torn.json").write_text("{")
    store = TokenStore(url_of(tmp_path), "first")
    assert store.load() == PAIR
    store.save(OTHER)
    assert sessions_in(str(tmp_path)) == ["first"]


def test_a_folder_with_blanks_and_a_host(tmp_path: Path) -> None:
    """A URL is decoded; `localhost` is this machine."""
    folder = tmp_path / "my tokens"
    assert folder_in(Secret(folder.as_uri())) == str(folder)
    assert folder_in(Secret(f"file://localhost{tmp_path}/")) == str(tmp_path)
    assert session_file(Secret(f"FILE:{tmp_path}"), "x").name.startswith(str(tmp_path))


@pytest.mark.parametrize(
    "url",
    [
        "file:",
        "file://",
        "file://server/share",
        "file:relative",
        "file:///x?y",
        "file:///x#y",
        "file:///x%00y",
        "file://[x",
    ],
)
def test_a_url_that_names_no_folder(url: str) -> None:
    """It is not quoted."""
    with pytest.raises(ConfigurationError, match="an absolute folder") as caught:
        TokenStore(url)
    assert "server" not in str(caught.value)
    assert caught.value.__context__ is None
