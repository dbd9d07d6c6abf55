"""TokenFile: read, save, delete, and what it says when it can't."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from adh_auth import TokenFile, TokenFileError, Tokens
from adh_auth.common.limits import MAX_READ_BYTES, SAVE_LIMIT
from adh_auth.store.record import DONE, NOTHING, SENDING, UNSAVED, Record
from adh_auth.store.remedies import shell_quoted
from adh_auth.store.token_file import is_successor
from adh_auth.tokens import Stored, fingerprint

PAIR = Tokens("adh_A", "adh_rt_A", expires_at=1234.5, scope="profile:read")


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """Save and load are each other's inverse; the file is private, and so is a folder that had to be made."""
    file = TokenFile(tmp_path / "new" / "folder" / "tokens.json")
    old = os.umask(0)
    try:
        file.save(PAIR)
    finally:
        os.umask(old)
    assert file.load() == PAIR
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.path.parent.iterdir()} == {
        "tokens.json": 0o600,
        "tokens.json.lock": 0o600,
    }
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.path.parent.parent.stat().st_mode) == 0o700


def test_a_huge_pair_is_refused(tmp_path: Path) -> None:
    """What could not be read back is refused before the write, and the file stays as it was."""
    file = TokenFile(tmp_path / "tokens.json")
    file.save(PAIR)
    before = file.path.read_bytes()
    huge = replace(PAIR, scope="s" * SAVE_LIMIT)
    saves: tuple[Callable[[], None], ...] = (lambda: file.save(huge), lambda: file.save_mapping({}, huge))
    for save in saves:
        with pytest.raises(
            TokenFileError, match=f"can't be written: .* larger than {SAVE_LIMIT} bytes"
        ) as caught:
            save()
        assert caught.value.token_file == str(file.path)
    assert file.path.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokens.json", "tokens.json.lock"]
    large = replace(PAIR, scope="s" * (SAVE_LIMIT - 200))
    file.save(large)
    assert file.load() == large


def test_other_changes_that_are_huge(tmp_path: Path) -> None:
    """A session that was moved here, and a user's name that was added."""
    file = TokenFile(tmp_path / "tokens.json")
    file.save(PAIR)
    moved = Stored(PAIR, {**file.read().mapping, "team": "s" * MAX_READ_BYTES})
    changes: tuple[Callable[[], None], ...] = (
        lambda: file.take_over(moved, NOTHING),
        lambda: file.annotate(PAIR, signed_in_as="s" * MAX_READ_BYTES),
    )
    for change in changes:
        with pytest.raises(TokenFileError, match=f"larger than {MAX_READ_BYTES} bytes"):
            change()
    assert file.load() == PAIR


def test_a_symlink_is_kept(tmp_path: Path) -> None:
    """Writing goes where the link leads."""
    (tmp_path / "real").mkdir()
    link = tmp_path / "tokens.json"
    link.symlink_to(tmp_path / "real" / "tokens.json")
    TokenFile(link).save(PAIR)
    assert link.is_symlink()
    assert TokenFile(tmp_path / "real" / "tokens.json").load() == PAIR


def test_unknown_keys_survive_a_save(tmp_path: Path) -> None:
    """Keys of the user's own are kept for ever; those of the pair before are gone."""
    path = tmp_path / "tokens.json"
    path.write_text(
        json.dumps({"access_token": "x", "refresh_token": "y", "expires_in": 5, "scope": "old", "team": 7})
    )
    TokenFile(path).save(Tokens("adh_A", "adh_rt_A"))
    assert json.loads(path.read_text()) == {
        "access_token": "adh_A",
        "refresh_token": "adh_rt_A",
        "token_type": "Bearer",
        "team": 7,
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b'{"access_token": "adh_A", "refr', "not JSON"),
        (b"access_token=adh_A", "not JSON"),
        (b"\xff\xfe\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'["adh_A"]', "not a JSON object"),
        (b'{"refresh_token": "adh_rt_A"}', "access_token is missing"),
        (b'{"access_token": "adh_A"}', "refresh_token is missing"),
        (b'{"access_token": 5, "refresh_token": "adh_rt_A"}', "access_token must be a string"),
        (b'{"access_token": "adh_A\\r\\nX: y", "refresh_token": "adh_rt_A"}', "header"),
        (b'{"access_token": "adh_A", "refresh_token": "adh_rt\\u0000"}', "header"),
    ],
)
def test_a_file_that_is_no_token_file(tmp_path: Path, content: bytes, reason: str) -> None:
    """The error names the file, the reason and the next step, quotes nothing, chains nothing, and leaves the
    file as it was.
    """
    path = tmp_path / "tokens.json"
    path.write_bytes(content)
    with pytest.raises(TokenFileError, match=reason) as caught:
        TokenFile(path).load()
    assert str(path) in str(caught.value)
    assert "adh-auth login" in str(caught.value)
    assert "adh_A" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert path.read_bytes() == content


