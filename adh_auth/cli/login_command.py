"""``adh-auth login``."""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

from ..clients.settings import resolve
from ..errors import AdhAuthError
from ..rotation.status import pair_facts
from .terminal import echo_json, stdout_on_stderr

if TYPE_CHECKING:
    pass

from ..sign_in.flow import login
from ..sign_in.user import signed_in_user

__all__ = ["login_command"]


def login_command(args: argparse.Namespace) -> int:
    """``adh-auth login``. Raises `AdhAuthError`."""
    with stdout_on_stderr() if args.json else nullcontext():
        tokens = login(
            args.token_file,
            client_id=args.client_id,
            base_url=args.base_url,
            redirect_uri=args.redirect_uri,
            scope=args.scope,
            open_browser=not args.no_browser,
            paste=args.paste,
            timeout=args.timeout,
        )
    if args.json:
        settings, user = (
            resolve(args.token_file, client_id=args.client_id, client_secret=None, base_url=args.base_url),
            None,
        )
        with suppress(AdhAuthError):  # as in the greeting: the session is there whatever this call says
            user = signed_in_user(settings, None)
        echo_json({"token_file": str(settings.file.path), **pair_facts(tokens, time.time()), "user": user})
    return 0
