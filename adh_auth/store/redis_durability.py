"""How long a write to Redis waits until it is kept: on the server's disk, or on its replicas."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ..common.notices import warn_loudly
from .register import RegisterUnavailable

__all__ = ["Durability", "facts_of", "warnings_of"]

#: Milliseconds that the server waits for its disk and its replicas; shorter than the client's time-out.
TIMEOUT = 3000

NO_FILE = "keeps no append-only file: a crash of the server may lose sessions. Set there: appendonly yes"


class Durability:
    """What is sent after a write, on the same connection: ``WAITAOF`` where there is one, else ``WAIT``.

    Which of both is known after the first write, which sends both. `WAITAOF` is in Redis 7.2 and later and in
    Valkey, and needs an append-only file.
    """

    def __init__(self, name: str, replicas: int) -> None:
        self.replicas = replicas
        self._name = name
        self._has_waitaof: bool | None = None
        self._warned = False

    def commands(self) -> list[tuple[str | int, ...]]:
        """Return the commands to send after the write."""
        commands: list[tuple[str | int, ...]] = []
        if self._has_waitaof is not False:
            commands.append(("WAITAOF", 1, self.replicas, TIMEOUT))
        if self._has_waitaof is not True and self.replicas:
            commands.append(("WAIT", self.replicas, TIMEOUT))
        return commands

    def check(self, commands: list[tuple[str | int, ...]], answers: list[Any], client: Any) -> None:
        """Check the answers to `commands`. Raises `RegisterUnavailable`, or an answer that is an error."""
        given = {command[0]: answer for command, answer in zip(commands, answers, strict=True)}
        of_file = given.get("WAITAOF")
        if isinstance(of_file, Exception):
            self._has_waitaof = False
            self._warn_without_file(of_file, client)
        elif of_file is not None:
            self._has_waitaof = True
            if int(of_file[0]) < 1:
                raise RegisterUnavailable("a write was not on its disk in time")
            self._check_replicas(of_file[1])
            return
        if "WAIT" in given:
            self._check_replicas(given["WAIT"])

    def _check_replicas(self, reached: Any) -> None:
        if isinstance(reached, Exception):
            raise reached
        if int(reached) < self.replicas:
            raise RegisterUnavailable(f"a write has reached {int(reached)} of {self.replicas} replicas")

    def _warn_without_file(self, refused: Exception, client: Any) -> None:
        # A server without WAITAOF has to be asked.
        without = "appendonly" in str(refused) or facts_of(client).get("aof_enabled") == 0
        if without and not self._warned:
            self._warned = True
            warn_loudly(f"session store {self._name} {NO_FILE}")


def facts_of(client: Any) -> dict[str, Any]:
    """Return what the server says of its persistence; nothing where this user may not ask."""
    facts: dict[str, Any] = {}
    for section in ("persistence", "memory"):
        with suppress(Exception):
            facts.update(client.info(section))
    with suppress(Exception):
        facts.update(client.config_get("appendfsync"))
    return facts


def warnings_of(facts: dict[str, Any]) -> list[str]:
    """Return a sentence for each way in which the server may lose sessions."""
    found = []
    if facts.get("aof_enabled") == 0:
        found.append(f"It {NO_FILE}.")
    elif facts.get("appendfsync") == "no":
        found.append("A power failure may lose sessions, as it never syncs. Set there: appendfsync everysec.")
    if str(facts.get("maxmemory_policy")).startswith("allkeys"):
        found.append("It evicts any key once its memory is full. Set there: maxmemory-policy noeviction.")
    return found
