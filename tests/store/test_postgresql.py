"""PostgreSQL as a register: on a real server, directly and behind pgbouncer."""

from __future__ import annotations

import gc
import os
import pickle
import secrets
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from adh_auth.common.secret import Secret
from adh_auth.errors import ConfigurationError
from adh_auth.store import postgresql_connections
from adh_auth.store.postgresql import TABLE, PostgresStore
from adh_auth.store.register import RegisterRefused, RegisterUnavailable, Row, TableMissing

from ..support import servers
from ..support.processes import PATIENCE, child, free_port
from ..support.servers import PASSWORD, PgBouncer, PostgreSQLServer
from ..support.tcp_proxy import TcpProxy
from .register_contract import StoreContract

MISSING = servers.missing("postgresql")
pytestmark = [pytest.mark.servers, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

#: For a test that harms its server. It starts one of its own, which takes seconds.
own_server = pytest.mark.long


@pytest.fixture
def server(postgresql_server: PostgreSQLServer) -> PostgreSQLServer:
    """The server of this run, with the table in it."""
    store_at(postgresql_server.url()).create()
    return postgresql_server


@pytest.fixture
def store(server: PostgreSQLServer) -> Iterator[PostgresStore]:
    made = store_at(server.url())
    yield made
    made.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer is waited for longer than half a second."""
    monkeypatch.setattr(postgresql_connections, "ANSWER_TIMEOUT", 0.5)
    monkeypatch.setitem(postgresql_connections.OPTIONS, "connect_timeout", "2")


def store_at(url: str) -> PostgresStore:
    return PostgresStore.from_url(Secret(url))


def new_session() -> str:
    return secrets.token_hex(8)


def row_of(store: Any, session: str) -> Row:
    row = store.get(session)
    assert isinstance(row, Row)
    return row


def signed_in(store: Any) -> str:
    session = new_session()
    assert store.put(session, "{}", "stamp", None, None)
    return session


class TestPostgreSQL(StoreContract):
    @pytest.fixture
    def register(self, store: PostgresStore) -> PostgresStore:
        return store


class TestPgBouncer(StoreContract):
    @pytest.fixture
    def register(self, server: PostgreSQLServer, pgbouncer_server: PgBouncer) -> Iterator[PostgresStore]:
        store = store_at(pgbouncer_server.url())
        yield store
        store.close()


class TestOwnConnections(StoreContract):
    @pytest.fixture
    def register(self, server: PostgreSQLServer) -> Iterator[PostgresStore]:
        import psycopg
        from psycopg.rows import dict_row

        def connect() -> Any:
            connection = psycopg.connect(server.url(), row_factory=dict_row)
            connection.execute("SELECT 1")  # it is in a transaction now
            return connection

        store = PostgresStore(connect)
        yield store
        store.close()


class TestNotDurable(StoreContract):
    """A server that does not wait for its disk: each statement says that it has to."""

    @pytest.fixture
    def register(self, server: PostgreSQLServer) -> Iterator[PostgresStore]:
        import psycopg

        store = PostgresStore(lambda: psycopg.connect(server.url(), options="-c synchronous_commit=off"))
        yield store
        store.close()


# Durability.


@pytest.mark.parametrize(
    ("setting", "spoken_for"), [("off", True), ("local", True), ("on", False), ("remote_write", False)]
)
@own_server
def test_a_change_waits_for_the_disk(server: PostgreSQLServer, setting: str, spoken_for: bool) -> None:
    """A change asks for it in its statement, and only where the server would not do it by itself."""
    import psycopg

    store = PostgresStore(lambda: psycopg.connect(server.url(), options=f"-c synchronous_commit={setting}"))
    session = signed_in(store)
    seen = _commit_settings_during(server, lambda: store.put(session, "{}", "s", None, None))
    assert seen == ["on" if spoken_for else setting]
    assert ("set_config" in _last_statement(server)) is spoken_for
    store.close()


def _commit_settings_during(server: PostgreSQLServer, change: Any) -> list[str]:
    """What a trigger saw of the setting while the statement ran."""
    server.execute(
        "CREATE TABLE seen (setting text, statement text); GRANT ALL ON seen TO public;"
        "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO seen VALUES (current_setting('synchronous_commit'), current_query()); RETURN NULL; END $$;"
        "CREATE TRIGGER see AFTER INSERT OR UPDATE ON adh_auth_session FOR EACH ROW EXECUTE FUNCTION see();"
        "DROP TABLE IF EXISTS seen_last"
    )
    try:
        assert change()
        server.execute("CREATE TABLE seen_last AS SELECT * FROM seen")
        return [row[0] for row in server.execute("SELECT setting FROM seen_last")]
    finally:
        server.execute("DROP TRIGGER see ON adh_auth_session; DROP FUNCTION see; DROP TABLE seen")


def _last_statement(server: PostgreSQLServer) -> str:
    return str(server.execute("SELECT statement FROM seen_last")[0][0])


@own_server
def test_an_acknowledged_put_outlives_a_crash() -> None:
    """The server is ended without a checkpoint, twice, with commits that it would not wait for."""
    with servers.postgresql("synchronous_commit = off", "wal_writer_delay = 10s") as server:
        store = store_at(server.url())
        store.create()
        session = signed_in(store)
        for _ in range(2):
            generation = row_of(store, session).generation
            for number in range(20):
                assert store.put(session, f"{number}", "s", generation + number, None)
            server.restart_after_crash()
            assert row_of(store, session).pair == "19"
            assert row_of(store, session).generation == generation + 20
        store.close()


@own_server
def test_a_standby_that_is_promoted_has_every_put() -> None:
    """With a synchronous standby nothing that was acknowledged is lost in a failover, and the URL with both
    hosts finds the new primary.
    """
    with servers.postgresql() as primary, servers.standby_of(primary) as standby:
        primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'", database="postgres")
        primary.execute("SELECT pg_reload_conf()", database="postgres")
        both = primary.url().replace(f":{primary.port}/", f":{standby.port},127.0.0.1:{primary.port}/")
        store = store_at(both)
        store.create()
        session = signed_in(store)
        assert store.put(session, "newest", "s", row_of(store, session).generation, None)
        primary.crash()
        standby.promote()
        assert retried(lambda: row_of(store, session)).pair == "newest"
        assert store.put(session, "newer", "s", row_of(store, session).generation, None)
        store.close()


def retried(call: Any) -> Any:
    """As the algorithm over it does: a call that fails for now is made again."""
    for _ in range(20):
        try:
            return call()
        except RegisterUnavailable:
            threading.Event().wait(0.2)
    return call()


@own_server
def test_check_warns_of_what_may_be_lost() -> None:
    """fsync off, and a table that is not logged."""
    with servers.postgresql("fsync = off") as server:
        store = store_at(server.url())
        store.create()
        server.execute("ALTER TABLE adh_auth_session SET UNLOGGED")
        fsync, unlogged = store.check()
        assert "fsync" in fsync
        assert "UNLOGGED" in unlogged
        assert store.get("adh-auth store check") is None
        store.close()


def test_check_has_nothing_to_say(store: PostgresStore) -> None:
    assert store.check() == []


# Refusals.


def refused(store: Any, work: str = "get") -> RegisterRefused:
    with pytest.raises(RegisterRefused) as caught:
        getattr(store, work)(*(("s",) if work == "get" else ()))
    return caught.value


def test_wrong_password(server: PostgreSQLServer, pgbouncer_server: PgBouncer) -> None:
    for url in (server.url(password="wrong"), pgbouncer_server.url(password="wrong")):
        error = refused(store_at(url))
        assert str(error) == "the password is wrong"
        assert error.next_step == "Check the user and the password of the store's URL"


def test_no_password(server: PostgreSQLServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the URL nor anywhere else where libpq looks."""
    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.setenv("PGPASSFILE", os.devnull)
    error = refused(store_at(f"postgresql://app@127.0.0.1:{server.port}/app"))
    assert str(error) == "the server wants a password"
    assert error.next_step == "Put it into the URL in ADH_STORE, or into ~/.pgpass"


def test_unknown_user(server: PostgreSQLServer) -> None:
    assert str(refused(store_at(server.url(user="nobody")))) == "the password is wrong"


def test_unknown_database(server: PostgreSQLServer) -> None:
    assert str(refused(store_at(server.url(database="nowhere")))) == "there is no such database"


def test_missing_table(server: PostgreSQLServer) -> None:
    store = store_at(server.url("postgres", database="postgres"))
    assert isinstance(refused(store), TableMissing)
    with pytest.raises(TableMissing):
        store.put("s", None, "", None, None)
    store.close()


@pytest.fixture
def reader(server: PostgreSQLServer) -> Iterator[PostgresStore]:
    """A user who may only read."""
    name = f"reader_{secrets.token_hex(4)}"
    server.execute(f"CREATE USER {name} PASSWORD 'r'; GRANT SELECT ON adh_auth_session TO {name}")
    store = store_at(server.url(name, "r"))
    yield store
    store.close()
    server.execute(f"DROP OWNED BY {name}; DROP USER {name}")


def test_reader(reader: PostgresStore, store: PostgresStore) -> None:
    """It reads what others write, and is refused each change; the connection stays good."""
    session = signed_in(store)
    row = row_of(reader, session)
    for change in (
        lambda: reader.put(session, "{}", "s", row.generation, None),
        lambda: reader.put(session, None, "s", None, None),
        lambda: reader.take(session, row.version, "me", 10),
        lambda: reader.note(session, "me", "{}", 10),
        lambda: reader.heal(session, row.version, "{}", "s", 1),
        lambda: reader.heal(new_session(), None, "{}", "s", 1),
        lambda: reader.release(session, "me"),
        reader.check,
    ):
        with pytest.raises(RegisterRefused, match="permission denied") as caught:
            change()
        assert caught.value.next_step == "Grant this user SELECT, INSERT and UPDATE on it"
    assert row_of(reader, session) == row
    assert session in reader.sessions()


def test_least_rights(server: PostgreSQLServer, store: PostgresStore) -> None:
    """SELECT, INSERT and UPDATE are enough for everything, the check included."""
    name = f"writer_{secrets.token_hex(4)}"
    server.execute(
        f"CREATE USER {name} PASSWORD 'w'; GRANT SELECT, INSERT, UPDATE ON adh_auth_session TO {name}"
    )
    writer = store_at(server.url(name, "w"))
    writer.create()
    session = signed_in(writer)
    row = row_of(writer, session)
    assert writer.take(session, row.version, "me", 10)
    assert writer.note(session, "me", "{}", 10)
    assert writer.put(session, None, "", row.generation, None)
    assert writer.check() == []
    writer.close()
    server.execute(f"DROP OWNED BY {name}; DROP USER {name}")


@own_server
def test_create_without_the_right() -> None:
    """Whoever may not make the table is told who may."""
    with servers.postgresql() as server:
        server.execute("REVOKE CREATE ON SCHEMA public FROM public; ALTER DATABASE app OWNER TO postgres")
        server.execute("ALTER SCHEMA public OWNER TO postgres")
        error = refused(store_at(server.url()), "create")
        assert str(error) == "permission denied"
        assert "store init --print" in error.next_step
        server.execute(TABLE)
        server.execute("GRANT SELECT, INSERT, UPDATE ON adh_auth_session TO adh")
        store = store_at(server.url())
        store.create()
        signed_in(store)
        store.close()


def test_create_at_once(server: PostgreSQLServer) -> None:
    """Several machines make the table at the same moment."""
    database = f"new_{secrets.token_hex(4)}"
    server.execute(f"CREATE DATABASE {database} OWNER adh")
    stores = [
        PostgresStore(lambda: postgresql_connections.connected_to(Secret(server.url(database=database))))
        for _ in range(6)
    ]
    barrier = threading.Barrier(len(stores))

    def create(store: PostgresStore) -> None:
        barrier.wait(PATIENCE)
        store.create()

    with ThreadPoolExecutor(len(stores)) as threads:
        list(threads.map(create, stores))
    assert stores[0].check() == []
    for store in stores:
        store.close()


def test_read_only_server(store: PostgresStore, server: PostgreSQLServer) -> None:
    """A primary that has become a standby, or is being switched over."""
    session = signed_in(store)
    server.execute("ALTER DATABASE app SET default_transaction_read_only = on")
    try:
        store.close()
        with pytest.raises(RegisterUnavailable, match="read-only"):
            store.put(session, None, "", None, None)
    finally:
        server.execute("ALTER DATABASE app RESET default_transaction_read_only", database="postgres")
    assert store.put(session, None, "", None, None)


def test_server_that_turns_read_only(store: PostgresStore, server: PostgreSQLServer) -> None:
    """The connection is not used again: a new one finds the primary of several hosts."""
    session = signed_in(store)
    before = _backend(store)
    _set_read_only(server, "on")
    try:
        with pytest.raises(RegisterUnavailable, match="read-only"):
            store.put(session, None, "", None, None)
    finally:
        _set_read_only(server, "off")
    assert retried(lambda: store.put(session, None, "", None, None))
    assert _backend(store) != before


def _set_read_only(server: PostgreSQLServer, value: str) -> None:
    server.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}", database="postgres")
    server.execute("SELECT pg_reload_conf()", database="postgres")
    shown = "SELECT setting FROM pg_settings WHERE name = 'default_transaction_read_only'"
    assert settled(lambda: server.execute(shown), [(value,)])


