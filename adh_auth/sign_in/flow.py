"""Sign in with the browser: `adh_auth.login`, which ``adh-auth login`` calls.

Nothing of the old session is touched before the new pair is there (rule 8).
"""

from __future__ import annotations

import getpass
import math
import os
import sys
import threading
import time
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..clients.settings import as_url, resolve
from ..common.secret import Secret
from ..common.text import one_line
from ..errors import AdhAuthError, ConfigurationError, MalformedTokens, RefreshFailed, fresh_copy
from ..oauth import endpoint, replies
from ..rotation.owner import Owner
from ..rotation.status import describe
from ..tokens import Stored, Tokens
from .authorization import FILE_UNCHANGED, Authorization
from .callback import Callback
from .listener import Listener
from .page import as_sentence
from .user import greeting

if TYPE_CHECKING:
    import requests

__all__ = ["login"]

#: Seconds for the exchange. The code lives 60, and the browser has used up some of them.
EXCHANGE_DEADLINE = 30.0


def login(
    token_file: str | os.PathLike[str] | None = None,
    *,
    store: Any = None,
    session: str | None = None,
    client_id: str | None = None,
    client_secret: str | None = None,
    base_url: str | None = None,
    redirect_uri: str = "http://localhost:8765/callback",
    scope: str = "profile:read discussions:read",
    open_browser: bool = True,
    paste: bool = False,
    timeout: float = 300.0,
    refresh_via: requests.Session | None = None,
    echo: Callable[[str], object] = print,
) -> Tokens:
    """Sign in with the browser, write the token file, and return the pair.

    `token_file`, `store`, `session`, `client_id`, `client_secret`, `base_url`: as for the auth classes.
    `redirect_uri`: registered for the app, exactly as it is given here; login listens on its port.
    `scope`: what to ask for, separated by spaces.
    `open_browser`: False only shows the URL, for a machine without a browser.
    `paste`: ask for the URL that the browser ends on, instead of listening for it.
    `timeout`: seconds to wait for the browser to come back. The prompt of `paste` has no limit.
    `refresh_via`: a `requests.Session` that carries the calls to the API instead of a client of our own.
    `echo`: called with each line for the user: the URL, then who is signed in. No line holds a token.

    Raises `AdhAuthError`, in one line that says what happened and what to do: `ConfigurationError` for a
    setting or a port in use, `ReauthorizationRequired` for a code that was refused, `RefreshFailed` for an
    endpoint that can't be reached or fails, `TokenStoreError`. The old session is untouched then.
    """
    store = as_url(store)
    settings = resolve(
        token_file,
        store=store,
        session=session,
        client_id=client_id,
        client_secret=client_secret,
        base_url=base_url,
    )
    del client_secret  # IPython's verbose tracebacks show the arguments of every frame
    if echo is print:
        echo = partial(print, flush=True)  # a pipe is buffered: the URL would come out when the program ends
    authorization = Authorization(settings, redirect_uri, scope)
    flow = _BrowserFlow(authorization, open_browser, refresh_via, echo)
    seconds = _checked(timeout)
    failure = None
    try:
        settings.store.require_writable()
        tokens = flow.by_paste() if paste else flow.by_listener(seconds)
    except AdhAuthError as error:
        failure = fresh_copy(error)  # without the frames, which hold the code and the tokens
    if failure is not None:
        raise failure
    sentence, name = greeting(settings, refresh_via)
    if name is not None:
        with suppress(AdhAuthError):  # the session is on disk, with or without its user's name
            settings.store.annotate(tokens, signed_in_as=name)
    echo(one_line(f"{sentence} {settings.store.name}: {describe(tokens, time.time())}"))
    return tokens


def _checked(timeout: float) -> float:
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not is_number or not (math.isfinite(timeout) and timeout > 0):
        raise ConfigurationError("timeout must be a number of seconds above 0", setting="timeout")
    return float(timeout)


@dataclass(frozen=True)
class _BrowserFlow:
    """One sign-in under way: how its URL reaches the user, and who carries its calls."""

    authorization: Authorization
    open_browser: bool
    client: requests.Session | None
    echo: Callable[[str], object]

    def by_listener(self, seconds: float) -> Tokens:
        """Wait for the browser to come back, and show there how the sign-in ended."""
        with Listener(self.authorization.redirect_uri) as listener:
            self._show_url()
            callback = listener.wait(seconds)
            try:
                if callback is None:
                    raise self.authorization.timed_out(seconds)
                tokens = self._finish(callback)
            except AdhAuthError as error:
                listener.show(good=False, text=as_sentence(error.message))
                raise
            listener.show(good=True, text="You can close this page and go back to your program.")
            return tokens

    def by_paste(self) -> Tokens:
        """Ask for the URL that the browser ended on."""
        self._show_url()
        redirect_uri = one_line(self.authorization.redirect_uri)
        self.echo(f"The browser ends on a URL that begins with {redirect_uri} and may be unable to show it.")
        callback = Callback.from_url(_ask("Paste that URL here: "))
        if callback is None:
            raise self.authorization.wrong_paste()
        return self._finish(callback)

    def _show_url(self) -> None:
        url = self.authorization.url()
        if self.open_browser:
            # In a thread: webbrowser.open returns from a browser in the terminal only when that is closed,
            # and the callback has to be taken meanwhile.
            threading.Thread(target=_open, args=(url,), name="adh-auth browser", daemon=True).start()
            self.echo("Opening the browser to sign in. If none appears, open this URL:")
        else:
            self.echo("Open this URL in a browser to sign in:")
        self.echo(f"\n    {url}\n")

    def _finish(self, callback: Callback) -> Tokens:
        """Check, exchange, write."""
        fresh = self._exchange(self.authorization.code_from(callback))
        settings = self.authorization.settings
        owner = Owner(settings.base_url, settings.client_id)
        settings.store.save_mapping(owner.name_in(fresh.mapping), fresh.tokens)
        return fresh.tokens

    def _exchange(self, code: Secret) -> Stored:
        sent_at = time.time()
        verdict = replies.classify(self._post(code), sent_at)
        if verdict.kind != "pair":
            raise self.authorization.error_for(verdict)
        problem = None
        try:
            return Stored(Tokens.from_response(verdict.mapping, now=sent_at), verdict.mapping)
        except MalformedTokens as malformed:
            problem = malformed.message
        raise RefreshFailed(
            f"the reply to the exchange is unusable: {problem}. {FILE_UNCHANGED}; try again later",
            status=verdict.status,
        )

    def _post(self, code: Secret) -> endpoint.EndpointReply:
        from ..clients.requests_transport import post

        problem = None
        try:
            # Once: the server takes a second use of a code for theft, and may end the session that the first
            # one started.
            return post(self.authorization.exchange(code), EXCHANGE_DEADLINE, self.client, {})
        except endpoint.Unreachable as unreachable:
            problem = unreachable.reason
        base_url = self.authorization.settings.base_url
        raise RefreshFailed(
            f"{base_url} can't be reached to exchange the code ({problem}). {FILE_UNCHANGED}; try again later"
        )


def _open(url: str) -> None:
    with suppress(Exception):  # no browser: the URL was shown
        webbrowser.open(url)


def _ask(prompt: str) -> Secret:
    """Return a line from the user, without the quotes of a copied URL."""
    try:
        # A notebook is saved with what is typed into it, so it asks there as for a password.
        text = getpass.getpass(prompt) if "ipykernel" in sys.modules else input(prompt)
    except (EOFError, RuntimeError):  # RuntimeError: a program without a console has no stdin
        text = ""
    return Secret(text.strip().strip("'\"<>"))
