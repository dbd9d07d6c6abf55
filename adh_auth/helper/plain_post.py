"""A POST straight to the API over http.client: no proxy, no client certificate.

A helper that had to import requests or httpx first would keep a request waiting for twice as long.
"""

from __future__ import annotations

import os
import ssl
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from ..clients.deadline import Deadline
from ..clients.failure_reason import describe_failure
from ..common.limits import REPLY_LIMIT
from ..oauth.content_encoding import decoded
from ..oauth.endpoint import EndpointCall, EndpointReply, Unreachable

__all__ = ["post"]

#: Seconds to connect. Nothing has been sent by then, so that giving up is safe.
CONNECT_TIMEOUT = 5.0


def post(call: EndpointCall, seconds: float, options: dict[str, Any]) -> EndpointReply:
    """Carry a call to an auth endpoint.

    `options`: `headers`; `verify`, a CA bundle, a folder of certificates, or False. Raises `Unreachable`.
    """
    problem = None
    with Deadline(seconds) as deadline:
        deadline.sent = False
        try:
            return _exchange(call, seconds, options, deadline)
        except (OSError, ValueError, HTTPException) as error:
            problem = Unreachable(describe_failure(error), sent=deadline.sent)
    raise problem


def _exchange(
    call: EndpointCall, seconds: float, options: dict[str, Any], deadline: Deadline
) -> EndpointReply:
    url = urlsplit(call.url)
    connection = _connection(url.scheme, url.hostname or "", url.port, options["verify"])
    deadline.watch(lambda: connection.sock)
    try:
        connection.connect()
        connection.sock.settimeout(seconds)
        deadline.sent = True
        connection.request("POST", url.path, body=call.body(), headers=options["headers"])
        response = connection.getresponse()
        body, cut = _body_of(response, deadline)
        return EndpointReply(response.status, dict(response.headers.items()), body, cut)
    finally:
        connection.close()


def _connection(scheme: str, host: str, port: int | None, verify: str | bool) -> HTTPConnection:
    if scheme == "http":
        return HTTPConnection(host, port, timeout=CONNECT_TIMEOUT)
    return HTTPSConnection(host, port, timeout=CONNECT_TIMEOUT, context=_tls_context(verify))


def _tls_context(verify: str | bool) -> ssl.SSLContext:
    if isinstance(verify, str):
        is_folder = os.path.isdir(verify)
        return ssl.create_default_context(
            cafile=None if is_folder else verify, capath=verify if is_folder else None
        )
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _body_of(response: HTTPResponse, deadline: Deadline) -> tuple[bytes, bool]:
    body, cut = deadline.collect(iter(partial(response.read1, 8192), b""), (OSError, HTTPException))
    # A reply that ends before its announced length ends like any other for `read1`.
    cut = cut or bool(response.length)
    return decoded(body, response.headers.get("Content-Encoding", ""), REPLY_LIMIT), cut
