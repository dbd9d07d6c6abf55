"""Every way a program may call: requests, httpx and httpx2, plain and from a task, behind one function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import requests

from adh_auth import AdhAuth

from .support import FAMILY, PATIENCE, Family

__all__ = ["CLIENTS", "EveryClient"]


@dataclass(frozen=True)
class EveryClient:
    """One of them. `get` follows redirects, `options` go to the client itself."""

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
