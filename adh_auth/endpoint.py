"""The auth endpoints as values: where they are, what is sent, what a reply means. No input or output here.

The wire is that of the platform's public OAuth guide; what the guide leaves open is met with tolerance.
"""

from __future__ import annotations

import email.utils
import json
import math
import re
import zlib
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from importlib import import_module
from ipaddress import ip_address
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from .errors import ConfigurationError
from .secret import Secret

__all__ = ["Call", "Origin", "Reply", "Unreachable", "Verdict", "classify", "error_code", "origin_of"]

REFRESH_PATH = "/api/auth/refresh"
REVOKE_PATH = "/api/auth/revoke"
EXCHANGE_PATH = "/api/oauth/signin/exchange"
AUTHORIZE_PATH = "/api/oauth/signin/start"
ME_PATH = "/api/auth/me"

#: Bytes of a 401's body that are looked at. The error object of the API is about a hundred.
BODY_LIMIT = 8 * 1024
#: Seconds that the reading of these may take; a body that trickles longer has told no code.
PEEK_SECONDS = 5.0
#: Bytes of a token reply. Two tokens and a few keys are under 4 KiB; the room reserved on disk holds this
#: much.
REPLY_LIMIT = 64 * 1024

EXPIRED = "token_expired"
REFUSED = "invalid_grant"
#: RFC 6749 section 5.2: the client, not the session, is what the server minds.
CLIENT_REFUSED = frozenset({"invalid_client", "unauthorized_client"})

Origin = tuple[str, str, int]
DEFAULT_PORTS = {"https": 443, "http": 80}


class Call:
    """One POST to an auth endpoint.

    Its payload holds secrets, so it has no place in a ``repr``. Without a payload it is a GET.
    """

    __slots__ = ("access_token", "payload", "url")

    def __init__(self, url: str, payload: Mapping[str, str], access_token: Secret | None = None) -> None:
        self.url = url
        self.payload = payload
        self.access_token = access_token

    @property
    def method(self) -> str:
        """GET or POST."""
        return "POST" if self.payload else "GET"

    def body(self) -> bytes | None:
        """The JSON that is sent, None where there is none."""
        return json.dumps(dict(self.payload)).encode("ascii") if self.payload else None


class Reply:
    """What came back, at most `REPLY_LIMIT` bytes of it.

    `cut`: more was to come, or less came than was announced.
    """

    __slots__ = ("body", "cut", "headers", "status")

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes, cut: bool = False) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.cut = cut

    def header(self, name: str) -> str | None:
        """A header by its name in any case."""
        return next((value for key, value in self.headers.items() if key.lower() == name), None)


class Unreachable(Exception):
    """No reply.

    `sent`: the request may have reached the server, so that the token may be spent. `reason` holds no secret.
    """

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent


class Verdict(NamedTuple):
    """What a reply means.

    `kind` is one of ``pair``, ``refused``, ``misconfigured``, ``again`` and ``failed``.
    """

    kind: str
    reason: str = ""
    mapping: Mapping[str, Any] = MappingProxyType({})
    code: str | None = None
    status: int | None = None
    retry_after: float | None = None
    request_id: str | None = None

    def __repr__(self) -> str:
        return f"<Verdict {self.kind}: {self.reason}>"


def refresh_call(base_url: str, refresh_token: Secret, client_id: str, client_secret: Secret) -> Call:
    """The refresh, RFC 6749 section 6 in the JSON of the ADH guide."""
    return Call(
        base_url + REFRESH_PATH,
        {
            "grant_type": "refresh_token",
            "refresh_token": refresh_token.reveal(),
            "client_id": client_id,
            "client_secret": client_secret.reveal(),
        },
    )


def revoke_call(base_url: str, refresh_token: Secret, client_id: str, client_secret: Secret) -> Call:
    """The revocation of a session by its refresh token."""
    return Call(
        base_url + REVOKE_PATH,
        {"token": refresh_token.reveal(), "client_id": client_id, "client_secret": client_secret.reveal()},
    )


def me_call(base_url: str, access_token: Secret) -> Call:
    """The cheapest question whether the API takes an access token."""
    return Call(base_url + ME_PATH, {}, access_token)


