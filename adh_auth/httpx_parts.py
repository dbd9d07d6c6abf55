"""Whether an installed httpx or httpx2 has what the auth class for it stands on."""

from __future__ import annotations

from types import ModuleType

__all__ = ["require_parts"]

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


def require_parts(client: ModuleType, versions: str, needed_by: str) -> None:
    """Raise an `ImportError` that names the installed version and the `versions` that will do, where a part is missing."""
    missing = [part for part in PARTS if not hasattr(client, part)]
    if missing:
        name, version = client.__name__, getattr(client, "__version__", "of an unknown version")
        wanted = f'pip install "{name}{versions}"'
        # An AttributeError would come out as "cannot import name" of our own package.
        raise ImportError(f"{needed_by} needs {name}{versions}, and {name} {version} has no {missing[0]}: {wanted}", name=name)
