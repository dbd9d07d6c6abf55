"""The commands that use a session: save, token, me, refresh, revoke, logout.

Rule 13: no output but that of ``token`` holds a token.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
import time
from typing import TYPE_CHECKING, Any, BinaryIO

from ..common.console import print_to_stderr
from ..common.text import one_line
from ..errors import AdhAuthError, MalformedTokens
from ..oauth.origin import base_url_of
from ..rotation.owner import check_server, owner_facts
from ..rotation.status import describe, pair_facts
from ..sign_in.user import fetch_user
from ..store.token_file import TokenFile
from ..tokens import Stored, Tokens
from .session_store import open_store, place_in, settings_of
from .terminal import echo, echo_json

if TYPE_CHECKING:
    from ..for_requests import AdhAuth
    from ..store.base import NamedStore, SessionStore

__all__ = [
    "logout_command",
    "me_command",
    "refresh_command",
    "revoke_command",
    "save_command",
    "token_command",
]

#: Seconds that a printed token has left at least by the stored expiry, for a person or a script to use it.
MIN_LIFE = 30.0
#: Seconds to connect, and between two pieces of the reply of `/api/auth/me`.
TIMEOUT = (5.0, 30.0)
#: Bytes of an exchange reply. A token file may have no more.
MAX_SAVED_REPLY_BYTES = 1024 * 1024


def save_command(args: argparse.Namespace) -> int:
    """Make an exchange reply the session, or move that of a token file to a store, and return 0.

    Raises `AdhAuthError` for anything that is no token reply; the session is unchanged then.
    """
    store = open_store(args)
    store.make_ready()
    if _is_move(args, store):
        return _move(args, store)
    data, received_at = _read_reply(args.file)
    tokens, mapping = _session_in(data, "stdin" if args.file == "-" else args.file, received_at)
    store.save_mapping({**_owner_of_shell(), **mapping}, tokens)
    _report(args, store, tokens, "saved")
    if args.file != "-" and not args.json and not _is_file_of(args.file, store):
        echo(
            f"Remove {one_line(args.file)} now: the first refresh makes the tokens in it useless, and they "
            "are secret until then."
        )
    return 0


def _is_file_of(path: str, store: SessionStore) -> bool:
    return isinstance(store, TokenFile) and os.path.realpath(path) == os.path.realpath(store.path)


def _is_move(args: argparse.Namespace, store: SessionStore) -> bool:
    """Return whether the session of a file goes to a store: the file must not be used any more then."""
    if args.file == "-" or "session" not in store.facts_for_errors() or _is_file_of(args.file, store):
        return False
    if os.path.lexists(args.file):
        return True
    raise AdhAuthError(
        f"{args.file} does not exist. Name the token file whose session is to move to the store, or - for "
        "the reply of the exchange on stdin"
    )


def _move(args: argparse.Namespace, store: SessionStore) -> int:
    from .move import move_session

    file = TokenFile(args.file)
    _report(args, store, move_session(file, store), "moved")
    if not args.json:
        where = "tells the processes that still use it where the session is"
        echo(f"{one_line(args.file)} holds no token any more; it {where}. Remove it once there are none.")
    return 0


def _owner_of_shell() -> dict[str, str]:
    """Return the server and the client that the environment names. Raises `ConfigurationError`."""
    base_url, client_id = os.environ.get("ADH_BASE_URL"), os.environ.get("ADH_CLIENT_ID")
    owner = {"base_url": base_url and base_url_of(base_url), "client_id": client_id}
    return {name: value for name, value in owner.items() if value}


def _check_named_server(args: argparse.Namespace, stored: Stored, store: NamedStore) -> None:
    """Raise `ConfigurationError` where the shell names another server than that of the session.

    A token that is good is printed without a call to anybody, but goes to that server next.
    """
    named = args.base_url or os.environ.get("ADH_BASE_URL")
    if named:
        check_server(owner_facts(stored.mapping), store, base_url_of(named))


def token_command(args: argparse.Namespace) -> int:
    """Print an access token that works now, and return 0. Raises `AdhAuthError`."""
    store = open_store(args)
    stored = store.read()
    _check_named_server(args, stored, store)
    tokens = stored.tokens
    if tokens.expires_at is None:
        auth = _auth(args)
        _fetch_user(args, auth)  # rotates an expired token on the way
        tokens = auth.tokens
    elif tokens.expires_at - time.time() < MIN_LIFE:
        auth = _auth(args)
        auth.get_token(MIN_LIFE)
        tokens = auth.tokens
    if args.json:
        facts = pair_facts(tokens, time.time())
        times = {name: facts[name] for name in ("expires_at", "seconds_left")}
        echo_json({"access_token": tokens.access_token, "token_type": tokens.token_type, **times})
    else:
        echo(tokens.access_token)
    return 0


def me_command(args: argparse.Namespace) -> int:
    """Print the signed-in user, and return 0. Raises `AdhAuthError`."""
    user = _fetch_user(args, _auth(args))
    if args.json:
        echo_json(user)
        return 0
    width = max((len(name) for name in user), default=0)
    for name, value in user.items():
        echo(one_line(f"{name.ljust(width)}  {value if isinstance(value, str) else json.dumps(value)}"))
    return 0


def refresh_command(args: argparse.Namespace) -> int:
    """Rotate now, and return 0. Raises `AdhAuthError`."""
    auth = _auth(args)
    _report(args, open_store(args), auth.refresh(), "refreshed")
    return 0


def revoke_command(args: argparse.Namespace) -> int:
    """Sign out everywhere: end the session at the server, remove it here. Return 0.

    Raises `AdhAuthError`.
    """
    store = open_store(args)
    _auth(args).revoke()
    if args.json:
        echo_json({**store.facts_for_errors(), "revoked": True})
        return 0
    done = f"the session has ended at the server, and {_removed(store)}"
    echo(one_line(f"signed out everywhere: {done}"))
    return 0


def logout_command(args: argparse.Namespace) -> int:
    """Sign out here: remove the session from its file or store. Return 0, also where there is none.

    Raises `AdhAuthError`.
    """
    store = open_store(args)
    existed = store.exists()
    store.delete()
    if args.json:
        echo_json({**store.facts_for_errors(), "removed": existed})
    elif existed:
        echo(one_line(f"signed out here: {_removed(store)}"))
        it = "file" if isinstance(store, TokenFile) else "session"
        echo(f"The session is not ended at the server; adh-auth revoke does that, while the {it} is there.")
    else:
        echo(one_line(f"nothing to do: there is no {store.name}"))
    return 0


def _removed(store: NamedStore) -> str:
    return f"{store.name} is removed" if isinstance(store, TokenFile) else f"{store.name} is empty"


def _report(args: argparse.Namespace, store: NamedStore, tokens: Tokens, done: str) -> None:
    now = time.time()
    if args.json:
        echo_json({**store.facts_for_errors(), **pair_facts(tokens, now)})
    else:
        echo(one_line(f"{done}: {store.name}: {describe(tokens, now)}"))


def _auth(args: argparse.Namespace) -> AdhAuth:
    from ..for_requests import AdhAuth

    return AdhAuth(**place_in(args), client_id=args.client_id, base_url=args.base_url)


def _fetch_user(args: argparse.Namespace, auth: AdhAuth) -> dict[str, Any]:
    return fetch_user(auth, settings_of(args), timeout=TIMEOUT)


def _read_reply(name: str) -> tuple[bytes, float]:
    """Return the reply, and the epoch seconds at which it was there at the latest. Raises `AdhAuthError`."""
    if name == "-":
        if sys.stdin.isatty():
            print_to_stderr(
                "Paste the reply of the exchange, then press Ctrl-D (Ctrl-Z and Enter on Windows)."
            )
        return _read_bounded(sys.stdin.buffer, "stdin"), time.time()
    problem = None
    try:
        with open(name, "rb") as reply:
            # The tokens of a reply that was saved to a file an hour ago have an hour less to live.
            return _read_bounded(reply, name), min(_modified_at(reply), time.time())
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        problem = getattr(error, "strerror", None) or type(error).__name__
    raise AdhAuthError(
        f"{name} can't be read: {problem}. Name the file that holds the reply of the exchange, or - for stdin"
    )


def _modified_at(file: BinaryIO) -> float:
    status = os.fstat(file.fileno())
    return status.st_mtime if stat.S_ISREG(status.st_mode) else time.time()


def _read_bounded(reply: BinaryIO, name: str) -> bytes:
    data = reply.read(MAX_SAVED_REPLY_BYTES + 1)
    if len(data) > MAX_SAVED_REPLY_BYTES:
        raise AdhAuthError(
            f"{name} holds more than {MAX_SAVED_REPLY_BYTES} bytes: that is not a reply of the exchange"
        )
    return data


def _session_in(data: bytes, name: str, received_at: float) -> tuple[Tokens, dict[str, Any]]:
    """Return the pair of a reply, or of a token file, and all its keys. Raises `AdhAuthError`."""
    problem = None
    try:
        stored = Stored.from_bytes(data)
    except MalformedTokens as malformed:
        problem = malformed.message
    if problem is not None:
        raise AdhAuthError(
            f"{name} holds no token reply: {_refusal_in(data) or problem}. The session was left as it was"
        )
    if stored.tokens.expires_at is not None:  # a token file: its `expires_in` counts from long ago
        return stored.tokens, dict(stored.mapping)
    return Tokens.from_response(stored.mapping, now=received_at), dict(stored.mapping)


def _refusal_in(data: bytes) -> str | None:
    from ..oauth.replies import error_code

    code = error_code({}, data)
    return f"the endpoint has refused ({code})" if code else None
