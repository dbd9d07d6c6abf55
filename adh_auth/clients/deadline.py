"""The end of a call to an auth endpoint, however slowly its reply trickles: a client's read time-out starts
anew with each byte.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from ..common.limits import REPLY_LIMIT
from ..common.threads import OURS

__all__ = ["Deadline"]


class Deadline:
    """While it is entered, `seconds` from its making on: then the sockets under its watch are shut down, and
    whoever reads there wakes up.

    The call itself is never abandoned to a thread of its own: it could still send the token after somebody
    else has spent it.
    """

    def __init__(self, seconds: float) -> None:
        self._sockets: list[Callable[[], Any]] = []
        #: Whether the call may have left; a carrier that shows its connections says so itself.
        self.sent = True
        #: Whether the time is up. Said by the timer: a clock that a test freezes or moves would keep a reply
        #: from being read to its end.
        self.over = False
        # No daemon: a sub-interpreter may have none. It never outlives the call.
        self._timer = threading.Timer(seconds, self._end)
        self._timer.name = OURS + "deadline"

    def __enter__(self) -> Deadline:
        # While the interpreter shuts down there are no new threads; then the time-outs of the client have to
        # do.
        with suppress(RuntimeError):
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def watch(self, find: Callable[[], Any]) -> None:
        """Watch the socket that `find` gives when the time is up; TLS wraps another round it on the way."""
        self._sockets.append(find)

    def collect(self, chunks: Iterable[bytes], troubles: tuple[type[Exception], ...]) -> tuple[bytes, bool]:
        """At most `REPLY_LIMIT` bytes of a reply, and whether more was to come.

        `troubles`: by which the client says that it broke off.
        """
        body = b""
        try:
            for chunk in chunks:
                body += chunk
                if len(body) > REPLY_LIMIT or self.over:
                    return body[:REPLY_LIMIT], True
        except troubles:
            return body, True
        return body, False

    def _end(self) -> None:
        self.over = True
        for find in self._sockets:
            with suppress(Exception):  # closed by now, or no socket at all but somebody's mock
                found = find()
                # urllib3's TLS through an https proxy (SSLTransport), and that of pyOpenSSL, are no sockets
                # but hold one.
                found = getattr(found, "socket", found)
                # SSLSocket.shutdown() would pull the TLS state out from under the thread that reads.
                socket.socket.shutdown(found, socket.SHUT_RDWR)
