"""A body twice, in requests: of a request that is sent again, and of a 401 that is inspected and let go."""

from __future__ import annotations

import io
import time
from contextlib import suppress
from typing import NamedTuple

import requests
from requests.models import PreparedRequest, Response
from requests.utils import rewind_body
from urllib3.exceptions import HTTPError
from urllib3.response import HTTPResponse

from ..common.limits import BODY_LIMIT, PEEK_SECONDS
from ..oauth.content_encoding import decoded, is_small
from ..oauth.replies import EXPIRED, error_code
from .requests_compat import body_start, keep, loaded, read_piece, reads_end_within, with_body

__all__ = ["BodyPrefix", "can_be_sent_again", "is_plain", "read_prefix", "release", "rewound"]

#: Seconds for the rest of a 401 whose code is known: read to its end, it gives its connection back open.
REST_SECONDS = 0.25


def is_plain(body: object) -> bool:
    """Whether it is in memory, or not there at all."""
    return body is None or isinstance(body, (bytes, str, bytearray, memoryview))


def can_be_sent_again(request: PreparedRequest) -> bool:
    """Whether the same body can be sent once more: bytes, and files that were asked where they stand and can
    go back there.
    """
    body = request.body
    if is_plain(body):
        return True
    seekable = getattr(body, "seekable", None)
    can_seek = seekable() if callable(seekable) else hasattr(body, "seek")
    if can_seek and body_start(request) is not None:
        return True
    return not hasattr(body, "read") and _is_buffer(body)


def _is_buffer(body: object) -> bool:
    try:
        memoryview(body).release()  # type: ignore[arg-type]  # array.array and its like, which urllib3 sends as bytes
    except TypeError:
        return False
    return True


def rewound(request: PreparedRequest) -> bool:
    """Whether its body stands where it began, so that it can be sent again."""
    if not can_be_sent_again(request):
        return False
    try:
        if body_start(request) is not None:
            rewind_body(request)
    except (
        requests.exceptions.UnrewindableBodyError,
        ValueError,
    ):  # ValueError: the caller has closed the file
        return False
    return True


class BodyPrefix(NamedTuple):
    """What a 401 says: its code, the first bytes of its body as they came, and whether they are all."""

    code: str | None
    start: bytes
    ended: bool

    @property
    def is_bare(self) -> bool:
        """Neither a body nor a code, as in an answer to HEAD."""
        return self.ended and not self.start and self.code is None


def read_prefix(response: Response, *, stream: bool) -> BodyPrefix:
    """What a 401 says; it stays as readable as it was. `stream`: the caller does not wait for its body."""
    content = loaded(response)
    if content is None and not isinstance(response.raw, HTTPResponse):
        # vcrpy's, and those of adapters that call an app in this process: it is in memory
        with suppress(requests.RequestException, OSError):
            content = response.content
        content = content or b""
    if content is not None:
        return BodyPrefix(
            error_code(response.headers, content[:BODY_LIMIT]), content[:BODY_LIMIT], ended=True
        )
    rejoined = _Rejoined(response.raw)
    _read_start(rejoined, response, stream)
    response.raw = with_body(response.raw, rejoined, response.request.method)
    return BodyPrefix(error_code(response.headers, rejoined.start), rejoined.start, rejoined.ended)


def _read_start(body: _Rejoined, response: Response, stream: bool) -> None:
    """Read as much as tells the code.

    Where the caller waits for the body as well, a piece takes as long as the caller lets it.
    """
    until = time.monotonic() + PEEK_SECONDS
    known = False
    while not body.over and len(body.start) <= BODY_LIMIT:
        if not known and error_code(response.headers, body.start) == EXPIRED:
            known, until = True, min(until, time.monotonic() + REST_SECONDS)
        left = until - time.monotonic()
        # One piece is read whatever the clock says: one that a test moves may say that the time is up.
        if left <= 0 and body.start:
            return
        body.read_on(max(left, REST_SECONDS) if known or stream else None)


class _Rejoined(io.RawIOBase):
    """A response's bytes from the first one on, of which some were read already."""

    def __init__(self, rest: HTTPResponse) -> None:
        self.start = b""
        #: read to the end
        self.ended = False
        self._given = 0
        self._rest = rest
        self._error: Exception | None = None

    @property
    def over(self) -> bool:
        """Whether there is no more to come, be it that it broke off."""
        return self.ended or self._error is not None

    def read_on(self, seconds: float | None) -> None:
        """Wait for the next piece, `seconds` at most."""
        try:
            with reads_end_within(self._rest, seconds):
                piece = read_piece(self._rest, BODY_LIMIT + 1 - len(self.start))
        except (HTTPError, OSError) as error:
            self._error = error.with_traceback(None)
        else:
            self.start += piece
            self.ended = not piece

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            return self._begun(None) + self._more(None)
        return self._begun(size) or self._more(size)

    def read1(self, size: int | None = -1) -> bytes:
        return self._begun(None if size is None or size < 0 else size) or self._more(size, at_once=True)

    def _begun(self, size: int | None) -> bytes:
        piece = self.start[self._given :][:size]
        self._given += len(piece)
        return piece

    def _more(self, size: int | None, *, at_once: bool = False) -> bytes:
        if self._error is not None:  # what has broken off breaks off for the caller
            raise self._error
        piece = b""
        if not self.ended:
            piece = (self._rest.read1 if at_once else self._rest.read)(size, decode_content=False)
        if size is None or not piece:
            # urllib3's `stream` asks for more until its source is closed.
            self.close()
        return piece

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        super().close()
        self._rest.close()
        self._rest.release_conn()


def release(response: Response, inspected: BodyPrefix) -> None:
    """Give the connection back. A small body that was read to its end is kept, as readable as before."""
    if loaded(response) is None:
        encoding = response.headers.get("Content-Encoding", "")
        known = inspected.ended and is_small(inspected.start, encoding)
        keep(response, decoded(inspected.start, encoding, BODY_LIMIT) if known else b"")
        # Where the body was not read to its end this hangs up: nobody can say how much is still to come.
        response.raw.close()
    response.close()
