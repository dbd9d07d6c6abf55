"""The loopback end of a sign-in: a server that takes one callback from the browser and shows a page for it.

The code is in the URL, so nothing of a request is logged and the page refers nowhere (rule 13).
"""

from __future__ import annotations

import errno
import os
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ..errors import ConfigurationError
from ..oauth.origin import is_loopback
from .callback import Callback
from .page import page

__all__ = ["ListenAddress", "Listener", "listen_address_of"]

#: Seconds in which a connection has to send its request. Browsers open some in advance and never use them.
REQUEST_TIMEOUT = 10.0
#: Seconds that the end of a sign-in waits until its page is written. The program may end right after it.
PAGE_TIMEOUT = 2.0
#: Seconds of one wait for the callback. A longer wait can't be interrupted on Windows.
WAIT_SLICE = 0.5
#: Seconds between two checks of a server for its shutdown.
POLL_INTERVAL = 0.05
#: What a stray callback is answered with.
STRAY = "The program still waits for its own. Go on in the tab that it opened, or open the URL that it shows."
#: errno values of a machine without IPv6.
NO_IPV6 = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT})


class ListenAddress(NamedTuple):
    """Where to listen. `hosts` are addresses of this machine."""

    hosts: tuple[str, ...]
    port: int
    path: str


def listen_address_of(redirect_uri: str) -> ListenAddress:
    """Return the address on this machine that `redirect_uri` leads to.

    Raises `ConfigurationError` where it leads elsewhere.
    """
    parts = urlsplit(redirect_uri)
    host = parts.hostname or ""
    if parts.scheme != "http" or not is_loopback(host):
        raise ConfigurationError(
            f"{redirect_uri} can't be listened on: only http on localhost leads back to this machine. "
            "Paste the URL that the browser ends on instead, with paste=True",
            setting="redirect_uri",
        )
    # A browser takes localhost for either. If only one were ours, another program could own the other.
    hosts = ("127.0.0.1", "::1") if host == "localhost" else (host,)
    return ListenAddress(hosts, parts.port or 80, parts.path or "/")


class Listener:
    """Takes the first callback that `is_ours` and shows one page for it.

    Any other one is a stray: a reloaded page, an old tab, a link of somebody's. It does not end the sign-in.
    A context manager; entering it raises `ConfigurationError` for a port that is in use.
    """

    def __init__(self, redirect_uri: str, is_ours: Callable[[Callback], bool] = lambda _: True) -> None:
        self._address = listen_address_of(redirect_uri)
        self._servers: list[_Server] = []
        self._exchange = _Exchange(self._address.path, is_ours)

    def __enter__(self) -> Listener:
        problem = None
        try:
            for host in self._address.hosts:
                self._open(host)
        except OSError as error:
            self._close()
            problem = error.strerror or type(error).__name__
        if problem is not None:
            raise ConfigurationError(
                f"port {self._address.port} of this machine can't be listened on: {problem}. End what uses "
                "it, give another redirect URI that is registered for the app, or paste the URL instead, "
                "with paste=True",
                setting="redirect_uri",
            )
        return self

    def __exit__(self, *_: object) -> None:
        # A browser that still waits for its page means that the sign-in was interrupted.
        self.show(good=False, text="The sign-in was interrupted. Start it again.")
        if self._exchange.received.is_set():
            self._exchange.shown.wait(PAGE_TIMEOUT)
        self._close()

    def wait(self, seconds: float) -> Callback | None:
        """Return the first callback, None where none comes within `seconds`."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not self._exchange.received.wait(
            min(left, WAIT_SLICE)
        ):
            pass
        return self._exchange.callback

    @property
    def strays(self) -> int:
        """Return how many callbacks of no concern came."""
        return self._exchange.strays

    def show(self, *, good: bool, text: str) -> None:
        """Show in the browser how the sign-in ended. Only the first call counts."""
        if not self._exchange.decided.is_set():
            title = "You are signed in" if good else "The sign-in did not work"
            self._exchange.page = (200 if good else 400, page(title, text))
            self._exchange.decided.set()

    def _open(self, host: str) -> None:
        try:
            server = _Server(host, self._address.port, self._exchange)
        except OSError as error:
            if host == "::1" and self._servers and error.errno in NO_IPV6:
                return
            raise
        self._servers.append(server)
        threading.Thread(
            target=server.serve_forever, args=(POLL_INTERVAL,), name="adh-auth sign-in", daemon=True
        ).start()

    def _close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._servers.clear()


class _Exchange:
    """What the listener and the threads of its servers share: the callback one way, the page the other."""

    def __init__(self, path: str, is_ours: Callable[[Callback], bool]) -> None:
        self.path = path
        self.strays = 0
        self._is_ours = is_ours
        self.callback: Callback | None = None
        self.page: tuple[int, bytes] = (404, b"")
        self.received, self.decided, self.shown = threading.Event(), threading.Event(), threading.Event()
        self._lock = threading.Lock()

    def take(self, callback: Callback) -> bool:
        """Take the callback and return True; return False for a stray."""
        ours = self._is_ours(callback)
        with self._lock:
            if not ours:
                self.strays += 1
            elif self.callback is None:
                self.callback = callback
                self.received.set()
        return ours


class _Server(socketserver.ThreadingTCPServer):
    # With the option, a second program could take the port on Windows (python/cpython#85307). Elsewhere a
    # second run fails without it while connections of the first are in TIME_WAIT.
    allow_reuse_address = os.name != "nt"
    daemon_threads = True

    def __init__(self, host: str, port: int, exchange: _Exchange) -> None:
        self.exchange = exchange
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: the base class prints a traceback, which would show the code."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_TIMEOUT

    def do_GET(self) -> None:
        exchange = self.server.exchange
        path, _, query = self.path.partition("?")
        callback = Callback.from_query(query) if path == exchange.path else None
        if callback is None:  # /favicon.ico, or a visit without a code
            self._answer(404, page("Nothing here", "This URL waits for a sign-in to come back."))
            return
        if not exchange.take(callback):
            self._answer(400, page("This belongs to another sign-in", STRAY))
            return
        exchange.decided.wait()
        try:
            self._answer(*exchange.page)
        finally:
            exchange.shown.set()

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")  # the URL holds the code
        self.send_header(
            "Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
        )
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Log nothing: the request line holds the code."""
