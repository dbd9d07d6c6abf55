"""The processes of the demo as the one that started them sees them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from ...store.record import NOTHING, SENDING, Record
from ...testing import Sandbox
from .place import Place
from .screen import Totals, WorkerRow
from .worker import THREADS, command_line

__all__ = ["Worker", "WorkerPool"]

#: Seconds that the processes may take to end. Longer than the tries of a refresh that meets a dead server.
SHUTDOWN_SECONDS = 8.0
#: Seconds for which the table shows what has just happened.
HIGHLIGHT_SECONDS = 1.0


@dataclass
class Worker:
    """One process, its latest report, and when something was last seen of it (`time.monotonic()`)."""

    kind: str
    process: subprocess.Popen[bytes]
    errors: str
    ready: threading.Event = field(default_factory=threading.Event)
    report: dict[str, Any] = field(default_factory=dict)
    token_changed_at: float = 0.0
    rotated_at: float = 0.0
    rotations: int = 0
    reader: threading.Thread | None = None

    def listen(self) -> None:
        """Take in its reports, in a thread, until it ends."""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            report = json.loads(line)
            if report.get("token") != self.report.get("token"):
                self.token_changed_at = time.monotonic()
            self.report = report
            self.ready.set()

    def begin(self) -> None:
        """Let it work."""
        assert self.process.stdin is not None
        with suppress(OSError):  # it has ended already, which `problem` says
            self.process.stdin.write(b"g")
            self.process.stdin.flush()

    def close_stdin(self) -> None:
        """Ask it to end."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()

    def wait(self, seconds: float) -> None:
        """Wait for its end, and kill it after `seconds`."""
        try:
            self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.reader is not None:
            self.reader.join(SHUTDOWN_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def count(self, name: str) -> int:
        """Return one of its counts."""
        return int(self.report.get(name) or 0)

    def problem(self) -> str | None:
        """Return why it did not do its work, None if it did."""
        name = f"process {self.process.pid} ({self.kind})"
        if self.report.get("problem"):
            return f"{name}: {self.report['problem']}"
        if self.report.get("last"):
            return None
        return f"{name} ended with exit code {self.process.returncode}: {self.last_error()}"

    def last_error(self) -> str:
        """Return the last line that it wrote to stderr."""
        lines: list[str] = []
        with suppress(OSError), open(self.errors, encoding="utf-8", errors="replace") as errors:
            lines = [line.strip() for line in errors if line.strip()]
        return lines[-1] if lines else "it wrote nothing to stderr"


class WorkerPool:
    """The processes, which share the session in `place`. `folder`: for what they write to stderr."""

    def __init__(self, sandbox: Sandbox, folder: str, place: Place) -> None:
        self._sandbox = sandbox
        self._folder = folder
        self.place = place
        self._record = NOTHING
        self._workers: list[Worker] = []
        self._last_rotation: float | None = None
        self._started = False

    def start(self) -> None:
        """Start the processes; they wait for `go`."""
        kinds = ["requests", "requests", "httpx", "asyncio", *(["httpx2"] if find_spec("httpx2") else [])]
        for number, kind in enumerate(kinds):
            self._workers.append(self._new_worker(kind, os.path.join(self._folder, f"errors-{number}")))
        for worker in self._workers:
            worker.listen()

    def _new_worker(self, kind: str, errors: str) -> Worker:
        # In a group of their own, so that the terminal's Ctrl-C comes to this process alone. Their stdin
        # ends with this process, and they end with it.
        options: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        with open(errors, "wb") as stderr:
            process = subprocess.Popen(  # noqa: S603 - our own module
                command_line(kind),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=self.place.environment(self._sandbox),
                **options,
            )
        return Worker(kind, process, errors)

    @property
    def is_starting(self) -> bool:
        """Whether a process is still getting ready."""
        return any(not worker.ready.is_set() and worker.process.poll() is None for worker in self._workers)

    def go(self) -> None:
        """Issue the first pair, and let all processes work."""
        self.place.sign_in(self._sandbox)
        self._started = True
        for worker in self._workers:
            worker.begin()

    def end(self) -> None:
        """End all processes: first by the end of their stdin, at last by a kill."""
        for worker in self._workers:
            worker.close_stdin()
        deadline = time.monotonic() + SHUTDOWN_SECONDS
        for worker in self._workers:
            worker.wait(deadline - time.monotonic())

    def rows(self) -> list[WorkerRow]:
        """Return what each process does now."""
        record = self._record = self.place.record(self._record)
        self._note_rotation(record)
        return [self._row(number, worker, record) for number, worker in enumerate(self._workers, 1)]

    def _note_rotation(self, record: Record) -> None:
        if record.rotated_at is None or record.rotated_at == self._last_rotation:
            return
        self._last_rotation = record.rotated_at
        for worker in self._workers:
            if worker.process.pid == record.rotated_by:
                worker.rotations += 1
                worker.rotated_at = time.monotonic()

    def _row(self, number: int, worker: Worker, record: Record) -> WorkerRow:
        machine = f"machine {number}: " if self.place.is_for_machines else ""
        doing, colour = self._doing(worker, record)
        return WorkerRow(
            pid=worker.process.pid,
            kind=machine + worker.kind,
            calls=worker.count("calls"),
            failures=worker.count("failures"),
            expiries=worker.count("expiries"),
            rotations=worker.rotations,
            token=worker.report.get("token") or "",
            doing=doing,
            colour=colour,
        )

    def _doing(self, worker: Worker, record: Record) -> tuple[str, str | None]:
        now = time.monotonic()
        if worker.process.poll() is not None:
            return "has ended", "red"
        if record.state == SENDING and record.pid == worker.process.pid:
            return "trades the refresh token", "yellow"
        if now - worker.rotated_at < HIGHLIGHT_SECONDS:
            return "wrote the new pair", "green"
        if self._last_rotation is not None and now - worker.token_changed_at < HIGHLIGHT_SECONDS:
            return "took the new pair", "yellow"
        return "works", None

    def totals(self, seconds: float, *, interrupted: bool) -> Totals:
        """Return what the processes and the server have counted in `seconds`. Call it after `end`."""
        counts = self._sandbox.counts
        return Totals(
            seconds=seconds,
            calls=self._total("calls"),
            failures=self._total("failures"),
            expiries=self._total("expiries"),
            rotations=counts.rotations,
            reused=counts.reused,
            rows=tuple(self.rows()),
            threads=THREADS,
            token_life=self._sandbox.token_life,
            problems=tuple(self._problems(interrupted)),
            store=self.place.store_name,
        )

    def _total(self, name: str) -> int:
        return sum(worker.count(name) for worker in self._workers)

    def _problems(self, interrupted: bool) -> list[str]:
        if self._started:
            return [problem for worker in self._workers if (problem := worker.problem())]
        if interrupted:
            return []
        errors = "; ".join(worker.last_error() for worker in self._workers)
        return [f"the processes were not ready in time: {errors}"]
