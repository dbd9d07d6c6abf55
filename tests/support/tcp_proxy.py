"""A TCP proxy that cuts connections, or swallows what goes through them, as a broken network does."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

__all__ = ["TcpProxy"]


class TcpProxy:
    """A context manager: listens on `port` of loopback, and passes on to `target` there.

    `host`, `target_host`: other addresses than those of loopback; `port`: a port of one's choice.

    `cut()` resets all connections and refuses new ones; `swallow()` holds what is sent (both ways, or only
    the answers), without a reply to anybody; `heal()` ends both, and what was held goes on its way, as packets
    that are sent again do.
    """

    def __init__(
        self, target: int, *, host: str = "127.0.0.1", port: int = 0, target_host: str = "127.0.0.1"
    ) -> None:
        self._target = (target_host, target)
        self._passes = {"request": threading.Event(), "answer": threading.Event()}
        self._cut = False
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._closed = False
        #: connections so far
        self.accepted = 0
        self._held = threading.Event()
        self._listener = socket.create_server((host, port))
        self.port = int(self._listener.getsockname()[1])
        self.heal()

    def __enter__(self) -> TcpProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._reset_all()
        self.heal()

    def cut(self) -> None:
        """Reset all connections, and each new one."""
        self._cut = True
        self._reset_all()

    def swallow(self, *what: str) -> None:
        """Hold what is sent from now on: "request", "answer", or both."""
        self._held.clear()
        for direction in what or ("request", "answer"):
            self._passes[direction].clear()

    def wait_held(self, timeout: float) -> bool:
        """Wait until something has been held since `swallow`. Returns whether it was."""
        return self._held.wait(timeout)

    def heal(self) -> None:
        """Let everything through again."""
        self._cut = False
        for passes in self._passes.values():
            passes.set()

    def _reset_all(self) -> None:
        for pair in self._pairs:
            _reset(*pair)
        self._pairs.clear()

    def _accept(self) -> None:
        while not self._closed:
            with contextlib.suppress(OSError):
                client, _ = self._listener.accept()
                self.accepted += 1
                if self._cut:
                    _reset(client)
                    continue
                server = socket.create_connection(self._target)
                self._pairs.append((client, server))
                for source, sink, direction in ((client, server, "request"), (server, client, "answer")):
                    arguments = (source, sink, direction)
                    threading.Thread(target=self._pump, args=arguments, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        passes = self._passes[direction]
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not passes.is_set():
                    self._held.set()
                    passes.wait()
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def _reset(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            # Without lingering a close sends a reset. The shutdown wakes a thread that reads.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            one.shutdown(socket.SHUT_RDWR)
        one.close()
