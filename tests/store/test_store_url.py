"""The name of a store, without what is secret in its URL."""

from __future__ import annotations

import traceback

import pytest

from adh_auth.common.secret import Secret
from adh_auth.errors import ConfigurationError
from adh_auth.store.redis_client import replicas_in, require_database_number
from adh_auth.store.store_url import name_of

from ..support.processes import PATIENCE, child

NAMES = {
    "postgresql://app:pw@db:5432/app?sslmode=require": "postgresql://db:5432/app",
    "postgres://app:pw@db/app": "postgresql://db/app",
    "POSTGRES://app:pw@db/app": "postgresql://db/app",
    "postgresql://app:a%40b%2Fc@db,db2:6432/app": "postgresql://db,db2:6432/app",
    "postgresql://u:p@w@db/app": "postgresql://db/app",
    "postgresql:///app?host=/run/postgresql&password=pw": "postgresql:///app",
    "postgresql://[::1]:5432/app": "postgresql://[::1]:5432/app",
    "postgresql://[::1]/app": "postgresql://[::1]/app",
    "redis://:pw@cache": "redis://cache",
    "redis://:pw@cache/": "redis://cache",
    "rediss://u:pw@cache:6380/2?replicas=1": "rediss://cache:6380/2",
    "valkey://cache:6379/0": "valkey://cache:6379/0",
}


@pytest.mark.parametrize("url", NAMES)
def test_name(url: str) -> None:
    assert name_of(Secret(url)) == NAMES[url]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql://app:geheim/x@db/app", "out of place"),
        ("postgresql://app:geheim#x@db/app", "out of place"),
        ("postgresql://app:geheim?x@db/app", "out of place"),
        ("postgresql://app:geheim@db:geheim/app", "port"),
        ("postgresql://app:geheim@db:65536/app", "port"),
        ("postgresql://app:geheim@db:5432:geheim/app", "port"),
        ("postgresql://geheim:geheim", "port"),
        ("postgresql://app:geheim@db,db2:geheim/app", "port"),
        ("redis://:geheim@[::1]:geheim", "port"),
        ("redis://:geheim@ca\nche/0", "control character"),
    ],
)
def test_url_that_is_refused(url: str, problem: str) -> None:
    """In words that quote nothing of it: a password with a character that has to be escaped is cut anywhere."""
    with pytest.raises(ConfigurationError, match=problem) as caught:
        name_of(Secret(url))
    assert caught.value.setting == "store"
    assert caught.value.__context__ is None
    assert "geheim" not in "".join(traceback.format_exception(caught.value))
    assert not any(
        "geheim" in repr(frame.f_locals)
        for frame, _ in traceback.walk_tb(caught.tb)
        if "adh_auth" in frame.f_code.co_filename
    )


@pytest.mark.parametrize(("options", "replicas"), [("", 0), ("?replicas=2", 2), ("?x=1&replicas=0", 0)])
def test_replicas(options: str, replicas: int) -> None:
    assert replicas_in(Secret("redis://cache" + options)) == replicas


@pytest.mark.parametrize("path", ["", "/", "/0", "/15", "/2/", "/3?replicas=1"])
def test_database_of_redis(path: str) -> None:
    require_database_number(Secret("redis://cache" + path))


@pytest.mark.parametrize("path", ["/prod", "/0/1", "/-1", "/1.5", "/²", "/%31", "//0", "/prod?db=1"])
def test_database_of_redis_that_is_no_number(path: str) -> None:
    """redis-py takes it for database 0: two applications would share a session."""
    url = f"redis://:geheim@cache{path}"
    with pytest.raises(ConfigurationError, match="database that is no number: end it with /0, /1") as caught:
        require_database_number(Secret(url))
    assert caught.value.setting == "store"
    assert caught.value.__context__ is None
    assert "geheim" not in "".join(traceback.format_exception(caught.value))
    assert not any(
        "geheim" in repr(frame.f_locals)
        for frame, _ in traceback.walk_tb(caught.tb)
        if "adh_auth" in frame.f_code.co_filename
    )


@pytest.mark.parametrize("value", ["", "-1", "two", "1.5", "²"])
def test_replicas_that_are_no_number(value: str) -> None:
    with pytest.raises(ConfigurationError, match="must be a number"):
        replicas_in(Secret(f"redis://cache?replicas={value}"))


@pytest.mark.parametrize(
    ("package", "extra", "module", "store"),
    [
        ("psycopg", "postgres", "postgresql", "PostgresStore"),
        ("redis", "redis", "redis", "RedisStore"),
    ],
)
def test_missing_driver(package: str, extra: str, module: str, store: str) -> None:
    """The line that brings it. Nothing imports a driver before it is needed."""
    code = f"""
import sys
sys.modules["{package}"] = None
from adh_auth.common.secret import Secret
from adh_auth.errors import ConfigurationError
from adh_auth.store.{module} import {store}
try:
    {store}.from_url(Secret("{module}://u:geheim@db")).get("s")
except ConfigurationError as error:
    assert error.__context__ is None
    print(error)
"""
    with child(code) as process:
        output, errors = process.communicate(timeout=PATIENCE)
    assert f'pip install "adh-auth[{extra}]"' in output
    assert errors == ""
    assert "geheim" not in output
