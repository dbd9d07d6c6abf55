"""``adh-auth login``: sign in with the browser."""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext, suppress

from ..errors import AdhAuthError
from ..rotation.status import pair_facts
from ..sign_in.flow import login
from ..sign_in.user import fetch_signed_in_user
from ..tokens import Tokens
from .flags import in_flags
from .session_store import place_in, settings_of
from .terminal import echo, echo_json, stdout_on_stderr

__all__ = ["login_command"]


def login_command(args: argparse.Namespace) -> int:
    """Sign in, and return 0. Raises `AdhAuthError`."""
    with stdout_on_stderr() if args.json else nullcontext():
        settings_of(args).store.make_ready()
        tokens = login(
            **place_in(args),
            client_id=args.client_id,
            base_url=args.base_url,
            redirect_uri=args.redirect_uri,
            scope=args.scope,
            open_browser=not args.no_browser,
            paste=args.paste,
            timeout=args.timeout,
            echo=_echo,
        )
    if args.json:
        _echo_facts(args, tokens)
    return 0


def _echo(text: str) -> None:
    echo(in_flags(text))


def _echo_facts(args: argparse.Namespace, tokens: Tokens) -> None:
    settings = settings_of(args)
    user = None
    with suppress(AdhAuthError):  # the session is on disk, whatever this call returns
        user = fetch_signed_in_user(settings, None)
    echo_json({**settings.store.facts_for_errors(), **pair_facts(tokens, time.time()), "user": user})
