"""``adh-auth status``: the state of the session, for a person or as JSON."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

from ..common.text import format_clock, format_time_relative, one_line
from ..errors import TokenStoreError
from ..oauth.origin import origin_of, origin_url
from ..rotation.status import Status, status_of
from .session_store import open_store
from .terminal import echo, echo_json, paint

__all__ = ["status_command"]

#: A label, the words beside it, and their colour.
StatusRow = tuple[str, str, "str | None"]


def status_command(args: argparse.Namespace) -> int:
    """Run ``adh-auth status``. Return 0 if the session is good, as far as is known here.

    Raises `TokenStoreError`.
    """
    store = open_store(args)
    now = time.time()
    try:
        status = status_of(store, now)
    except TokenStoreError as error:
        if not args.json:
            raise
        echo_json({"signed_in": False, **store.facts_for_errors(), "problem": error.message})
        return 1
    if args.json:
        echo_json(status.as_json())
    else:
        _print_status(status, now)
    return 0 if status.signed_in else 1


def _print_status(status: Status, now: float) -> None:
    rows = [*_session_rows(status, now), *_rotation_rows(status, now), *_failure_rows(status, now)]
    width = max(len(label) for label, _, _ in rows)
    for label, text, colour in rows:
        echo(f"{paint(label.ljust(width), 'dim')}  {paint(one_line(text), colour)}")


def _session_rows(status: Status, now: float) -> list[StatusRow]:
    store, pair = status.store, status.pair
    return [
        ("signed in", "yes", "green") if status.signed_in else ("signed in", "no", "red"),
        (status.kind, store.name + (f" → {store.leads_to}" if store.leads_to else ""), None),
        *_owner_rows(status),
        *_access_rows(status),
        ("access token", pair.access_token_fingerprint, None),
        _expiry_row(status, now),
        ("refresh token", pair.refresh_token_fingerprint, None),
        ("scope", pair.scope or "not stored", None),
    ]


def _owner_rows(status: Status) -> list[StatusRow]:
    rows: list[StatusRow] = [
        _owner_row("server", status.base_url, "ADH_BASE_URL", _server),
        _owner_row("client", status.client_id, "ADH_CLIENT_ID", one_line),
    ]
    return [("user", status.signed_in_as, None), *rows] if status.signed_in_as else rows


def _owner_row(label: str, stored: str | None, variable: str, shown: Callable[[str], str]) -> StatusRow:
    if stored is None:
        return label, "not stored; the next refresh writes it", None
    named = os.environ.get(variable)
    if named and shown(named) != shown(stored):
        differs = f"{variable} is {shown(named)}, so requests from here are refused"
        return label, f"{stored}; {differs}", "yellow"
    return label, stored, None


def _server(url: str) -> str:
    # The origin: the rest makes no other server, and may hold a password.
    origin = origin_of(url)
    return "no URL" if origin is None else origin_url(origin)


def _access_rows(status: Status) -> list[StatusRow]:
    mode, problem = status.store.mode, status.store.problem
    warning = f"it can't be rewritten at the next rotation: {problem}" if problem else None
    if mode is None:  # Windows, or no file
        return [("rewriting", warning, "yellow")] if warning else []
    text = f"{mode}, owner {status.store.owner}"
    if warning is None and int(mode, 8) & 0o077:
        warning = "others can reach it, until the next rotation makes it private"
    return [("mode", f"{text}; {warning}", "yellow")] if warning else [("mode", text, None)]


def _expiry_row(status: Status, now: float) -> StatusRow:
    expires_at = status.pair.expires_at
    if expires_at is None:
        return "expiry", "not stored; the API says when", None
    if expires_at <= now:
        return "expiry", f"{format_time_relative(expires_at, now)}; {_prospect(status)}", "yellow"
    return "expiry", format_time_relative(expires_at, now), None


def _prospect(status: Status) -> str:
    """Return what becomes of an access token that has expired."""
    failure = status.last_failure
    if not status.signed_in:
        return "it can't be refreshed any more"
    if failure and failure.not_before is not None:
        return f"it is not refreshed before {format_clock(failure.not_before)}"
    if failure or status.store.problem:
        return "the next request tries to refresh it"
    return "the next request refreshes it"


def _rotation_rows(status: Status, now: float) -> list[StatusRow]:
    rotation, flight = status.last_rotation, status.refresh_in_flight
    last, in_flight, colour = "none recorded", "nothing", None
    if rotation:
        last = f"{format_time_relative(rotation.at, now)} by process {rotation.pid}"
    if flight:
        since = format_time_relative(flight.since, now)
        in_flight, colour = f"by process {flight.pid} on {flight.host} since {since}", "yellow"
    return [("last rotation", last, None), ("in flight", in_flight, colour)]


def _failure_rows(status: Status, now: float) -> list[StatusRow]:
    failure = status.last_failure
    if failure is None:
        return [("last failure", "none", None)]
    support = f" (request {failure.request_id})" if failure.request_id else ""
    what = f"{format_time_relative(failure.at, now)}: {failure.what}{support}"
    return [
        ("last failure", what, "red" if failure.final else "yellow"),
        ("what to do", failure.next_step, "bold"),
    ]
