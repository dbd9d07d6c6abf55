"""Redis and Valkey as a register: one hash per session, each operation one script, never a TTL."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..common.secret import Secret
from ..errors import AdhAuthError, ConfigurationError, replaced_errors
from . import redis_scripts
from .redis_client import client_for, name_of_client, replicas_in, require_database_number
from .redis_durability import Durability, settings_of, warnings_of
from .redis_errors import register_error
from .register import RegisterRefused, RegisterUnavailable, Row
from .store_messages import require_printable
from .store_url import name_of

__all__ = ["RedisStore"]

PREFIX = "adh:session:"

#: The session that `check` writes to.
_CHECKED = "adh-auth store check"


class RedisStore:
    """Sessions in Redis 6.2 or later, or in Valkey, for ``AdhAuth(store=…)``.

    `client`: a client of redis-py or valkey-py, also a Sentinel's master or a cluster; its timeouts and
    retries stay as they are. `replicas`: how many must have a write before it counts. `name` stands for the
    store in messages. Building one does no I/O. Raises `ConfigurationError`.
    """

    #: A flush or a failover may take the key; a sign-out leaves it.
    missing_is_lost = True

    def __init__(self, client: Any, *, replicas: int = 0, name: str | None = None) -> None:
        if inspect.iscoroutinefunction(getattr(client, "execute_command", None)):
            raise ConfigurationError(
                "RedisStore needs a client of redis, not of redis.asyncio", setting="store"
            )
        if not callable(getattr(client, "eval", None)):
            del client  # it may be a URL, and a traceback with locals would show its password
            raise ConfigurationError(
                "RedisStore takes a client of redis-py or valkey-py. Pass a URL as store=, not to RedisStore",
                setting="store",
            )
        if isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 0:
            raise ConfigurationError("replicas must be a number, 0 or more", setting="store")
        require_printable(name or "")
        self._use(client, name or name_of_client(client), replicas, lambda: client)

    @classmethod
    def from_url(cls, url: Secret) -> RedisStore:
        """Return the store at `url`: as redis-py reads it, also with ``valkey:`` and ``valkeys:``.

        ``?replicas=n`` is for `replicas`. Raises `ConfigurationError`.
        """
        # First what may raise: a traceback with locals shows what is made.
        name, replicas, client = name_of(url), replicas_in(url), client_for(url).get
        require_database_number(url)
        store = cls.__new__(cls)
        store._use(url, name, replicas, client)  # noqa: SLF001 - its own class
        return store

    def _use(self, source: Any, name: str, replicas: int, client: Callable[[], Any]) -> None:
        self.name: str = name
        self._source, self._client = source, client
        self._durability = Durability(name, replicas)

    def get(self, session: str) -> Row | None:
        """See `Register`."""
        row = self._asked(redis_scripts.GET, session)
        if row is None:
            return None
        version, generation, stamp, pair, record, holder, lease_left = map(_text, row)
        return Row(
            int(version), int(generation), stamp, pair or None, record or None, holder, float(lease_left)
        )

    def take(self, session: str, version: int, me: str, seconds: float) -> bool:
        """See `Register`."""
        return bool(self._asked(redis_scripts.TAKE, session, version, me, seconds))

    def note(self, session: str, me: str, record: str, seconds: float) -> bool:
        """See `Register`."""
        return self._written(redis_scripts.NOTE, session, me, record, seconds)

    def put(
        self, session: str, pair: str | None, stamp: str, spent_generation: int | None, record: str | None
    ) -> bool:
        """See `Register`."""
        hidden = Secret(pair or "")
        del pair  # this frame stays with an error
        spent = "" if spent_generation is None else spent_generation
        return self._written(redis_scripts.PUT, session, spent, stamp, hidden, record or "")

    def heal(self, session: str, version: int | None, pair: str, stamp: str, generation: int) -> bool:
        """See `Register`."""
        hidden = Secret(pair)
        del pair
        seen = "" if version is None else version
        return self._written(redis_scripts.HEAL, session, seen, hidden, stamp, generation)

    def release(self, session: str, me: str) -> None:
        """See `Register`."""
        self._asked(redis_scripts.RELEASE, session, me)

    def create(self) -> None:
        """Do nothing: a hash needs no table."""

    def check(self) -> list[str]:
        """See `Register`."""
        self.put(_CHECKED, None, "", None, None)
        row = self.get(_CHECKED)
        if row is None or not self.take(_CHECKED, row.version, _CHECKED, 1.0):
            raise RegisterUnavailable("what was written is gone again")
        return warnings_of(self._guarded(self._delete_checked))

    def _delete_checked(self) -> dict[str, Any]:
        self._client().delete(PREFIX + _CHECKED)
        return settings_of(self._client_for_key(PREFIX + _CHECKED))

    def sessions(self) -> list[str]:
        """See `Register`."""
        return sorted(self._guarded(self._signed_in))

    def _signed_in(self) -> set[str]:
        client = self._client()
        keys = client.scan_iter(match=PREFIX + "*", count=1000)
        return {_text(key)[len(PREFIX) :] for key in keys if client.hstrlen(key, "pair")}

    def close(self) -> None:
        """Close idle connections of a store that was made of a URL. The store can be used again."""
        self._guarded(self._close_idle)

    def _close_idle(self) -> None:
        if isinstance(self._source, Secret):
            client_for(self._source).close_idle()

    def _asked(self, script: str, session: str, *arguments: Any) -> Any:
        return self._guarded(lambda: self._client().eval(script, 1, PREFIX + session, *arguments))

    def _written(self, script: str, session: str, *arguments: Any) -> bool:
        return bool(self._guarded(lambda: self._write(script, PREFIX + session, arguments)))

    def _write(self, script: str, key: str, arguments: tuple[Any, ...]) -> Any:
        """Run the script, and wait on the same connection until the write is kept."""
        client = self._client_for_key(key)
        pipeline = client.pipeline(transaction=False)
        pipeline.execute_command("EVAL", script, 1, key, *map(_revealed, arguments))
        waits = self._durability.commands()
        for command in waits:
            pipeline.execute_command(*command)
        done, *answers = pipeline.execute(raise_on_error=False)
        if isinstance(done, Exception):
            raise done
        if done:
            self._durability.check(waits, answers, client)
        return done

    def _client_for_key(self, key: str) -> Any:
        """Return the client of the server that has the key: a cluster's pipeline takes no ``WAIT``."""
        client = self._client()
        if not hasattr(client, "get_node_from_key"):
            return client
        connection_to = getattr(client, "get_redis_connection", None) or client.get_valkey_connection
        return connection_to(client.get_node_from_key(key))

    def _guarded(self, work: Callable[[], Any]) -> Any:
        # The frames of the client hold its password and the pair, and the repr of a client may, too.
        with replaced_errors(Exception, by=self._replacement):
            return work()

    def _replacement(self, error: Exception) -> Exception:
        known = (AdhAuthError, RegisterUnavailable, RegisterRefused)
        meant = error.with_traceback(None) if isinstance(error, known) else register_error(error)
        if isinstance(meant, RegisterUnavailable):
            # After a failover the name of the host may stand for another server: look it up again.
            with suppress(Exception):
                self._close_idle()
        return meant

    def __repr__(self) -> str:
        if "name" not in vars(self):  # in a traceback of an `__init__` that raised
            return "<RedisStore>"
        return f"RedisStore({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RedisStore) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:
        source = self._source if isinstance(self._source, Secret) else id(self._source)
        return source, self.name, self._durability.replicas

    def __copy__(self) -> RedisStore:
        return self

    def __deepcopy__(self, memo: object) -> RedisStore:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self._source, self._durability.replicas, self.name)


def _rebuilt(source: Any, replicas: int, name: str) -> RedisStore:
    if isinstance(source, Secret):
        return RedisStore.from_url(source)
    return RedisStore(source, replicas=replicas, name=name)


def _revealed(value: Any) -> Any:
    return value.reveal() if isinstance(value, Secret) else value


def _text(value: Any) -> str:
    """Return what the client gives as bytes, or as a string where it decodes."""
    return value.decode() if isinstance(value, bytes) else str(value)
