"""Arguments and environment, checked once when an auth object is built. No I/O."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

from .endpoint import Origin, base_url_of, origin_of
from .errors import ConfigurationError
from .steps import LOCK_TIMEOUT
from .token_file import TokenFile
from .tokens import Secret

__all__ = ["DEFAULT_BASE_URL", "Settings", "resolve"]

DEFAULT_BASE_URL = "https://api.agenticdeveloperhub.com"


@dataclass(frozen=True)
class Settings:
    """What every plugin and command needs."""

    file: TokenFile
    client_id: str
    client_secret: Secret
    base_url: str
    origin: Origin
    refresh_ahead: float | None
    lock_timeout: float


def resolve(
    token_file: str | os.PathLike[str] | None,
    *,
    client_id: str | None,
    client_secret: str | None,
    base_url: str | None,
    refresh_ahead: float | None = None,
    lock_timeout: float | None = None,
) -> Settings:
    """Arguments first, then the environment, then the defaults. Raises `ConfigurationError`."""
    base = base_url_of(_text("base_url", base_url, "ADH_BASE_URL", DEFAULT_BASE_URL))
    origin = origin_of(base)
    assert origin is not None
    return Settings(
        file=TokenFile(token_file),
        client_id=_text("client_id", client_id, "ADH_CLIENT_ID"),
        client_secret=Secret(_text("client_secret", client_secret, "ADH_CLIENT_SECRET")),
        base_url=base,
        origin=origin,
        refresh_ahead=_seconds("refresh_ahead", refresh_ahead),
        lock_timeout=_seconds("lock_timeout", lock_timeout) or LOCK_TIMEOUT,
    )


def _text(name: str, value: Any, variable: str, default: str | None = None) -> str:
    if value is None:
        value = os.environ.get(variable) or default
    if value is None or value == "":
        raise ConfigurationError(f"{name} is missing: pass {name}= or set {variable}", setting=variable)
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} must be a text, not {type(value).__name__}", setting=name)
    return value


def _seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise ConfigurationError(f"{name} must be a number of seconds above 0", setting=name)
    return float(value)
