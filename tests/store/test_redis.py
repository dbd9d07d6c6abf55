"""Redis and Valkey as a register: on real servers, with redis-py and valkey-py."""

from __future__ import annotations

import os
import pickle
import secrets
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.parse import quote

import pytest

from adh_auth.common.secret import Secret
from adh_auth.errors import ConfigurationError
from adh_auth.store import redis_client, redis_durability
from adh_auth.store.redis import RedisStore
from adh_auth.store.register import RegisterRefused, RegisterUnavailable, Row

from ..support import servers
from ..support.processes import PATIENCE, child, free_port
from ..support.server_fixtures import need
from ..support.servers import PASSWORD, RedisServer, ValkeyServer
from ..support.tcp_proxy import TcpProxy
from .register_contract import StoreContract

MISSING = servers.missing("redis")
pytestmark = [pytest.mark.servers, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

#: For a test that harms its server. It starts one of its own.
own_server = pytest.mark.long


@pytest.fixture
def store(redis_server: RedisServer) -> Iterator[RedisStore]:
    made = store_at(redis_server.url())
    yield made
    made.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer is waited for longer than half a second, and no disk or replica longer than a quarter."""
    monkeypatch.setattr(redis_client, "ANSWER_TIMEOUT", 0.5)
    monkeypatch.setattr(redis_client, "CONNECT_TIMEOUT", 0.5)
    monkeypatch.setattr(redis_durability, "TIMEOUT", 250)


def store_at(url: str) -> RedisStore:
    return RedisStore.from_url(Secret(url))


def signed_in(store: Any) -> str:
    session = secrets.token_hex(8)
    assert store.put(session, "{}", "stamp", None, None)
    return session


def row_of(store: Any, session: str) -> Row:
    row = store.get(session)
    assert isinstance(row, Row)
    return row


class TestRedis(StoreContract):
    @pytest.fixture
    def register(self, store: RedisStore) -> RedisStore:
        return store


class TestValkey(StoreContract):
    @pytest.fixture
    def register(self, valkey_server: ValkeyServer) -> Iterator[RedisStore]:
        store = store_at(valkey_server.url())
        yield store
        store.close()


class TestOwnClient(StoreContract):
    """A client of one's own, which decodes what it gets."""

    @pytest.fixture
    def register(self, redis_server: RedisServer) -> Iterator[RedisStore]:
        import redis

        with redis.Redis.from_url(redis_server.url(), decode_responses=True) as client:
            yield RedisStore(client)


class TestValkeyClient(StoreContract):
    @pytest.fixture
    def register(self, valkey_server: ValkeyServer) -> Iterator[RedisStore]:
        valkey = pytest.importorskip(
            "valkey", reason="needs valkey: pip install 'adh-auth[servers]'; pytest -m servers"
        )
        client = valkey.Valkey.from_url(valkey_server.url())
        yield RedisStore(client)
        client.close()


@pytest.fixture(scope="session")
def cluster() -> Iterator[RedisServer]:
    """One of the two servers of a cluster, each with half of the slots."""
    with servers.redis("cluster-enabled yes") as one, servers.redis("cluster-enabled yes") as other:
        one.execute("CLUSTER", "ADDSLOTSRANGE", 0, 8191)
        other.execute("CLUSTER", "ADDSLOTSRANGE", 8192, 16383)
        one.execute("CLUSTER", "MEET", "127.0.0.1", other.port)
        for server in (one, other):
            assert settled(lambda: "cluster_state:ok" in server.execute("CLUSTER", "INFO"))  # noqa: B023
        yield one


class TestCluster(StoreContract):
    @pytest.fixture
    def register(self, cluster: RedisServer) -> Iterator[RedisStore]:
        import redis

        with redis.RedisCluster(host="127.0.0.1", port=cluster.port, password=PASSWORD) as client:
            yield RedisStore(client)


@pytest.fixture
def sentinel(redis_server: RedisServer) -> Iterator[RedisServer]:
    """A Sentinel that watches the Redis of this run."""
    lines = (
        f"sentinel monitor main 127.0.0.1 {redis_server.port} 1",
        f'sentinel auth-pass main "{PASSWORD}"',
    )
    with servers.redis_sentinel(*lines) as watching:
        yield watching


class TestSentinel(StoreContract):
    @pytest.fixture
    def register(self, sentinel: RedisServer) -> Iterator[RedisStore]:
        from redis.sentinel import Sentinel

        watched = Sentinel(
            [("127.0.0.1", sentinel.port)], sentinel_kwargs={"password": PASSWORD}, password=PASSWORD
        )
        with watched.master_for("main") as client:
            yield RedisStore(client)
        for one in watched.sentinels:
            one.close()


def settled(done: Callable[[], bool]) -> bool:
    """Whether it is so within moments."""
    for _ in range(int(PATIENCE * 20)):
        if done():
            return True
        threading.Event().wait(0.05)
    return False


def retried(call: Callable[[], Any]) -> Any:
    """As the algorithm over it does: a call that fails for now is made again."""
    for _ in range(40):
        try:
            return call()
        except RegisterUnavailable:
            threading.Event().wait(0.1)
    return call()


# Durability.


@own_server
@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_an_acknowledged_put_outlives_a_kill(kind: str) -> None:
    """SIGKILL: the append-only file has what was acknowledged, also where the server answers before.

    It does so while it syncs what came before, the first write in a second; so the last of a few is at risk.
    """
    need(kind)
    with getattr(servers, kind)() as server:
        store = store_at(server.url())
        session = signed_in(store)
        for _ in range(4):
            threading.Event().wait(1.1)
            generation = row_of(store, session).generation
            for number in range(3):
                assert store.put(session, f"{number}", "s", generation + number, None)
            server.restart_after_crash()
            row = retried(lambda: row_of(store, session))
            assert (row.pair, row.generation) == ("2", generation + 3)
        store.close()


@own_server
def test_a_change_waits_for_the_disk(valkey_server: ValkeyServer) -> None:
    """What is kept for good asks with WAITAOF, on its own connection; a lease does not."""
    store = store_at(valkey_server.url())
    session = signed_in(store)
    before = calls(valkey_server)
    row = row_of(store, session)
    store.take(session, row.version, "me", 10.0)
    store.release(session, "me")
    assert calls(valkey_server).get("waitaof") == before["waitaof"]
    changes: tuple[Callable[[], bool], ...] = (
        lambda: store.take(session, row_of(store, session).version, "me", 10.0),
        lambda: store.note(session, "me", "{}", 10.0),
        lambda: store.put(session, "{}", "s", row.generation, None),
        lambda: store.heal(session, row_of(store, session).version, "{}", "s", 1),
    )
    for change, waits in zip(changes, (0, 1, 1, 1), strict=True):
        already = calls(valkey_server)["waitaof"]
        assert change()
        assert calls(valkey_server)["waitaof"] == already + waits
    assert "wait" not in calls(valkey_server)
    store.close()


def calls(server: RedisServer) -> dict[str, int]:
    """How often each command was called."""
    found = server.execute("INFO", "commandstats")
    return {name.removeprefix("cmdstat_"): int(facts["calls"]) for name, facts in found.items()}


@own_server
@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_replicas(kind: str) -> None:
    """A write counts once so many replicas have it; a replica that is promoted has it."""
    need(kind)
    start = getattr(servers, kind)
    with start() as primary, start() as replica:
        replica.follow(primary)
        store = store_at(primary.url() + "?replicas=1")
        session = retried(lambda: signed_in(store))
        assert store.put(session, "kept", "s", row_of(store, session).generation, None)
        primary.crash()
        replica.promote()
        promoted = store_at(replica.url())
        assert row_of(promoted, session).pair == "kept"
        promoted.close()
        store.close()


@own_server
@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_too_few_replicas(kind: str, quick: None) -> None:
    """Nothing is spent on a note that only one machine has."""
    need(kind)
    with getattr(servers, kind)() as server:
        store = store_at(server.url() + "?replicas=1")
        for _ in range(2):  # the first one finds out how to ask
            with pytest.raises(RegisterUnavailable, match="a write has reached 0 of 1 replicas"):
                store.put("s", "{}", "s", None, None)
        store.close()


@own_server
@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_no_append_only_file(kind: str) -> None:
    """One warning, whatever is written; and the check says so."""
    need(kind)
    with getattr(servers, kind)("appendonly no", "maxmemory-policy allkeys-lru") as server:
        store = store_at(server.url())
        with pytest.warns(UserWarning, match=r"keeps no append-only file.* appendonly yes") as caught:
            session = signed_in(store)
        assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert store.put(session, None, "", None, None)
            no_file, evicts = store.check()
        assert "append-only" in no_file
        assert "maxmemory-policy noeviction" in evicts
        store.close()


@own_server
def test_flushed() -> None:
    """A key that is gone can be put back, once; and a sign-out leaves the key."""
    with servers.redis() as server:
        store = store_at(server.url())
        assert store.missing_is_lost
        session, out = signed_in(store), signed_in(store)
        assert store.put(out, None, "", None, None)
        row = row_of(store, session)
        server.execute("FLUSHALL")
        assert store.get(session) is None
        assert store.heal(session, None, "{}", row.stamp, row.generation)
        assert not store.heal(session, None, "{}", row.stamp, row.generation)
        healed = row_of(store, session)
        assert (healed.pair, healed.stamp, healed.generation) == (row.pair, row.stamp, row.generation)
        store.close()


def test_no_key_expires(redis_server: RedisServer, store: RedisStore) -> None:
    session = signed_in(store)
    store.take(session, row_of(store, session).version, "me", 10.0)
    store.note(session, "me", "{}", 0.0)
    assert redis_server.execute("TTL", f"adh:session:{session}") == -1
    assert redis_server.execute("TYPE", f"adh:session:{session}") == "hash"


def test_check_leaves_nothing(redis_server: RedisServer, store: RedisStore) -> None:
    store.check()
    assert redis_server.execute("EXISTS", "adh:session:adh-auth store check") == 0


#: What a server may say of itself, and the warnings that this deserves.
FACTS: tuple[tuple[dict[str, Any], list[str]], ...] = (
    ({}, []),
    ({"aof_enabled": 0}, ["appendonly yes"]),
    ({"aof_enabled": 1, "appendfsync": "no"}, ["appendfsync everysec"]),
    ({"aof_enabled": 1, "appendfsync": "everysec"}, []),
    ({"aof_enabled": 1, "appendfsync": "everysec", "redis_version": "7.0.15"}, ["appendfsync always"]),
    ({"aof_enabled": 1, "appendfsync": "everysec", "redis_version": "7.2.0"}, []),
    ({"aof_enabled": 1, "appendfsync": "everysec", "redis_version": "10.0.0"}, []),
    (
        {"aof_enabled": 1, "appendfsync": "everysec", "redis_version": "7.0.0", "valkey_version": "9.1.2"},
        [],
    ),
    ({"aof_enabled": 1, "appendfsync": "always", "redis_version": "6.2.5"}, []),
    ({"aof_enabled": 1, "maxmemory_policy": "allkeys-lru"}, ["maxmemory-policy noeviction"]),
    ({"aof_enabled": 1, "maxmemory_policy": "volatile-lru"}, []),
)


@pytest.mark.parametrize(("facts", "advised"), FACTS)
def test_warnings(facts: dict[str, Any], advised: list[str]) -> None:
    found = redis_durability.warnings_of(facts)
    assert [
        warning.partition("Set there: ")[2] or warning.partition("set there: ")[2] for warning in found
    ] == [f"{setting}." for setting in advised]


# Refusals.


def refused(work: Callable[[], Any]) -> RegisterRefused:
    with pytest.raises(RegisterRefused) as caught:
        work()
    return caught.value


def test_wrong_password(redis_server: RedisServer) -> None:
    error = refused(lambda: store_at(redis_server.url(password="wrong")).get("s"))
    assert str(error) == "the password is wrong"
    assert error.next_step == "Check the user and the password of the store's URL"


def test_no_password(redis_server: RedisServer) -> None:
    error = refused(lambda: store_at(f"redis://127.0.0.1:{redis_server.port}").get("s"))
    assert str(error) == "the server wants a password"
    assert error.next_step == "Put it into the URL in ADH_STORE"


@pytest.fixture
def with_rights(redis_server: RedisServer) -> Iterator[Callable[..., RedisStore]]:
    """A store of a user with these rights."""
    names = []

    def make(*rights: str) -> RedisStore:
        name = f"user_{secrets.token_hex(4)}"
        names.append(name)
        redis_server.execute("ACL", "SETUSER", name, "on", ">pw", *rights)
        return store_at(redis_server.url(name, "pw"))

    yield make
    for name in names:
        redis_server.execute("ACL", "DELUSER", name)


def test_reader(with_rights: Callable[..., RedisStore], store: RedisStore) -> None:
    """It reads what others write, and is refused each change."""
    reader = with_rights("~adh:session:*", "+@read", "+@scripting", "+time", "+scan")
    session = signed_in(store)
    row = row_of(reader, session)
    assert session in reader.sessions()
    for change in (
        lambda: reader.put(session, "{}", "s", row.generation, None),
        lambda: reader.take(session, row.version, "me", 10.0),
        lambda: reader.heal(session, row.version, "{}", "s", 1),
        reader.check,
    ):
        error = refused(change)
        assert str(error) == "permission denied"
        assert "~adh:session:*" in error.next_step
    assert row_of(store, session)._replace(lease_left=0) == row._replace(lease_left=0)
    reader.close()


def test_least_rights(with_rights: Callable[..., RedisStore]) -> None:
    """What the refusal names is enough for everything."""
    error = refused(lambda: with_rights("~other:*", "+@all").get("s"))
    rights = error.next_step.partition(": ")[2].split()
    writer = with_rights(*rights)
    session = signed_in(writer)
    assert writer.take(session, row_of(writer, session).version, "me", 10.0)
    assert writer.note(session, "me", "{}", 10.0)
    assert session in writer.sessions()
    writer.check()
    writer.close()


@own_server
@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_full_memory(kind: str) -> None:
    """It still reads; a change is refused whole."""
    need(kind)
    with getattr(servers, kind)("maxmemory-policy noeviction") as server:
        store = store_at(server.url())
        session = signed_in(store)
        row = row_of(store, session)
        server.execute("CONFIG", "SET", "maxmemory", 1)
        for change in (
            lambda: store.put(session, "x" * 10_000, "s", row.generation, None),
            lambda: store.take(session, row.version, "me", 10.0),
        ):
            assert str(refused(change)) == "its memory is full"
        assert row_of(store, session)._replace(lease_left=0) == row._replace(lease_left=0)
        store.close()


@own_server
def test_replica_is_read_only() -> None:
    """After a failover the old primary is a replica: the same may work in a moment."""
    with servers.redis() as primary, servers.redis() as replica:
        replica.follow(primary)
        store = store_at(replica.url())
        with pytest.raises(RegisterUnavailable, match="the server is a replica"):
            store.put("s", "{}", "s", None, None)
        store.close()


def test_connection_to_a_replica_is_not_kept(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of the host may stand for another server by now."""
    signed_in(store)
    before = client_id(store)
    script = "return redis.error_reply('READONLY You cannot write against a read only replica.')"
    monkeypatch.setattr("adh_auth.store.redis_scripts.GET", script)
    with pytest.raises(RegisterUnavailable, match="the server is a replica"):
        store.get("s")
    assert client_id(store) != before


@own_server
def test_too_few_replicas_by_the_servers_own_rule() -> None:
    with servers.redis("min-replicas-to-write 1") as server:
        store = store_at(server.url())
        with pytest.raises(RegisterUnavailable, match="too few replicas"):
            store.put("s", "{}", "s", None, None)
        store.close()


def test_cluster_without_its_client(cluster: RedisServer) -> None:
    """A URL names one server. A session of another one needs the cluster's client."""
    store = store_at(cluster.url())
    error = refused(lambda: [store.get(f"{number}") for number in range(64)])
    assert str(error) == "it is part of a cluster"
    assert "RedisCluster" in error.next_step
    store.close()


def test_session_that_moves(cluster: RedisServer) -> None:
    """The cluster's client follows a slot that has moved, for reads and for writes."""
    import redis

    with redis.RedisCluster(host="127.0.0.1", port=cluster.port, password=PASSWORD) as client:
        store = RedisStore(client)
        assert store.name.startswith("redis://127.0.0.1:")
        sessions = [signed_in(store) for _ in range(16)]
        assert {client.keyslot(f"adh:session:{session}") < 8192 for session in sessions} == {True, False}
        assert set(sessions) <= set(store.sessions())


@own_server
def test_cluster_that_is_down() -> None:
    with servers.redis("cluster-enabled yes") as server:
        store = store_at(server.url())
        with pytest.raises(RegisterUnavailable, match="the cluster is down"):
            store.get("s")
        store.close()


def test_key_of_another_program(redis_server: RedisServer, store: RedisStore) -> None:
    session = secrets.token_hex(8)
    redis_server.execute("SET", f"adh:session:{session}", "theirs")
    error = refused(lambda: store.get(session))
    assert str(error) == "its key holds something else"
    redis_server.execute("DEL", f"adh:session:{session}")


# Trouble with the connection.


def test_nobody_listens() -> None:
    with pytest.raises(RegisterUnavailable, match="connection refused"):
        store_at(f"redis://:pw@127.0.0.1:{free_port()}").get("s")


def test_unknown_host() -> None:
    with pytest.raises(RegisterUnavailable, match="the host is not known") as caught:
        store_at("redis://:pw@nowhere.invalid").get("s")
    assert caught.value.next_step == "Check the host of the store's URL"


def test_cut_connection(redis_server: RedisServer) -> None:
    with TcpProxy(redis_server.port) as proxy:
        store = store_at(redis_server.url(port=proxy.port))
        session = signed_in(store)
        proxy.cut()
        with pytest.raises(RegisterUnavailable):
            store.get(session)
        proxy.heal()
        assert row_of(store, session).pair == "{}"
        store.close()


def test_network_that_swallows(redis_server: RedisServer, quick: None) -> None:
    """No answer: the operation ends; it was made once, not again by the client."""
    with TcpProxy(redis_server.port) as proxy:
        store = store_at(redis_server.url(port=proxy.port))
        session = signed_in(store)
        row = row_of(store, session)
        proxy.swallow("answer")
        accepted = proxy.accepted
        with pytest.raises(RegisterUnavailable, match="no answer"):
            store.put(session, "lost answer", "mine", row.generation, None)
        assert proxy.accepted == accepted
        with pytest.raises(RegisterUnavailable, match="no answer"):
            store.get(session)
        proxy.heal()
        found = row_of(store, session)
        assert (found.pair, found.version, found.generation) == (
            "lost answer",
            row.version + 1,
            row.generation + 1,
        )
        store.close()


@own_server
def test_server_that_is_stopped(quick: None) -> None:
    with servers.redis() as server:
        store = store_at(server.url())
        session = signed_in(store)
        server.pause()
        for _ in range(2):
            with pytest.raises(RegisterUnavailable, match="no answer"):
                store.get(session)
        server.resume()
        assert retried(lambda: row_of(store, session)).pair == "{}"
        store.close()


@own_server
def test_server_that_is_loading() -> None:
    """A large file: it answers, and says that it is not ready."""
    slow = ("key-load-delay 10000", "loading-process-events-interval-bytes 1024")
    with servers.redis("appendonly no", *slow) as server:
        for number in range(500):
            server.execute("SET", f"{number}", "x" * 1024)
        server.execute("SAVE")
        server.crash()
        server.start(until=server.listens)
        store = store_at(server.url())
        with pytest.raises(RegisterUnavailable, match="the server is starting"):
            store.get("s")
        store.close()


# Clients.


def test_connection_of_the_parent(store: RedisStore) -> None:
    """A forked child uses connections of its own, and its end does not end the parent's."""
    session = signed_in(store)
    before = client_id(store)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            same = client_id(store) == before
            store.put(session, "child", "s", None, None)
            store.close()
            os.write(writing, b"same" if same else b"other")
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answers:
        assert answers.read() == b"other"
    os.waitpid(pid, 0)
    assert client_id(store) == before
    assert row_of(store, session).pair == "child"


def client_id(store: RedisStore) -> int:
    return int(store._client().client_id())


def test_program_ends_without_a_word(redis_server: RedisServer) -> None:
    """No warning of an open connection, with every warning on."""
    code = f"""
import warnings
warnings.simplefilter("error")
from adh_auth.common.secret import Secret
from adh_auth.store.redis import RedisStore
store = RedisStore.from_url(Secret({redis_server.url()!r}))
store.get("s")
"""
    with child(code) as process:
        output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output, errors) == (0, "", "")


def test_stores_of_one_url_share_a_client(redis_server: RedisServer) -> None:
    """They are equal, and a pickle is the same store again."""
    store, other = store_at(redis_server.url()), store_at(redis_server.url())
    assert store._client() is other._client()
    assert store == other
    assert hash(store) == hash(other)
    assert store != store_at(redis_server.url(database=1))
    assert pickle.loads(pickle.dumps(store)) == store
    assert PASSWORD not in repr(store) + store.name
    store.close()


def test_names_of_clients(redis_server: RedisServer) -> None:
    """Host, port and database, as far as the client says."""
    import redis
    from redis.sentinel import Sentinel

    assert RedisStore(redis.Redis("cache", 6380, 2, password=PASSWORD)).name == "redis://cache:6380/2"
    assert RedisStore(redis.Redis(unix_socket_path="/run/r.sock")).name == "redis:///run/r.sock/0"
    assert RedisStore(Sentinel([("s", 1)]).master_for("main")).name == "redis://main/0"
    assert RedisStore(redis.Redis(), name="mine").name == "mine"
    assert RedisStore(Mock(connection_pool=None, spec=["eval", "connection_pool"])).name == "redis"


def test_client_for_asyncio() -> None:
    import redis.asyncio

    with pytest.raises(ConfigurationError, match=r"not of redis\.asyncio"):
        RedisStore(redis.asyncio.Redis())


@pytest.mark.parametrize("option", ["passwort=geheim", "socket_timeout=geheim", "db=geheim"])
def test_option_that_is_unknown(redis_server: RedisServer, option: str) -> None:
    """redis-py's own words quote it."""
    error = refused(lambda: store_at(f"{redis_server.url()}?{option}").get("s"))
    assert (str(error), error.next_step) == ("redis-py can't read its URL", "Check the options of the URL")
    assert "geheim" not in repr(error)
    assert error.__context__ is None


@pytest.mark.parametrize("scheme", ["redis", "rediss", "valkey", "valkeys"])
def test_database_that_is_no_number(scheme: str) -> None:
    """Nothing is built of such a URL."""
    with pytest.raises(ConfigurationError, match="database that is no number"):
        store_at(f"{scheme}://cache/prod")


def test_unknown_database(redis_server: RedisServer) -> None:
    """Redis has 16, unless its configuration says otherwise."""
    error = refused(lambda: store_at(redis_server.url(database=16)).get("s"))
    assert str(error) == "there is no such database"
    assert error.next_step == "Check the database in the store's URL"


@own_server
@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_tls(kind: str, tmp_path: Path) -> None:
    """A certificate that is checked, and one that is not ours."""
    need(kind)
    import trustme

    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    other.cert_pem.write_to_path(str(tmp_path / "other.pem"))
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    files = {
        "tls.pem": certificate.cert_chain_pems[0].bytes(),
        "tls.key": certificate.private_key_pem.bytes(),
    }
    port = free_port()
    settings = (
        f"tls-port {port}",
        "tls-cert-file tls.pem",
        "tls-key-file tls.key",
        "tls-ca-cert-file tls.pem",
        "tls-auth-clients no",
    )
    if not servers.has_tls(kind):
        pytest.skip("needs a server with TLS: apt-get install redis-server; pytest -m servers")
    with getattr(servers, kind)(*settings, **files) as server:
        scheme = {"redis": "rediss", "valkey": "valkeys"}[kind]
        url = server.url(port=port).replace(kind, scheme, 1) + "?ssl_ca_certs="
        store = store_at(url + quote(f"{tmp_path}/ca.pem"))
        signed_in(store)
        assert store.name == f"{scheme}://127.0.0.1:{port}/0"
        store.close()
        assert str(refused(lambda: store_at(url + quote(f"{tmp_path}/other.pem")).get("s"))) == "TLS failed"
