"""Bodies in httpx and httpx2: that of a request that may be sent again, and that of a 401.

Rule 10: a body is sent again only if it is the same body. Rule 11: a response stays as readable as it was,
and a 401's body is read only up to a small bound. Imports neither client.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from functools import cache, partial
from types import ModuleType
from typing import Any

from ..common.limits import BODY_LIMIT, PEEK_SECONDS
from ..oauth.content_encoding import is_small
from .httpx_compat import (
    loaded_content,
    mark_as_read,
    multipart_files,
    read_timeout,
    source_of,
    stream_elapsed,
)
from .waits import Wait, Waits, wait_for

__all__ = ["DRAIN_SECONDS", "IN_MEMORY", "BodyPrefix", "RequestBody"]

#: Seconds to read on in a 401 whose code is known. Its body keeps the connection alive and goes into
#: `history`; nothing depends on it.
DRAIN_SECONDS = 0.2

#: What a client's stream can iterate over many times. (A `ByteStream` may be made of any of the first three.)
_REPEATABLE = (bytes, bytearray, memoryview, list, tuple)


class RequestBody:
    """A request's body, looked at before it is first sent: can it be sent again, and from where?"""

    __slots__ = ("_files", "one_shot")

    def __init__(self, stream: Any = None) -> None:
        """`stream`: the request's, or None for a body in memory."""
        #: each file, and the position where the body begins; None until `locate`
        self._files: list[tuple[Any, Any]] = []
        self.one_shot: bool = False
        if stream is None:
            return
        files = multipart_files(stream)
        if files is not None:
            self._files = [(file, 0) for file in files]  # the client itself starts at the beginning of each
            return
        source = source_of(stream)
        if hasattr(source, "read"):
            self._files = [(source, None)]
        elif not isinstance(source, _REPEATABLE):
            self.one_shot = True

    def locate(self) -> Waits:
        """Record the position of each file. A file that has none, or cannot seek, makes the body one-shot."""
        located = []
        try:
            for file, start in self._files:
                if not (yield from _can_seek(file)):
                    raise ValueError("not seekable")
                located.append((file, (yield wait_for(file.tell)) if start is None else start))
        except Exception:  # noqa: BLE001 - any object may serve as a file; the client reports what is wrong
            self.one_shot = True
        self._files = located

    def rewind(self, stream: Any) -> Waits:
        """Go back to where the body began, and return whether that worked.

        `stream`: of the request as it was sent last; a redirect may have dropped the body.
        """
        if isinstance(source_of(stream), _REPEATABLE):
            return True
        if self.one_shot:
            return False
        try:
            for file, start in self._files:
                yield wait_for(partial(file.seek, start))
                if (yield wait_for(file.tell)) != start:
                    return False
        except Exception:  # noqa: BLE001 - any object may serve as a file, and it may be closed by now
            return False
        return True


#: Every body that is in memory: there is nothing to record of it.
IN_MEMORY = RequestBody()


def _can_seek(file: Any) -> Waits:
    seekable = getattr(file, "seekable", None)
    if not callable(seekable):  # tempfile.SpooledTemporaryFile has none before Python 3.11
        return hasattr(file, "seek") and hasattr(file, "tell")
    return bool((yield wait_for(seekable)))


