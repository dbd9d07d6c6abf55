"""Sign in with the browser: authorization code with PKCE (RFC 7636), as the ADH guide has it.

`adh_auth.login` and ``adh-auth login``.
"""

from __future__ import annotations

import getpass
import math
import os
import sys
import threading
import time
import webbrowser
from contextlib import suppress
from typing import TYPE_CHECKING

from ..cli.terminal import echo
from ..clients.settings import Settings, resolve
from ..common.secret import Secret
from ..common.text import one_line
from ..errors import AdhAuthError, ConfigurationError, MalformedTokens, RefreshFailed, fresh_copy
from ..oauth import endpoint, replies
from ..rotation.status import describe
from ..store import disk, file_checks
from ..store.file_checks import problem_with_rewriting
from ..store.messages import writing
from ..store.token_file import TokenFile
from ..tokens import Stored, Tokens
from .authorization import KEPT, Authorization
from .callback import Callback, Listener

if TYPE_CHECKING:
    import requests

from .user import greeting

__all__ = ["login"]

#: Seconds for the exchange. The code lives 60, and the browser has used up some of them.
EXCHANGE_DEADLINE = 30.0


def login(
    token_file: str | os.PathLike[str] | None = None,
    *,
    client_id: str | None = None,
    client_secret: str | None = None,
    base_url: str | None = None,
    redirect_uri: str = "http://localhost:8765/callback",
    scope: str = "profile:read discussions:read",
    open_browser: bool = True,
    paste: bool = False,
    timeout: float = 300.0,
    refresh_via: requests.Session | None = None,
) -> Tokens:
    """Sign in with the browser, write the token file, and give the pair.

    `token_file`, `client_id`, `client_secret`, `base_url`: as for the auth classes.
    `redirect_uri`: registered for the app, exactly as it is given here; its port is listened on meanwhile.
    `scope`: what to ask for, separated by blanks.
    `open_browser`: False only prints the address, for a machine without a browser.
    `paste`: ask for the address that the browser ends on, instead of listening for it.
    `timeout`: seconds to wait for the browser to come back. The prompt of `paste` waits for as long as it
    takes.
    `refresh_via`: a `requests.Session` that carries the calls to the API instead of a client of our own.

    Raises `AdhAuthError`, in one line that says what went wrong and what to do: `ConfigurationError` for a
    setting or a port in use, `ReauthorizationRequired` for a code that was refused, `RefreshFailed` for an
    endpoint in trouble, `TokenFileError`. The old token file is untouched then.
    """
    settings = resolve(token_file, client_id=client_id, client_secret=client_secret, base_url=base_url)
    del client_secret  # IPython's verbose tracebacks show the arguments of every frame
    attempt = Authorization(settings, redirect_uri, scope)
    seconds = _checked(timeout)
    trouble = None
    try:
        _prove_room(settings)
        tokens = (
            _pasted(attempt, open_browser, refresh_via)
            if paste
            else _listened(attempt, open_browser, seconds, refresh_via)
        )
    except AdhAuthError as error:
        trouble = fresh_copy(error)  # without the frames that the code and the tokens went through
    if trouble is not None:
        raise trouble
    echo(one_line(f"{greeting(settings, refresh_via)} {settings.file.path}: {describe(tokens, time.time())}"))
    return tokens


def _checked(seconds: float) -> float:
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, (int, float))
        or not (math.isfinite(seconds) and seconds > 0)
    ):
        raise ConfigurationError("timeout must be a number of seconds above 0", setting="timeout")
    return float(seconds)


def _prove_room(settings: Settings) -> None:
    """Find out that the file can't be written before somebody signs in for nothing.

    Raises `TokenFileError`.
    """
    file = settings.file
    with writing(str(file.path), "can't be written"):
        obstacle = _obstacle(file)
    if obstacle:
        raise file.error(f"can't be written: {obstacle}", "Make it writable, or name another one")


def _obstacle(file: TokenFile) -> str | None:
    target = os.path.realpath(file.path)
    disk.make_folder(target)
    try:
        disk.read_regular(str(file.path))
    except file_checks.Unfit:  # a folder, a device, a stranger's
        raise
    except OSError:
        pass  # what is missing, or can't be read, can be replaced all the same
    return problem_with_rewriting(target)


