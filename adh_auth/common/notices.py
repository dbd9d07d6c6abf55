"""The logger, and warnings that nobody overlooks."""

from __future__ import annotations

import logging
import warnings
from contextlib import suppress

logger = logging.getLogger("adh_auth")


def warn_loudly(message: str) -> None:
    """Say something loudly: a log record, and a warning.

    What a handler or a filter of the program's raises stops no rotation.
    """
    with suppress(Exception, SystemExit):
        logger.warning("%s", message)
    with suppress(Exception, SystemExit):
        warnings.warn(message, stacklevel=2)
