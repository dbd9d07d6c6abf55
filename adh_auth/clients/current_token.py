"""A token that works now, for what is no client of ours: a websocket, gRPC, another HTTP library.

Rule 6: it waits for the same job as every request, and gets the same outcome.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from ..common.secret import Secret
from ..errors import ConfigurationError
from .waits import Wait, Waits

if TYPE_CHECKING:
    from ..rotation.core import Fallback, Rotation

__all__ = ["check_request", "working_pair"]


def check_request(min_life: Any, rejected: Secret | None) -> None:
    """Check the arguments of `get_token`. Raises `ConfigurationError`."""
    is_number = isinstance(min_life, (int, float)) and not isinstance(min_life, bool)
    if not is_number or not math.isfinite(min_life) or min_life < 0:
        raise ConfigurationError("min_life must be a number of seconds, 0 or more", setting="min_life")
    token = None if rejected is None else rejected.reveal()
    if rejected is not None and not (isinstance(token, str) and token):
        raise ConfigurationError("rejected must be the token that was refused", setting="rejected")


def working_pair(
    core: Rotation, min_life: float, replaced: Wait | None, *, rounds: int, without_thread: Fallback
) -> Waits:
    """Return the pair whose access token has `min_life` seconds left, rotated first where it has less.

    `replaced`: waits for the pair that replaces a refused token. `rounds`: rotations to wait for, at most:
    what another process got may have less left, too. What the server has just given is returned, however
    short it lives. Raises the outcome's error.
    """
    if replaced is not None and (yield replaced).refreshed:
        return core.current()
    for _ in range(rounds):
        pair = core.current()
        if core.lasts(pair, min_life):
            break
        job = core.refresh_now(pair.secret, without_thread=without_thread)
        yield Wait(partial(job.wait, core.patience), partial(job.wait_async, core.patience))
        core.use_outcome(job)
        if job.refreshed:
            break
    return core.current()
