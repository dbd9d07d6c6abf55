"""What carries a refresh for requests, as values that another process can go by."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from requests.adapters import DEFAULT_CA_BUNDLE_PATH, HTTPAdapter
from requests.models import Response
from requests.utils import select_proxy

from ..rotation.detached import TransportSpec
from .as_installed import is_as_installed
from .requests_transport import _HEADERS, _tls_options

__all__ = ["describe_transport", "is_plain_connection"]

#: What a call of requests goes through.
WAY = (
    "requests.sessions:Session",
    "requests.adapters:HTTPAdapter",
    "urllib3.poolmanager:PoolManager",
    "urllib3.poolmanager:ProxyManager",
    "urllib3.connectionpool:HTTPConnectionPool",
    "urllib3.connectionpool:HTTPSConnectionPool",
    "urllib3.connection:HTTPConnection",
    "urllib3.connection:HTTPSConnection",
    "urllib3.util.connection:create_connection",
    "urllib3.util.ssl_:ssl_wrap_socket",
    "urllib3.util.ssl_:create_urllib3_context",
    "http.client:HTTPConnection",
    "http.client:HTTPSConnection",
)


def is_plain_connection(response: Response) -> bool:
    """Return whether a call went through requests' own adapter.

    One of another class may be a mock, or bring a network of its own, an `SSLContext` perhaps.
    """
    return type(getattr(response, "connection", None)) is HTTPAdapter


def describe_transport(
    scheme: str, host: str, port: int, sent_with: Mapping[str, Any]
) -> TransportSpec | None:
    """Return what carries a refresh, with the trust of the call `sent_with`.

    None where a part of it is patched.
    """
    if not is_as_installed(WAY):
        return None
    url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    options = _tls_options(url, sent_with)
    verify, cert, proxies = options["verify"], options["cert"], dict(options["proxies"] or {})
    if verify is None:
        verify = True
    if not _is_plain_value(verify, cert, proxies):
        return None
    if cert or select_proxy(url, proxies):
        return TransportSpec("requests", {"verify": _path(verify), "cert": _path(cert), "proxies": proxies})
    bundle = DEFAULT_CA_BUNDLE_PATH if verify is True else _path(verify)
    return TransportSpec("plain", {"verify": bundle, "headers": _HEADERS})


def _is_plain_value(verify: Any, cert: Any, proxies: dict[Any, Any]) -> bool:
    pair = cert if isinstance(cert, tuple) else (cert,)
    return (
        isinstance(verify, (bool, str, os.PathLike))
        and all(part is None or isinstance(part, (str, os.PathLike)) for part in pair)
        and all(isinstance(text, str) or text is None for item in proxies.items() for text in item)
    )


def _path(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_path, value))
    return os.fspath(value) if isinstance(value, os.PathLike) else value
