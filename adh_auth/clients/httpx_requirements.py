"""Whether an installed httpx or httpx2 has what the auth class for it stands on."""

from __future__ import annotations

from contextlib import suppress
from types import ModuleType

__all__ = ["load_transport", "load_waiting", "require_parts"]

#: Names of the public interface that both share, those of httpx_flow and httpx_carrier.
PARTS = (
    "AsyncClient",
    "Auth",
    "Client",
    "ConnectError",
    "ConnectTimeout",
    "HTTPError",
    "HTTPTransport",
    "InvalidURL",
    "PoolTimeout",
    "ProxyError",
    "Timeout",
    "UnsupportedProtocol",
)


def load_transport(client: ModuleType) -> None:
    """Load what a client of our own imports when it is built, and connects with (httpcore, certifi).

    The caller's client has done so, unless it has a transport of another kind. In the thread of a rotation it
    would be too late: the program may have changed its root by then, or fork.
    """
    with suppress(ImportError):  # httpx2 has no use for it
        import certifi  # noqa: F401
    with suppress(ImportError):  # whoever needs it hears of it then
        client.HTTPTransport(verify=False).close()


def load_waiting() -> None:
    """Load what a task waits with, on this event loop's library: anyio puts all of that off to the first use."""
    with suppress(ImportError):
        import anyio
        import anyio.lowlevel
        import anyio.to_thread

        anyio.Event()
        anyio.lowlevel.current_token()
        anyio.CancelScope()


def require_parts(client: ModuleType, versions: str, needed_by: str) -> None:
    """Raise an `ImportError` that names the installed version and the `versions` that will do, where a part
    is missing.
    """
    missing = [part for part in PARTS if not hasattr(client, part)]
    if missing:
        name, version = client.__name__, getattr(client, "__version__", "of an unknown version")
        wanted = f'pip install "{name}{versions}"'
        # An AttributeError would come out as "cannot import name" of our own package.
        raise ImportError(
            f"{needed_by} needs {name}{versions}, and {name} {version} has no {missing[0]}: {wanted}",
            name=name,
        )
