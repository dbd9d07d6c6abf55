"""When a call to an auth endpoint ends, however slowly its reply trickles.

A client's read time-out starts anew with each byte. Rule 7: a refresh ends within its total deadline.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from ..common.limits import REPLY_LIMIT
from ..common.threads import THREAD_NAME_PREFIX

__all__ = ["CONNECT_TIMEOUT", "Deadline"]

#: Seconds to connect. Nothing has been sent by then, so that giving up is safe.
CONNECT_TIMEOUT = 5.0


class Deadline:
    """A context manager that shuts down the sockets it watches, `seconds` after it is entered.

    The thread that reads one of them wakes up with an error. The call is not left to a thread of its own: it
    could still send the token after another process has spent it.
    """

    def __init__(self, seconds: float) -> None:
        self._sockets: list[Callable[[], Any]] = []
        #: Whether the call may have left. A client that shows its connections sets it itself.
        self.sent = True
        #: Whether the time is up. The timer sets it: a clock that freezegun stops or moves would cut a reply.
        self.over: bool = False
        # Not a daemon: a sub-interpreter may have none. It never outlives the call.
        self._timer = threading.Timer(seconds, self._end)
        self._timer.name = THREAD_NAME_PREFIX + "deadline"

    def __enter__(self) -> Deadline:
        # No thread starts while the interpreter shuts down; then the client's own time-outs have to do.
        with suppress(RuntimeError):
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def watch(self, find: Callable[[], Any]) -> None:
        """Watch the socket that `find` returns when the time is up.

        It is asked as late as that because TLS replaces a connection's socket on the way.
        """
        self._sockets.append(find)

    def collect(self, chunks: Iterable[bytes], errors: tuple[type[Exception], ...]) -> tuple[bytes, bool]:
        """Return at most `REPLY_LIMIT` bytes of a reply, and whether it was cut off.

        `errors`: what the client raises for a reply that breaks off.
        """
        body = b""
        try:
            for chunk in chunks:
                body += chunk
                if len(body) > REPLY_LIMIT or self.over:
                    return body[:REPLY_LIMIT], True
        except errors:
            return body, True
        return body, False

    def _end(self) -> None:
        self.over = True
        for find in self._sockets:
            # Closed by now, or not a socket but a mock's object.
            with suppress(Exception):
                # SSLSocket.shutdown() would drop the TLS state that the reading thread is using.
                socket.socket.shutdown(find(), socket.SHUT_RDWR)
