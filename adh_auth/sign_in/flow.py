"""Sign in with the browser: `adh_auth.login`, which ``adh-auth login`` calls.

Nothing of the old session is touched before the new pair is there (rule 8).
"""

from __future__ import annotations

import getpass
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

from ..clients.settings import Settings, as_url, resolve
from ..common.secret import Secret
from ..common.text import format_duration, one_line
from ..errors import AdhAuthError, fresh_copy
from ..rotation.status import describe
from ..tokens import Tokens
from .authorization import FILE_UNCHANGED
from .callback import Callback
from .listener import Listener
from .page import as_sentence
from .pending import PendingSignIn
from .two_steps import SignIn, Started, checked_seconds
from .user import greeting

if TYPE_CHECKING:
    import requests

__all__ = ["login"]

#: Seconds. The prompt of `paste` has no limit of its own; the code in what is pasted lives 60 s.
MAX_PASTE_AGE = 86400.0
#: Wrong pastes before a sign-in ends: what feeds stdin may be a program.
MAX_PASTES = 10


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
    `paste`: ask for the URL that the browser ends on, instead of listening for it; again after a wrong one.
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
    seconds = checked_seconds("timeout", timeout)
    sign_in = SignIn(
        redirect_uri=redirect_uri,
        scope=scope,
        client_id=settings.client_id,
        client_secret=settings.client_secret,
        base_url=settings.base_url,
        max_age=max(seconds, MAX_PASTE_AGE),
        refresh_via=refresh_via,
    )
    flow = _BrowserFlow(sign_in, sign_in.start(), redirect_uri, settings, open_browser, echo)
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


@dataclass(frozen=True)
class _BrowserFlow:
    """One sign-in under way: how its URL reaches the user, and how its answer comes back."""

    sign_in: SignIn
    started: Started
    redirect_uri: str
    settings: Settings
    open_browser: bool
    echo: Callable[[str], object]

    def by_listener(self, seconds: float) -> Tokens:
        """Wait for the browser to come back, and show there how the sign-in ended."""
        with Listener(self.redirect_uri, self._is_ours) as listener:
            self._show_url()
            self._say_that_it_waits(seconds)
            callback = listener.wait(seconds)
            try:
                if callback is None:
                    raise self._timed_out(seconds, listener.strays)
                tokens = self._finish(callback)
            except AdhAuthError as error:
                listener.show(good=False, text=as_sentence(error.message))
                raise
            listener.show(good=True, text="You can close this page and go back to your program.")
            return tokens

    def by_paste(self) -> Tokens:
        """Ask for the URL that the browser ended on, until it is one of this sign-in."""
        self._show_url()
        uri = one_line(self.redirect_uri)
        self.echo(f"The browser ends on a URL that begins with {uri} and may be unable to show it.")
        problem = "no URL was pasted"
        for _ in range(MAX_PASTES):
            pasted = _ask("Paste that URL here: ")
            if pasted is None:
                break
            callback = Callback.from_text(pasted)
            problem = self._problem_with(callback)
            if not problem:
                return self._finish(callback)
            self.echo(as_sentence(problem))
        raise AdhAuthError(f"{problem}. {FILE_UNCHANGED}; start again")

    def _problem_with(self, callback: Callback | None) -> str:
        """Return why it can't end this sign-in; an empty text if it can."""
        if callback is None:
            example = f"{self.redirect_uri}{'&' if '?' in self.redirect_uri else '?'}code=…&state=…"
            return (
                "that is not the URL that a sign-in ends on: it has no code. "
                f"Paste the whole URL, like {example}"
            )
        if not self._is_ours(callback):
            return (
                "that URL has the wrong state: it belongs to another sign-in. "
                "Open the URL above, and paste what the browser ends on then"
            )
        return ""

    def _is_ours(self, callback: Callback) -> bool:
        pending = PendingSignIn.from_text(Secret(self.started.state))
        assert pending is not None
        return callback.is_bare_error or pending.is_named_by(callback.state)

    def _show_url(self) -> None:
        url = self.started.url
        if self.open_browser:
            # In a thread: webbrowser.open returns from a browser in the terminal only when that is closed,
            # and the callback has to be taken meanwhile.
            threading.Thread(target=_open, args=(url,), name="adh-auth browser", daemon=True).start()
            self.echo("Opening the browser to sign in. If none appears, open this URL:")
        else:
            self.echo("Open this URL in a browser to sign in:")
        for line in ("", f"    {url}", ""):  # a call per line: `echo` may be a logger's
            self.echo(line)

    def _say_that_it_waits(self, seconds: float) -> None:
        uri = one_line(self.redirect_uri)
        self.echo(f"Waiting up to {format_duration(seconds)} for the browser to come back to {uri}")
        self.echo("Is the browser on another machine? End this with Ctrl-C and start again with paste=True")

    def _finish(self, callback: Callback | None) -> Tokens:
        assert callback is not None
        return self.sign_in.finish(callback.as_mapping(), self.started.state, store=self.settings.store)

    def _timed_out(self, seconds: float, strays: int) -> AdhAuthError:
        """Return the error for a browser that did not come back."""
        # A redirect URI that is not registered shows in the browser only.
        uri = self.redirect_uri
        came = " What came had the state of another sign-in, or none." if strays else ""
        return AdhAuthError(
            f"the browser did not come back to {uri} within {seconds:g} s.{came} If it showed an "
            "error: this redirect URI has to be registered for the app exactly as it is written here. "
            f"{FILE_UNCHANGED}"
        )


def _open(url: str) -> None:
    with suppress(Exception):  # no browser: the URL was shown
        webbrowser.open(url)


def _ask(prompt: str) -> Secret | None:
    """Return a line from the user, without the quotes of a copied URL; None at the end of the input."""
    try:
        # A notebook is saved with what is typed into it, so it asks there as for a password.
        text = getpass.getpass(prompt) if "ipykernel" in sys.modules else input(prompt)
    except (EOFError, RuntimeError):  # RuntimeError: a program without a console has no stdin
        return None
    return Secret(text.strip().strip("'\"<>"))
