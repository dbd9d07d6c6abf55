"""What carries a refresh for httpx and httpx2, as values that another process can go by. Imports neither."""

from __future__ import annotations

import os
import sys
from typing import Any
from urllib.request import getproxies

from ..rotation.detached import TransportSpec
from .as_installed import is_as_installed
from .system_proxies import must_not_ask_the_system

__all__ = ["describe_transport"]

#: What a call goes through, in both clients and in what they stand on.
CLIENT_WAY = (
    "_client:Client",
    "_transports.default:HTTPTransport",
    "_config:create_ssl_context",
)
CORE_WAY = (
    "_sync.connection_pool:ConnectionPool",
    "_sync.connection:HTTPConnection",
    "_sync.http11:HTTP11Connection",
    "_sync.http_proxy:HTTPProxy",
    "_backends.sync:SyncBackend",
    "_backends.sync:SyncStream",
)
CORES = {"httpx": "httpcore", "httpx2": "httpcore2"}


def describe_transport(client: Any, scheme: str) -> TransportSpec | None:
    """Return what carries a refresh through a client of our own; None where a part of it is patched."""
    name = client.__name__
    way = [f"{name}.{item}" for item in CLIENT_WAY]
    way += [f"{CORES[name]}.{item}" for item in CORE_WAY]
    if name not in CORES or not (_has_own_classes(client) and is_as_installed(way)):
        return None
    # The environment says which proxy, and goes along; httpx2 has other roots of trust than a bundle.
    if (not must_not_ask_the_system() and getproxies()) or (scheme == "https" and name != "httpx"):
        return TransportSpec(name, {})
    headers = {
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "User-Agent": f"python-{name}/{client.__version__}",
    }
    return TransportSpec("plain", {"verify": _bundle(), "headers": headers})


def _has_own_classes(client: Any) -> bool:
    """Return whether the module's names are those of its classes still: a test may have put others there."""
    return all(getattr(client, name).__module__ == client.__name__ for name in ("Client", "HTTPTransport"))


def _bundle() -> str | bool:
    """Return the bundle that httpx trusts: the environment's, else certifi's."""
    named = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
    certifi = sys.modules.get("certifi")
    return named or (certifi.where() if certifi is not None else True)
