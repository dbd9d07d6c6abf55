"""The record of an attempt: one block of one size, whatever it holds; what can't be true is no record."""

from __future__ import annotations

import json
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adh_auth import RefreshFailed, TokenFile
from adh_auth.common.text import format_time
from adh_auth.store import disk
from adh_auth.store.record import CHECKS, FAILED, NOTHING, REFUSED, SENDING, SIZE, UNSAVED, Record
from adh_auth.testing import Sandbox
from adh_auth.tokens import fingerprint

from ..support.cli import adh
from ..support.faults import auth_for, get
from ..support.processes import assert_nothing_lost

GOOD = Record(
    number=7,
    about="0123456789ab",
    state=FAILED,
    at=1_700_000_000.0,
    pid=4242,
    host="elsewhere",
    reason="HTTP 503",
    status=503,
)

texts = st.text(st.characters(min_codepoint=1), max_size=3000)


@given(reason=texts, lost_how=texts, host=texts, request_id=texts, code=texts)
def test_a_record_never_outgrows_its_block(**free: Any) -> None:
    """Whatever paths, hosts and replies hold, it can be read again, and keeps its fingerprint."""
    block = replace(GOOD, **free).to_bytes()
    assert len(block) == SIZE
    read = Record.from_bytes(block)
    assert (read.number, read.about, read.state, read.at, read.status) == (
        7,
        "0123456789ab",
        FAILED,
        GOOD.at,
        503,
    )


@pytest.mark.parametrize(
    "text", ["\N{GRINNING FACE}" * 4000, "\xe9" * 4000, "\udc80" * 4000, "\x1b" * 4000, "x" * 4000]
)
def test_a_long_text_keeps_its_beginning_and_its_end(text: str) -> None:
    """A message ends with the next step."""
    reason = Record.from_bytes(replace(GOOD, reason=f"begin {text} end").to_bytes()).reason
    assert reason is not None
    assert reason.startswith("begin ")
    assert reason.endswith(" end")


def test_a_block_that_is_just_long_enough() -> None:
    """A text that just fits is kept whole; one character more is shortened."""
    spare = SIZE - 1 - len(replace(GOOD, reason="").to_bytes().rstrip())
    for length, whole in ((spare, True), (spare + 1, False)):
        block = replace(GOOD, reason="x" * length).to_bytes()
        assert len(block) == SIZE
        assert (Record.from_bytes(block).reason == "x" * length) is whole


def test_what_is_written_is_read() -> None:
    """A record of usual size comes back as it was."""
    assert Record.from_bytes(GOOD.to_bytes()) == GOOD
    assert Record.from_bytes(NOTHING.to_bytes()) == NOTHING


def test_every_field_has_a_check() -> None:
    """A field without a check would never be read again."""
    assert [item.name for item in fields(Record)] == list(CHECKS)


@pytest.mark.parametrize(
    ("name", "largest", "too_large"),
    [("pid", 2**31 - 1, 2**31), ("status", 2**31 - 1, 2**31), ("at", 99_999_999_999.0, 1e11)],
)
def test_a_number_at_its_limit(name: str, largest: float, too_large: float) -> None:
    """The largest number of a field is read, and the next one is not; so is zero, and no negative one."""
    for value, fits in ((largest, True), (too_large, False), (0, True), (-1, False)):
        record = Record.from_bytes(json.dumps({"state": FAILED, name: value}).encode())
        assert (record != NOTHING) is fits
        assert not fits or getattr(record, name) == value


NUMBERS = (
    "number",
    "pid",
    "status",
    "rotated_by",
    "at",
    "lost_at",
    "not_before",
    "rotated_at",
    "retry_after",
)
TEXTS = tuple(item.name for item in fields(Record) if item.name not in NUMBERS)
ABSURD_NUMBERS = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e308",
    "-1",
    "-0.5",
    "1e11",
    "1" + "0" * 400,
    "true",
    '"5"',
    "[]",
    "{}",
)
ABSURD_TEXTS = ("5", "true", "[]", '"\\u001b[31m"', '"two\\nlines"', '"\\ud800"', f'"{"x" * 1_000_000}"')


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in NUMBERS for value in ABSURD_NUMBERS]
    + [(name, value) for name in TEXTS for value in ABSURD_TEXTS],
)
def test_a_record_that_cant_be_true_is_no_record(name: str, value: str) -> None:
    """Neither a crash nor a message with foreign control characters comes of it."""
    assert Record.from_bytes(GOOD.to_bytes()) != NOTHING
    text = json.dumps({"about": "0123456789ab", name: "here"}).replace('"here"', value)
    assert Record.from_bytes(text.encode()) == NOTHING


