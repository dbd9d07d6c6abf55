"""The objects of `adh_auth.stores` when they are built: what they refuse, without a server and a driver."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest

from adh_auth.common.secret import Secret
from adh_auth.errors import ConfigurationError
from adh_auth.store.postgresql import PostgresStore
from adh_auth.store.redis import RedisStore

URL = "redis://app:geheim@db/0"
NO_CLIENT = "RedisStore takes a client of redis-py or valkey-py. Pass a URL as store=, not to RedisStore"
NO_FUNCTION = (
    "PostgresStore takes a function that returns a connection. Pass a URL as store=, not to PostgresStore"
)


@pytest.mark.parametrize(
    "given", [URL, URL.encode(), bytearray(URL.encode()), Secret(URL), None, 5, {"url": URL}]
)
@pytest.mark.parametrize(
    ("store", "message"), [(RedisStore, NO_CLIENT), (PostgresStore, NO_FUNCTION)], ids=["redis", "postgresql"]
)
def test_something_else_than_a_client(store: Callable[..., Any], message: str, given: object) -> None:
    """It would fail at the first use only, and a URL would carry its password into a pickle."""
    assert refusal(lambda: store(given)) == message


@pytest.mark.parametrize("replicas", [-1, 1.5, "1", True, None])
def test_replicas_that_are_no_number(replicas: Any) -> None:
    assert refusal(lambda: RedisStore(Mock(), replicas=replicas)) == "replicas must be a number, 0 or more"


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "\x00", 5, b"db"])
@pytest.mark.parametrize("store", [RedisStore, PostgresStore])
def test_name_that_is_not_printable(store: Callable[..., Any], name: Any) -> None:
    """It stands in messages, and they in logs."""
    assert refusal(lambda: store(Mock(), name=name)) == "name must be printable characters"


def test_what_is_accepted() -> None:
    assert RedisStore(Mock(), replicas=2, name="cache ä").name == "cache ä"
    assert RedisStore(Mock(), name="").name.startswith("redis")
    assert PostgresStore(Mock(), name="db").name == "db"


class AsyncClient:
    """As one of redis.asyncio."""

    async def execute_command(self) -> None: ...


def test_repr_of_one_that_was_refused() -> None:
    """A traceback with locals shows it."""
    with pytest.raises(ConfigurationError) as caught:
        RedisStore(AsyncClient())
    assert "<RedisStore>" in shown(caught.value)


@pytest.mark.parametrize("store", [RedisStore, PostgresStore])
def test_repr_of_one_that_is_not_built_yet(store: Any) -> None:
    assert repr(store.__new__(store)) == f"<{store.__name__}>"


def refusal(build: Callable[[], object]) -> str:
    """Return the message; neither it nor what a traceback shows holds the password."""
    with pytest.raises(ConfigurationError) as caught:
        build()
    assert caught.value.setting == "store"
    assert caught.value.__context__ is None
    assert "geheim" not in "".join(traceback.format_exception(caught.value))
    for frame, _ in traceback.walk_tb(caught.tb):
        if "/adh_auth/" in frame.f_code.co_filename:
            assert "geheim" not in repr(frame.f_locals)
    return str(caught.value)


def shown(error: Exception) -> str:
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
