"""A body twice, in httpx and httpx2: of a request that is sent again, and of a 401 that is read and let go.

Imports neither.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from ..common.limits import BODY_LIMIT, PEEK_SECONDS
from ..oauth.content_encoding import is_small
from .httpx_compat import has_content, loaded_content, mark_as_read, read_timeout, source_of
from .waits import Wait, Waits, either

__all__ = ["WHOLE", "Body", "BodyPrefix", "with_header"]

#: Seconds for the body of a 401 whose header has told the code. It keeps the connection and goes into
#: `history`; it is not needed.
COURTESY_SECONDS = 0.2

#: Bodies that a client's stream can go over again and again. (A `ByteStream` may be made of any of the first
#: three.)
_IN_MEMORY = (bytes, bytearray, memoryview, list, tuple)


def with_header(request: Any, header: str) -> Any:
    """The request as another one, with this ``Authorization``."""
    headers = request.headers.copy()
    headers["Authorization"] = header
    made = type(request)(
        request.method, request.url, headers=headers, stream=request.stream, extensions=request.extensions
    )
    if has_content(request):
        made.read()
    return made


class Body:
    """A request's body before it is first sent: can it be sent again, and from where?"""

    __slots__ = ("_files", "one_shot")

    def __init__(self, stream: Any = None) -> None:
        #: each file, and where it stood; None before that is known
        self._files: list[tuple[Any, Any]] = []
        self.one_shot = False
        if stream is None:
            return
        fields = getattr(stream, "fields", None)
        if fields is not None:  # multipart: the client itself starts from the beginning of each file
            self._files = [(field.file, 0) for field in fields if not _is_data(field)]
            return
        source = source_of(stream)
        if hasattr(source, "read"):
            self._files = [(source, None)]
        elif not isinstance(source, _IN_MEMORY):
            self.one_shot = True

    def locate(self) -> Waits:
        """Note where each file stands. One that can't tell, or can't go back, makes a body of one shot."""
        located = []
        try:
            for file, start in self._files:
                if not (yield from _can_seek(file)):
                    raise ValueError("not seekable")
                located.append((file, (yield either(file.tell)) if start is None else start))
        except Exception:  # noqa: BLE001 - a file may be of any make; the client says what is wrong with it
            self.one_shot = True
        self._files = located

    def rewind(self, stream: Any) -> Waits:
        """Go back to where the body began; False where that can't be done.

        `stream`: of the request, as a redirect may have dropped it.
        """
        if isinstance(source_of(stream), _IN_MEMORY):
            return True
        if self.one_shot:
            return False
        try:
            for file, start in self._files:
                yield either(partial(file.seek, start))
                if (yield either(file.tell)) != start:
                    return False
        except Exception:  # noqa: BLE001 - a file may be of any make. It may be closed by now
            return False
        return True


#: Every body that is in memory: there is nothing to remember of it.
WHOLE = Body()


def _is_data(field: Any) -> bool:
    return not hasattr(field, "file") or isinstance(field.file, (str, bytes))


def _can_seek(file: Any) -> Waits:
    seekable = getattr(file, "seekable", None)
    if not callable(seekable):  # tempfile.SpooledTemporaryFile before Python 3.11, and many a wrapper
        return hasattr(file, "seek") and hasattr(file, "tell")
    return bool((yield either(seekable)))


