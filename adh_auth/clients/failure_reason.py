"""Why a call did not reach its endpoint, in words that hold no secret.

Rule 13: a client's message may quote what was sent, so that no message is used.
"""

from __future__ import annotations

import re
import ssl
from typing import Any

__all__ = ["describe_failure", "exception_chain"]

#: Exceptions that are followed; a chain can be circular.
MAX_CHAIN = 20


def describe_failure(error: BaseException) -> str:
    """Return the exception's type and its cause in a few words, never its message."""
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
    """Return an exception and those inside it: causes, contexts, arguments, and urllib3's `reason`."""
    found: list[BaseException] = []
    waiting: list[Any] = [error]
    while waiting and len(found) < MAX_CHAIN:
        item = waiting.pop()
        if isinstance(item, BaseException) and item not in found:
            found.append(item)
            waiting += [getattr(item, "reason", None), item.__cause__, item.__context__, *item.args]
    return found


def _refused_tunnel(item: BaseException) -> str | None:
    """Return the status with which a proxy refused the tunnel; the clients put it in messages only.

    http.client: "Tunnel connection failed: 407 Proxy Authentication Required", as an `OSError`. httpcore and
    httpx: "407 Proxy Authentication Required", as a `ProxyError`. Only the three digits are used.
    """
    message = item.args[0] if item.args and isinstance(item.args[0], str) else ""
    found = None
    if isinstance(item, OSError):
        found = re.search(r"failed: (\d{3})\b", message, re.ASCII)
    elif type(item).__name__ == "ProxyError":
        found = re.match(r"(\d{3})\b", message, re.ASCII)
    return found[1] if found else None
