"""Calls `on_event` once for each outcome of a rotation.

Rule 5: in the job's thread, after those who wait have the outcome. What the program's hook does, or raises,
has no effect on them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress

from ..common.notices import logger
from ..common.threads import THREAD_NAME_PREFIX
from ..errors import AdhAuthError, ReauthorizationRequired, StoreError, TokenFileError, fresh_copy
from ..events import Event, EventKind
from ..store.record import Record
from ..tokens import Tokens
from .context import RotationContext

__all__ = ["OnEvent", "Reporter"]

OnEvent = Callable[[Event], object]


class Reporter:
    """Reports the outcomes of one core's jobs. `store`: as errors name it (`Store.facts_for_errors`)."""

    def __init__(self, on_event: OnEvent, store: Mapping[str, str]) -> None:
        self._on_event = on_event
        self._facts = store
        self._store = store.get("token_file") or store["store"]
        self._session = store.get("session")
        #: the attempt of any process whose failure was reported last
        self._reported: tuple[object, ...] | None = None

    def report(self, context: RotationContext, outcome: Tokens | AdhAuthError | None) -> None:
        """Report the outcome of a job that has ended."""
        # As a rule there is none: a job has one outcome. A pair that was unsaved first may be saved by now.
        if context.unsaved_report is not None:
            context.unsaved_report.join()
            if not _is_saved(context, outcome):
                return
        if isinstance(outcome, AdhAuthError):
            self._report_error(context, outcome)
        elif outcome is not None:
            self._call(self._event(context, "rotated" if context.refreshed else "adopted"))

    def report_unsaved(self, context: RotationContext) -> None:
        """Report a pair that could not be written, in a thread of its own: the job goes on trying."""
        problem = context.problem or "the reason is in the log"
        kind = StoreError if "store" in self._facts else TokenFileError
        error = kind(f"the new pair could not be written: {problem}", **self._facts)
        event = self._event(context, "unsaved", error)
        name = THREAD_NAME_PREFIX + "rotation event"
        thread = threading.Thread(target=self._call, args=(event,), name=name, daemon=False)
        try:
            thread.start()
        except RuntimeError:  # a limit on threads
            self._call(event)
        else:
            context.unsaved_report = thread

    def _report_error(self, context: RotationContext, error: AdhAuthError) -> None:
        attempt = None if context.failed_attempt is None else _identity(context.failed_attempt)
        # A refusal is remembered, and raised for each request: it is one outcome all the same.
        if attempt is not None and attempt == self._reported:
            return
        self._reported = attempt
        kind: EventKind = "refused" if isinstance(error, ReauthorizationRequired) else "failed"
        self._call(self._event(context, kind, fresh_copy(error)))

    def _event(self, context: RotationContext, kind: EventKind, error: AdhAuthError | None = None) -> Event:
        return Event(
            kind=kind,
            at=context.clock.now(),
            store=self._store,
            session=self._session,
            duration=context.clock.monotonic() - context.began,
            waited=context.waited,
            error=error,
            request_id=context.request_id if error is None else error.request_id or context.request_id,
            pid=os.getpid(),
        )

    def _call(self, event: Event) -> None:
        raised = None
        try:
            self._on_event(event)
        except BaseException as error:  # noqa: BLE001 - it must not end the job's thread, nor the program
            raised = error
        if raised is not None:
            with suppress(BaseException):  # it runs a log handler of the program's
                logger.error("on_event has raised for a %s event", event.kind, exc_info=raised)


def _is_saved(context: RotationContext, outcome: Tokens | AdhAuthError | None) -> bool:
    with suppress(Exception):
        return bool(context.store.read().tokens == outcome)
    return False


def _identity(record: Record) -> tuple[object, ...]:
    return record.about, record.number, record.state, record.at
