"""Origins: scheme, host and port of a URL in one spelling.

Rule 12: the token goes to the API's origin only, over https or to this machine.
"""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from ..errors import ConfigurationError

__all__ = ["Origin", "origin_of"]

Origin = tuple[str, str, int]
DEFAULT_PORTS = {"https": 443, "http": 80}
#: A WebSocket begins as an HTTP request of this scheme, on the same port (RFC 6455 section 3).
HANDSHAKE_SCHEMES = {"wss": "https", "ws": "http"}


def base_url_of(text: str) -> str:
    """Return a base_url that may receive tokens, without its trailing slash. Raises `ConfigurationError`."""
    origin = origin_of(text)
    parts = urlsplit(text) if origin else None
    if origin is None or parts is None or parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigurationError(
            "base_url must be a URL like https://api.agenticdeveloperhub.com, "
            "without user name, query or fragment",
            setting="base_url",
        )
    if origin[0] != "https" and not is_loopback(origin[1]):
        raise ConfigurationError(
            f"base_url must be https: over plain http to {origin[1]} anyone on the way could read the tokens "
            "(http is for loopback only)",
            setting="base_url",
        )
    base = text.rstrip("/")
    if parts.path.rstrip("/").endswith(_OWN_PATHS):
        raise ConfigurationError(
            f"base_url must not end in a path of the API: /api/… is added to it, and {base}/api/auth/refresh "
            f"would be called. Use {origin_url(origin)}",
            setting="base_url",
        )
    return base


#: What somebody copies along with the host: the API's own paths, whole or from their beginning.
_OWN_PATHS = (
    "/api",
    "/api/auth",
    "/api/auth/refresh",
    "/api/auth/revoke",
    "/api/auth/me",
    "/api/oauth",
    "/api/oauth/signin",
)


def are_twins(one: Origin, other: Origin) -> bool:
    """Return whether two different origins look like one server to a person.

    Loopback under two names, or the same host on another port or scheme, with and without ``www``.
    """
    first, second = (host.removeprefix("www.") for _, host, _ in (one, other))
    return one != other and (first == second or (is_loopback(first) and is_loopback(second)))


def origin_of(url: str) -> Origin | None:
    """Return the origin of a URL, None where it is not clearly one of http or https.

    Clients disagree about a backslash, a space or a control character in an authority (the WHATWG URL
    standard against RFC 3986), so such a URL has no origin.
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
    """Return the three parts in one spelling, None where they are no origin.

    Lower case, IDNA, no trailing dot, IPv6 compressed, the default port filled in.
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
        import idna  # both clients depend on it; its tables cost time that an ASCII host needs not spend

        try:
            host = idna.encode(host, uts46=True).decode("ascii")
        except idna.IDNAError:
            return None
    try:
        return ip_address(host).compressed
    except ValueError:
        return host or None


def origin_url(origin: Origin) -> str:
    """Return an origin as a URL, without the scheme's own port."""
    scheme, host, port = origin
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}" if port == DEFAULT_PORTS[scheme] else f"{scheme}://{shown}:{port}"


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, whatever a name server says."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
