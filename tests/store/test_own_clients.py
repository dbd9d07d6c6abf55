"""The objects of `adh_auth.stores` when they are built: what they refuse, without a server and a driver."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from adh_auth.errors import ConfigurationError
from adh_auth.store.postgresql import PostgresStore
from adh_auth.store.redis import RedisStore


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


def shown(error: Exception) -> str:
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