class BodyPrefix:
    """The first bytes of a 401's body as they came. The response stays as readable as it was."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self._inner = response.stream
        self._rest: Any = None
        self._error: Exception | None = None
        self.start = b""
        #: whether `start` is all of it
        self.is_whole = False
        content = loaded_content(response)
        if content is not None:
            self.start, self.is_whole = content[:BODY_LIMIT], True
        self.is_loaded = content is not None
        #: whether a hook has read the stream to its end, or closed it, and kept nothing
        self.is_lost = not self.is_loaded and (response.is_stream_consumed or response.is_closed)

    def read(self, seconds: float | None = None) -> Waits:
        """Read up to `BODY_LIMIT` bytes, for `seconds` (`PEEK_SECONDS`) and one more chunk at most."""
        seconds = PEEK_SECONDS if seconds is None else seconds
        if self.is_loaded or self.is_lost or self._rest is not None:
            return
        yield Wait(partial(self._read, seconds), partial(self._aread, seconds))
        self._response.stream = _stream_like(self._inner, self.start, self._rest, self._error)

    def _read(self, seconds: float) -> None:
        self._rest = iter(self._inner)
        ends = time.monotonic() + seconds
        try:
            with read_timeout(self._response, seconds):
                self.start += next(
                    self._rest
                )  # before the clock is asked: one that a test moves may say that the time is up
                while len(self.start) <= BODY_LIMIT and time.monotonic() < ends:
                    self.start += next(self._rest)
        except StopIteration:
            self._finish()
        except Exception as error:  # noqa: BLE001 - a transport's own; the caller gets it when it reads on, as from the client itself
            self._error = error

    async def _aread(self, seconds: float) -> None:
        self._rest = self._inner.__aiter__()
        ends = time.monotonic() + seconds
        try:
            with read_timeout(self._response, seconds):
                self.start += await self._rest.__anext__()
                while len(self.start) <= BODY_LIMIT and time.monotonic() < ends:
                    self.start += await self._rest.__anext__()
        except StopAsyncIteration:
            self._finish()
        except Exception as error:  # noqa: BLE001 - as above
            self._error = error

    def _finish(self) -> None:
        self.is_whole, self._rest = True, ()

    def release(self) -> Waits:
        """Give the connection back.

        What is left of the body is its start, and nothing where there was more.
        """
        if self.is_loaded:
            return
        if self.is_lost:
            mark_as_read(self._response)
            return
        yield Wait(self._close, self._aclose)
        self._response.stream = _stream_like(
            self._inner, self.start if self.is_whole else b"", (), None, released=True
        )

    def _close(self) -> None:
        _close(self._rest)
        self._inner.close()

    async def _aclose(self) -> None:
        await _aclose(self._rest)
        await self._inner.aclose()

    def keep_for_history(self) -> None:
        """The client reads this response to its end before it sends again: give it no more than a bounded
        body, decoded.
        """
        if self.is_loaded or self.is_lost:
            return
        small = self.is_whole and is_small(self.start, self._response.headers.get("content-encoding", ""))
        self._response.stream = _stream_like(
            self._inner, self.start if small else b"", (), None, released=True
        )


def _close(iterator: Any) -> None:
    close = getattr(iterator, "close", None)
    if close is not None:
        with suppress(Exception):  # of a body that nobody wants any more
            close()


async def _aclose(iterator: Any) -> None:
    # An asynchronous generator that is dropped half-way is closed by the loop later, and trio warns of it.
    aclose = getattr(iterator, "aclose", None)
    if aclose is not None:
        with suppress(Exception):
            await aclose()


def _stream_like(
    inner: Any, start: bytes, rest: Any, error: Exception | None, *, released: bool = False
) -> Any:
    """A stream that gives `start`, then `rest` or `error`; of the same kinds as `inner`, so that the client's
    own checks take it.
    """
    kinds = tuple(
        kind for kind in type(inner).__mro__ if kind.__name__ in ("SyncByteStream", "AsyncByteStream")
    )
    return type("Rejoined", (_Rejoined, *kinds), {})(inner, start, rest, error, released)


class _Rejoined:
    """A response's bytes from the first one on, of which some were read already."""

    def __init__(self, inner: Any, start: bytes, rest: Any, error: Exception | None, released: bool) -> None:
        self._inner = inner
        self._start = start
        self._rest = rest
        self._error = error
        self._released = released

    @property
    def elapsed(self) -> Any:
        """httpx2 reads the time that the response took from its stream."""
        return getattr(self._inner, "elapsed", None)

    def __iter__(self) -> Iterator[bytes]:
        if self._start:
            yield self._start
        if self._error is not None:
            raise self._error
        yield from self._rest

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._start:
            yield self._start
        if self._error is not None:
            raise self._error
        if self._rest != ():
            async for chunk in self._rest:
                yield chunk

    def close(self) -> None:
        """Close the response that this is of."""
        if not self._released:
            _close(self._rest)
            self._inner.close()

    async def aclose(self) -> None:
        """Close the response that this is of."""
        if not self._released:
            await _aclose(self._rest)
            await self._inner.aclose()