@own_server
def test_too_many_connections() -> None:
    with servers.postgresql("max_connections = 5", "superuser_reserved_connections = 0") as server:
        import psycopg

        store = store_at(server.url())
        store.create()
        store.close()
        taken = []
        with pytest.raises(psycopg.OperationalError):
            while True:
                taken.append(psycopg.connect(server.url()))
        with pytest.raises(RegisterUnavailable, match="no connection or memory left"):
            store.get("s")
        for connection in taken:
            connection.close()
        retried(lambda: store.get("s"))
        store.close()


# Trouble with the connection.


def test_nobody_listens() -> None:
    store = store_at(f"postgresql://u:{'p' * 8}@127.0.0.1:{free_port()}/app")
    with pytest.raises(RegisterUnavailable, match="connection refused"):
        store.get("s")


def test_unknown_host() -> None:
    with pytest.raises(RegisterUnavailable, match="the host is not known") as caught:
        store_at("postgresql://u@nowhere.invalid/app").get("s")
    assert caught.value.next_step == "Check the host of the store's URL"


def test_cut_connection(server: PostgreSQLServer) -> None:
    """An idle connection that was cut is noticed before it is used; a cut in an operation is reported."""
    with TcpProxy(server.port) as proxy:
        store = store_at(server.url(port=proxy.port))
        session = signed_in(store)
        proxy.cut()
        with pytest.raises(RegisterUnavailable):
            store.get(session)
        proxy.heal()
        assert row_of(store, session).pair == "{}"
        store.close()


