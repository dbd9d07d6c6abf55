"""HTTP/1.1 over sockets: reads requests, sends replies, ends connections for a fault and for `stop()`."""

import contextlib
import hashlib
import json
import os
import secrets
import socket
import socketserver
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import Any

_LINE_LIMIT = 65_536
# Bytes of a body that are kept. A larger one is still read to its end: the next request of the connection
# starts there.
_MAX_KEPT = 65_536
_PIECE = 65_536
_JOIN_SECONDS = 5.0


@dataclass(frozen=True, repr=False, eq=False)
class Body:
    """A request's body; of a large one the length and the hash only."""

    length: int
    sha256: str
    kept: bytes | None
    """None from 64 KiB on."""


@dataclass(frozen=True, repr=False, eq=False)
class Request:
    """A request that was read to its last byte. Header names are lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: Body


@dataclass(frozen=True, repr=False, eq=False)
class Reply:
    """What to send. `pieces` instead of a body make a chunked reply, with a write for each piece."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    pieces: tuple[bytes, ...] | None = None
    cut: str | None = None
    """What is not sent: "all" of the reply, or its second "half". The connection is closed then."""


def json_reply(status: int, payload: Mapping[str, Any], headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    """Return a reply with a JSON object."""
    return Reply(status, (("Content-Type", "application/json"), *headers), json.dumps(payload).encode())


class Server(ThreadingHTTPServer):
    """A server with a thread for each connection. `stop()` ends them all."""

    # With the default backlog of 5, a burst of processes waits a second for the retry of its SYN.
    request_queue_size = 256
    # On Windows the option lets a second server take a port in use (python/cpython#85307); elsewhere a
    # restart needs it.
    allow_reuse_address: bool = os.name != "nt"

    def __init__(
        self, address: tuple[str, int], answer: Callable[[Request], Reply], ssl_context: ssl.SSLContext | None
    ) -> None:
        self.answer = answer
        self._ssl_context = ssl_context
        self._connections: dict[threading.Thread, socket.socket] = {}
        super().__init__(address, _Connection)
        # The poll interval only bounds how long stop() takes; connections wake the loop at once.
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.02,), name="adh-sandbox", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join(_JOIN_SECONDS)
        _end(self.socket)
        self.server_close()
        for thread, connection in list(self._connections.items()):
            _end(connection)
            thread.join(_JOIN_SECONDS)

    def server_bind(self) -> None:
        # HTTPServer looks up its own host name here, which takes seconds where the resolver is slow.
        socketserver.TCPServer.server_bind(self)
        self.server_name: str = str(self.server_address[0])
        self.server_port: int = int(self.server_address[1])

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self._ssl_context is None:
            return connection, address
        # The handshake is left to the connection's own thread: here, a client that never finishes it would
        # block all others.
        return self._ssl_context.wrap_socket(
            connection, server_side=True, do_handshake_on_connect=False
        ), address

    def process_request(self, request: Any, client_address: Any) -> None:
        # ThreadingMixIn keeps no list of daemon threads, and stop() has to find them.
        thread = threading.Thread(
            target=self._serve, args=(request, client_address), name="adh-sandbox-connection", daemon=True
        )
        self._connections[thread] = request
        thread.start()

    def _serve(self, request: Any, client_address: Any) -> None:
        try:
            self.process_request_thread(request, client_address)
        finally:
            self._connections.pop(threading.current_thread(), None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that goes away, refuses the certificate or outlives stop() is an OSError, and expected.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def _end(connection: socket.socket) -> None:
    # close() alone sends no FIN while a forked child holds a copy of the descriptor, and does not wake a
    # thread that reads. SSLSocket.shutdown() drops the TLS object that this thread uses, so it is the plain
    # one.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(_LINE_LIMIT)
        if not self.raw_requestline:
            self.close_connection = True
        elif self.parse_request():
            self._answer()

    def _answer(self) -> None:
        headers = _lower(self.headers.items())
        try:
            body = _read_body(self.rfile, headers)
        except ValueError:
            self.send_error(400)
            return
        path, _, query = self.path.partition("?")
        self._send(self.server.answer(Request(self.command, path, query, headers, body)))

    def _send(self, reply: Reply) -> None:
        self.close_connection |= reply.cut is not None
        if reply.cut == "all":
            return
        head, pieces = self._head(reply), _pieces(reply, self.command)
        if reply.cut == "half":
            self.wfile.write(_first_half(head, b"".join(pieces)))
            return
        # One write for the head and the first piece: apart, they are two packets and wake the client twice.
        first, *rest = pieces or [b""]
        self.wfile.write(head + first)
        for piece in rest:
            self.wfile.write(piece)

    def _head(self, reply: Reply) -> bytes:
        given = {name.lower() for name, _ in reply.headers}
        own = [("X-Request-Id", "req_" + secrets.token_hex(8)), ("Date", self.date_time_string())]
        if reply.pieces is not None:
            own.append(("Transfer-Encoding", "chunked"))
        elif reply.status not in (204, 304):
            own.append(("Content-Length", str(len(reply.body))))
        if self.close_connection:
            own.append(("Connection", "close"))
        pairs = [*reply.headers, *(pair for pair in own if pair[0].lower() not in given)]
        lines = [
            f"HTTP/1.1 {reply.status} {_reason(reply.status)}",
            *(f"{name}: {value}" for name, value in pairs),
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Log nothing: a request line may hold a code."""


def _lower(pairs: list[tuple[str, str]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in pairs:
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return headers


def _read_body(stream: BufferedIOBase, headers: Mapping[str, str]) -> Body:
    """Return the body. Raises `ValueError` if the framing is broken."""
    digest, length, kept = hashlib.sha256(), 0, bytearray()
    for piece in _body_pieces(stream, headers):
        digest.update(piece)
        length += len(piece)
        if length < _MAX_KEPT:
            kept += piece
    return Body(length, digest.hexdigest(), bytes(kept) if length < _MAX_KEPT else None)


def _body_pieces(stream: BufferedIOBase, headers: Mapping[str, str]) -> Iterator[bytes]:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return _chunks(stream)
    length = headers.get("content-length", "0")
    if not length.isdecimal():
        raise ValueError("Content-Length is not a number")
    return _exactly(stream, int(length))


def _chunks(stream: BufferedIOBase) -> Iterator[bytes]:
    while size := int(stream.readline(_LINE_LIMIT).partition(b";")[0], 16):
        yield from _exactly(stream, size)
        if stream.readline(3).strip():
            raise ValueError("a chunk is longer than it says")
    while stream.readline(_LINE_LIMIT).strip():
        pass  # trailers


def _exactly(stream: BufferedIOBase, size: int) -> Iterator[bytes]:
    while size > 0:
        piece = stream.read(min(size, _PIECE))
        if not piece:
            raise ConnectionAbortedError("the client closed the connection in the middle of its body")
        size -= len(piece)
        yield piece


def _pieces(reply: Reply, method: str) -> list[bytes]:
    if method == "HEAD" or reply.status in (204, 304):
        return []
    if reply.pieces is None:
        return [reply.body]
    return [*(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in reply.pieces), b"0\r\n\r\n"]


def _first_half(head: bytes, body: bytes) -> bytes:
    # Without a body, only a broken head shows the client that something is missing.
    return head + body[: len(body) // 2] if body else head[: len(head) // 2]


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unnamed"
