"""The logger, and loud warnings."""

from __future__ import annotations

import logging
import warnings
from contextlib import suppress

logger: logging.Logger = logging.getLogger("adh_auth")


def warn_loudly(message: str) -> None:
    """Log `message` as a warning, and issue it as a Python warning.

    What a handler or a filter of the program's raises is dropped: it must not stop a rotation.
    """
    with suppress(Exception, SystemExit):
        logger.warning("%s", message)
    with suppress(Exception, SystemExit):
        warnings.warn(message, stacklevel=2)
