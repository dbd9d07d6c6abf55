"""One client of httpx or httpx2, sync or async, behind the same calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio

from .clients import Family
from .processes import PATIENCE

__all__ = ["Twin"]


class Twin:
    """One client of either kind behind the same calls: a test is written once, and runs sync and async."""

    def __init__(self, kind: str, family: Family, auth: Any) -> None:
        self.kind = kind
        self.family = family
        self.auth = auth

    def run(self, work: Callable[[Any], Any], **options: Any) -> Any:
        """Return what `work` returns: a coroutine function of a client whose methods are awaited."""
        if self.kind == "sync":
            with self.family.module.Client(**{"auth": self.auth, "timeout": PATIENCE, **options}) as client:
                return anyio.run(work, _Awaitable(client))

        async def main() -> Any:
            async with self.family.module.AsyncClient(
                **{"auth": self.auth, "timeout": PATIENCE, **options}
            ) as client:
                return await work(client)

        return anyio.run(main, backend=self.kind)

    def hook(self, work: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return `work`, a coroutine function that awaits nothing but `read`, as an event hook."""
        if self.kind != "sync":
            return work

        def hook(subject: Any) -> None:
            try:
                work(subject).send(None)
            except StopIteration:
                return
            raise AssertionError("a hook of a synchronous client has waited")

        return hook

    async def read(self, response: Any) -> bytes:
        """Return the body, in a hook of either kind."""
        return bytes(response.read() if self.kind == "sync" else await response.aread())

    async def refresh(self) -> Any:
        return self.auth.refresh() if self.kind == "sync" else await self.auth.arefresh()

    async def revoke(self) -> Any:
        return self.auth.revoke() if self.kind == "sync" else await self.auth.arevoke()


class _Awaitable:
    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any, **named: Any) -> Any:
            return getattr(self._client, name)(*arguments, **named)

        return call
