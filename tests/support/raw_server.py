"""A server for replies that the sandbox never gives: it keeps each request, and answers what a test says."""

from __future__ import annotations

import contextlib
import json
import socketserver
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["NEW", "OLD", "Answer", "RawServer", "Seen", "as_json", "rotating"]

OLD = {"access_token": "adh_old-access", "refresh_token": "adh_rt_old-refresh"}
NEW = {
    "access_token": "adh_new-access",
    "refresh_token": "adh_rt_new-refresh",
    "expires_in": 3600,
    "token_type": "Bearer",
}


@dataclass(frozen=True)
class Seen:
    """One request as it arrived. Header names are lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    """What to answer.

    `stream` writes what it likes after the head, which it may write, too; `ended` is set when the client is
    gone.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    stream: Callable[[Any, threading.Event], None] | None = None


def as_json(value: Any, status: int = 200, **headers: str) -> Answer:
    """Return an answer in JSON."""
    return Answer(status, {"Content-Type": "application/json", **headers}, json.dumps(value).encode())


def rotating(seen: Seen) -> Answer:
    """Answer as an API with one rotation: the old token has expired, the refresh returns the new pair."""
    if seen.path == "/api/auth/refresh":
        return as_json(NEW)
    if seen.headers.get("authorization") == "Bearer " + NEW["access_token"]:  # type: ignore[operator]
        return as_json({"id": "usr"})
    return as_json({"code": "token_expired"}, 401)


class RawServer:
    """A context manager; `answer` may be set anew while it runs."""

    def __init__(
        self, answer: Callable[[Seen], Answer] = rotating, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self.answer = answer
        self.scheme = "http" if ssl_context is None else "https"
        self.seen: list[Seen] = []
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        if ssl_context is not None:
            self._server.socket = ssl_context.wrap_socket(self._server.socket, server_side=True)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def port(self) -> int:
        """The port."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def __enter__(self) -> RawServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def to(self, path: str) -> list[Seen]:
        """Return the requests to that path."""
        return [seen for seen in self.seen if seen.path == path]


class _Server(ThreadingHTTPServer):
    owner: RawServer
    daemon_threads = True
    block_on_close = False

    def server_bind(self) -> None:
        # HTTPServer looks up its own host name here, which takes seconds where the resolver is slow.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what many of these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        seen = Seen(
            self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body
        )
        owner = self.server.owner
        owner.seen.append(seen)
        answer = owner.answer(seen)
        if answer.stream is not None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                answer.stream(self.wfile, owner.closing)
            return
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(answer.body)

    do_GET = do_POST = do_PUT = _any  # noqa: N815 - the base class names them so

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Log nothing."""