def test_idle_connections_that_the_server_has_ended(server: PostgreSQLServer, store: PostgresStore) -> None:
    """A restart costs no operation that comes after it."""
    session = signed_in(store)
    assert server.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'adh-auth'"
    )
    assert row_of(store, session).pair == "{}"


def test_network_that_swallows(server: PostgreSQLServer, quick: None) -> None:
    """No answer: the operation ends, and the next one takes a new connection."""
    with TcpProxy(server.port) as proxy:
        store = store_at(server.url(port=proxy.port))
        session = signed_in(store)
        generation = row_of(store, session).generation
        proxy.swallow("answer")
        with pytest.raises(RegisterUnavailable, match="no answer"):
            store.put(session, "lost answer", "mine", generation, None)
        with pytest.raises(RegisterUnavailable, match="no answer"):  # a new connection
            store.get(session)
        proxy.heal()
        row = row_of(store, session)
        assert (row.pair, row.stamp, row.generation) == ("lost answer", "mine", generation + 1)
        store.close()


@own_server
def test_server_that_is_stopped(quick: None) -> None:
    """SIGSTOP: the kernel still accepts connections and data, and nothing answers."""
    with servers.postgresql() as server:
        store = store_at(server.url())
        store.create()
        session = signed_in(store)
        server.pause()
        for _ in range(2):
            with pytest.raises(RegisterUnavailable, match="no answer"):
                store.get(session)
        server.resume()
        assert retried(lambda: row_of(store, session)).pair == "{}"
        store.close()


