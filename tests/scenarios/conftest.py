"""Stores of each kind on real servers, for the tests of a fleet and of a kill over a store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..support import servers
from ..support.fleet import Backend, PgBouncerBackend, PostgresBackend, RedisBackend
from ..support.server_fixtures import need


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresBackend]:
    """A PostgreSQL that logs its statements."""
    need("postgresql")
    with servers.postgresql(*PostgresBackend.SETTINGS) as server:
        yield PostgresBackend(server)


@pytest.fixture(params=["postgresql", "pgbouncer", "redis"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """A store of each kind. pgbouncer has two connections."""
    need(request.param)
    if request.param == "redis":
        yield RedisBackend(request.getfixturevalue("redis_server"))
        return
    postgres: PostgresBackend = request.getfixturevalue("postgres")
    if request.param == "postgresql":
        yield postgres
        return
    with servers.pgbouncer(postgres.database, 2) as pooler:
        yield PgBouncerBackend(pooler)


@pytest.fixture(params=["postgresql", "redis"])
def direct_backend(request: pytest.FixtureRequest) -> Backend:
    """The same without a pooler, for what it makes no difference to."""
    need(request.param)
    if request.param == "redis":
        return RedisBackend(request.getfixturevalue("redis_server"))
    postgres: PostgresBackend = request.getfixturevalue("postgres")
    return postgres


@pytest.fixture(params=["postgresql", "redis"])
def own_backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """A store that the test may harm."""
    need(request.param)
    if request.param == "redis":
        with servers.redis() as server:
            yield RedisBackend(server)
        return
    with servers.postgresql(*PostgresBackend.SETTINGS) as database:
        yield PostgresBackend(database)