@pytest.mark.parametrize("name", [item.name for item in fields(Record) if item.default is not None])
def test_what_a_record_must_have_is_not_null(name: str) -> None:
    """Only what may be unknown may be null."""
    assert Record.from_bytes(json.dumps({"state": FAILED, "about": "x", name: None}).encode()) == NOTHING


@pytest.mark.parametrize("epoch", [1e11 - 1, 0.0, 1e12, 1e308, float("inf"), float("nan"), -1e12])
def test_a_time_is_formatted_whatever_the_number(epoch: float) -> None:
    """A number that is no time is shown as a number."""
    assert format_time(epoch)


HOSTILE = (
    {"at": 9e10, "not_before": 9.1e10},
    {"at": 9e10, "rotated_at": 9e10, "lost_at": 9e10},
    {"at": 1e300},
    {"not_before": 1e300},
    {"rotated_at": float("nan")},
    {"lost_how": "\x1b]0;owned\x07", "lost_at": 5.0},
    {"reason": "\x1b[2J" * 100},
    {"host": "h" * 1_000_000},
    {"pid": 10**300},
)


@pytest.mark.parametrize("state", [SENDING, UNSAVED, FAILED, REFUSED])
@pytest.mark.parametrize("absurd", HOSTILE, ids="-".join)
def test_an_absurd_record_stops_no_rotation(
    absurd: dict[str, Any], state: str, sandbox: Sandbox, token_file: Path
) -> None:
    """`status` shows the session's facts without a control character.

    Unless the token was refused, a rotation succeeds.
    """
    about = fingerprint(TokenFile(token_file).load().refresh_token)
    record = Path(f"{token_file}.record")
    record.write_text(
        json.dumps(
            {
                "number": 3,
                "about": about,
                "state": state,
                "at": time.time() - 5,
                "pid": 1,
                "host": "here",
                **absurd,
            }
        )
    )
    record.chmod(0o600)
    for arguments in (["status"], ["status", "--json"]):
        said = adh(*arguments, "--token-file", str(token_file))
        assert said.stderr == ""
        assert all(char.isprintable() for char in said.stdout.replace("\n", ""))
    if Record.from_bytes(record.read_bytes()).state != REFUSED:
        sandbox.expire()
        assert get(sandbox, auth_for(sandbox)) == 200
        assert_nothing_lost(sandbox, token_file)


def test_a_record_that_is_longer_than_its_block_is_read_again_after_the_next(token_file: Path) -> None:
    """An earlier version wrote longer blocks, whose rest made every later record unreadable."""
    record = Path(f"{token_file}.record")
    record.write_bytes(b"x" * (SIZE + 1))
    record.chmod(0o600)
    file = TokenFile(token_file)
    assert file.record() == NOTHING
    file.note(GOOD)
    assert file.record() == GOOD
    assert record.stat().st_size == SIZE


def test_a_failure_below_a_long_path_is_shared(sandbox: Sandbox, tmp_path: Path) -> None:
    """Waiters can read the record of an outage, whatever the path and the request id are made of."""
    folder = tmp_path / ("\N{GRINNING FACE}" * 60) / ("\N{GRINNING FACE}" * 60)
    folder.mkdir(parents=True)
    token_file = sandbox.write_token_file(folder / "tokens.json")
    sandbox.expire()
    sandbox.fail_next(status=400, headers={"X-Request-Id": "\xe9" * 200}, body=b'{"code": "invalid_request"}')
    assert TokenFile(token_file).record() == NOTHING
    with pytest.raises(RefreshFailed, match="HTTP 400"):
        get(sandbox, auth_for(sandbox))
    record = TokenFile(token_file).record()
    assert (record.state, record.status) == (FAILED, 400)
    assert_nothing_lost(sandbox, token_file)


def test_a_block_is_written_over_a_shorter_one(tmp_path: Path) -> None:
    """And the file is private from birth."""
    path = str(tmp_path / "record")
    for block in (b"ab", b"abcd", b"ef"):
        disk.write_block(path, block)
        assert Path(path).read_bytes() == block
