"""The logs of the libraries that a rotation stands on: a handler of the program's that raises in the midst of
them would drop a reply.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

__all__ = ["with_guarded_logs"]

P = ParamSpec("P")
T = TypeVar("T")

#: httpx logs each reply at level INFO, in the midst of its `send`; urllib3, httpcore and filelock say at
#: DEBUG what they do.
LIBRARIES = frozenset({"filelock", "httpcore", "httpcore2", "httpx", "httpx2", "requests", "urllib3"})

_guarded: ContextVar[bool] = ContextVar("adh_auth_guarded_logs", default=False)


class _Guard(logging.Filter):
    """Hands a record to the handlers itself, so that what they raise ends here."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not _guarded.get():
            return True
        with suppress(Exception, SystemExit):
            logging.getLogger(record.name).callHandlers(record)
        return False


_guard = _Guard()


def with_guarded_logs(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """`work`, whatever the program's log handlers make of what these libraries log meanwhile in this thread
    or task.
    """
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in LIBRARIES:
            logging.getLogger(name).addFilter(_guard)  # once: it is not added again
    token = _guarded.set(True)
    try:
        return work(*arguments, **named)
    finally:
        _guarded.reset(token)
