"""Fixtures for real servers, for any test: one server of a kind for a whole run of a worker, skipped in words.

A test that harms its server starts one of its own: ``with servers.postgresql() as server``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import servers

__all__ = ["pgbouncer_server", "postgresql_server", "redis_server", "valkey_server"]


def need(*kinds: str) -> None:
    """Skip the test unless all these servers can be started here."""
    for kind in kinds:
        reason = servers.missing(kind)
        if reason:
            pytest.skip(reason)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[servers.PostgreSQLServer]:
    """A PostgreSQL with the database `app` and its owner."""
    need("postgresql")
    with servers.postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def pgbouncer_server(postgresql_server: servers.PostgreSQLServer) -> Iterator[servers.PgBouncer]:
    """A pgbouncer in transaction mode with one connection to that PostgreSQL."""
    need("pgbouncer")
    with servers.pgbouncer(postgresql_server) as pooler:
        yield pooler


@pytest.fixture(scope="session")
def redis_server() -> Iterator[servers.RedisServer]:
    """A Redis with an append-only file."""
    need("redis")
    with servers.redis() as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[servers.ValkeyServer]:
    """A Valkey with an append-only file."""
    need("valkey")
    with servers.valkey() as server:
        yield server
