"""Tokens: one pair as a value."""

from __future__ import annotations

import json
import math
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from adh_auth import AdhAuthError, Tokens
from adh_auth.common.secret import Secret
from adh_auth.errors import MalformedTokens
from adh_auth.tokens import Stored, fingerprint

REPLY = {
    "access_token": "adh_A",
    "refresh_token": "adh_rt_A",
    "expires_in": 3600,
    "token_type": "Bearer",
    "scope": "profile:read",
}


def test_a_reply_becomes_a_pair() -> None:
    """A token reply holds both tokens, the life in seconds, and the scope."""
    pair = Tokens.from_response(REPLY, now=1000.0)
    assert pair == Tokens("adh_A", "adh_rt_A", expires_at=4600.0, token_type="Bearer", scope="profile:read")


@pytest.mark.parametrize(
    ("life", "expires_at"),
    [
        ("3600", 4600.0),
        (0.5, 1000.5),
        (0, None),
        (-5, None),
        (1e30, None),
        (math.inf, None),
        (math.nan, None),
        ("soon", None),
        (None, None),
        (True, None),
        ([], None),
        (10**400, None),
    ],
)
def test_an_invalid_life_never_costs_the_tokens(life: Any, expires_at: float | None) -> None:
    """A reply that carries both tokens is taken, whatever `expires_in` says."""
    assert Tokens.from_response({**REPLY, "expires_in": life}, now=1000.0).expires_at == expires_at


@pytest.mark.parametrize("kind", ["bearer", "BEARER", None, 7, "\n"])
def test_a_token_type_never_costs_the_tokens(kind: Any) -> None:
    """A `token_type` in another case, missing or of another type is still a bearer's."""
    assert Tokens.from_response({**REPLY, "token_type": kind}).token_type == "Bearer"


def test_a_reply_without_a_refresh_token_keeps_the_old_one() -> None:
    """What a reply omits stays as it was."""
    old = Tokens.from_response(REPLY)
    new = Tokens.from_response({"access_token": "adh_B"}, previous=old)
    assert (new.access_token, new.refresh_token, new.scope) == ("adh_B", "adh_rt_A", "profile:read")


@pytest.mark.parametrize(
    "token", [None, "", 5, [], {}, "a b", "a\r\nX: y", "a\n", "\x00", "ü", "a" * 100_000, "\ud800"]
)
@pytest.mark.parametrize("name", ["access_token", "refresh_token"])
def test_a_token_that_would_break_out_of_its_header_is_refused(name: str, token: Any) -> None:
    """A token that is missing, not a string, or not printable ASCII is an AdhAuthError and a ValueError,
    which does not quote it.
    """
    with pytest.raises(AdhAuthError) as caught:
        Tokens.from_response({**REPLY, name: token})
    assert isinstance(caught.value, ValueError)
    assert name in str(caught.value)
    assert not isinstance(token, str) or len(token) < 3 or token not in str(caught.value)


@pytest.mark.parametrize(
    "parse",
    [
        lambda: Tokens("adh_A", "adh rt"),
        lambda: Tokens.from_response({**REPLY, "refresh_token": "adh rt"}),
        lambda: Stored.from_bytes(json.dumps({**REPLY, "refresh_token": "adh rt"}).encode()),
        lambda: Stored.from_bytes(b'{"access_token": "adh_A", "refresh'),
    ],
    ids=["Tokens", "reply", "file", "JSON"],
)
def test_no_frame_of_the_error_holds_a_token(parse: Callable[[], object]) -> None:
    """A traceback with locals shows the arguments of every frame; none of ours holds what was parsed."""
    with pytest.raises(MalformedTokens) as caught:
        parse()
    assert caught.value.__context__ is None
    frames = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
    ours = [frame for frame in frames if frame.f_globals["__name__"].startswith("adh_auth.")]
    assert ours
    assert "adh_A" not in repr([frame.f_locals for frame in ours])


def test_a_pair_shows_no_token() -> None:
    """A repr shows fingerprints; a fingerprint is a hash, not a prefix."""
    pair = Tokens.from_response(REPLY)
    assert "adh_A" not in repr(pair)
    assert fingerprint("adh_A") in repr(pair)
    assert "adh" not in fingerprint("adh_A")
    assert repr(Secret("x-secret")) == "Secret(…)"


def test_a_pair_is_frozen_and_pickles() -> None:
    """A pair is a value."""
    pair = Tokens.from_response(REPLY)
    with pytest.raises(AttributeError):
        pair.access_token = "other"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(pair)) == pair


def test_an_exchange_reply_saved_as_it_came_is_a_token_file() -> None:
    """The file may hold `expires_in` and no `expires_at`: then the expiry is not known."""
    stored = Stored.from_bytes(json.dumps(REPLY).encode())
    assert stored.tokens.access_token == "adh_A"
    assert stored.tokens.expires_at is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_saved_by_a_windows_editor_is_read(encoding: str) -> None:
    """A byte order mark or UTF-16 (PowerShell's redirection) is JSON all the same."""
    assert Stored.from_bytes(json.dumps(REPLY).encode(encoding)).tokens.refresh_token == "adh_rt_A"


def test_unknown_keys_are_kept_for_ever() -> None:
    """A rotation changes the pair's own keys and no other, lone surrogates included."""
    stored = Stored.from_bytes(json.dumps({**REPLY, "team": {"id": 7}, "odd": "\ud800"}).encode())
    rotated = stored.rotated(
        {"access_token": "adh_B", "refresh_token": "adh_rt_B", "expires_in": 60}, now=1000.0
    )
    again = Stored.from_bytes(rotated.to_bytes())
    assert again.mapping["team"] == {"id": 7}
    assert again.mapping["odd"] == "\ud800"
    assert again.mapping["expires_at"] == 1060.0
    assert again.tokens.scope == "profile:read"


def test_an_old_expiry_never_stays_with_a_new_pair() -> None:
    """A reply without a usable `expires_in` removes `expires_at`: it was the old pair's."""
    stored = Stored.from_bytes(json.dumps({**REPLY, "expires_at": 1234}).encode())
    assert (
        "expires_at"
        not in stored.rotated({"access_token": "adh_B", "refresh_token": "adh_rt_B"}, now=1.0).mapping
    )
