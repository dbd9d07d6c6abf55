"""Connections to PostgreSQL: made without session state, watched, a few kept, none shared with a fork."""

from __future__ import annotations

import atexit
import os
import select
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ..common.secret import Secret
from ..errors import AdhAuthError, ConfigurationError, replaced_errors
from . import watchdog
from .postgresql_errors import NO_ANSWER, register_error
from .register import RegisterRefused, RegisterUnavailable
from .store_url import driver_missing

if TYPE_CHECKING:
    import psycopg

__all__ = ["Connections", "connected_to", "connections_to", "require_driver"]

#: Seconds for an answer. An operation takes milliseconds, and a write may wait for a standby.
ANSWER_TIMEOUT = 4.0
#: Connections of a process that are kept open between two operations.
MAX_IDLE = 2
#: Connections of a process at once. An operation takes milliseconds; a server has a hundred for everybody.
MAX_OPEN = 4
#: Seconds after which an idle one is not used again: load balancers forget a silent connection after minutes.
MAX_IDLE_SECONDS = 60.0

#: SQLSTATE of a change on a server that is read-only
READ_ONLY = "25006"

#: What a new connection gets, unless the URL says otherwise. Nothing of it is state of the server's session,
#: so that pgbouncer may give each statement another one.
OPTIONS = {
    "connect_timeout": "3",  # seconds
    "target_session_attrs": "read-write",  # of several hosts the one that is not a standby
    "tcp_user_timeout": "6000",  # milliseconds that sent data may stay unacknowledged
    "keepalives": "1",
    "keepalives_idle": "15",  # seconds
    "keepalives_interval": "5",  # seconds
    "keepalives_count": "3",
    "client_encoding": "UTF8",  # psycopg reads bytes, not text, from a database in SQL_ASCII
    "fallback_application_name": "adh-auth",
}


def connected_to(url: Secret) -> psycopg.Connection[Any]:
    """Return a new connection to `url`. Raises what psycopg raises, which may quote the URL."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    given = {name: value for name, value in conninfo_to_dict(url.reveal()).items() if value is not None}
    options: dict[str, Any] = {**OPTIONS, **given}
    return psycopg.connect(**options, autocommit=True)


class Connections:
    """The connections of this process that `connect` makes. Threads share one."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._idle: list[tuple[Any, float]] = []  # with the time since when
        self._reset()
        _all.add(self)
        weakref.finalize(self, _close_each, self._idle).atexit = False

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(MAX_OPEN)

    @contextmanager
    def one(self) -> Iterator[Any]:
        """Lend a connection for one operation, and end it if the answer takes over `ANSWER_TIMEOUT`.

        Raises `RegisterUnavailable` and `RegisterRefused` in place of psycopg's errors, and without them.
        """
        late = False
        # The frames of psycopg hold the URL and the parameters of the statement.
        with replaced_errors(Exception, by=lambda error: _replacement(error, late=late)), self._slot():
            connection = self._newest_idle() or self._new()
            try:
                with watchdog.watching(connection.fileno(), ANSWER_TIMEOUT) as watch:
                    try:
                        yield connection
                    except Exception as error:
                        # This server is a standby by now; a new connection looks for the primary.
                        if getattr(error, "sqlstate", None) == READ_ONLY:
                            _close(connection)
                        raise
                    finally:
                        late = watch.shut
            finally:
                self._give_back(connection)
                del connection  # its repr names the user, and this frame stays with the error

    @contextmanager
    def _slot(self) -> Iterator[None]:
        free = self._free
        if not free.acquire(timeout=ANSWER_TIMEOUT):
            raise RegisterUnavailable("all connections of this process are waiting for an answer")
        try:
            yield
        finally:
            free.release()

    def _newest_idle(self) -> Any:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection, since = self._idle.pop()
            if time.monotonic() - since < MAX_IDLE_SECONDS and not _has_news(connection):
                return connection
            _close(connection)

    def _new(self) -> Any:
        with replaced_errors(Exception, by=_connect_failed):
            connection = self._connect()
            _prepare(connection)
            return connection

    def _give_back(self, connection: Any) -> None:
        if _is_usable(connection):
            with self._lock:
                if len(self._idle) < MAX_IDLE and not _ending.is_set():
                    self._idle.append((connection, time.monotonic()))
                    return
        else:
            self.close()  # the idle ones have met the same restart, or the same cut
        _close(connection)

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle = self._idle.copy()
            self._idle.clear()
        _close_each(idle)

    def drop(self) -> None:
        """Forget the idle connections in a forked child: they are the parent's.

        To close one would end it for the parent, too: that sends a message and TLS's farewell. So they go to
        the null device.
        """
        self._reset()
        null = os.open(os.devnull, os.O_RDWR)
        for connection, _ in self._idle:
            with suppress(Exception):
                os.dup2(null, connection.fileno(), inheritable=False)
        os.close(null)
        self.close()


