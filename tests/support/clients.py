"""Every client behind one function: requests, httpx and httpx2, sync and async."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import anyio
import httpx
import httpx2
import pytest
import requests

from adh_auth import AdhAuth, AdhHttpx2Auth, AdhHttpxAuth

from .processes import PATIENCE

__all__ = ["CLIENTS", "EveryClient"]


@dataclass(frozen=True)
class Family:
    """One of httpx and httpx2, and the auth class for it."""

    name: str
    module: Any
    auth: Any


FAMILY = (Family("httpx", httpx, AdhHttpxAuth), Family("httpx2", httpx2, AdhHttpx2Auth))


def modules() -> tuple[ModuleType, ...]:
    """Return the modules of the clients."""
    return (requests, httpx, httpx2)


def needs(name: str, extra: str = "clients") -> Any:
    """Return the package `name`; without it, skip the test and name the command that installs it."""
    how = f'pip install -e ".[{extra}]" && python -m pytest -m {extra}'
    return pytest.importorskip(name, reason=f"needs {name}: {how}")


@dataclass(frozen=True)
class EveryClient:
    """One client. `get` follows redirects, its `options` go to the client itself."""

    name: str
    auth: Any
    get: Callable[..., Any] = field(repr=False)


def _requests(auth: Any, url: str, *, headers: dict[str, str] | None = None, **options: Any) -> Any:
    with requests.Session() as session:
        session.auth = auth
        for name, value in options.items():
            setattr(session, name, value)
        return session.get(url, headers=headers, timeout=PATIENCE)


def _sync(family: Family) -> Callable[..., Any]:
    def get(auth: Any, url: str, *, headers: dict[str, str] | None = None, **options: Any) -> Any:
        with family.module.Client(auth=auth, follow_redirects=True, timeout=PATIENCE, **options) as client:
            return client.get(url, headers=headers)

    return get


def _async(family: Family) -> Callable[..., Any]:
    async def get(auth: Any, url: str, headers: dict[str, str] | None, options: dict[str, Any]) -> Any:
        async with family.module.AsyncClient(
            auth=auth, follow_redirects=True, timeout=PATIENCE, **options
        ) as client:
            return await client.get(url, headers=headers)

    return lambda auth, url, *, headers=None, **options: anyio.run(get, auth, url, headers, options)


CLIENTS = (
    EveryClient("requests", AdhAuth, _requests),
    *(EveryClient(family.name, family.auth, _sync(family)) for family in FAMILY),
    *(EveryClient(family.name + "-task", family.auth, _async(family)) for family in FAMILY),
)
