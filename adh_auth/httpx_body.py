"""A body twice, in httpx and httpx2: of a request that is sent again, and of a 401 that is looked into and let go. Imports neither."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import IO, Any

from .endpoint import BODY_LIMIT, PEEK_SECONDS, is_small

__all__ = ["WHOLE", "Body", "Peeked", "with_header"]


def with_header(request: Any, header: str) -> Any:
    """The request as another one, with this ``Authorization``."""
    headers = request.headers.copy()
    headers["Authorization"] = header
    made = type(request)(request.method, request.url, headers=headers, stream=request.stream, extensions=request.extensions)
    if _is_in_memory(request):
        made.read()
    return made


class Body:
    """A request's body before it is first sent: can it be sent again, and from where?"""

    __slots__ = ("_file", "_position", "one_shot")

    def __init__(self, stream: Any = None) -> None:
        self._file: IO[bytes] | None = None
        self._position = 0
        self.one_shot = False
        if stream is not None:
            self._look(stream)

    def _look(self, stream: Any) -> None:
        fields = getattr(stream, "fields", None)
        if fields is not None:  # multipart: the client goes back to the start of each file itself, if it can
            self.one_shot = not all(_is_data(field) or _can_seek(field.file) for field in fields)
            return
        source = stream_source(stream)
        if isinstance(source, (list, tuple)):
            return
        if _can_seek(source) and hasattr(source, "read"):
            self._file, self._position = source, source.tell()
            return
        self.one_shot = True

    def rewind(self, stream: Any) -> bool:
        """Go back to where the body began; False where that can't be done. A redirect may have dropped the body."""
        if self._file is not None and stream_source(stream) is self._file:
            try:
                self._file.seek(self._position)
            except (OSError, ValueError):  # ValueError: the caller has closed the file
                return False
            return True
        return not self.one_shot or _is_bytes(stream)


#: Every body that is in memory: there is nothing to remember of it.
WHOLE = Body()


def stream_source(stream: Any) -> Any:
    """What the client's stream of a body reads from."""
    return getattr(stream, "_stream", None)


def _is_in_memory(request: Any) -> bool:
    return "_content" in vars(request)


def _is_bytes(stream: Any) -> bool:
    return isinstance(stream_source(stream), bytes)


def _is_data(field: Any) -> bool:
    return not hasattr(field, "file") or isinstance(field.file, (str, bytes))


def _can_seek(source: Any) -> bool:
    seekable = getattr(source, "seekable", None)
    try:
        return bool(seekable()) if callable(seekable) else False
    except ValueError:  # closed
        return False


class Peeked:
    """The first bytes of a 401's body as they came; the response stays as readable as it was."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self._inner = response.stream
        self.start = b""
        self.code: str | None = None
        self._whole = False

    def read(self) -> None:
        """Look at up to `BODY_LIMIT` bytes."""
        if self._is_loaded():
            return
        rest = iter(self._inner)
        patience = time.monotonic() + PEEK_SECONDS
        while len(self.start) <= BODY_LIMIT and time.monotonic() < patience:
            chunk = next(rest, None)
            if chunk is None:
                self._whole = True
                break
            self.start += chunk
        self._response.stream = self._rejoined(rest)

    async def aread(self) -> None:
        """The same from an asynchronous stream."""
        if self._is_loaded():
            return
        rest = aiter_of(self._inner)
        patience = time.monotonic() + PEEK_SECONDS
        while len(self.start) <= BODY_LIMIT and time.monotonic() < patience:
            try:
                chunk = await rest.__anext__()
            except StopAsyncIteration:
                self._whole = True
                break
            self.start += chunk
        self._response.stream = self._rejoined(rest)

    def _is_loaded(self) -> bool:
        if "_content" not in vars(self._response):
            return False
        self.start = self._response.content[:BODY_LIMIT]
        self._whole = True
        return True

    def _rejoined(self, rest: Any) -> Any:
        return _stream_like(self._inner, self.start, None if self._whole else rest)

    def keep_for_history(self) -> None:
        """The client reads this response to its end before it sends again: give it no more than was looked at."""
        response = self._response
        if "_content" not in vars(response):
            whole = self._whole and is_small(self.start, response.headers.get("content-encoding", ""))
            response.stream = _stream_like(self._inner, self.start if whole else b"", None)


def aiter_of(stream: Any) -> Any:
    """The stream's asynchronous iterator."""
    return stream.__aiter__()


def _stream_like(inner: Any, start: bytes, rest: Any) -> Any:
    """A stream that gives `start`, then `rest`; of the same kinds as `inner`, so that the client's own checks take it."""
    kinds = tuple(kind for kind in type(inner).__mro__ if kind.__name__ in ("SyncByteStream", "AsyncByteStream"))
    return type("Rejoined", (_Rejoined, *kinds), {})(inner, start, rest)


class _Rejoined:
    """A response's bytes from the first one on, of which some were read already."""

    def __init__(self, inner: Any, start: bytes, rest: Any) -> None:
        self._inner = inner
        self._start = start
        self._rest = rest

    @property
    def elapsed(self) -> Any:
        """httpx2 reads the time that the response took from its stream."""
        return getattr(self._inner, "elapsed", None)

    def __iter__(self) -> Iterator[bytes]:
        if self._start:
            yield self._start
        if self._rest is not None:
            yield from self._rest

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._start:
            yield self._start
        if self._rest is not None:
            async for chunk in self._rest:
                yield chunk

    def close(self) -> None:
        """Close the response that this is of."""
        self._inner.close()

    async def aclose(self) -> None:
        """Close the response that this is of."""
        await self._inner.aclose()