_all: weakref.WeakSet[Connections] = weakref.WeakSet()
_shared: weakref.WeakValueDictionary[Secret, Connections] = weakref.WeakValueDictionary()
_ending = threading.Event()


def connections_to(url: Secret) -> Connections:
    """Return the connections of this process to `url`: however many stores are made of it."""
    found = _shared.get(url)
    if found is None:
        require_driver()
        found = _shared.setdefault(url, Connections(lambda: connected_to(url)))
    return found


def require_driver() -> None:
    """Raise `ConfigurationError` where psycopg is not installed, or finds no libpq."""
    with replaced_errors(ImportError, by=lambda _: driver_missing("psycopg", "postgres")):
        import psycopg  # noqa: F401


def _prepare(connection: Any) -> None:
    import psycopg

    if not isinstance(connection, psycopg.Connection):
        raise ConfigurationError("connect must return a psycopg.Connection", setting="store")
    if not connection.autocommit:
        connection.commit()
        connection.autocommit = True
    # A pooler gives the next statement to a server that has not prepared it.
    connection.prepare_threshold = None


def _connect_failed(error: Exception) -> Exception:
    if isinstance(error, AdhAuthError):
        return error
    if type(error).__name__ == "ProgrammingError" and not getattr(error, "sqlstate", None):
        return RegisterRefused("libpq can't read its URL", "Check the options of the store's URL")
    if type(error).__module__.partition(".")[0] == "psycopg" or isinstance(error, OSError):
        return register_error(error)
    return RegisterUnavailable(f"connect() raised {type(error).__name__}")


def _replacement(error: Exception, *, late: bool) -> Exception:
    if isinstance(error, (AdhAuthError, RegisterUnavailable, RegisterRefused)):
        return error.with_traceback(None)
    return RegisterUnavailable(NO_ANSWER) if late else register_error(error)


def _has_news(connection: Any) -> bool:
    """Return whether an idle connection has something to read: the server has ended it."""
    try:
        if not hasattr(select, "poll"):
            return bool(select.select([connection.fileno()], [], [], 0)[0])
        poll = select.poll()  # select() takes no number over 1023
        poll.register(connection.fileno(), select.POLLIN)
        return bool(poll.poll(0))
    except Exception:  # noqa: BLE001 - a program may close every descriptor; then what psycopg raises
        return True


def _is_usable(connection: Any) -> bool:
    from psycopg.pq import TransactionStatus

    return not connection.closed and connection.info.transaction_status == TransactionStatus.IDLE


def _close(connection: Any) -> None:
    with suppress(Exception):
        connection.close()


def _close_each(idle: list[tuple[Any, float]]) -> None:
    for connection, _ in idle:
        _close(connection)


def _close_all() -> None:
    # What is written later, at the very end of a program, closes its connection at once.
    _ending.set()
    for connections in list(_all):
        connections.close()


def _after_fork_in_child() -> None:
    for connections in list(_all):
        connections.drop()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
