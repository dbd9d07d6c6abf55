"""What is with a session: facts from the token file and the record beside it, and the few lines that tell
them to a person.

Looking changes nothing: no file is made, none is opened for writing, nobody is called.
"""

from __future__ import annotations

import argparse
import os
import stat
import sys
import time
from contextlib import suppress
from typing import Any

from . import disk
from .attempts import FAILED, REFUSED, SENDING, UNSAVED, Record
from .decide import pause_ends
from .errors import ConfigurationError, TokenFileError
from .places import sign_in
from .steps import LOCK_TIMEOUT
from .terminal import one_line, paint, say, say_json, when
from .token_file import TokenFile
from .tokens import Stored, Tokens, fingerprint

__all__ = ["describe", "look", "pair_facts", "status_command", "trouble_with_rewriting"]

#: Looks at file, record and lock until they tell of the same moment; a rotation in between changes two of
#: them.
LOOKS = 5


def status_command(args: argparse.Namespace) -> int:
    """``adh-auth status``.

    0 where the session is good as far as anyone here knows. Raises `TokenFileError`.
    """
    file = TokenFile(args.token_file)
    now = time.time()
    try:
        facts = look(file, now)
    except TokenFileError as error:
        if not args.json:
            raise
        say_json({"signed_in": False, "token_file": str(file.path), "problem": error.message})
        return 1
    if args.json:
        say_json(facts)
    else:
        _tell(facts, now)
    return 0 if facts["signed_in"] else 1


def look(file: TokenFile, now: float) -> dict[str, Any]:
    """The facts, as JSON takes them. `now`: epoch seconds, as all times in it. Raises `TokenFileError`."""
    tokens, record, in_flight = _moment_of(file, now)
    trouble = (
        None if in_flight and record.state == SENDING else _trouble(file, tokens, record, in_flight, now)
    )
    return {
        "signed_in": not (trouble and trouble["final"]),
        **file_facts(file),
        **pair_facts(tokens, now),
        "last_rotation": None
        if record.rotated_at is None
        else {"at": record.rotated_at, "pid": record.rotated_by},
        "refresh_in_flight": {"since": record.at, "pid": record.pid, "host": record.host}
        if in_flight
        else None,
        "trouble": trouble,
    }


def file_facts(file: TokenFile) -> dict[str, Any]:
    """The file's name, mode, owner, and why it could not be rewritten at the next rotation, if so."""
    path = str(file.path)
    target = os.path.realpath(path)
    facts: dict[str, Any] = {
        "token_file": path,
        "leads_to": target if os.path.islink(path) else None,
        "mode": None,
        "owner": None,
    }
    with suppress(OSError):
        status = os.stat(target)
        if sys.platform != "win32":  # which makes a mode up from one attribute, and has no owner's number
            facts.update(mode=_mode_of(status), owner=_name_of(status.st_uid))
    return {
        **facts,
        "rewriting": trouble_with_rewriting(target) or _trouble_with_writing(target + ".record", ours=True),
    }


def trouble_with_rewriting(target: str) -> str | None:
    """Why the file, links followed, could not be locked and replaced, as far as that can be told without
    doing it.
    """
    if obstacle := disk.trouble_with_replacing(target):
        return obstacle
    if not os.access(os.path.dirname(target), os.W_OK):
        return "its folder is read-only"
    return _trouble_with_writing(target + ".lock")


def _trouble_with_writing(companion: str, *, ours: bool = False) -> str | None:
    """Why a file beside the token file stops the next rotation: a run under sudo leaves root's.

    `ours`: only its owner may use it.
    """
    try:
        status = os.stat(companion)
    except OSError:  # what is missing is made then
        return None
    foreign = ours and sys.platform != "win32" and status.st_uid != os.geteuid()
    if os.access(companion, os.R_OK | os.W_OK) and not foreign:
        return None
    details = (
        "" if sys.platform == "win32" else f" (mode {_mode_of(status)}, owner {_name_of(status.st_uid)})"
    )
    return f"{companion} can't be written by this user{details}"


