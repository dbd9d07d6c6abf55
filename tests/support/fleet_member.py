"""The machines of a fleet: ``python -m tests.support.fleet_member SOCKET KEY COUNT``, started by `fleet`.

One launcher imports all and forks them, before anything is used. Each does what it is told over its pipe: the
name of a method of `Member`, and its arguments.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import warnings
from collections import Counter
from contextlib import ExitStack, suppress
from importlib import import_module
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

import requests

from adh_auth import AdhAuth, TokenStore
from adh_auth.common.secret import Secret
from adh_auth.store.factory import open_register
from adh_auth.store.lease import Lease

from .tcp_proxy import TcpProxy

__all__ = ["CountingRegister"]


class CountingRegister:
    """A register that counts its round trips by name (`adh_auth.store.register.Register`)."""

    def __init__(self, register: Any) -> None:
        self._register = register
        self.trips: Counter[str] = Counter()
        self.name: str = register.name
        self.missing_is_lost: bool = register.missing_is_lost

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._register, name)

        def counted(*arguments: Any) -> Any:
            self.trips[name] += 1
            return operation(*arguments)

        return counted


class Member:
    """One machine."""

    def __init__(self) -> None:
        self._auth: Any = None
        self._url = ""
        self._store: Any = None
        self._session = ""
        self._trips: Counter[str] = Counter()
        self._stack = ExitStack()

    def use(self, store: str, *, counted: bool = False, **arguments: Any) -> None:
        """Use this session of a store from now on."""
        self._url, self._session = arguments["base_url"], arguments["session"]
        self._store = store
        if counted:
            register = CountingRegister(open_register(Secret(store)))
            self._store, self._trips = register, register.trips
        self._auth = AdhAuth(store=self._store, **arguments)

    def tune(self, module: str, name: str, value: object) -> None:
        """Set a constant of a module of the library: a test does not wait for the real one."""
        setattr(import_module(f"adh_auth.{module}"), name, value)

    def forward(self, port: int, host: str) -> None:
        """Let `port` of this machine's loopback lead to the same port of `host`."""
        self._stack.enter_context(TcpProxy(port, port=port, target_host=host))

    def get(self, count: int = 1) -> str:
        """Make calls one after the other, and return the last one's outcome."""
        return [self._outcome() for _ in range(count)][-1]

    def load(self, threads: int, seconds: float, pause: float) -> Counter[str]:
        """Make calls in some threads for so many seconds, and return how often each outcome came."""
        outcomes: Counter[str] = Counter()
        over = threading.Event()

        def work() -> None:
            while not over.is_set():
                outcome = self._outcome()
                with guard:
                    outcomes[outcome] += 1
                over.wait(pause)

        guard = threading.Lock()
        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        over.wait(seconds)
        over.set()
        for worker in workers:
            worker.join()
        return outcomes

    def _outcome(self) -> str:
        try:
            answer = requests.get(f"{self._url}/api/auth/me", auth=self._auth, timeout=60)
            return str(answer.status_code)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def warned(self) -> tuple[str, list[str]]:
        """Refresh, and return the outcome of a call and what was warned of."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with suppress(Exception):
                self._auth.refresh()
            return self._outcome(), [str(warning.message) for warning in caught]

    def revoke(self) -> None:
        """Sign out."""
        self._auth.revoke()

    def sign_out(self) -> None:
        """Sign out here, without a word to the server."""
        TokenStore(self._store, self._session).delete()

    def trips(self) -> dict[str, int]:
        """Return the round trips to the store since the last time."""
        trips = dict(self._trips)
        self._trips.clear()
        return trips

    def stop_before_sending(self) -> None:
        """Stop this process by SIGSTOP once the note that the token is being sent is there."""
        before_send = Lease.before_send

        def stopped(lease: Lease) -> None:
            Lease.before_send = before_send  # type: ignore[method-assign]
            # This very thread: what is sent to the process is taken by the main thread, and this one runs on.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
            before_send(lease)

        Lease.before_send = stopped  # type: ignore[method-assign, assignment]

    def fork(self, port: int) -> tuple[str, str, set[str], set[str]]:
        """Fork and make a call in both. Return the outcomes, and the sockets of each to `port`."""
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            answer = self.warned()[0]
            gc.collect()  # redis-py lets go of the parent's connection, which then waits in a cycle
            said = "\n".join([answer, *sockets_to(port)])
            os.write(write, said.encode())
            os._exit(0)
        os.close(write)
        outcome = self.warned()[0]
        with os.fdopen(read) as pipe:
            childs, *its_sockets = pipe.read().splitlines()
        os.waitpid(child, 0)
        return outcome, childs, set(sockets_to(port)), set(its_sockets)


def sockets_to(port: int) -> list[str]:
    """Return the ids of this process's sockets that are connected to `port`."""
    rows = [row.split() for row in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    connected = {f"socket:[{row[9]}]" for row in rows if int(row[2].partition(":")[2], 16) == port}
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return [socket for socket in found if socket in connected]


def serve(pipe: Connection) -> None:
    """Do what comes through the pipe, until it is closed."""
    member = Member()
    pipe.send(os.getpid())
    while True:
        name, arguments, options = pipe.recv()
        try:
            pipe.send((getattr(member, name)(*arguments, **options), None))
        except Exception as error:
            pipe.send((None, f"{type(error).__name__}: {error}"))


def main() -> None:
    """Fork the members, and reap them."""
    address, key, count = sys.argv[1], bytes.fromhex(sys.argv[2]), int(sys.argv[3])
    for name in ("psycopg", "redis"):
        with suppress(ImportError):
            import_module(name)
    for _ in range(count):
        if os.fork() == 0:
            with suppress(EOFError, OSError):
                serve(Client(address, authkey=key))
            os._exit(0)
    with suppress(ChildProcessError):
        while True:
            os.wait()


if __name__ == "__main__":
    main()
