"""A fleet of machines, each a process of its own, over a real store."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from adh_auth import Tokens, TokenStore
from adh_auth.common.secret import Secret
from adh_auth.store.postgresql import PostgresStore
from adh_auth.testing import Sandbox

from . import servers
from .faults import wait_until
from .processes import PATIENCE, ROOT

__all__ = ["Backend", "Machine", "PgBouncerBackend", "PostgresBackend", "RedisBackend", "fleet"]


class Machine:
    """One machine as the test sees it: it does one thing at a time."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.pid: int = pipe.recv()

    def begin(self, name: str, *arguments: Any, **options: Any) -> Machine:
        """Let it do something (`fleet_member.Member`)."""
        self._pipe.send((name, arguments, options))
        return self

    def result(self, seconds: float = PATIENCE) -> Any:
        """Return what came of it. Raises `TimeoutError`."""
        if not self._pipe.poll(seconds):
            raise TimeoutError(f"machine {self.pid} has not answered")
        value, error = self._pipe.recv()
        assert error is None, error
        return value

    def do(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Let it do something, and return what came of it."""
        return self.begin(name, *arguments, **options).result()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait_stopped(self) -> None:
        """Wait until it is stopped by a signal."""
        status = Path(f"/proc/{self.pid}/stat")
        wait_until(lambda: status.read_text().rpartition(")")[2].split()[0] == "T")


@contextlib.contextmanager
def fleet(count: int, *, within: Sequence[str] = ()) -> Iterator[list[Machine]]:
    """Start so many machines. `within`: the command that starts them elsewhere, as in a namespace."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="adh-"))
        address, key = f"{folder}/fleet", secrets.token_bytes(16)
        listener = stack.enter_context(Listener(address, backlog=count, authkey=key))
        launcher = subprocess.Popen(
            [*within, sys.executable, "-m", "tests.support.fleet_member", address, key.hex(), str(count)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        stack.callback(_end, launcher)
        pipes = [stack.enter_context(listener.accept()) for _ in range(count)]
        yield [Machine(pipe) for pipe in pipes]


def _end(launcher: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(launcher.pid, signal.SIGKILL)  # with its machines
    launcher.wait()


class Backend:
    """A kind of store, with what a test does to it."""

    def __init__(self, server: Any) -> None:
        self.server = server

    @property
    def port(self) -> int:
        """The port that machines connect to."""
        return int(self.server.port)

    def url(self, port: int = 0) -> str:
        """Return its URL; `port`: of a proxy in between."""
        return str(self.server.url(port=port or self.port))

    def pair(self, session: str) -> Tokens:
        """Return the pair of a session as it is now."""
        return TokenStore(self.url(), session).load()

    def sign_in(self, sandbox: Sandbox, session: str = "") -> str:
        """Start a session of the sandbox there, and return its name."""
        session, reply = session or secrets.token_hex(8), sandbox.sign_in()
        TokenStore(self.url(), session).save(Tokens.from_response(reply))
        return session

    def statements(self) -> int:
        """Return how many statements about sessions it has served so far."""
        raise NotImplementedError

    def snapshot(self, session: str) -> Callable[[], None]:
        """Return what brings the session back to its state of now."""
        raise NotImplementedError

    def crash(self) -> None:
        """End it as a crash does."""
        self.server.crash()

    def start(self) -> None:
        """Start it on what it has kept."""
        self.server.start()


class PostgresBackend(Backend):
    """PostgreSQL, which logs its statements: `SETTINGS`."""

    SETTINGS = ("log_statement = 'all'", "max_connections = 120")

    def __init__(self, server: servers.PostgreSQLServer) -> None:
        super().__init__(server)
        self.database = server
        PostgresStore.from_url(Secret(server.url())).create()

    def statements(self) -> int:
        log = self.database.log()
        return sum("execute <unnamed>" in line or "statement: " in line for line in log.splitlines())

    def snapshot(self, session: str) -> Callable[[], None]:
        self.database.execute(
            f"CREATE TABLE {_kept(session)} AS SELECT * FROM adh_auth_session WHERE name = '{session}'"
        )

        def go_back() -> None:
            self.database.execute(
                f"BEGIN; DELETE FROM adh_auth_session WHERE name = '{session}';"
                f"INSERT INTO adh_auth_session SELECT * FROM {_kept(session)}; COMMIT"
            )

        return go_back


def _kept(session: str) -> str:
    return f"kept_{session}"


class PgBouncerBackend(PostgresBackend):
    """pgbouncer in transaction mode before it."""

    def __init__(self, server: servers.PgBouncer) -> None:
        super().__init__(server.behind)
        self.server = server

    def url(self, port: int = 0) -> str:
        return self.database.url(port=port or self.port)

    def crash(self) -> None:
        self.database.crash()

    def start(self) -> None:
        self.database.start()


class RedisBackend(Backend):
    """Redis with an append-only file."""

    def statements(self) -> int:
        return int(self.server.execute("INFO", "commandstats").get("cmdstat_eval", {}).get("calls", 0))

    def snapshot(self, session: str) -> Callable[[], None]:
        key, kept = f"adh:session:{session}", f"kept:{session}"
        self.server.execute("COPY", key, kept, "REPLACE")
        return lambda: self.server.execute("COPY", kept, key, "REPLACE")
