"""The settings of the sandbox. A test may change them while it runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ERROR_SHAPES = ("code", "nested", "oauth", "header")
_SECONDS = frozenset({"token_life", "code_life", "grace", "refresh_seconds"})


@dataclass(kw_only=True, repr=False, eq=False)
class SandboxSettings:
    """Times are in seconds. Setting a wrong value raises `ValueError` at once, not in the next request."""

    client_id: str
    client_secret: str
    redirect_uris: Sequence[str]
    token_life: float
    grace: float
    error_shape: str
    kills_old_access: bool
    refresh_seconds: float
    # The ADH guide: a code lives 60 seconds.
    code_life: float = 60.0

    def __setattr__(self, name: str, value: Any) -> None:
        _check(name, value)
        super().__setattr__(name, value)


def _check(name: str, value: Any) -> None:
    if name in _SECONDS and not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a number of seconds, 0 or more, not {value!r}")
    if name == "error_shape" and value not in ERROR_SHAPES:
        raise ValueError(f"error_shape must be one of {', '.join(ERROR_SHAPES)}, not {value!r}")
    if name == "redirect_uris" and isinstance(value, str):
        raise ValueError("redirect_uris must be a list of URIs, not a single string")
