"""The loopback end of a sign-in: a listener that takes the code from the browser, and the page that the
browser shows then.
"""

from __future__ import annotations

import errno
import os
import socket
import socketserver
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from ..common.secret import Secret
from ..common.text import printable
from ..errors import ConfigurationError
from ..oauth.origin import is_loopback
from .page import page

__all__ = ["Callback", "Listener", "listen_address_of"]

#: Seconds in which a connection has to say what it wants: browsers open some in advance and never use them.
VISIT_TIMEOUT = 10.0
#: Seconds that the end of a sign-in waits for its page to be on its way; then the program may end.
PAGE_TIMEOUT = 2.0
#: errno values of a machine without IPv6.
NO_ADDRESS = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT})


@dataclass(frozen=True)
class Callback:
    """What the browser brought back to the redirect URI."""

    code: Secret | None
    state: Secret | None
    #: the server's error code (RFC 6749 section 4.1.2.1)
    error: str | None

    @classmethod
    def from_query(cls, query: str) -> Callback | None:
        """Parse; None for a visit that brings neither a code nor an error.

        A parameter that comes twice counts as missing.
        """
        found = {name: values[0] for name, values in _parameters(query).items() if len(values) == 1}
        code, state = (Secret(found[name]) if name in found else None for name in ("code", "state"))
        callback = cls(code, state, printable(found.get("error")))
        return callback if code is not None or callback.error else None


def _parameters(query: str) -> dict[str, list[str]]:
    try:
        return parse_qs(query, max_num_fields=50)
    except ValueError:  # more than that
        return {}


class ListenAddress(NamedTuple):
    """Where to listen. `hosts` are addresses of this machine."""

    hosts: tuple[str, ...]
    port: int
    path: str


def listen_address_of(redirect_uri: str) -> ListenAddress:
    """Where `redirect_uri` leads on this machine.

    Raises `ConfigurationError` where that is elsewhere, or nowhere.
    """
    parts = urlsplit(redirect_uri)
    host = parts.hostname or ""
    if parts.scheme != "http" or not is_loopback(host):
        raise ConfigurationError(
            f"{redirect_uri} can't be listened on: only http on localhost leads back to this machine. Paste the address "
            "that the browser ends on instead (--paste, paste=True)",
            setting="redirect_uri",
        )
    # A browser takes localhost for either; where only one of them were ours, the other could be a stranger's.
    hosts = ("127.0.0.1", "::1") if host == "localhost" else (host,)
    return ListenAddress(hosts, parts.port or 80, parts.path or "/")


class Listener:
    """Takes one callback and shows one page for it.

    A context manager; raises `ConfigurationError` for a port that is in use.
    """

    def __init__(self, redirect_uri: str) -> None:
        self._place = listen_address_of(redirect_uri)
        self._servers: list[_Server] = []
        self._desk = _Exchange(self._place.path)

    def __enter__(self) -> Listener:
        trouble = None
        try:
            for host in self._place.hosts:
                self._open(host)
        except OSError as refused:
            self._close()
            trouble = refused.strerror or type(refused).__name__
        if trouble is not None:
            raise ConfigurationError(
                f"port {self._place.port} of this machine can't be listened on: {trouble}. End what uses it, give another redirect URI "
                "that is registered for the app, or paste the address instead (--paste, paste=True)",
                setting="redirect_uri",
            )
        return self

    def __exit__(self, *_: object) -> None:
        # Whoever came and still waits: the sign-in was interrupted.
        self.show(good=False, text="The sign-in was interrupted. Start it again.")
        if self._desk.came.is_set():
            self._desk.shown.wait(PAGE_TIMEOUT)
        self._close()

    def wait(self, seconds: float) -> Callback | None:
        """The first callback, None where none came in time."""
        deadline = time.monotonic() + seconds
        # In slices: a longer wait can't be interrupted on Windows.
        while (left := deadline - time.monotonic()) > 0 and not self._desk.came.wait(min(left, 0.5)):
            pass
        return self._desk.callback

    def show(self, *, good: bool, text: str) -> None:
        """Say in the browser how it ended; the first word stands."""
        if not self._desk.ended.is_set():
            self._desk.page = (
                200 if good else 400,
                page("You are signed in" if good else "The sign-in did not work", text),
            )
            self._desk.ended.set()

    def _open(self, host: str) -> None:
        try:
            server = _Server(host, self._place.port, self._desk)
        except OSError as refused:
            if host == "::1" and self._servers and refused.errno in NO_ADDRESS:
                return
            raise
        self._servers.append(server)
        threading.Thread(
            target=server.serve_forever, args=(0.05,), name="adh-auth sign-in", daemon=True
        ).start()

    def _close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._servers.clear()


class _Exchange:
    """Where the listener's threads leave the callback and fetch the page."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.callback: Callback | None = None
        self.page: tuple[int, bytes] = (404, b"")
        self.came, self.ended, self.shown = threading.Event(), threading.Event(), threading.Event()
        self._guard = threading.Lock()

    def take(self, callback: Callback) -> None:
        with self._guard:
            if self.callback is None:
                self.callback = callback
                self.came.set()


class _Server(socketserver.ThreadingTCPServer):
    # With the option, a second program could take the port on Windows (python/cpython#85307); elsewhere a
    # second run needs it.
    allow_reuse_address = os.name != "nt"
    daemon_threads = True

    def __init__(self, host: str, port: int, desk: _Exchange) -> None:
        self.desk = desk
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a browser that goes away is no trouble, and a traceback would show the code."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = VISIT_TIMEOUT

    def do_GET(self) -> None:
        desk = self.server.desk
        path, _, query = self.path.partition("?")
        callback = Callback.from_query(query) if path == desk.path else None
        if callback is None:  # /favicon.ico, or somebody who looks what is here
            self._answer(404, page("Nothing here", "This address waits for a sign-in to come back."))
            return
        desk.take(callback)
        desk.ended.wait()
        try:
            self._answer(*desk.page)
        finally:
            desk.shown.set()

    def _answer(self, status: int, page: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")  # the address holds the code
        self.send_header(
            "Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
        )
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Say nothing: a request line holds the code."""
