"""A local ADH over real sockets, for your tests and for this library's own.

    from adh_auth.testing import Sandbox

    with Sandbox() as sandbox:
        sandbox.write_token_file("tokens.json")
        client = {"client_id": sandbox.client_id, "client_secret": sandbox.client_secret}
        auth = AdhAuth("tokens.json", base_url=sandbox.url, **client)
        sandbox.expire()                                    # the next call meets a 401 token_expired
        requests.get(f"{sandbox.url}/api/auth/me", auth=auth)
        assert sandbox.counts.reused == 0

It is as strict as the real server must be assumed to be: a refresh token works once, and one that is sent
again revokes the whole session. The pytest fixtures are `adh_sandbox`, with the marker
`adh_sandbox(token_life=2)` for its options, `adh_sandbox_factory` and `adh_sandbox_session`. Beside the
sign-in and `/api/auth/me`, every path under `/api/` answers a live access token:

    /api/redirect?to=URL&status=302     a redirect to any URL
    /api/stream?chunks=3                "chunk 0\\n", "chunk 1\\n", … each in a chunk of its own
    /api/status/503                     that status
    /api/cookie?name=value              the echo, and a cookie
    /api/anything/else                  an echo: method, path, query, headers; the body's length, sha256, text

`MemoryRegister` is a register for several machines in memory, and `StoreContract` the tests that a register
of your own has to pass.

The folder ``sandbox`` holds its parts, and imports nothing of the library:

    settings   what a test may set
    state      sessions, tokens, codes, counts: every rule of the server
    faults     faults and holds to come
    routes     the endpoints
    server     HTTP over sockets
"""

import json
import os
import secrets
import ssl
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .sandbox.faults import Faults, Hold, check_plan, planned_fault
from .sandbox.routes import Routes
from .sandbox.server import Server
from .sandbox.settings import SandboxSettings
from .sandbox.state import Call, Counts, State
from .store import disk

if TYPE_CHECKING:
    from .store.contract import StoreContract
    from .store.memory_register import MemoryRegister

__all__ = ["Call", "Counts", "Hold", "MemoryRegister", "Sandbox", "StoreContract"]

#: Names that few tests use, by the modules that they are loaded from.
_LATE = {"MemoryRegister": ".store.memory_register", "StoreContract": ".store.contract"}

_HOST = "127.0.0.1"


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATE[name], __package__), name)