def test_a_missing_file_says_how_to_sign_in(tmp_path: Path) -> None:
    """The error names the file and the command, quoted for a shell."""
    path = tmp_path / "my tokens.json"
    with pytest.raises(TokenFileError, match="is missing") as caught:
        TokenFile(path).load()
    assert f"adh-auth login --token-file '{path}'" in str(caught.value)
    assert caught.value.token_file == str(path)


def test_delete_is_the_end_of_it(tmp_path: Path) -> None:
    """Delete removes the pair and what goes with it; a second time is fine, and so is a folder that never
    was.
    """
    file = TokenFile(tmp_path / "tokens.json")
    file.save(PAIR)
    (tmp_path / "tokens.json.new").write_text("left behind")
    file.delete()
    file.delete()
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.json.lock"]
    TokenFile(tmp_path / "no" / "folder.json").delete()


def test_save_takes_tokens_only(tmp_path: Path) -> None:
    """A reply handed to save() is a TypeError that says how to make Tokens of it."""
    with pytest.raises(TypeError, match="from_response"):
        TokenFile(tmp_path / "t.json").save({"access_token": "adh_A"})  # type: ignore[arg-type]


def test_a_corrupt_file_can_be_signed_in_over(tmp_path: Path) -> None:
    """A new sign-in replaces what can't be read."""
    path = tmp_path / "tokens.json"
    path.write_text("garbage")
    TokenFile(path).save(PAIR)
    assert TokenFile(path).load() == PAIR


def test_repr_shows_the_path_only(tmp_path: Path) -> None:
    """A TokenFile knows no token."""
    assert repr(TokenFile(tmp_path / "t.json")) == f"TokenFile('{tmp_path}/t.json')"


# The contract of a store.


class Watched(TokenFile):
    """A token file that is changed right after its state was taken."""

    between: list[str]

    def state(self) -> object:
        state = super().state()
        self.between.append("state")
        return state

    def read_patiently(self) -> Stored:
        self.between.append("read")
        return super().read_patiently()

    def record(self) -> Record:
        self.between.append("record")
        return super().record()


def test_a_look_takes_the_state_before_it_reads(tmp_path: Path) -> None:
    """A change in between shows as one; a record read first could be older than the pair."""
    file = Watched(tmp_path / "tokens.json")
    file.between = []
    file.save(PAIR)
    file.between.clear()
    look = file.look()
    assert file.between == ["state", "read", "record"]
    assert look.stored.tokens == PAIR
    assert not file.has_changed(look.state)
    TokenFile(file.path).save(Tokens("adh_B", "adh_rt_B"))
    assert file.has_changed(look.state)
    file.path.unlink()
    assert file.has_changed(look.state)


def test_how_a_token_file_is_named(tmp_path: Path) -> None:
    """Messages and errors name it by its path."""
    file = TokenFile(tmp_path / "tokens.json")
    assert file.name == str(file.path)
    assert file.what() == f"token file {file.path}"
    assert file.facts_for_errors() == {"token_file": str(file.path)}
    assert file.sign_in_command() == f"sign in with: adh-auth login --token-file {shell_quoted(file.name)}"
    assert not file.reads_block


LEFT = Stored(Tokens("adh_B", "adh_rt_B"), {"access_token": "adh_B", "refresh_token": "adh_rt_B"})
HELD = Stored(PAIR, {})
ABOUT_HELD = Record(number=1, about=fingerprint(PAIR.refresh_token))


@pytest.mark.parametrize(
    ("left", "record", "expected"),
    [
        (LEFT.in_place_of(HELD), NOTHING, True),
        (LEFT.in_place_of(LEFT), replace(ABOUT_HELD, state=SENDING), False),
        (HELD, replace(ABOUT_HELD, state=SENDING), False),
        (LEFT, NOTHING, False),
        (LEFT, replace(ABOUT_HELD, state=SENDING), True),
        (LEFT, replace(ABOUT_HELD, state=UNSAVED), True),
        (LEFT, replace(ABOUT_HELD, state=DONE), False),
        (LEFT, Record(about="another", state=SENDING), False),
    ],
)
def test_which_pair_beside_the_file_replaces_it(left: Stored, record: Record, expected: bool) -> None:
    """Its mark decides; the record does only for one without a mark."""
    assert is_successor(left, HELD, record) is expected
