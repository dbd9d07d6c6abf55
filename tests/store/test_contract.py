"""The token file and a store over a register keep one contract."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from adh_auth import TokenFile
from adh_auth.store.cipher import cipher_from
from adh_auth.store.registry import RegistryStore
from adh_auth.testing import MemoryRegister

from .contract import THIRD, SessionContract, _reply


class TestTokenFileContract(SessionContract):
    @pytest.fixture
    def stores(self, tmp_path: Path) -> tuple[TokenFile, TokenFile]:
        path = tmp_path / "adh" / "tokens.json"
        path.parent.mkdir(mode=0o700)
        return TokenFile(path), TokenFile(path)

    def change_without_the_lock(self, store: Any, change: str) -> None:
        if change == "sign-out":
            os.unlink(store.path)
            return
        other = store.path.with_name("other")
        other.write_text(json.dumps(_reply(THIRD)))
        os.chmod(other, 0o600)
        os.replace(other, store.path)


class TestRegistryContract(SessionContract):
    @pytest.fixture(params=["Redis", "PostgreSQL", "encrypted"])
    def stores(self, request: pytest.FixtureRequest) -> tuple[RegistryStore, RegistryStore]:
        register = MemoryRegister(missing_is_lost=request.param != "PostgreSQL")
        key = {"ADH_STORE_KEY": "A" * 43 + "="} if request.param == "encrypted" else {}
        here, there = (
            RegistryStore(machine, "reports", cipher=cipher_from(key))
            for machine in (register, register.for_another_machine())
        )
        return here, there

    def change_without_the_lock(self, store: Any, change: str) -> None:
        if change == "sign-out":
            store.delete()
        else:
            store.save(THIRD)
