"""The sweep of test_secrets over the stores: no password, no URL and no token in anything that may be seen."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from adh_auth.common.secret import Secret
from adh_auth.errors import AdhAuthError
from adh_auth.store import postgresql_connections, redis_client
from adh_auth.store.postgresql import PostgresStore
from adh_auth.store.redis import RedisStore
from adh_auth.store.register import RegisterRefused, RegisterUnavailable

from ..support.processes import free_port
from ..support.servers import PASSWORD, PostgreSQLServer, RedisServer
from ..support.tcp_proxy import TcpProxy
from .test_secrets import Sweep, watched

pytestmark = pytest.mark.servers

TOKEN = "adh_rt_Zy7bLm4PdGh9"
PAIR = f'{{"refresh_token": "{TOKEN}"}}'


def everything(store: Any, sweep: Sweep, where: str) -> None:
    """Every operation, and what is seen of each."""
    session = secrets.token_hex(8)
    works: dict[str, Callable[[], Any]] = {
        "create": store.create,
        "check": store.check,
        "sessions": store.sessions,
        "get": lambda: store.get(session),
        "sign-in": lambda: store.put(session, PAIR, "s", None, None),
        "put": lambda: store.put(session, PAIR, "s", 1, None),
        "take": lambda: store.take(session, 1, "me", 10.0),
        "note": lambda: store.note(session, "me", "{}", 10.0),
        "heal": lambda: store.heal(session, 1, PAIR, "s", 5),
        "heal missing": lambda: store.heal(secrets.token_hex(8), None, PAIR, "s", 5),
        "release": lambda: store.release(session, "me"),
        "close": store.close,
    }
    for name, work in works.items():
        try:
            work()
        except (RegisterUnavailable, RegisterRefused, AdhAuthError) as error:
            sweep.error(error, f"{where}, {name}")
            sweep.add(f"{where}, {name}", getattr(error, "next_step", ""))
    sweep.objects(store, where)
    sweep.add(where, repr(store), str(store.name))


SECRETS = {"password": PASSWORD, "quoted password": "p%20w%2F%C3%B6%3F%23%40s3cr3t", "token": TOKEN}


@pytest.fixture
def sweep(capfd: pytest.CaptureFixture[str]) -> Iterator[Sweep]:
    """A sweep that has found nothing at the end of the test, and a good deal to look at."""
    made = Sweep()
    with watched(made):
        yield made
    made.add("output", *capfd.readouterr())
    assert made.leaks(SECRETS) == []
    assert any("Error" in where or "Register" in where for where, _ in made.texts)


@pytest.mark.long
def test_postgresql(
    postgresql_server: PostgreSQLServer, sweep: Sweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(postgresql_connections, "ANSWER_TIMEOUT", 0.3)
    server = postgresql_server
    server.execute("DROP ROLE IF EXISTS stranger; CREATE ROLE stranger LOGIN PASSWORD 's3cr3t-of-a-stranger'")
    (tmp_path / "not-a-ca.pem").write_text("nothing")
    urls = {
        "good": server.url(),
        "wrong password": server.url(user="nobody"),
        "no rights": server.url(user="stranger", password="s3cr3t-of-a-stranger"),
        "no database": server.url(database="nowhere"),
        "no table": server.url("postgres", database="postgres"),
        "no server": server.url(port=free_port()),
        "no host": server.url().replace("127.0.0.1", "nowhere.invalid"),
        "unknown option": server.url() + f"?{TOKEN}={TOKEN}",
        "bad option": server.url() + "?sslmode=nonsense",
        "no certificates": server.url()
        + f"?sslmode=verify-full&sslrootcert={quote(str(tmp_path))}/not-a-ca.pem",
        "bad percent": server.url().replace("%20", "%zz"),
    }
    for where, url in urls.items():
        everything(PostgresStore.from_url(Secret(url)), sweep, where)
    with TcpProxy(server.port) as proxy:
        store = PostgresStore.from_url(Secret(server.url(port=proxy.port)))
        store.get("s")
        for trouble in (proxy.swallow, proxy.cut):
            trouble()
            everything(store, sweep, trouble.__name__)


def test_connect_of_ones_own(postgresql_server: PostgreSQLServer, sweep: Sweep) -> None:
    """A callable that raises what holds the password."""

    def connect() -> Any:
        raise RuntimeError(postgresql_server.url())

    everything(PostgresStore(connect), sweep, "connect")


@pytest.mark.long
def test_redis(redis_server: RedisServer, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_client, "ANSWER_TIMEOUT", 0.3)
    server = redis_server
    server.execute("ACL", "SETUSER", "stranger", "on", ">s3cr3t-of-a-stranger")
    urls = {
        "good": server.url(),
        "wrong password": server.url(user="nobody"),
        "no rights": server.url("stranger", "s3cr3t-of-a-stranger"),
        "no server": server.url(port=free_port()),
        "no host": server.url().replace("127.0.0.1", "nowhere.invalid"),
        "no TLS": server.url().replace("redis:", "rediss:"),
        "unknown option": server.url() + f"?{TOKEN}={TOKEN}",
        "bad option": server.url() + f"?socket_timeout={TOKEN}",
    }
    for where, url in urls.items():
        everything(RedisStore.from_url(Secret(url)), sweep, where)
    with TcpProxy(server.port) as proxy:
        store = RedisStore.from_url(Secret(server.url(port=proxy.port)))
        store.get("s")
        for trouble in (proxy.swallow, proxy.cut):
            trouble()
            everything(store, sweep, trouble.__name__)


def test_the_sweep_would_find_one(
    postgresql_server: PostgreSQLServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It means something that it finds nothing."""
    monkeypatch.setattr(Secret, "__repr__", lambda self: self.reveal())
    planted = Sweep()
    everything(PostgresStore.from_url(Secret(postgresql_server.url(user="nobody"))), planted, "planted")
    found = planted.leaks(SECRETS)
    assert any(line.startswith("token in planted, put: local") for line in found)
    assert any("password" in line for line in found)