def test_change_that_waits_for_a_lock(server: PostgreSQLServer, store: PostgresStore, quick: None) -> None:
    """Somebody's transaction holds the row: the operation ends all the same."""
    import psycopg

    session = signed_in(store)
    with psycopg.connect(server.url()) as other:
        other.execute("SELECT FROM adh_auth_session WHERE name = %s FOR UPDATE", [session])
        with pytest.raises(RegisterUnavailable, match="no answer"):
            store.put(session, None, "", None, None)
    assert row_of(store, session).version >= 1


# Connections.


def settled(count: Any, wanted: object) -> bool:
    """Whether the count is as wanted within moments: a server process takes a little time to end."""
    for _ in range(int(PATIENCE * 20)):
        if count() == wanted:
            return True
        threading.Event().wait(0.05)
    return False


@pytest.fixture
def url_of_its_own(server: PostgreSQLServer) -> str:
    """The URL of a database where no other test is connected."""
    database = f"own_{secrets.token_hex(4)}"
    server.execute(f"CREATE DATABASE {database} OWNER adh")
    return server.url(database=database)


def _connections_to(server: PostgreSQLServer, url: str) -> int:
    database = url.rpartition("/")[2]
    return int(server.execute(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'")[0][0])


def test_two_connections_stay(server: PostgreSQLServer, url_of_its_own: str) -> None:
    """Of all that a herd of threads has opened, for all stores of one URL; none after close()."""
    stores = [store_at(url_of_its_own) for _ in range(3)]
    stores[0].create()
    most = 0

    def work(number: int) -> None:
        nonlocal most
        signed_in(stores[number % 3])
        most = max(most, _connections_to(server, url_of_its_own))

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(work, range(64)))
    assert most <= postgresql_connections.MAX_OPEN
    assert settled(lambda: _connections_to(server, url_of_its_own), 2)
    stores[0].close()
    assert settled(lambda: _connections_to(server, url_of_its_own), 0)


def test_a_store_that_is_gone_leaves_no_connection(server: PostgreSQLServer, url_of_its_own: str) -> None:
    """Without a ResourceWarning, which is an error here."""
    store = store_at(url_of_its_own)
    store.create()
    assert _connections_to(server, url_of_its_own) == 1
    del store
    gc.collect()
    assert settled(lambda: _connections_to(server, url_of_its_own), 0)


def test_connection_of_the_parent(store: PostgresStore) -> None:
    """A forked child uses connections of its own, and its end does not end the parent's."""
    session = signed_in(store)
    before = _backend(store)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            same = _backend(store) == before
            store.put(session, "child", "s", None, None)
            store.close()
            os.write(writing, b"same" if same else b"other")
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answers:
        assert answers.read() == b"other"
    os.waitpid(pid, 0)
    assert _backend(store) == before
    assert row_of(store, session).pair == "child"


def _backend(store: PostgresStore) -> int:
    return int(store._row("SELECT pg_backend_pid()")[0])


def test_fork_while_another_thread_is_at_work(server: PostgreSQLServer, store: PostgresStore) -> None:
    """The child waits for none of the parent's threads, although they hold the connections and their locks."""
    import psycopg

    session = signed_in(store)
    with psycopg.connect(server.url()) as other:
        other.execute("SELECT FROM adh_auth_session WHERE name = %s FOR UPDATE", [session])
        threads = [
            threading.Thread(target=store.put, args=(session, f"thread {number}", "s", None, None))
            for number in range(postgresql_connections.MAX_OPEN)
        ]
        for thread in threads:
            thread.start()
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        assert settled(lambda: server.execute(waiting)[0][0] >= 2, True)
        pid = os.fork()
        if pid == 0:
            signal.alarm(int(PATIENCE))
            os._exit(0 if store.get(session) is not None else 1)
        assert os.waitpid(pid, 0)[1] == 0
    for thread in threads:
        thread.join()
    assert row_of(store, session).pair is not None


def test_program_ends_without_a_word(server: PostgreSQLServer) -> None:
    """No warning of an open connection, in the parent or in a forked child, with every warning on."""
    code = f"""
import os, warnings
warnings.simplefilter("error")
from adh_auth.common.secret import Secret
from adh_auth.store.postgresql import PostgresStore
store = PostgresStore.from_url(Secret({server.url()!r}))
store.get("s")
if pid := os.fork():
    os.waitpid(pid, 0)
else:
    store.get("s")
"""
    with child(code) as process:
        output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output, errors) == (0, "", "")