def pair_facts(tokens: Tokens, now: float) -> dict[str, Any]:
    """What can be told of a pair without giving it away.

    `seconds_left` is negative after the expiry, None where none is stored.
    """
    return {
        "access_token_fingerprint": fingerprint(tokens.access_token),
        "refresh_token_fingerprint": fingerprint(tokens.refresh_token),
        "scope": tokens.scope,
        "expires_at": tokens.expires_at,
        "seconds_left": None if tokens.expires_at is None else round(tokens.expires_at - now, 3),
    }


def describe(tokens: Tokens, now: float) -> str:
    """The same in a line."""
    expiry = (
        "with no known expiry" if tokens.expires_at is None else f"expires {when(tokens.expires_at, now)}"
    )
    return f"access token {fingerprint(tokens.access_token)}, {expiry}; refresh token {fingerprint(tokens.refresh_token)}"


def _moment_of(file: TokenFile, now: float) -> tuple[Tokens, Record, bool]:
    """The pair, the record, and whether a refresh is in flight, all of one moment."""
    for _ in range(LOOKS):
        tokens, record = file.load(), file.record()
        open_end = record.state in (SENDING, UNSAVED) and record.concerns(fingerprint(tokens.refresh_token))
        held = open_end and _is_held(file.lock().path, record, now)
        if held or not open_end or file.record() == record:
            break
    return tokens, record, held


