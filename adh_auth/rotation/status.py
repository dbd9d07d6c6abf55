"""What is with a session: facts from the token file and the record beside it, and the few lines that tell
them to a person.

Looking changes nothing: no file is made, none is opened for writing, nobody is called.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from typing import Any

from ..common.text import format_time_relative
from ..errors import ConfigurationError
from ..store.file_checks import mode_of, name_of, problem_with_rewriting, problem_with_writing
from ..store.record import FAILED, REFUSED, SENDING, UNSAVED, Record
from ..store.remedies import login_command_line
from ..store.token_file import TokenFile
from ..tokens import Stored, Tokens, fingerprint
from .decision import pause_ends
from .transaction import LOCK_TIMEOUT

__all__ = ["describe", "pair_facts", "status_of"]

#: Looks at file, record and lock until they tell of the same moment; a rotation in between changes two of
#: them.
LOOKS = 5


def status_of(file: TokenFile, now: float) -> dict[str, Any]:
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
            facts.update(mode=mode_of(status), owner=name_of(status.st_uid))
    return {
        **facts,
        "rewriting": problem_with_rewriting(target) or problem_with_writing(target + ".record", ours=True),
    }


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
        "with no known expiry"
        if tokens.expires_at is None
        else f"expires {format_time_relative(tokens.expires_at, now)}"
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
    again = login_command_line(str(file.path))
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