class BodyPrefix:
    """The first bytes of a 401's body, before decoding. The response stays as readable as it was.

    `client`: the module httpx or httpx2.
    """

    def __init__(self, response: Any, client: ModuleType) -> None:
        self._response = response
        self._client = client
        self._inner = response.stream
        self._rest: Any = None
        self._rejoined: type[_Rejoined] | None = None
        self._error: Exception | None = None
        self.start: bytes = b""
        #: whether `start` is the whole body
        self.is_whole: bool = False
        content = loaded_content(response)
        if content is not None:
            self.start, self.is_whole = content[:BODY_LIMIT], True
        self.is_loaded: bool = content is not None
        #: whether a hook has read the stream to its end, or closed it, and kept nothing
        self.is_lost = not self.is_loaded and (response.is_stream_consumed or response.is_closed)

    @property
    def is_empty(self) -> bool:
        """Whether the response has no body at all."""
        return self.is_whole and not self.start

    def read(self, seconds: float | None = None) -> Waits:
        """Read up to `BODY_LIMIT` bytes, for `seconds` (`PEEK_SECONDS`) and one more chunk at most."""
        seconds = PEEK_SECONDS if seconds is None else seconds
        if self.is_loaded or self.is_lost or self._rejoined is not None:
            return
        try:
            with read_timeout(self._response, seconds):
                yield from self._collect(seconds)
        except Exception as error:  # noqa: BLE001 - a transport's own; the caller gets it when it reads on
            self._error = error
        self._replace_stream(self.start)

    def _collect(self, seconds: float) -> Waits:
        ends = time.monotonic() + seconds
        # The first chunk comes before the clock is asked: a test that moves the clock would read nothing.
        chunk = yield Wait(self._next, self._anext)
        while chunk is not None:
            self.start += chunk
            if len(self.start) > BODY_LIMIT or time.monotonic() >= ends:
                return
            chunk = yield Wait(self._next, self._anext)
        self.is_whole, self._rest = True, None

    def _next(self) -> bytes | None:
        if self._rejoined is None:
            self._rejoined = _stream_classes(self._client)[0]
            self._rest = iter(self._inner)
        return next(self._rest, None)

    async def _anext(self) -> bytes | None:
        if self._rejoined is None:
            self._rejoined = _stream_classes(self._client)[1]
            self._rest = self._inner.__aiter__()
        try:
            chunk: bytes = await self._rest.__anext__()
        except StopAsyncIteration:
            return None
        return chunk

    def release(self) -> Waits:
        """Give the connection back. Of the body its start is kept if that is all of it, else nothing."""
        if self.is_loaded:
            return
        if self.is_lost:
            mark_as_read(self._response)
            return
        yield Wait(self._close, self._aclose)
        self._error = self._rest = None
        self._replace_stream(self.start if self.is_whole else b"", released=True)

    def _close(self) -> None:
        _close(self._rest)
        self._inner.close()

    async def _aclose(self) -> None:
        await _aclose(self._rest)
        await self._inner.aclose()

    def keep_for_history(self) -> None:
        """Leave a body of bounded decoded size: the client reads it to its end before it sends again."""
        if self.is_loaded or self.is_lost:
            return
        small = self.is_whole and is_small(self.start, self._response.headers.get("content-encoding", ""))
        self._replace_stream(self.start if small else b"", released=True)

    def _replace_stream(self, start: bytes, *, released: bool = False) -> None:
        assert self._rejoined is not None, "a stream is replaced after it was read"
        self._response.stream = self._rejoined(self._inner, start, self._rest, self._error, released)


def _close(iterator: Any) -> None:
    close = getattr(iterator, "close", None)
    if close is not None:
        with suppress(Exception):  # the rest of the body is not needed any more
            close()


async def _aclose(iterator: Any) -> None:
    # trio warns of an asynchronous generator that is dropped half-way: its loop closes it only later.
    aclose = getattr(iterator, "aclose", None)
    if aclose is not None:
        with suppress(Exception):
            await aclose()


class _Rejoined:
    """A response's bytes from the first one on: `start`, which was read before, then `rest` or `error`.

    `released`: the response that it belongs to was closed before.
    """

    def __init__(self, inner: Any, start: bytes, rest: Any, error: Exception | None, released: bool) -> None:
        self._inner = inner
        self._start = start
        self._rest = rest
        self._error = error
        self._released = released

    @property
    def elapsed(self) -> Any:
        """The time that the response took, where the client keeps it in the stream."""
        return stream_elapsed(self._inner)


class _SyncRejoined(_Rejoined):
    def __iter__(self) -> Iterator[bytes]:
        if self._start:
            yield self._start
        if self._error is not None:
            raise self._error
        if self._rest is not None:
            yield from self._rest

    def close(self) -> None:
        if not self._released:
            _close(self._rest)
            self._inner.close()


class _AsyncRejoined(_Rejoined):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._start:
            yield self._start
        if self._error is not None:
            raise self._error
        if self._rest is not None:
            async for chunk in self._rest:
                yield chunk

    async def aclose(self) -> None:
        if not self._released:
            await _aclose(self._rest)
            await self._inner.aclose()


@cache
def _stream_classes(client: Any) -> tuple[type[_SyncRejoined], type[_AsyncRejoined]]:
    """Return both classes for a client's module.

    A response raises `RuntimeError` for a stream that is no instance of its client's own base class.
    """

    class SyncStream(_SyncRejoined, client.SyncByteStream):  # type: ignore[misc]
        pass

    class AsyncStream(_AsyncRejoined, client.AsyncByteStream):  # type: ignore[misc]
        pass

    return SyncStream, AsyncStream