def _is_held(lock_path: str, record: Record, now: float) -> bool:
    """Whether somebody holds the lock.

    Asks the kernel without a write access; where it can't tell, a recent record is believed.
    """
    recent = abs(now - record.at) < LOCK_TIMEOUT  # a record from the future is no recent one
    if sys.platform == "win32":
        return recent  # a byte range is locked there, which only a write access could try
    import errno
    import fcntl

    try:
        fd = os.open(lock_path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return recent
    try:
        # A shared lock: it is refused as long as the exclusive one is held, and two who look don't see each
        # other. It is gone in microseconds; a rotation that wants the lock in these tries again 50 ms later.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as refused:
        return refused.errno in (errno.EAGAIN, errno.EACCES) or recent
    else:
        return False
    finally:
        os.close(fd)


def _trouble(
    file: TokenFile, tokens: Tokens, record: Record, in_flight: bool, now: float
) -> dict[str, Any] | None:
    """What went wrong last with the refresh token that the file holds, and what to do.

    `final`: only a new sign-in helps. `not_before`: until then nobody tries again, as the server asked.
    """
    if not record.concerns(fingerprint(tokens.refresh_token)) or record.state not in (
        SENDING,
        UNSAVED,
        FAILED,
        REFUSED,
    ):
        return None
    not_before = pause_ends(record, now)
    what, next_step = _explained(file, tokens, record, in_flight, not_before)
    return {
        "what": what,
        "next_step": next_step,
        "final": record.state == REFUSED,
        "not_before": not_before,
        "at": record.at,
        "pid": record.pid,
        "host": record.host,
        "status": record.status,
        "code": record.code,
        "request_id": record.request_id,
    }


def _explained(
    file: TokenFile, tokens: Tokens, record: Record, in_flight: bool, not_before: float | None
) -> tuple[str, str]:
    by = f"process {record.pid} on {record.host}"
    again = sign_in(str(file.path))
    if record.state == REFUSED:
        lost = (
            f", most likely because the reply to an earlier try was lost ({record.lost_how})"
            if record.lost_at is not None
            else ""
        )
        return f"the refresh token was refused (invalid_grant: revoked, expired or already used){lost}", again
    if record.state == FAILED:
        return record.reason or "the refresh failed", _after_a_failure(record, not_before)
    if in_flight:
        what = f"{by} holds the only copy of the new pair and can't write it: {record.reason}"
        return (
            what,
            f"make the file writable again; don't end process {record.pid} before it has written the pair",
        )
    what = f"{by} ended before it had saved the reply to its refresh"
    left = file.left_behind()
    if left is not None and left.follows(Stored(tokens, {})) is not False:
        return what, "nothing: its new pair was found beside the file, and the next refresh puts it in place"
    return what, f"the next refresh tries the same token once more; if that is refused, {again}"


def _after_a_failure(record: Record, not_before: float | None) -> str:
    good = "the session is still good" if record.lost_at is None else "the session is most likely still good"
    if not_before is not None:
        pause = f"the server is not asked again before {_clock(not_before)} (it asked to wait)"
        return f"{good}; {pause}: until then, a request that meets an expired token fails"
    again = f"{good}: the next request that meets an expired token tries again"
    # No other failure is recorded as this one: the server refused the client (`invalid_client`).
    return (
        f"check ADH_CLIENT_ID and ADH_CLIENT_SECRET; {again}"
        if record.error == ConfigurationError.__name__
        else again
    )


def _clock(epoch: float) -> str:
    """The time of day of a moment within the next minute."""
    return time.strftime("%H:%M:%S", time.localtime(epoch))


def _mode_of(status: os.stat_result) -> str:
    return f"{stat.S_IMODE(status.st_mode):04o}"


def _name_of(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a container often has a user without a name
        return f"uid {uid}"


def _tell(facts: dict[str, Any], now: float) -> None:
    rows = [*_session_rows(facts, now), *_rotation_rows(facts, now)]
    width = max(len(label) for label, _, _ in rows)
    for label, text, colour in rows:
        say(f"{paint(label.ljust(width), 'dim')}  {paint(one_line(text), colour)}")


Row = tuple[str, str, "str | None"]


def _session_rows(facts: dict[str, Any], now: float) -> list[Row]:
    return [
        ("signed in", "yes", "green") if facts["signed_in"] else ("signed in", "no", "red"),
        ("token file", facts["token_file"] + (f" → {facts['leads_to']}" if facts["leads_to"] else ""), None),
        *_access_rows(facts),
        ("access token", facts["access_token_fingerprint"], None),
        _expiry_row(facts, now),
        ("refresh token", facts["refresh_token_fingerprint"], None),
        ("scope", facts["scope"] or "not stored", None),
    ]


def _access_rows(facts: dict[str, Any]) -> list[Row]:
    mode, obstacle = facts["mode"], facts["rewriting"]
    obstacle = obstacle and f"it can't be rewritten at the next rotation: {obstacle}"
    if mode is None:  # Windows
        return [("rewriting", obstacle, "yellow")] if obstacle else []
    text = f"{mode}, owner {facts['owner']}"
    if obstacle:
        return [("mode", f"{text}; {obstacle}", "yellow")]
    if int(mode, 8) & 0o077:
        return [("mode", f"{text}; others can reach it, until the next rotation makes it private", "yellow")]
    return [("mode", text, None)]


def _expiry_row(facts: dict[str, Any], now: float) -> Row:
    expires_at = facts["expires_at"]
    if expires_at is None:
        return "expiry", "not stored; the API says when", None
    if expires_at <= now:
        return "expiry", f"{when(expires_at, now)}; {_prospect(facts)}", "yellow"
    return "expiry", when(expires_at, now), None


def _prospect(facts: dict[str, Any]) -> str:
    """What becomes of an access token that has expired."""
    trouble = facts["trouble"]
    if not facts["signed_in"]:
        return "it can't be refreshed any more"
    if trouble and trouble["not_before"] is not None:
        return f"it is not refreshed before {_clock(trouble['not_before'])}"
    return (
        "the next request tries to refresh it"
        if trouble or facts["rewriting"]
        else "the next request refreshes it"
    )


def _rotation_rows(facts: dict[str, Any], now: float) -> list[Row]:
    rotation, flight, trouble = facts["last_rotation"], facts["refresh_in_flight"], facts["trouble"]
    rows: list[Row] = [
        (
            "last rotation",
            f"{when(rotation['at'], now)} by process {rotation['pid']}" if rotation else "none recorded",
            None,
        ),
        (
            "in flight",
            f"by process {flight['pid']} on {flight['host']} since {when(flight['since'], now)}",
            "yellow",
        )
        if flight
        else ("in flight", "nothing", None),
    ]
    if trouble is None:
        return [*rows, ("last trouble", "none", None)]
    support = f" (request {trouble['request_id']})" if trouble["request_id"] else ""
    return [
        *rows,
        (
            "last trouble",
            f"{when(trouble['at'], now)}: {trouble['what']}{support}",
            "red" if trouble["final"] else "yellow",
        ),
        ("what to do", trouble["next_step"], "bold"),
    ]