def says_expired(reply: Reply) -> bool:
    """Whether an answer to `me_call` says that its token has expired."""
    return reply.status == 401 and error_code(reply.headers, reply.body) == EXPIRED


def classify(reply: Reply, now: float) -> Verdict:
    """What a reply of the refresh or exchange endpoint means.

    Only the code ``invalid_grant`` is terminal, never a status.
    """
    mapping = _json_object(reply.body)
    code = code_of(mapping)
    facts: dict[str, Any] = {
        "code": code,
        "status": reply.status,
        "request_id": printable(reply.header("x-request-id")),
    }
    if reply.status == 429 or reply.status >= 500:
        return Verdict(
            "again",
            f"HTTP {reply.status}",
            retry_after=retry_after(reply.header("retry-after"), now),
            **facts,
        )
    if "access_token" in mapping and 200 <= reply.status < 300:
        return Verdict("pair", mapping=mapping, **facts)
    if code == REFUSED:
        return Verdict("refused", f"HTTP {reply.status} {code}", **facts)
    if code in CLIENT_REFUSED:
        return Verdict("misconfigured", f"HTTP {reply.status} {code}", **facts)
    if 200 <= reply.status < 300:
        # A portal's page, or a reply cut short. The token may be spent; only another try can tell.
        return Verdict(
            "again", f"HTTP {reply.status} without tokens" + (", cut short" if reply.cut else ""), **facts
        )
    hint = " (redirects are not followed: is base_url right?)" if 300 <= reply.status < 400 else ""
    return Verdict("failed", f"HTTP {reply.status}{' ' + code if code else ''}{hint}", **facts)


def revoked(reply: Reply) -> bool:
    """Whether the session is gone after this reply.

    The guide documents no reply: any 2xx will do, and so will a token unknown there.
    """
    return 200 <= reply.status < 300 or code_of(_json_object(reply.body)) in (REFUSED, "invalid_token")


def error_code(headers: Mapping[str, str], body: bytes) -> str | None:
    """The code of a 401 from the four shapes that the platform's material attests.

    `body`: its first bytes, compressed as they came, or plain where the client has undone that already.
    """
    mapping = _json_object(body) or _json_object(
        decoded(body, headers.get("content-encoding", ""), BODY_LIMIT)
    )
    return code_of(mapping) or _challenge_code(headers.get("www-authenticate", ""))


def code_of(mapping: Mapping[str, Any]) -> str | None:
    """``code``, ``error.code`` or ``error`` of an error object, whichever is a text."""
    error = mapping.get("error")
    nested = error.get("code") if isinstance(error, dict) else None
    return next(
        (
            value
            for value in (mapping.get("code"), nested, error)
            if isinstance(value, str) and re.fullmatch(_CODE, value)
        ),
        None,
    )


#: A code as the Errors page has them, snake_case. Anything else may be a sentence that quotes what was sent,
#: and codes go into messages.
_CODE = r"(?!adh_)[a-z][a-z0-9_.-]{0,63}"  # compiled when it is first needed: most programs never do


