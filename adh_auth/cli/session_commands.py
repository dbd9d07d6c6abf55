"""The commands that use a session: save, token, me, refresh, revoke.

No output but that of ``token`` holds a token.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
import time
from typing import TYPE_CHECKING, Any, BinaryIO

from ..common.console import note
from ..common.text import one_line
from ..errors import AdhAuthError, MalformedTokens
from ..rotation.status import describe, pair_facts
from ..store.token_file import TokenFile
from ..tokens import Stored, Tokens
from .terminal import echo, echo_json

if TYPE_CHECKING:
    from ..for_requests import AdhAuth

from ..sign_in.user import user_in

__all__ = ["me_command", "refresh_command", "revoke_command", "save_command", "token_command"]

#: Seconds that a printed token has left at least by the stored expiry: time for a person or a script to put
#: it to use.
MARGIN = 30.0
#: Seconds to connect, and between two pieces of an answer of `/api/auth/me`.
TIMEOUT = (5.0, 30.0)
#: Bytes of an exchange reply; more than a token file may have is no reply.
MAX_SAVED_REPLY_BYTES = 1024 * 1024


def save_command(args: argparse.Namespace) -> int:
    """``adh-auth save``.

    Raises `AdhAuthError` for anything that is no token reply; the token file stays as it was then.
    """
    file = TokenFile(args.token_file)
    data, received_at = _read_reply(args.file)
    tokens, mapping = _session_of(data, "stdin" if args.file == "-" else args.file, received_at)
    file.save_mapping(mapping, tokens)
    _report(args, file, tokens, "saved")
    if args.file != "-" and not args.json and os.path.realpath(args.file) != os.path.realpath(file.path):
        echo(
            f"Remove {one_line(args.file)} now: the first refresh makes the tokens in it useless, and they are secret until then."
        )
    return 0


def token_command(args: argparse.Namespace) -> int:
    """``adh-auth token``."""
    tokens = TokenFile(args.token_file).load()
    if tokens.expires_at is None:
        auth = _auth(args)
        _ask(args, auth)  # a token that is expired is rotated on the way
        tokens = auth.tokens
    elif tokens.expires_at - time.time() < MARGIN:
        tokens = _auth(args).refresh()
    if args.json:
        facts = pair_facts(tokens, time.time())
        times = {name: facts[name] for name in ("expires_at", "seconds_left")}
        echo_json({"access_token": tokens.access_token, "token_type": tokens.token_type, **times})
    else:
        echo(tokens.access_token)
    return 0


def me_command(args: argparse.Namespace) -> int:
    """``adh-auth me``."""
    user = _ask(args, _auth(args))
    if args.json:
        echo_json(user)
        return 0
    width = max((len(name) for name in user), default=0)
    for name, value in user.items():
        echo(one_line(f"{name.ljust(width)}  {value if isinstance(value, str) else json.dumps(value)}"))
    return 0


def refresh_command(args: argparse.Namespace) -> int:
    """``adh-auth refresh``."""
    auth = _auth(args)
    _report(args, TokenFile(args.token_file), auth.refresh(), "refreshed")
    return 0


def revoke_command(args: argparse.Namespace) -> int:
    """``adh-auth revoke``."""
    auth = _auth(args)
    auth.revoke()
    if args.json:
        echo_json({"token_file": str(auth.token_file), "revoked": True})
        return 0
    echo(one_line(f"revoked: the session has ended on the server, and {auth.token_file} is removed"))
    return 0


def _report(args: argparse.Namespace, file: TokenFile, tokens: Tokens, what: str) -> None:
    now = time.time()
    if args.json:
        echo_json({"token_file": str(file.path), **pair_facts(tokens, now)})
    else:
        echo(one_line(f"{what}: {file.path}: {describe(tokens, now)}"))


def _auth(args: argparse.Namespace) -> AdhAuth:
    from ..for_requests import AdhAuth

    return AdhAuth(args.token_file, client_id=args.client_id, base_url=args.base_url)


def _ask(args: argparse.Namespace, auth: AdhAuth) -> dict[str, Any]:
    """The user that ``GET /api/auth/me`` tells of. Raises `AdhAuthError`."""
    import requests

    from ..clients.failure_reason import describe_failure
    from ..clients.settings import resolve
    from ..oauth.endpoint import ME_PATH

    base_url = resolve(
        args.token_file, client_id=args.client_id, client_secret=None, base_url=args.base_url
    ).base_url
    trouble = None
    try:
        response = requests.get(base_url + ME_PATH, auth=auth, timeout=TIMEOUT)
    except AdhAuthError:
        raise
    except requests.RequestException as error:
        trouble = f"{base_url} can't be reached ({describe_failure(error)}). The session is as it was; try again later"
    if trouble is not None:
        raise AdhAuthError(trouble)
    return user_in(response, auth)


def _read_reply(name: str) -> tuple[bytes, float]:
    """The reply and when it was received at the latest, in epoch seconds."""
    if name == "-":
        if sys.stdin.isatty():
            note("Paste the reply of the exchange, then press Ctrl-D (Ctrl-Z and Enter on Windows).")
        return _bounded(sys.stdin.buffer, "stdin"), time.time()
    trouble = None
    try:
        with open(name, "rb") as reply:
            status = os.fstat(reply.fileno())
            # What was saved a while ago has that much less to live.
            received_at = min(status.st_mtime, time.time()) if stat.S_ISREG(status.st_mode) else time.time()
            return _bounded(reply, name), received_at
    except (OSError, ValueError) as refused:  # ValueError: a NUL in the name
        trouble = getattr(refused, "strerror", None) or type(refused).__name__
    raise AdhAuthError(
        f"{name} can't be read: {trouble}. Name the file that holds the reply of the exchange, or - for stdin"
    )


def _bounded(reply: BinaryIO, name: str) -> bytes:
    data = reply.read(MAX_SAVED_REPLY_BYTES + 1)
    if len(data) > MAX_SAVED_REPLY_BYTES:
        raise AdhAuthError(
            f"{name} holds more than {MAX_SAVED_REPLY_BYTES} bytes: that is no reply of the exchange"
        )
    return data


def _session_of(data: bytes, name: str, received_at: float) -> tuple[Tokens, dict[str, Any]]:
    """The pair of a reply with its expiry, and all its keys.

    A token file is a reply, too, and knows its expiry. Raises `AdhAuthError`.
    """
    reason = None
    try:
        stored = Stored.from_bytes(data)
    except MalformedTokens as malformed:
        reason = malformed.message
    if reason is not None:
        raise AdhAuthError(
            f"{name} holds no token reply: {_refusal_in(data) or reason}. The token file was left as it was"
        )
    if stored.tokens.expires_at is not None:
        return stored.tokens, dict(stored.mapping)
    return Tokens.from_response(stored.mapping, now=received_at), dict(stored.mapping)


def _refusal_in(data: bytes) -> str | None:
    from ..oauth.replies import error_code

    code = error_code({}, data)
    return f"the endpoint has refused ({code})" if code else None
