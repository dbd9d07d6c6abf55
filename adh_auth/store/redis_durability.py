"""How long a write to Redis waits until it is kept: on the server's disk, or on its replicas."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any, Union

from ..common.notices import warn_loudly
from .register import RegisterUnavailable

__all__ = ["Command", "Durability", "settings_of", "warnings_of"]

#: Milliseconds that the server waits for its disk and its replicas; shorter than the client's time-out.
TIMEOUT = 3000
#: Milliseconds between two looks at the file of a server without ``WAITAOF``.
POLL = 20

NO_FILE = "keeps no append-only file: a crash of the server may lose sessions. Set there: appendonly yes"


Command = tuple[Union[str, int], ...]


class Durability:
    """What is sent after a write, on the same connection: ``WAITAOF`` where there is one, else ``WAIT``.

    Which of both is known after the first write, which sends both. `WAITAOF` is in Redis 7.2 and later and in
    Valkey, and needs an append-only file.
    """

    def __init__(self, name: str, replicas: int) -> None:
        self.replicas = replicas
        self._name = name
        self._has_waitaof: bool | None = None
        self._has_file = True

    def commands(self) -> list[Command]:
        """Return the commands to send after the write."""
        commands: list[Command] = []
        if self._has_waitaof is not False:
            commands.append(("WAITAOF", 1, self.replicas, TIMEOUT))
        if self._has_waitaof is not True and self.replicas:
            commands.append(("WAIT", self.replicas, TIMEOUT))
        return commands

    def check(self, commands: list[Command], answers: list[Any], client: Any) -> None:
        """Check the answers to `commands`. Raises `RegisterUnavailable`, or an answer that is an error."""
        given = {command[0]: answer for command, answer in zip(commands, answers, strict=True)}
        if "WAITAOF" in given:
            self._has_waitaof = not isinstance(given["WAITAOF"], Exception)
        if self._has_waitaof:
            on_disk, reached = given["WAITAOF"]
            if int(on_disk) < 1:
                raise RegisterUnavailable("a write was not on its disk in time")
            self._check_replicas(reached)
            return
        if self._has_file:
            self._wait_for_file(client)
        if "WAIT" in given:
            self._check_replicas(given["WAIT"])

    def _check_replicas(self, reached: Any) -> None:
        if isinstance(reached, Exception):
            raise reached
        if int(reached) < self.replicas:
            raise RegisterUnavailable(f"a write has reached {int(reached)} of {self.replicas} replicas")

    def _wait_for_file(self, client: Any) -> None:
        """Wait until the write is in the file; whether it is on the disk can't be known without WAITAOF.

        With ``appendfsync everysec`` Redis answers at once and may keep what it has to write for two seconds,
        while a sync is under way. A crash then loses a write that was acknowledged.
        """
        facts = facts_of(client)
        if facts.get("aof_enabled") != 1:
            self._has_file = False
            if "aof_enabled" in facts:
                warn_loudly(f"session store {self._name} {NO_FILE}")
            return
        size = _written(facts) + facts.get("aof_buffer_length", 0)
        for _ in range(TIMEOUT // POLL):
            # A rewrite of the file makes it shorter, and has all in it.
            if (
                not facts.get("aof_buffer_length")
                or not facts.get("aof_base_size", 0) <= _written(facts) < size
            ):
                return
            time.sleep(POLL / 1000)
            facts = facts_of(client)
        raise RegisterUnavailable("a write was not in its file in time")


def _written(facts: dict[str, Any]) -> int:
    return int(facts.get("aof_current_size", 0))


def facts_of(client: Any, *more: str) -> dict[str, Any]:
    """Return what the server says of its persistence; nothing where this user may not ask.

    `more`: further sections of ``INFO``.
    """
    facts: dict[str, Any] = {}
    with suppress(Exception):
        for section in ("persistence", *more):
            facts.update(client.info(section))
    return facts


def settings_of(client: Any) -> dict[str, Any]:
    """Return its facts, and how it syncs, as far as this user may ask."""
    facts = facts_of(client, "memory", "server")
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
    elif facts.get("appendfsync") == "everysec" and not _may_have_waitaof(facts):
        found.append(
            "A power failure may lose the last second. Use Redis 7.2, or set there: appendfsync always."
        )
    if str(facts.get("maxmemory_policy")).startswith("allkeys"):
        found.append("It evicts any key once its memory is full. Set there: maxmemory-policy noeviction.")
    return found


def _may_have_waitaof(facts: dict[str, Any]) -> bool:
    major, minor, *_ = (int(part) for part in str(facts.get("redis_version", "9.9")).split(".")[:2])
    return "valkey_version" in facts or (major, minor) >= (7, 2)
