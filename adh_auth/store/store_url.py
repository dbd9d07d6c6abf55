"""The URL of a store: checked, and the name that messages show of it. Its parts are never quoted."""

from __future__ import annotations

from urllib.parse import unquote

from ..common.secret import Secret
from ..errors import ConfigurationError

__all__ = ["driver_missing", "has_password", "name_of"]

#: The spelling that a name has for each scheme.
SPELLINGS = {"postgres": "postgresql"}


def name_of(url: Secret) -> str:
    """Return scheme, hosts, ports and database of `url`: no user, no password, no options.

    Raises `ConfigurationError` where it can't be told what is the password, so that no part of one is shown.
    """
    problem, name = _inspected(url)
    if problem:
        raise ConfigurationError(f"the store's URL {problem}", setting="store")
    return name


def has_password(url: str) -> bool:
    """Return whether `url` holds a password, as far as can be told."""
    user, at, _ = url.partition("://")[2].rpartition("@")
    return bool(at and ":" in user) or "password=" in unquote(url).lower()


def _inspected(url: Secret) -> tuple[str, str]:
    scheme, _, rest = url.reveal().partition("://")
    locator, _, options = rest.partition("?")
    authority, _, database = locator.partition("/")
    hosts = authority.rpartition("@")[2]
    name = f"{SPELLINGS.get(scheme.lower(), scheme.lower())}://{hosts}/{database}".rstrip("/")
    if "@" in database or "#" in rest or not all("=" in option for option in options.split("&") if option):
        return "has a character out of place: in a password write / ? # @ as %2F %3F %23 %40", ""
    if not all(map(_has_port, hosts.split(","))):
        return "has a port that is no number", ""
    return ("", name) if name.isprintable() else ("has a control character", "")


def _has_port(host: str) -> bool:
    """Return whether the port of `host` is a number, or none is given. ``[::1]`` has none."""
    port = host.rpartition("]")[2].partition(":")[2]
    return not port or (port.isascii() and port.isdigit() and int(port) < 65536)


def driver_missing(package: str, extra: str) -> ConfigurationError:
    """Return the error for a driver that is not installed."""
    return ConfigurationError(
        f'this store needs {package}. Install it with: pip install "adh-auth[{extra}]"', setting="store"
    )
