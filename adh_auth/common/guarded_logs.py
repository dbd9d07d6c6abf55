"""The logs of the libraries that a rotation uses. A handler of the program's that raises would drop a reply.

Rule 16: once a pair is in hand, nothing lets go of it.
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

#: httpx logs each reply at level INFO before its `send` returns; the others log at DEBUG.
LIBRARIES = frozenset(
    {
        "filelock",
        "httpcore",
        "httpcore2",
        "httpx",
        "httpx2",
        "psycopg",
        "redis",
        "requests",
        "urllib3",
        "valkey",
    }
)

_guarded: ContextVar[bool] = ContextVar("adh_auth_guarded_logs", default=False)


class _Guard(logging.Filter):
    """Calls the handlers itself, and drops what they raise."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not _guarded.get():
            return True
        with suppress(Exception, SystemExit):
            logging.getLogger(record.name).callHandlers(record)
        return False


_guard = _Guard()


def with_guarded_logs(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Return what `work` returns, whatever log handlers raise meanwhile in this thread or task."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in LIBRARIES:
            logging.getLogger(name).addFilter(_guard)  # a filter that is there already is not added again
    token = _guarded.set(True)
    try:
        return work(*arguments, **named)
    finally:
        _guarded.reset(token)
