"""Opens the store that a URL names. Drivers are imported at first use (extras ``postgres`` and ``redis``).

A URL may hold a password: no message, error or traceback local shows it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from ..common.secret import Secret
from ..errors import ConfigurationError, replaced_errors
from .cipher import cipher_from
from .registry import RegistryStore
from .store_messages import checked_session

if TYPE_CHECKING:
    from .register import Register

__all__ = ["SCHEMES", "open_register", "open_url"]


class _Driver(NamedTuple):
    """Where a driver is, the package that it needs, and the extra that brings it."""

    module: str
    factory: str
    package: str
    extra: str


_POSTGRES = _Driver("postgresql", "PostgresStore", "psycopg", "postgres")
_REDIS = _Driver("redis", "RedisStore", "redis", "redis")
#: Schemes of URLs, and the driver for each.
SCHEMES = {
    "postgresql": _POSTGRES,
    "postgres": _POSTGRES,
    "redis": _REDIS,
    "rediss": _REDIS,
    "valkey": _REDIS,
    "valkeys": _REDIS,
}


def open_url(url: Secret, session: str) -> RegistryStore:
    """Return the store of a session. Nothing is connected to yet. Raises `ConfigurationError`.

    The pair is encrypted where ``ADH_STORE_KEY`` is set.
    """
    checked_session(session)
    return RegistryStore(open_register(url), session, cipher=cipher_from())


def open_register(url: Secret) -> Register:
    """Return the register that the URL names. Raises `ConfigurationError`."""
    driver = SCHEMES.get(url.reveal().partition("://")[0].lower()) if "://" in url.reveal() else None
    if driver is None:
        raise ConfigurationError(
            f"store must be a URL that begins with one of: {', '.join(SCHEMES)} (as in"
            " postgresql://user@host/database)",
            setting="store",
        )
    register: Register = _class_of(driver).from_url(url)
    return register


def _class_of(driver: _Driver) -> Any:
    with replaced_errors(ImportError, by=lambda _: _missing(driver)):
        import_module(driver.package)
    return getattr(import_module(f".{driver.module}", __package__), driver.factory)


def _missing(driver: _Driver) -> ConfigurationError:
    return ConfigurationError(
        f'{driver.package} is not installed. Install it: pip install "adh-auth[{driver.extra}]"',
        setting="store",
    )
