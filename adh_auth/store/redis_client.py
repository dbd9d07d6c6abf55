"""The client of a URL, one per process; and what a client that was given is called."""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import Any

from ..common.secret import Secret
from ..errors import ConfigurationError, replaced_errors
from .register import RegisterRefused
from .store_url import driver_missing

__all__ = [
    "SharedClient",
    "client_for",
    "name_of_client",
    "replicas_in",
    "require_database_number",
    "require_driver",
]

#: Seconds for an answer, and for a new connection.
ANSWER_TIMEOUT = 4.0
CONNECT_TIMEOUT = 3.0


class SharedClient:
    """The one client of this process for a URL, made at first use. Its connections know of forks."""

    def __init__(self, url: Secret) -> None:
        self._url = url
        self._client: Any = None

    def get(self) -> Any:
        """Return it. Raises `RegisterRefused`."""
        if self._client is None:
            self._client = _client_of(self._url)
            weakref.finalize(self, self._client.close)
        return self._client

    def close_idle(self) -> None:
        """Close its idle connections."""
        if self._client is not None:
            self._client.connection_pool.disconnect(inuse_connections=False)


_shared: weakref.WeakValueDictionary[Secret, SharedClient] = weakref.WeakValueDictionary()


def client_for(url: Secret) -> SharedClient:
    """Return the client of this process for `url`: however many stores are made of it."""
    found = _shared.get(url)
    if found is None:
        require_driver()
        found = _shared.setdefault(url, SharedClient(url))
    return found


def require_driver() -> None:
    """Raise `ConfigurationError` where redis-py is not installed."""
    with replaced_errors(ImportError, by=lambda _: driver_missing("redis", "redis")):
        import redis  # noqa: F401


def _client_of(url: Secret) -> Any:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    try:
        client = redis.Redis.from_url(
            _for_redis_py(url),
            socket_timeout=ANSWER_TIMEOUT,
            socket_connect_timeout=CONNECT_TIMEOUT,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),  # a script that is sent twice is not atomic: the caller retries
        )
        # An option that it does not know is noticed by a connection only. This one is never opened.
        client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    except (TypeError, ValueError):
        raise RegisterRefused("redis-py can't read its URL", "Check the options of the URL") from None
    return client


def _for_redis_py(url: Secret) -> str:
    scheme, _, rest = url.reveal().partition("://")
    start, _, options = rest.partition("?")
    kept = "&".join(option for option in options.split("&") if not option.startswith("replicas="))
    return f"{scheme.lower().replace('valkey', 'redis')}://{start}{kept and '?'}{kept}"


def require_database_number(url: Secret) -> None:
    """Raise `ConfigurationError` where the path of `url` is no number: redis-py takes it for 0."""
    if not _has_database_number(url):
        raise ConfigurationError(
            "the store's URL has a database that is no number: end it with /0, /1 or another number of Redis",
            setting="store",
        )


def _has_database_number(url: Secret) -> bool:
    path = url.reveal().partition("://")[2].partition("?")[0].partition("/")[2]
    database = path.removesuffix("/")
    return not path or (database.isascii() and database.isdigit())


def replicas_in(url: Secret) -> int:
    """Return n of ``?replicas=n``. Raises `ConfigurationError` where it is no number."""
    given = [option[9:] for option in url.reveal().partition("?")[2].split("&") if option[:9] == "replicas="]
    if not given:
        return 0
    if not (given[0].isascii() and given[0].isdigit()):
        raise ConfigurationError("replicas in the store's URL must be a number", setting="store")
    return int(given[0])


def name_of_client(client: Any) -> str:
    """Return what messages call the server of `client`: no user, no password."""
    scheme = "valkey" if type(client).__module__.startswith("valkey") else "redis"
    with suppress(Exception):
        return f"{scheme}://{_server_of(client)}"
    return scheme


def _server_of(client: Any) -> str:
    if hasattr(client, "get_default_node"):
        node = client.get_default_node()
        return f"{node.host}:{node.port}"
    pool = client.connection_pool
    given = pool.connection_kwargs
    if hasattr(pool, "service_name"):
        return f"{pool.service_name}/{given.get('db', 0)}"
    host = given["path"] if "path" in given else f"{given['host']}:{given.get('port', 6379)}"
    return f"{host}/{given.get('db', 0)}"
