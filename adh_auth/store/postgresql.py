"""PostgreSQL as a register: one table, one row per session, each change one statement.

Nothing is state of the server's session, so that pgbouncer may give each statement another one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..common.secret import Secret
from ..errors import ConfigurationError
from .postgresql_connections import Connections, connections_to
from .postgresql_errors import GRANT, PERMISSION_DENIED
from .register import RegisterRefused, RegisterUnavailable, Row
from .store_messages import require_printable
from .store_url import name_of

if TYPE_CHECKING:
    import psycopg

__all__ = ["TABLE", "PostgresStore"]

TABLE = """\
CREATE TABLE IF NOT EXISTS adh_auth_session (
  name text PRIMARY KEY,
  version bigint NOT NULL DEFAULT 1,
  generation bigint NOT NULL DEFAULT 0,
  stamp text NOT NULL DEFAULT '',
  pair text,
  record text,
  holder text NOT NULL DEFAULT '',
  lease_until timestamptz NOT NULL DEFAULT '-infinity',
  changed_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
"""

# clock_timestamp(): now() is the start of the statement, which may have waited for another change.
# Before PostgreSQL 17 no interval is infinite.
_GET = """\
SELECT current_setting('synchronous_commit'), version, generation, stamp, pair, record, holder,
  CASE WHEN isfinite(lease_until) THEN extract(epoch FROM lease_until - clock_timestamp())::float8 ELSE 0 END
FROM (SELECT) AS always LEFT JOIN adh_auth_session ON name = %(name)s"""

_TAKE = """\
UPDATE adh_auth_session SET version = version + 1, changed_at = clock_timestamp(), holder = %(me)s,
  lease_until = clock_timestamp() + make_interval(secs => %(seconds)s)
{durable} WHERE name = %(name)s AND version = %(version)s"""

_NOTE = """\
UPDATE adh_auth_session SET version = version + 1, changed_at = clock_timestamp(), record = %(record)s,
  lease_until = clock_timestamp() + make_interval(secs => %(seconds)s)
{durable} WHERE name = %(name)s AND holder = %(me)s"""

_RELEASE = """\
UPDATE adh_auth_session SET version = version + 1, changed_at = clock_timestamp(),
  holder = '', lease_until = '-infinity'
{durable} WHERE name = %(name)s AND holder = %(me)s"""

_PUT = """\
UPDATE adh_auth_session SET version = version + 1, changed_at = clock_timestamp(),
  generation = generation + 1, stamp = %(stamp)s, pair = %(pair)s, record = %(record)s,
  holder = '', lease_until = '-infinity'
{durable} WHERE name = %(name)s AND generation = %(spent)s"""

_SIGN_IN = """\
INSERT INTO adh_auth_session AS kept (name, generation, stamp, pair, record)
SELECT %(name)s::text, (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
  %(stamp)s::text, %(pair)s::text, %(record)s::text
{durable} ON CONFLICT (name) DO UPDATE SET version = kept.version + 1, changed_at = clock_timestamp(),
  generation = greatest(kept.generation + 1, EXCLUDED.generation), stamp = EXCLUDED.stamp,
  pair = EXCLUDED.pair, record = EXCLUDED.record, holder = '', lease_until = '-infinity'"""

_HEAL = """\
UPDATE adh_auth_session SET version = version + 1, changed_at = clock_timestamp(),
  generation = %(generation)s, stamp = %(stamp)s, pair = %(pair)s,
  holder = '', lease_until = '-infinity'
{durable} WHERE name = %(name)s AND version = %(version)s"""

_HEAL_MISSING = """\
INSERT INTO adh_auth_session (name, generation, stamp, pair)
SELECT %(name)s::text, %(generation)s::bigint, %(stamp)s::text, %(pair)s::text
{durable} ON CONFLICT (name) DO NOTHING"""

# Only where the server would not wait for its disk or its standbys: a proxy gives who changes a setting a
# connection of its own. A common table expression that is not used is not evaluated.
_DURABLE = "WITH durable AS MATERIALIZED (SELECT set_config('synchronous_commit', 'on', true)) "
_NOT_DURABLE = ("off", "local")

#: The session that `check` writes to. Nobody is signed in there, so that `sessions` does not list it.
_CHECKED = "adh-auth store check"
_FACTS = """\
SELECT current_setting('fsync'), current_setting('full_page_writes'), relpersistence::text
FROM pg_class WHERE oid = to_regclass('adh_auth_session')"""


class PostgresStore:
    """Sessions in a table of PostgreSQL 12 or later, for ``AdhAuth(store=…)``.

    `connect` returns a new `psycopg.Connection`; it is called for each new connection, so that a password may
    expire. `name` stands for the store in messages. Building one does no I/O. Raises `ConfigurationError`.
    """

    #: A row stays when its session is signed out. Where it is gone, somebody has deleted it.
    missing_is_lost = False

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]], *, name: str = "postgresql") -> None:
        if not callable(connect):
            del connect  # type: ignore[unreachable]  # it may be a URL, and a traceback with locals would show its password
            raise ConfigurationError(
                "PostgresStore takes a function that returns a connection."
                " Pass a URL as store=, not to PostgresStore",
                setting="store",
            )
        require_printable(name)
        self._use(connect, name, Connections(connect))

    @classmethod
    def from_url(cls, url: Secret) -> PostgresStore:
        """Return the store at `url`, any that libpq reads. Raises `ConfigurationError`."""
        # First what may raise: a traceback with locals shows what is made.
        name, connections = name_of(url), connections_to(url)
        store = cls.__new__(cls)
        store._use(url, name, connections)  # noqa: SLF001 - its own class
        return store

    def _use(self, source: object, name: str, connections: Connections) -> None:
        self.name: str = name
        self._source, self._connections = source, connections
        self._commit_setting = ""  # the server's synchronous_commit, once it has told

    def get(self, session: str) -> Row | None:
        """See `Register`."""
        row = self._row(_GET, name=session)
        self._commit_setting = row[0]
        return None if row[1] is None else Row(*row[1:])

    def take(self, session: str, version: int, me: str, seconds: float) -> bool:
        """See `Register`."""
        return self._changed(_TAKE, name=session, version=version, me=me, seconds=float(seconds))

    def note(self, session: str, me: str, record: str, seconds: float) -> bool:
        """See `Register`."""
        return self._changed(_NOTE, name=session, me=me, record=record, seconds=float(seconds))

    def put(
        self, session: str, pair: str | None, stamp: str, spent_generation: int | None, record: str | None
    ) -> bool:
        """See `Register`."""
        values = {"name": session, "pair": _hidden(pair), "stamp": stamp, "record": record}
        del pair  # this frame stays with an error
        if spent_generation is None:
            return self._changed(_SIGN_IN, **values)
        return self._changed(_PUT, spent=spent_generation, **values)

    def heal(self, session: str, version: int | None, pair: str, stamp: str, generation: int) -> bool:
        """See `Register`."""
        values = {"name": session, "pair": _hidden(pair), "stamp": stamp, "generation": generation}
        del pair
        if version is None:
            return self._changed(_HEAL_MISSING, **values)
        return self._changed(_HEAL, version=version, **values)

    def release(self, session: str, me: str) -> None:
        """See `Register`."""
        self._changed(_RELEASE, name=session, me=me)

    def create(self) -> None:
        """Make the table where it is missing."""
        if self._has_table():
            return
        try:
            self._count(TABLE, {})
        except RegisterRefused as refused:
            # Of two that make it at once PostgreSQL refuses one, IF NOT EXISTS notwithstanding.
            if not self._has_table():
                raise _not_created(refused) from None

    def _has_table(self) -> bool:
        return bool(self._row("SELECT to_regclass('adh_auth_session') IS NOT NULL")[0])

    def check(self) -> list[str]:
        """See `Register`. A user who may not delete leaves a row behind that is signed out."""
        self.put(_CHECKED, None, "", None, None)
        row = self.get(_CHECKED)
        if row is None or not self.take(_CHECKED, row.version, _CHECKED, 1.0):
            raise RegisterRefused("row level security hides its rows from this user", GRANT)
        self.release(_CHECKED, _CHECKED)
        with suppress(RegisterRefused):
            self._count("DELETE FROM adh_auth_session WHERE name = %(name)s", {"name": _CHECKED})
        return _warnings(*self._row(_FACTS))

    def sessions(self) -> list[str]:
        """See `Register`."""
        names = self._row("SELECT array_agg(name) FROM adh_auth_session WHERE pair IS NOT NULL")[0]
        return sorted(names or ())

    def close(self) -> None:
        """Close idle connections. The store can be used again."""
        self._connections.close()

    def _changed(self, statement: str, **values: Any) -> bool:
        if not self._commit_setting:
            self._commit_setting = self._row("SELECT current_setting('synchronous_commit')")[0]
        if self._commit_setting in _NOT_DURABLE:
            statement = _DURABLE + statement.format(durable="FROM durable")
        else:
            statement = statement.format(durable="")
        return self._count(statement, values) == 1

    def _count(self, statement: str, values: dict[str, Any]) -> int:
        with self._connections.one() as connection:
            return int(_executed(connection, statement, values).rowcount)

    def _row(self, statement: str, **values: Any) -> tuple[Any, ...]:
        with self._connections.one() as connection:
            row = _executed(connection, statement, values).fetchone()
        if row is None:
            raise RegisterUnavailable("its table has just been removed")
        return tuple(row)

    def __repr__(self) -> str:
        if "name" not in vars(self):  # in a traceback of an `__init__` that raised
            return "<PostgresStore>"
        return f"PostgresStore({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PostgresStore) and (self._source, self.name) == (other._source, other.name)

    def __hash__(self) -> int:
        return hash((self._source, self.name))

    def __copy__(self) -> PostgresStore:
        return self

    def __deepcopy__(self, memo: object) -> PostgresStore:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self._source, self.name)


def _rebuilt(source: Any, name: str) -> PostgresStore:
    return PostgresStore.from_url(source) if isinstance(source, Secret) else PostgresStore(source, name=name)


def _executed(connection: Any, statement: str, values: dict[str, Any]) -> Any:
    from psycopg.rows import tuple_row

    revealed = {
        name: value.reveal() if isinstance(value, Secret) else value for name, value in values.items()
    }
    return connection.cursor(row_factory=tuple_row).execute(statement, revealed)


def _not_created(refused: RegisterRefused) -> RegisterRefused:
    if str(refused) != PERMISSION_DENIED:
        return refused
    return RegisterRefused(PERMISSION_DENIED, "Its owner makes the table: adh-auth store init --print | psql")


def _hidden(text: str | None) -> Secret | None:
    return None if text is None else Secret(text)


def _warnings(fsync: str, full_page_writes: str, persistence: str) -> list[str]:
    found = []
    if fsync == "off" or full_page_writes == "off":
        found.append("The server runs with fsync or full_page_writes off: a power failure may lose sessions.")
    if persistence != "p":
        found.append("The table is UNLOGGED: a crash of the server empties it.")
    return found
