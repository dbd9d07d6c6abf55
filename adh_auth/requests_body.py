"""A body twice, in requests: of a request that is sent again, and of a 401 that is looked into and let go."""

from __future__ import annotations

import io
import time
from contextlib import suppress
from typing import Any

import requests
from requests.models import PreparedRequest, Response
from requests.utils import rewind_body
from urllib3.exceptions import HTTPError
from urllib3.response import HTTPResponse

from .endpoint import BODY_LIMIT, PEEK_SECONDS, is_small

__all__ = ["can_be_sent_again", "is_plain", "let_go", "loaded", "peek", "read_a_piece", "rewound"]


def is_plain(body: object) -> bool:
    """Whether it is in memory, or not there at all."""
    return body is None or isinstance(body, (bytes, str))


def can_be_sent_again(request: PreparedRequest) -> bool:
    """Whether the same body can be sent once more: bytes, and files that were asked where they stand and can go back there."""
    if is_plain(request.body):
        return True
    seekable = getattr(request.body, "seekable", None)
    can_seek = seekable() if callable(seekable) else hasattr(request.body, "seek")
    return bool(can_seek) and isinstance(vars(request).get("_body_position"), int)  # recorded by requests for its own redirects


def rewound(request: PreparedRequest) -> bool:
    """Whether its body stands where it began, so that it can be sent again."""
    if is_plain(request.body):
        return True
    if not can_be_sent_again(request):
        return False
    try:
        rewind_body(request)
    except (requests.exceptions.UnrewindableBodyError, ValueError):  # ValueError: the caller has closed the file
        return False
    return True


def peek(response: Response) -> bytes:
    """The first bytes of a 401's body as they came, which stays as readable as it was."""
    content = loaded(response)
    if isinstance(content, bytes):
        return content[:BODY_LIMIT]
    raw = response.raw
    if not isinstance(raw, HTTPResponse):  # vcrpy's, and those of adapters that call an app in this process: it is in memory
        with suppress(requests.RequestException, OSError):
            return response.content[:BODY_LIMIT]
        return b""
    start, whole = _read_some(raw)
    rest = _Rejoined(start, raw, whole=whole)
    response.raw = HTTPResponse(
        body=rest,
        headers=raw.headers,
        status=raw.status,
        reason=raw.reason,
        version=raw.version,
        preload_content=False,
        original_response=getattr(raw, "_original_response", None),
        request_method=response.request.method,
    )
    return start


def loaded(response: Response) -> object:
    """The body as far as requests has read it: bytes, None, or False before."""
    return vars(response).get("_content", False)


def _read_some(raw: HTTPResponse) -> tuple[bytes, bool]:
    """The first bytes, and whether they are all."""
    start = b""
    patience = time.monotonic() + PEEK_SECONDS
    # What breaks off here breaks off again for whoever reads on.
    with suppress(HTTPError, OSError):
        while len(start) <= BODY_LIMIT and time.monotonic() < patience:
            chunk = read_a_piece(raw, BODY_LIMIT + 1 - len(start))
            if not chunk:
                return start, True
            start += chunk
    return start, False


def read_a_piece(raw: HTTPResponse, size: int) -> bytes:
    """What has arrived, at most `size` bytes as they came; `read`, all that urllib3 1 has, waits for that many."""
    at_once = hasattr(raw, "read1") and hasattr(getattr(raw, "_fp", None), "read1")
    return (raw.read1 if at_once else raw.read)(size, decode_content=False)


class _Rejoined(io.RawIOBase):
    """A response's bytes from the first one on, of which some were read already."""

    def __init__(self, start: bytes, rest: HTTPResponse, *, whole: bool) -> None:
        self._start = start
        self._rest = rest
        self._whole = whole

    def fits_history(self, encoding: str) -> bool:
        """Whether all of it has been read, and stays small when it is decoded."""
        return self._whole and is_small(self._start, encoding)

    def read(self, size: int = -1) -> bytes:
        if self._start:
            size = len(self._start) if size is None or size < 0 else size
            piece, self._start = self._start[:size], self._start[size:]
            return piece
        return self._rest.read(None if size is None or size < 0 else size, decode_content=False)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        super().close()
        self._rest.close()
        self._rest.release_conn()


def let_go(response: Response) -> None:
    """Give the connection back, with as much of the 401 kept for `history` as was looked at."""
    raw = response.raw
    if not isinstance(loaded(response), bytes):
        body: Any = getattr(raw, "_fp", None)
        if isinstance(body, _Rejoined) and body.fits_history(response.headers.get("Content-Encoding", "")):
            with suppress(requests.RequestException, HTTPError):
                response.content  # noqa: B018 - a read of something that is in memory
        else:
            # Hung up on. requests itself would do that only for a body that is not marked as read.
            raw.close()
            response._content = b""  # noqa: SLF001
            vars(response)["_content_consumed"] = True
    response.close()