def printable(text: str | None, limit: int = 200) -> str | None:
    """A stranger's text, fit for a message: one line, no control characters, bounded."""
    return None if text is None else "".join(char if char.isprintable() else "?" for char in text[:limit])


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait, from a number or a date (RFC 9110 section 10.2.3); None where there is none that makes
    sense.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = _seconds_until(value, now)
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _seconds_until(date: str, now: float) -> float:
    try:
        moment: datetime = email.utils.parsedate_to_datetime(date)
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp() - now
    except (ValueError, TypeError, IndexError, OverflowError):
        return math.nan


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def decoded(body: bytes, encoding: str, limit: int) -> bytes:
    """The first `limit` bytes of a compressed body: a bomb stays small. Empty where that can't be told."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body[:limit]
    try:
        return _DECODERS.get(name, _nothing)(body, limit)
    except Exception:  # noqa: BLE001 - each library has its own for bytes that are no such thing, and a body is a stranger's
        return b""


def is_small(body: bytes, encoding: str) -> bool:
    """Whether a body that was read to its end stays within `BODY_LIMIT` when a client decodes it, which it
    does without a bound.
    """
    return not body or 0 < len(decoded(body, encoding, BODY_LIMIT + 1)) <= BODY_LIMIT


def _inflated(body: bytes, limit: int) -> bytes:
    # 32 + 15: zlib and gzip by their headers; -15: the bare deflate that some servers send.
    try:
        return zlib.decompressobj(47).decompress(body, limit)
    except zlib.error:
        return zlib.decompressobj(-15).decompress(body, limit)


# The clients ask for these two where a library for them is installed, so that a server may use them.


def _unbrotlied(body: bytes, limit: int) -> bytes:
    brotli = _first_of("brotli", "brotlicffi")
    # The limit is younger than the function (brotli 1.2). Without it a few bytes may become gigabytes, so
    # then there is nothing.
    return bytes(brotli.Decompressor().process(body, output_buffer_limit=limit))[:limit]


def _unzstandarded(body: bytes, limit: int) -> bytes:
    zstd = _first_of("compression.zstd", "backports.zstd", "zstandard")
    if zstd.__name__ == "zstandard":
        return bytes(zstd.ZstdDecompressor().stream_reader(body).read(limit))
    return bytes(zstd.ZstdDecompressor().decompress(body, limit))


def _first_of(*names: str) -> Any:
    """The first of these modules that is installed."""
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

#: One parameter of a challenge: its name, and its value with quotes or without (RFC 9110 section 11.2).
_PARAMETER = r'(?<![^\s,"])([\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))'


def _challenge_code(challenge: str) -> str | None:
    """``error`` of a ``WWW-Authenticate: Bearer`` challenge (RFC 6750 section 3)."""
    scheme, _, rest = challenge[:BODY_LIMIT].strip().partition(" ")
    if scheme.lower() != "bearer":
        return None
    # Quoted texts are passed over as a whole: an error_description may quote anything.
    for name, quoted, bare in re.findall(_PARAMETER, rest):
        if name.lower() == "error":
            return code_of({"error": quoted or bare})
    return None


def base_url_of(text: str) -> str:
    """A base_url fit to receive tokens, without its trailing slash. Raises `ConfigurationError`."""
    origin = origin_of(text)
    parts = urlsplit(text) if origin else None
    if origin is None or parts is None or parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigurationError(
            "base_url must be an address like https://api.agenticdeveloperhub.com, without user name, query or fragment",
            setting="base_url",
        )
    if origin[0] != "https" and not is_loopback(origin[1]):
        raise ConfigurationError(
            f"base_url must be https: over plain http to {origin[1]} anyone on the way could read the tokens (http is for loopback only)",
            setting="base_url",
        )
    return text.rstrip("/")


def origin_of(url: str) -> Origin | None:
    """Scheme, host and port of a URL in one spelling, None where the URL is not clearly one of http or https.

    Clients disagree about a backslash, a blank or a control character in an authority (WHATWG URL against RFC
    3986): no token goes there.
    """
    if any(char == "\\" or char <= " " or char == "\x7f" for char in url):
        return None
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    return normal_origin(parts.scheme, host, port)


def normal_origin(scheme: str, host: str | None, port: int | None) -> Origin | None:
    """The three parts in one spelling: lower case, IDNA, no trailing dot, IPv6 compressed, the default port
    filled in.
    """
    scheme = scheme.lower()
    if not host or scheme not in DEFAULT_PORTS:
        return None
    name = _normal_host(host)
    return (scheme, name, DEFAULT_PORTS[scheme] if port is None else port) if name else None


def _normal_host(host: str) -> str | None:
    host = host.strip("[]").lower()
    host = host.removesuffix(".")
    if not host.isascii():
        import idna  # both clients stand on it; an ASCII host needs none of its tables

        try:
            host = idna.encode(host, uts46=True).decode("ascii")
        except idna.IDNAError:
            return None
    try:
        return ip_address(host).compressed
    except ValueError:
        return host or None


def is_loopback(host: str) -> bool:
    """Whether a host name leads to this very machine, whoever answers for names."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
