"""`adh_auth.stores`: its names, which come when they are asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import adh_auth
from adh_auth import stores

from ..support.cli import environment


def test_every_name_is_there() -> None:
    """And is listed."""
    assert set(stores.__all__) <= set(dir(stores))
    for name in stores.__all__:
        assert getattr(stores, name).__name__ == name
    assert adh_auth.TokenStore is stores.TokenStore
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = stores.Nothing


def test_no_driver_is_imported() -> None:
    """A program with a client of its own brings its driver; a program with a token file has none."""
    code = "import sys; from adh_auth.stores import PostgresStore, RedisStore, Register, Row, TokenStore; "
    code += "print({'psycopg', 'redis', 'valkey', 'cryptography'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout == "set()\n"
