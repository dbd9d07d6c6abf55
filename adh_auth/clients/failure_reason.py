"""Why a call did not get through: kind and cause, from facts that hold no secret.

A client's message may quote what was sent.
"""

from __future__ import annotations

import re
import ssl
from typing import Any

__all__ = ["describe_failure", "exception_chain"]

#: Exceptions that are looked at; a chain may be a circle.
MAX_CHAIN = 20


def describe_failure(error: BaseException) -> str:
    """Kind and cause in a few words, from facts that hold no secret: never a message, which may quote what
    was sent.
    """
    words = [type(error).__name__]
    for item in exception_chain(error):
        if isinstance(item, ssl.SSLCertVerificationError):
            words.append(f"certificate verify failed: {item.verify_message}")
            break
        if isinstance(item, OSError) and item.strerror:
            words.append(item.strerror)
            break
        if status := _refused_tunnel(item):
            words.append(f"HTTP {status}")
            break
    return ": ".join(words)


def exception_chain(error: BaseException) -> list[BaseException]:
    """An exception and those inside it, urllib3's `describe_failure` among them."""
    found: list[BaseException] = []
    waiting: list[Any] = [error]
    while waiting and len(found) < MAX_CHAIN:
        item = waiting.pop()
        if isinstance(item, BaseException) and item not in found:
            found.append(item)
            waiting += [getattr(item, "reason", None), item.__cause__, item.__context__, *item.args]
    return found


def _refused_tunnel(item: BaseException) -> str | None:
    """The status of a proxy that refuses the tunnel, of which only messages tell: its three digits and
    nothing else of them.
    """
    text = item.args[0] if item.args and isinstance(item.args[0], str) else ""
    found = None
    if isinstance(
        item, OSError
    ):  # http.client: "Tunnel connection failed: 407 Proxy Authentication Required"
        found = re.search(r"failed: (\d{3})\b", text, re.ASCII)
    elif type(item).__name__ == "ProxyError":  # httpcore's and httpx's: "407 Proxy Authentication Required"
        found = re.match(r"(\d{3})\b", text, re.ASCII)
    return found[1] if found else None
