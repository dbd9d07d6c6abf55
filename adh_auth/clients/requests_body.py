"""Bodies in requests: of a request that is sent again, and of a 401 that is read before the caller gets it.

Rule 10: a body is sent again only if it is the same body. Rule 11: of a 401, only a bounded part is read, and
it stays as readable as it was.
"""

from __future__ import annotations

import io
import time
from contextlib import suppress
from typing import NamedTuple

import requests
from requests.models import PreparedRequest, Response
from urllib3.exceptions import HTTPError
from urllib3.response import HTTPResponse

from ..common.limits import BODY_LIMIT, PEEK_SECONDS
from ..oauth.content_encoding import decoded, is_small
from ..oauth.replies import EXPIRED, error_code
from . import requests_compat as compat

__all__ = ["BodyPrefix", "can_be_sent_again", "is_plain", "read_prefix", "release", "rewound"]

#: Seconds for the rest of a 401 whose code is known. A connection that was read to its end can be used again.
REST_SECONDS = 0.25


def is_plain(body: object) -> bool:
    """Return whether a request's body is in memory, or None."""
    return body is None or isinstance(body, (bytes, str, bytearray, memoryview))


def can_be_sent_again(request: PreparedRequest) -> bool:
    """Return whether the same body can be sent once more: bytes, or a file that can seek to where it was."""
    body = request.body
    if is_plain(body):
        return True
    seekable = getattr(body, "seekable", None)
    can_seek = seekable() if callable(seekable) else hasattr(body, "seek")
    if can_seek and compat.body_start(request) is not None:
        return True
    return not hasattr(body, "read") and _is_buffer(body)


def _is_buffer(body: object) -> bool:
    try:
        memoryview(body).release()  # type: ignore[arg-type]  # urllib3 sends an array.array as bytes
    except TypeError:
        return False
    return True


def rewound(request: PreparedRequest) -> bool:
    """Seek its body to where it began. Return whether it can be sent again."""
    if not can_be_sent_again(request):
        return False
    return compat.body_start(request) is None or compat.rewind(request)


class BodyPrefix(NamedTuple):
    """The error code of a 401, the first bytes of its body as they came, and whether these are all."""

    code: str | None
    start: bytes
    ended: bool

    @property
    def is_bare(self) -> bool:
        """Return whether it has neither a body nor a code, as an answer to HEAD."""
        return self.ended and not self.start and self.code is None


def read_prefix(response: Response, *, stream: bool) -> BodyPrefix:
    """Read the code and the start of a 401's body; it stays as readable as it was.

    `stream`: the caller has not asked for the body yet.
    """
    content = compat.loaded_content(response)
    raw = compat.urllib3_response(response)
    if content is None and raw is None:
        # In memory: of vcrpy, or of an adapter that calls an application in this process.
        with suppress(requests.RequestException, OSError):
            content = response.content
        content = content or b""
    if content is not None:
        start = content[:BODY_LIMIT]
        return BodyPrefix(error_code(response.headers, start), start, ended=True)
    assert raw is not None
    body = _PrefixedBody(raw)
    _read_start(body, response, stream)
    compat.replace_body(response, body)
    return BodyPrefix(error_code(response.headers, body.start), body.start, body.ended)


def _read_start(body: _PrefixedBody, response: Response, stream: bool) -> None:
    """Read until the code is known.

    If the caller waits for the body anyway, a piece may take as long as the caller's time-out allows.
    """
    until = time.monotonic() + PEEK_SECONDS
    known = False
    while not body.over and len(body.start) <= BODY_LIMIT:
        if not known and error_code(response.headers, body.start) == EXPIRED:
            known, until = True, min(until, time.monotonic() + REST_SECONDS)
        left = until - time.monotonic()
        # One piece is read whatever the clock says: freezegun and its like move it.
        if left <= 0 and body.start:
            return
        body.read_on(max(left, REST_SECONDS) if known or stream else None)


class _PrefixedBody(io.RawIOBase):
    """A response's body from its first byte on, of which `start` was read already."""

    def __init__(self, rest: HTTPResponse) -> None:
        self.start = b""
        #: Whether it was read to its end.
        self.ended = False
        self._returned = 0
        self._rest = rest
        self._error: Exception | None = None

    @property
    def over(self) -> bool:
        """Return whether nothing more will come: it ended or broke off."""
        return self.ended or self._error is not None

    def read_on(self, seconds: float | None) -> None:
        """Add the next piece to `start`, after waiting `seconds` at most."""
        try:
            with compat.limit_read_time(self._rest, seconds):
                piece = compat.read_piece(self._rest, BODY_LIMIT + 1 - len(self.start))
        except (HTTPError, OSError) as error:
            self._error = error.with_traceback(None)
        else:
            self.start += piece
            self.ended = not piece

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            return self._from_start(None) + self._from_rest(None)
        return self._from_start(size) or self._from_rest(size)

    def read1(self, size: int | None = -1) -> bytes:
        limit = None if size is None or size < 0 else size
        return self._from_start(limit) or self._from_rest(size, at_once=True)

    def _from_start(self, size: int | None) -> bytes:
        piece = self.start[self._returned :][:size]
        self._returned += len(piece)
        return piece

    def _from_rest(self, size: int | None, *, at_once: bool = False) -> bytes:
        if self._error is not None:
            raise self._error
        piece = b""
        if not self.ended:
            piece = (self._rest.read1 if at_once else self._rest.read)(size, decode_content=False)
        if size is None or not piece:
            # urllib3's `stream` reads on until its source is closed.
            self.close()
        return piece

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        super().close()
        self._rest.close()
        self._rest.release_conn()


def release(response: Response, prefix: BodyPrefix) -> None:
    """Give the connection back. A small body that was read to its end stays readable."""
    if compat.loaded_content(response) is None:
        encoding = response.headers.get("Content-Encoding", "")
        whole = prefix.ended and is_small(prefix.start, encoding)
        compat.keep_content(response, decoded(prefix.start, encoding, BODY_LIMIT) if whole else b"")
        # A connection whose body was not read to its end is closed: the rest may be of any length.
        compat.close_connection(response)
    response.close()
