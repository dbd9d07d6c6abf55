"""What to do about a rejected access token, as a table (rule 2 of the design)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from adh_auth.common.secret import Secret
from adh_auth.errors import ConfigurationError, ReauthorizationRequired, RefreshFailed
from adh_auth.rotation.active_tokens import ActiveTokens
from adh_auth.rotation.decision import (
    CLOCK_LEAD,
    HAND_OVER,
    MAX_RETRY_AFTER,
    RESEND,
    ROTATE,
    Adopt,
    Decision,
    Refresh,
    Refuse,
    after_401,
    decide,
    is_in_first_half,
)
from adh_auth.store.record import DONE, FAILED, NOTHING, REFUSED, SENDING, UNSAVED, Record
from adh_auth.store.token_file import TokenFile
from adh_auth.tokens import Tokens, fingerprint

NOW = 1_700_000_000.0
REJECTED = Secret("access-old")
OLD = Tokens("access-old", "refresh-old")
NEW = Tokens("access-new", "refresh-new")
NEW_ALIVE = replace(NEW, expires_at=NOW + 10)
NEW_EXPIRED = replace(NEW, expires_at=NOW - 10)

ABOUT_OLD = Record(number=7, about=fingerprint("refresh-old"), at=NOW - 5, pid=4242, host="elsewhere")
ABOUT_NEW = replace(ABOUT_OLD, about=fingerprint("refresh-new"))
LOST = replace(ABOUT_OLD, lost_at=NOW - 9, lost_how="HTTP 502")


@dataclass(frozen=True)
class Case:
    """One row: what is known, and what follows."""

    rule: str
    stored: Tokens
    record: Record
    expected: str
    since: int = 7


CASES = (
    Case("another pair on disk is adopted", NEW, NOTHING, "adopt"),
    Case("another pair that is known to live is adopted", NEW_ALIVE, NOTHING, "adopt"),
    Case(
        "another pair that has expired by the clock is refreshed, not tried", NEW_EXPIRED, NOTHING, "refresh"
    ),
    Case(
        "another pair is adopted whatever became of an earlier token",
        NEW,
        replace(ABOUT_OLD, state=REFUSED),
        "adopt",
    ),
    Case(
        "another pair is adopted even if its own refresh was refused",
        NEW,
        replace(ABOUT_NEW, state=REFUSED),
        "adopt",
    ),
    Case(
        "another pair whose successor could not be written is not adopted",
        NEW,
        replace(ABOUT_NEW, state=UNSAVED),
        "refresh, lost",
    ),
    Case(
        "another pair is adopted while it is being refreshed", NEW, replace(ABOUT_NEW, state=SENDING), "adopt"
    ),
    Case(
        "an expired pair whose refresh was refused is refused",
        NEW_EXPIRED,
        replace(ABOUT_NEW, state=REFUSED),
        "ReauthorizationRequired",
    ),
    Case("the rejected pair without a record is refreshed", OLD, NOTHING, "refresh"),
    Case(
        "a refusal of another token says nothing about this one",
        OLD,
        replace(ABOUT_NEW, state=REFUSED),
        "refresh",
    ),
    Case(
        "a failure with another token says nothing about this one",
        OLD,
        replace(ABOUT_NEW, state=FAILED),
        "refresh",
        since=6,
    ),
    Case(
        "a refusal of this token is final", OLD, replace(ABOUT_OLD, state=REFUSED), "ReauthorizationRequired"
    ),
    Case(
        "a failure of an attempt that was waited for is shared",
        OLD,
        replace(ABOUT_OLD, state=FAILED),
        "RefreshFailed",
        since=6,
    ),
    Case(
        "a shared failure keeps its class",
        OLD,
        replace(ABOUT_OLD, state=FAILED, error="ConfigurationError"),
        "ConfigurationError",
        since=6,
    ),
    Case(
        "a failure of an unknown class is a failed refresh",
        OLD,
        replace(ABOUT_OLD, state=FAILED, error="Oddity"),
        "RefreshFailed",
        since=6,
    ),
    Case("a failure from before is tried again", OLD, replace(ABOUT_OLD, state=FAILED), "refresh"),
    Case(
        "a Retry-After that has not passed is respected",
        OLD,
        replace(ABOUT_OLD, state=FAILED, not_before=NOW + 1),
        "RefreshFailed",
    ),
    Case(
        "a Retry-After that has passed is over",
        OLD,
        replace(ABOUT_OLD, state=FAILED, not_before=NOW - 1),
        "refresh",
    ),
    Case(
        "a Retry-After of an hour is respected for a minute",
        OLD,
        replace(ABOUT_OLD, state=FAILED, not_before=NOW + 3600),
        "RefreshFailed",
    ),
    Case(
        "a Retry-After of an hour is not respected longer than that",
        OLD,
        replace(ABOUT_OLD, state=FAILED, at=NOW - MAX_RETRY_AFTER - 1, not_before=NOW + 30),
        "refresh",
    ),
    Case(
        "a record from the future, after the clock was set back, keeps nobody waiting",
        OLD,
        replace(ABOUT_OLD, state=FAILED, at=NOW + 3600, not_before=NOW + 3610),
        "refresh",
    ),
    Case(
        "an attempt that never ended is tried again, as lost",
        OLD,
        replace(ABOUT_OLD, state=SENDING),
        "refresh, lost",
    ),
    Case(
        "a pair that was never saved is tried for, as lost",
        OLD,
        replace(ABOUT_OLD, state=UNSAVED),
        "refresh, lost",
    ),
    Case("a reply that was lost before is remembered", OLD, replace(LOST, state=FAILED), "refresh, lost"),
    Case(
        "a reply that was lost with another token is not",
        OLD,
        replace(LOST, about="another", state=FAILED),
        "refresh",
    ),
    Case(
        "a success with a token that is in the file again is tried",
        OLD,
        replace(ABOUT_OLD, state=DONE),
        "refresh",
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_table(case: Case) -> None:
    """Adopt, refresh or refuse follows from the rejected token, the stored pair, the record and the time
    alone.
    """
    decision = decide(
        REJECTED, case.stored, case.record, NOW, since=case.since, store=TokenFile("/x/tokens.json")
    )
    assert _in_a_word(decision) == case.expected
    if isinstance(decision, Adopt):
        assert decision.tokens is case.stored


def test_refusal_says_what_happened_and_what_to_do() -> None:
    """A refusal carries its time, the token's fingerprint and the lost reply, and names the command that
    signs in.
    """
    error = _refusal_of(replace(LOST, state=REFUSED, code="invalid_grant", request_id="req_1"))
    assert isinstance(error, ReauthorizationRequired)
    assert (error.refused_at, error.reply_lost_at) == (NOW - 5, NOW - 9)
    assert (error.code, error.request_id, error.fingerprint) == (
        "invalid_grant",
        "req_1",
        fingerprint("refresh-old"),
    )
    assert "HTTP 502" in error.message
    assert "adh-auth login --token-file /x/tokens.json" in error.message
    assert "refresh-old" not in error.message


def test_shared_failure_carries_the_facts() -> None:
    """Who shares a failure gets what its first owner got: status, code, request id, the pause asked for, the
    lost reply.
    """
    record = replace(
        LOST,
        state=FAILED,
        reason="the refresh failed: HTTP 503",
        status=503,
        code="busy",
        request_id="req_2",
        retry_after=4.0,
    )
    error = _refusal_of(replace(record, not_before=NOW + 4))
    assert isinstance(error, RefreshFailed)
    assert error.message == "the refresh failed: HTTP 503"
    assert (error.status, error.code, error.request_id, error.retry_after, error.reply_lost_at) == (
        503,
        "busy",
        "req_2",
        4.0,
        NOW - 9,
    )


def test_client_refused_is_shared_without_foreign_facts() -> None:
    """A shared `ConfigurationError` has the attributes of its class and no others."""
    error = _refusal_of(
        replace(ABOUT_OLD, state=FAILED, error="ConfigurationError", code="invalid_client"), since=6
    )
    assert isinstance(error, ConfigurationError)
    assert error.code == "invalid_client"
    assert not hasattr(error, "retry_after")


def test_unended_attempt_tells_whose_it_was() -> None:
    """The trace of a killed process goes into the next attempt: when it sent the token, and which process it
    was.
    """
    decision = decide(REJECTED, OLD, replace(ABOUT_OLD, state=SENDING), NOW, since=7, store=TokenFile("/x"))
    assert isinstance(decision, Refresh)
    assert decision.lost_at == NOW - 5
    assert "process 4242 on elsewhere" in str(decision.lost_how)


def _refusal_of(record: Record, since: int = 7) -> Exception:
    decision = decide(REJECTED, OLD, record, NOW, since=since, store=TokenFile("/x/tokens.json"))
    assert isinstance(decision, Refuse)
    return decision.error


def _in_a_word(decision: Decision) -> str:
    if isinstance(decision, Adopt):
        return "adopt"
    if isinstance(decision, Refuse):
        return type(decision.error).__name__
    return "refresh" if decision.lost_at is None else "refresh, lost"


def _pair(
    token: str = "access-old", *, expired: bool = False, expires_at: float | None = None
) -> ActiveTokens:
    pair = ActiveTokens(Tokens(token, "refresh", expires_at), needs_check=False)
    if expired:
        pair.mark_expired()
    return pair


AFTER_401 = (
    ("the code of an expiry: rotate", "token_expired", _pair(), False, ROTATE),
    ("any other code is the caller's", "forbidden", _pair(expires_at=NOW - 1), False, HAND_OVER),
    ("no code is the caller's", None, _pair(expires_at=NOW - 1), False, HAND_OVER),
    ("a newer pair is sent, whatever the code", "forbidden", _pair("access-new"), False, RESEND),
    ("a newer pair is sent, without a code", None, _pair("access-new"), True, RESEND),
    ("a newer pair is sent instead of a refresh", "token_expired", _pair("access-new"), False, RESEND),
    (
        "a newer pair that is known to be expired is rotated away from",
        "token_expired",
        _pair("access-new", expired=True),
        False,
        ROTATE,
    ),
    (
        "a newer pair that is known to be expired helps no other code",
        "forbidden",
        _pair("access-new", expired=True),
        False,
        HAND_OVER,
    ),
    ("nothing to read, and the stored expiry has come: rotate", None, _pair(expires_at=NOW), True, ROTATE),
    ("nothing to read, before the stored expiry", None, _pair(expires_at=NOW + 0.001), True, HAND_OVER),
    ("nothing to read, and no stored expiry", None, _pair(), True, HAND_OVER),
    ("nothing to read, and the API has called it expired before", None, _pair(expired=True), True, ROTATE),
    ("a code beats what the API said before", "forbidden", _pair(expired=True), True, HAND_OVER),
    ("a code beats the clock", "forbidden", _pair(expires_at=NOW - 1), True, HAND_OVER),
    (
        "the clock counts for the pair that was rejected only",
        None,
        _pair("access-new", expired=True, expires_at=NOW - 1),
        True,
        HAND_OVER,
    ),
)


@pytest.mark.parametrize(
    ("code", "pair", "is_bare", "expected"), [row[1:] for row in AFTER_401], ids=[row[0] for row in AFTER_401]
)
def test_after_401(code: str | None, pair: ActiveTokens, is_bare: bool, expected: str) -> None:
    """What follows from a 401 depends on its code, the rejected token and the pair in force alone."""
    assert after_401(code, REJECTED, pair, NOW, is_bare=is_bare) == expected


@pytest.mark.parametrize(
    ("code", "pair", "expected"),
    [
        ("token_expired", _pair(), HAND_OVER),
        ("token_expired", _pair(expires_at=NOW + 1), HAND_OVER),
        ("token_expired", _pair(expires_at=NOW), ROTATE),
        ("forbidden", _pair(expires_at=NOW), HAND_OVER),
        ("token_expired", _pair("access-new"), RESEND),
    ],
    ids=["no expiry", "alive", "over by the clock", "another code", "a newer pair"],
)
def test_after_a_401_to_what_the_server_has_just_given(code: str, pair: ActiveTokens, expected: str) -> None:
    """Another refresh would be answered by another 401, unless the pair's life is over since."""
    assert after_401(code, REJECTED, pair, NOW, refreshed=True) == expected


@pytest.mark.parametrize(
    ("began", "end", "expected"),
    [
        (NOW - 9.9, NOW + 10.0, True),
        (NOW - 10.0, NOW + 10.0, False),
        (NOW, NOW + 20.0, True),
        # The clock of the job may be a little ahead; one that was set back is not believed.
        (NOW + CLOCK_LEAD, NOW + 20.0, True),
        (NOW + CLOCK_LEAD + 0.1, NOW + 20.0, False),
        (None, NOW + 20.0, False),
        (NOW, None, False),
    ],
)
def test_the_first_half_of_a_life(began: float | None, end: float | None, expected: bool) -> None:
    """Until then a token is not rotated ahead of its time, however short it lives."""
    record = replace(NOTHING, rotated_at=began)
    assert is_in_first_half(replace(NEW, expires_at=end), record, NOW) is expected
