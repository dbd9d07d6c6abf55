"""Decompress a bounded prefix of a body (rule 11)."""

from __future__ import annotations

import zlib
from contextlib import suppress
from importlib import import_module
from typing import Any

from ..common.limits import BODY_LIMIT


def decoded(body: bytes, encoding: str, limit: int) -> bytes:
    """Return the first `limit` bytes of a compressed body, b"" where it can't be decompressed.

    A body that grows a thousandfold (a decompression bomb) takes no more memory than that.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body[:limit]
    try:
        return _DECODERS.get(name, _nothing)(body, limit)
    except Exception:  # noqa: BLE001 - each library raises its own for untrusted bytes
        return b""


def is_small(body: bytes, encoding: str) -> bool:
    """Return whether a whole body stays within `BODY_LIMIT` when a client decodes it.

    A client does so without a bound.
    """
    return not body or 0 < len(decoded(body, encoding, BODY_LIMIT + 1)) <= BODY_LIMIT


def _inflated(body: bytes, limit: int) -> bytes:
    # 32 + 15: zlib or gzip, by the header; -15: the bare deflate that some servers send.
    try:
        return zlib.decompressobj(47).decompress(body, limit)
    except zlib.error:
        return zlib.decompressobj(-15).decompress(body, limit)


# The clients accept these two encodings where a library for them is installed, so a server may use them.


def _unbrotlied(body: bytes, limit: int) -> bytes:
    brotli = _first_of("brotli", "brotlicffi")
    # The argument exists since brotli 1.2; before, this raises TypeError. Unbounded, a few bytes may become
    # gigabytes.
    return bytes(brotli.Decompressor().process(body, output_buffer_limit=limit))[:limit]


def _unzstandarded(body: bytes, limit: int) -> bytes:
    zstd = _first_of("compression.zstd", "backports.zstd", "zstandard")
    if zstd.__name__ == "zstandard":
        return bytes(zstd.ZstdDecompressor().stream_reader(body).read(limit))
    return bytes(zstd.ZstdDecompressor().decompress(body, limit))


def _first_of(*names: str) -> Any:
    """Return the first of these modules that is installed."""
    for name in names:
        with suppress(ImportError):
            return import_module(name)
    raise ImportError(names[0])


def _nothing(_: bytes, __: int) -> bytes:
    return b""


_DECODERS = {
    "gzip": _inflated,
    "x-gzip": _inflated,
    "deflate": _inflated,
    "br": _unbrotlied,
    "zstd": _unzstandarded,
}