def _listened(
    attempt: Authorization, open_browser: bool, seconds: float, via: requests.Session | None
) -> Tokens:
    """Wait for the browser, and tell it how it went."""
    with Listener(attempt.redirect_uri) as listener:
        _send_to_browser(attempt, open_browser)
        callback = listener.wait(seconds)
        try:
            if callback is None:
                raise attempt.nobody_came(seconds)
            tokens = _finish(attempt, callback, via)
        except AdhAuthError as error:
            listener.show(good=False, text=_as_a_sentence(error.message))
            raise
        listener.show(good=True, text="You can close this page and go back to your program.")
        return tokens


def _as_a_sentence(message: str) -> str:
    """An error's message for the page."""
    first = message.partition(" ")[0].rstrip(".,:;")
    # In capitals, an address or a file's name would be another one.
    begun = message if any(mark in first for mark in "./\\:@") else message[:1].upper() + message[1:]
    return begun if begun.endswith("?") else f"{begun}."


def _pasted(attempt: Authorization, open_browser: bool, via: requests.Session | None) -> Tokens:
    """Ask for the address that the browser ended on."""
    _send_to_browser(attempt, open_browser)
    echo(
        f"The browser ends on an address that begins with {one_line(attempt.redirect_uri)} and may be unable to show it."
    )
    callback = _callback_in(_ask("Paste that address here: "))
    if callback is None:
        raise attempt.no_code()
    return _finish(attempt, callback, via)


def _send_to_browser(attempt: Authorization, open_browser: bool) -> None:
    address = attempt.address()
    if open_browser:
        # In a thread: a browser in the terminal comes back when it is closed, and has to be listened to
        # meanwhile.
        threading.Thread(target=_open, args=(address,), name="adh-auth browser", daemon=True).start()
        echo("Opening the browser to sign in. If none appears, open this address:")
    else:
        echo("Open this address in a browser to sign in:")
    echo(f"\n    {address}\n")


def _open(address: str) -> None:
    with suppress(Exception):  # no browser: the address was printed
        webbrowser.open(address)


def _ask(prompt: str) -> Secret:
    """A line from the user.

    A notebook is saved with what is typed into it, so it is asked there as for a password.
    """
    try:
        text = getpass.getpass(prompt) if "ipykernel" in sys.modules else input(prompt)
    except (EOFError, RuntimeError):  # RuntimeError: a program without a console has no stdin
        text = ""
    return Secret(text.strip().strip("'\"<>"))


def _callback_in(address: Secret) -> Callback | None:
    _, _, query = address.reveal().partition("?")
    return Callback.from_query(query.partition("#")[0])


def _finish(attempt: Authorization, callback: Callback, via: requests.Session | None) -> Tokens:
    """Check, exchange, write."""
    fresh = _exchanged(attempt, attempt.code_in(callback), via)
    attempt.settings.file.save_mapping(dict(fresh.mapping), fresh.tokens)
    return fresh.tokens


def _exchanged(attempt: Authorization, code: Secret, via: requests.Session | None) -> Stored:
    asked_at = time.time()
    verdict = replies.classify(_carried(attempt, code, via), asked_at)
    if verdict.kind != "pair":
        raise attempt.refusal(verdict)
    trouble = None
    try:
        return Stored(Tokens.from_response(verdict.mapping, now=asked_at), verdict.mapping)
    except MalformedTokens as malformed:
        trouble = malformed.message
    raise RefreshFailed(
        f"the reply to the exchange is of no use: {trouble}. {KEPT}; try again later", status=verdict.status
    )


def _carried(attempt: Authorization, code: Secret, via: requests.Session | None) -> endpoint.EndpointReply:
    from ..clients.requests_transport import post

    trouble = None
    try:
        # Once: a second use of a code is taken for theft, and may end the session that the first one started.
        return post(attempt.exchange(code), EXCHANGE_DEADLINE, via, {})
    except endpoint.Unreachable as unreachable:
        trouble = unreachable.reason
    raise RefreshFailed(
        f"{attempt.settings.base_url} can't be reached to exchange the code ({trouble}). {KEPT}; try again later"
    )
