"""The errors that an earlier attempt left for others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import KINDS, AdhAuthError, ReauthorizationRequired, RefreshFailed, TokenFileError
from ..store.record import Record
from ..store.remedies import login_command_line

if TYPE_CHECKING:
    pass

from ..common.text import format_time


def refusal(record: Record, path: str) -> ReauthorizationRequired:
    """The error for a refresh token that the endpoint has refused for good."""
    lost = ""
    if record.lost_at is not None:
        lost = (
            f" The reply to an earlier try was lost at {format_time(record.lost_at)} ({record.lost_how}),"
            " so the token had most likely been used up then."
        )
    return ReauthorizationRequired(
        f"the refresh token in {path} was refused at {format_time(record.at)} (invalid_grant: revoked, expired or already used).{lost}"
        f" There is no way back but to {login_command_line(path)}",
        token_file=path,
        request_id=record.request_id,
        code=record.code,
        fingerprint=record.about,
        refused_at=record.at,
        reply_lost_at=record.lost_at,
    )


def failure(record: Record, path: str) -> AdhAuthError:
    """The error for an attempt that failed and may go well later; its class is that of the first who raised
    it.
    """
    kind = KINDS.get(record.error or "", RefreshFailed)
    facts = {"token_file": path, "request_id": record.request_id}
    for name in ("status", "code", "retry_after"):
        if hasattr(kind, name):
            facts[name] = getattr(record, name)
    if hasattr(kind, "reply_lost_at"):
        facts["reply_lost_at"] = record.lost_at  # type: ignore[assignment]
    return kind(record.reason or "the refresh failed", **facts)


def unsaved(record: Record, path: str) -> TokenFileError:
    """The error while another process holds the only copy of the new pair."""
    return TokenFileError(
        f"token file {path} holds a spent token: process {record.pid} on {record.host} got a new pair at {format_time(record.at)} and could not "
        f"write it ({record.reason}). It keeps trying while it lives. Make the file writable again; don't end that process before.",
        token_file=path,
    )