class Sandbox(SandboxSettings):
    """A local ADH in threads of this process; a context manager, or `start()` and `stop()`.

    Every argument but `port` and `ssl_context` is an attribute that may be set while it runs. Times are in
    seconds:

    port              0 takes a free one, and keeps it: a stopped sandbox starts again at the same URL
    token_life        of the access tokens issued from now on
    grace             how long a spent refresh token is answered with its successor instead of a revocation
    error_shape       of error replies: "code", "nested", "oauth", or "header" for a 401 without a body
    kills_old_access  whether a rotation ends the session's earlier access tokens (`invalid_token`)
    refresh_seconds   how long the refresh endpoint takes before it commits
    code_life         of an authorization code; 60, an attribute only
    """

    token_file: Path
    """The file that `write_token_file` wrote last."""

    def __init__(
        self,
        *,
        port: int = 0,
        token_life: float = 3600.0,
        client_id: str = "sandbox-client",
        client_secret: str = "sandbox-secret",
        redirect_uris: Sequence[str] = ("http://localhost:8765/callback",),
        grace: float = 0.0,
        error_shape: str = "code",
        kills_old_access: bool = False,
        refresh_seconds: float = 0.0,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(
            client_id=client_id,
            client_secret=client_secret,
            redirect_uris=redirect_uris,
            token_life=token_life,
            grace=grace,
            error_shape=error_shape,
            kills_old_access=kills_old_access,
            refresh_seconds=refresh_seconds,
        )
        self._port = port
        self._ssl_context = ssl_context
        self._state = State(self)
        self._faults = Faults()
        self._routes = Routes(self, self._state, self._faults)
        self._server: Server | None = None

    # Start and stop.

    def start(self) -> "Sandbox":
        """Listen, and return the sandbox. Sessions and counts of an earlier run are kept.

        Raises `OSError` for a port in use, `RuntimeError` if it is running already.
        """
        if self._server is not None:
            raise RuntimeError("the sandbox is running already")
        self._server = Server((_HOST, self._port), self._routes.answer, self._ssl_context)
        self._port = self._server.server_port
        self._faults.open()
        self._server.start()
        return self

    def stop(self) -> None:
        """Close the port and every connection, with held and delayed calls."""
        if self._server is not None:
            self._faults.close()
            self._server.stop()
            self._server = None

    def __enter__(self) -> "Sandbox":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The base URL. Raises `RuntimeError` before the first `start()`."""
        if not self._port:
            raise RuntimeError("the sandbox has no port yet: start it first")
        return f"{'http' if self._ssl_context is None else 'https'}://{_HOST}:{self._port}"

    def environment(self, token_file: str | os.PathLike[str]) -> dict[str, str]:
        """Return the environment variables that point this library at the sandbox."""
        return {
            "ADH_BASE_URL": self.url,
            "ADH_CLIENT_ID": self.client_id,
            "ADH_CLIENT_SECRET": self.client_secret,
            "ADH_TOKEN_FILE": os.path.abspath(token_file),  # the variable takes no relative path
        }

    # Sessions.

    def sign_in(self, scope: str = "profile:read discussions:read") -> dict[str, Any]:
        """Start a session without a browser, and return the reply of the exchange."""
        return self._state.sign_in(scope)

    def write_token_file(self, path: str | os.PathLike[str], *, with_expiry: bool = True) -> Path:
        """Start a session, save its reply as a token file, and return the path.

        `with_expiry`: with `expires_at`, as the library writes it, so that `refresh_ahead` has a time to go
        by; False: the reply as it comes. The file is replaced atomically, and readable by its owner only.
        """
        reply = self.sign_in()
        if with_expiry:
            reply["expires_at"] = time.time() + reply["expires_in"]
        self.token_file = Path(path)
        _write_private(self.token_file, json.dumps(reply).encode())
        return self.token_file

    def expire(self) -> None:
        """Let every access token issued until now be expired."""
        self._state.expire()

    def revoke(self) -> None:
        """Revoke every session.

        Its refresh tokens are answered with `invalid_grant`, its access tokens with `invalid_token`.
        """
        self._state.revoke_all()

    # Faults.

    def deny_next(self, count: int = 1) -> None:
        """Deny the next `count` sign-ins: the browser comes back with `error=access_denied`."""
        self._state.deny(count)

    def fail_next(
        self,
        count: float | None = 1,
        *,
        on: str = "refresh",
        status: int | None = None,
        retry_after: float | str | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        drop: str | None = None,
        delay: float = 0.0,
    ) -> None:
        """Let the next `count` calls fail, or all until `heal()` if that is None.

        on       "refresh", "exchange", "revoke", "me", or "api" for any other path
        status   answer that instead of doing anything, with `retry_after` (seconds or an HTTP date),
                 `headers` and `body`
        drop     close the connection "before" anything happened, "after" the server committed, or
                 "midway" in the reply
        delay    seconds to wait before the reply, after the commit

        Later faults queue behind earlier ones. Raises `ValueError` for arguments that contradict each other.
        """
        check_plan(on, count)
        self._faults.plan(on, count, planned_fault(status, retry_after, headers, body, drop, delay))

    def heal(self) -> None:
        """Drop all faults that are still to come."""
        self._faults.heal()

    def hold_next(self, *, on: str = "refresh", at: str = "after") -> Hold:
        """Hold the next call to `on` "before" or "after" its commit, until the hold is released."""
        return self._faults.hold(on, at)

    # Observe.

    @property
    def counts(self) -> Counts:
        """A snapshot of what the server has seen."""
        return self._state.counts()

    @property
    def log(self) -> list[Call]:
        """The latest 10,000 calls, in the order of their answers."""
        return self._state.log()

    def __repr__(self) -> str:
        url = self.url if self._port else "not started"
        return f"<Sandbox {url} {self.counts}>"


def _write_private(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        # Windows refuses to rename onto a file that another process has open.
        disk.retry_while_busy(lambda: os.replace(temporary, path))
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
