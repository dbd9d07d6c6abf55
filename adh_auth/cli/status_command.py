"""``adh-auth status``."""

from __future__ import annotations

import argparse
import time
from typing import Any

from ..common.text import format_time_relative, one_line
from ..errors import TokenFileError
from ..rotation.status import _clock, status_of
from ..store.token_file import TokenFile
from .terminal import echo, echo_json, paint

__all__ = ["status_command"]


def status_command(args: argparse.Namespace) -> int:
    """``adh-auth status``.

    0 where the session is good as far as anyone here knows. Raises `TokenFileError`.
    """
    file = TokenFile(args.token_file)
    now = time.time()
    try:
        facts = status_of(file, now)
    except TokenFileError as error:
        if not args.json:
            raise
        echo_json({"signed_in": False, "token_file": str(file.path), "problem": error.message})
        return 1
    if args.json:
        echo_json(facts)
    else:
        _print_status(facts, now)
    return 0 if facts["signed_in"] else 1


def _print_status(facts: dict[str, Any], now: float) -> None:
    rows = [*_session_rows(facts, now), *_rotation_rows(facts, now)]
    width = max(len(label) for label, _, _ in rows)
    for label, text, colour in rows:
        echo(f"{paint(label.ljust(width), 'dim')}  {paint(one_line(text), colour)}")


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
        return "expiry", f"{format_time_relative(expires_at, now)}; {_prospect(facts)}", "yellow"
    return "expiry", format_time_relative(expires_at, now), None


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
            f"{format_time_relative(rotation['at'], now)} by process {rotation['pid']}"
            if rotation
            else "none recorded",
            None,
        ),
        (
            "in flight",
            f"by process {flight['pid']} on {flight['host']} since {format_time_relative(flight['since'], now)}",
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
            f"{format_time_relative(trouble['at'], now)}: {trouble['what']}{support}",
            "red" if trouble["final"] else "yellow",
        ),
        ("what to do", trouble["next_step"], "bold"),
    ]