def test_transaction_pooler_with_one_connection(
    server: PostgreSQLServer, pgbouncer_server: PgBouncer
) -> None:
    """Eight machines with eight sessions work at once, each with its leases, and nobody waits for long."""
    stores = [
        PostgresStore(lambda: postgresql_connections.connected_to(Secret(pgbouncer_server.url())))
        for _ in range(8)
    ]

    def rotate(store: PostgresStore) -> int:
        session = signed_in(store)
        for number in range(10):
            row = row_of(store, session)
            assert store.take(session, row.version, "me", 10.0)
            assert store.note(session, "me", "{}", 35.0)
            assert store.put(session, f"{number}", "s", row.generation, None)
        return int(row_of(store, session).pair or "")

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(rotate, stores)) == [9] * 8
    for store in stores:
        store.close()


def test_no_state_of_the_session(server: PostgreSQLServer, store: PostgresStore) -> None:
    """Each operation is one statement of its own transaction, without a prepared statement."""
    session = signed_in(store)
    for _ in range(12):
        assert store.put(session, "{}", "s", None, None)
    assert store._row("SELECT count(*) FROM pg_prepared_statements") == (0,)
    assert store._row("SELECT count(*) FROM pg_settings WHERE source = 'session'") == (0,)


# The URL.


@own_server
def test_tls(tmp_path: Path) -> None:
    """A certificate that is checked, and one that is not ours."""
    import trustme

    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    other.cert_pem.write_to_path(str(tmp_path / "other.pem"))
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    files = {
        "tls.pem": certificate.cert_chain_pems[0].bytes(),
        "tls.key": certificate.private_key_pem.bytes(),
    }
    settings = ("ssl = on", "ssl_cert_file = '../tls.pem'", "ssl_key_file = '../tls.key'")
    with servers.postgresql(*settings, **files) as server:
        url = server.url() + "?sslmode=verify-full&sslrootcert="
        store = store_at(url + quote(f"{tmp_path}/ca.pem"))
        store.create()
        signed_in(store)
        assert store._row("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == (True,)
        assert store.name == f"postgresql://127.0.0.1:{server.port}/app"
        store.close()
        error = refused(store_at(url + quote(f"{tmp_path}/other.pem")))
        assert str(error) == "TLS failed"


def test_tls_that_the_server_has_not(server: PostgreSQLServer) -> None:
    assert str(refused(store_at(server.url() + "?sslmode=require"))) == "TLS failed"


def test_options_of_the_url(server: PostgreSQLServer) -> None:
    """They go before our own."""
    store = store_at(server.url() + "?application_name=mine&options=-c%20search_path%3Dpublic")
    assert store._row("SELECT current_setting('application_name')") == ("mine",)
    store.close()


def test_option_that_is_unknown(server: PostgreSQLServer) -> None:
    error = refused(store_at(server.url() + "?passwort=geheim"))
    assert "geheim" not in repr(error)


def test_one_password_per_connection(server: PostgreSQLServer) -> None:
    """`connect` is called for each new connection; a pickle of the store carries the callable."""
    import psycopg

    calls = []

    def connect() -> Any:
        calls.append(PASSWORD)
        return psycopg.connect(server.url())

    store = PostgresStore(connect)
    store.get("s")
    store.get("s")
    store.close()
    store.get("s")
    assert len(calls) == 2
    store.close()


def test_connect_that_fails() -> None:
    """What it raises may hold a password; only its type is kept."""

    def connect() -> Any:
        raise LookupError(PASSWORD)

    with pytest.raises(RegisterUnavailable) as caught:
        PostgresStore(connect).get("s")
    assert str(caught.value) == "connect() raised LookupError"
    assert caught.value.__context__ is None


def test_connect_that_returns_something_else() -> None:
    with pytest.raises(ConfigurationError, match=r"must return a psycopg\.Connection"):
        PostgresStore(object).get("s")


def test_stores_of_one_url_are_equal(server: PostgreSQLServer) -> None:
    """So that what is shared by the store is shared; and a pickle is the same store again."""
    store = store_at(server.url())
    assert store == store_at(server.url())
    assert hash(store) == hash(store_at(server.url()))
    assert store != store_at(server.url(database="other"))
    assert pickle.loads(pickle.dumps(store)) == store
    assert PASSWORD not in repr(store) + str(store.name)
