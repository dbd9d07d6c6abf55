"""The errors that an earlier attempt left for others, made from its record.

Rule 6: one attempt, one outcome, shared by every process that waited for it or comes later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..common.text import format_time
from ..errors import AdhAuthError, ConfigurationError, ReauthorizationRequired, RefreshFailed, TokenStoreError
from ..store.record import Record

if TYPE_CHECKING:
    from ..store.base import NamedStore

__all__ = ["failure", "refusal", "short_kind", "unsaved"]


def short_kind(store: NamedStore) -> str:
    """Return what the store is called where its name was said: "file" or "store"."""
    return store.kind.rpartition(" ")[2]


def refusal(record: Record, store: NamedStore) -> ReauthorizationRequired:
    """Return the error for a refresh token that the endpoint has refused for good."""
    lost = ""
    if record.lost_at is not None:
        lost = (
            f" The reply to an earlier try was lost at {format_time(record.lost_at)} ({record.lost_how}),"
            " so the token had most likely been used up then."
        )
    return ReauthorizationRequired(
        f"the refresh token in {store.name} was refused at {format_time(record.at)}"
        f" (invalid_grant: revoked, expired or already used).{lost}"
        f" You must sign in again; {store.sign_in_command()}",
        **store.facts_for_errors(),
        request_id=record.request_id,
        code=record.code,
        fingerprint=record.about,
        refused_at=record.at,
        reply_lost_at=record.lost_at,
    )


def failure(record: Record, store: NamedStore) -> AdhAuthError:
    """Return the error for an attempt that failed and may succeed later."""
    reason = record.reason or "the refresh failed"
    facts: dict[str, Any] = {
        **store.facts_for_errors(),
        "request_id": record.request_id,
        "code": record.code,
    }
    if record.error == ConfigurationError.__name__:
        return ConfigurationError(reason, **facts)
    return RefreshFailed(
        reason, **facts, status=record.status, retry_after=record.retry_after, reply_lost_at=record.lost_at
    )


def unsaved(record: Record, store: NamedStore) -> TokenStoreError:
    """Return the error for a store whose new pair only another process has, in memory."""
    return store.error(
        f"holds a spent token: process {record.pid} on {record.host} got a new pair at"
        f" {format_time(record.at)} and could not write it ({record.reason})",
        f"It keeps trying while it lives. Make the {short_kind(store)} writable again;"
        " don't end that process before.",
    )
