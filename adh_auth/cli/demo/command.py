"""``adh-auth demo``: several processes on one token file whose tokens live two seconds, and what came of it.

The processes are `demo_worker`'s; this one runs the sandbox, watches, shows, and leaves nothing behind,
however it ends.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from ...store.record import SENDING, Record
from ...store.token_file import TokenFile
from ...testing import Sandbox
from ..terminal import echo, echo_json
from .screen import Sums, WorkerRow, print_sums, screen
from .worker import THREADS, command_line
from .worker import main as work

__all__ = ["demo_command"]

#: Seconds that an access token lives here.
TOKEN_LIFE = 2.0
#: Seconds between two looks at what the processes report. They report every 0.2 s.
LOOK = 0.1
#: Seconds that a process may take to get ready. Half a second is usual; a machine that is busy or cold takes
#: longer.
GET_READY = 60.0
#: Seconds that a process may take to end after it was asked to. Longer than the tries of a refresh that meets
#: a dead server.
SHUTDOWN_SECONDS = 8.0
#: Seconds for which the table says that something has just happened.
HIGHLIGHT_SECONDS = 1.0

INTERRUPTED = 130


def demo_command(args: argparse.Namespace) -> int:
    """0 where all went well, 1 where a request failed or a token was used twice, 130 where Ctrl-C ended it
    and nothing had failed.
    """
    if args.worker is not None:
        work(args.worker)
        return 0
    with ExitStack() as stack:
        interrupt = stack.enter_context(_interrupts())
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="adh-demo-", ignore_cleanup_errors=True)
        )
        sandbox = stack.enter_context(Sandbox(token_life=TOKEN_LIFE))
        crew = WorkerPool(sandbox, folder)
        try:
            worked = _run(crew, args, interrupt)
        finally:
            crew.end()
        sums = crew.sums(worked, interrupted=interrupt.came)
    if args.json:
        echo_json(sums.facts())
    else:
        print_sums(sums)
    if not sums.good:
        return 1
    return INTERRUPTED if interrupt.came else 0


@dataclass
class Interrupt:
    """Whether somebody wants this to end."""

    came: bool = False


@contextmanager
def _interrupts() -> Iterator[Interrupt]:
    """Ctrl-C, SIGTERM and a closed terminal as a flag: an exception in the middle of the clean-up would leave
    processes behind.
    """
    interrupt = Interrupt()

    def note(*_: object) -> None:
        interrupt.came = True

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # What was ignored from the start (nohup) stays ignored.
    before = {
        number: signal.getsignal(number)
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    for number in before:
        signal.signal(number, note)
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class Worker:
    """One process, and what is known of it."""

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
        """Take in what the process reports, in a thread, until it ends."""
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

    def count(self, name: str) -> int:
        """One of its counts."""
        return int(self.report.get(name) or 0)

    def trouble(self) -> str | None:
        """Why it did not do what it should have, None where it did."""
        if self.report.get("trouble"):
            return f"process {self.process.pid} ({self.kind}): {self.report['trouble']}"
        if self.report.get("last"):
            return None
        return f"process {self.process.pid} ({self.kind}) ended with exit code {self.process.returncode}: {_last_line(self.errors)}"


class WorkerPool:
    """The processes, on one token file in `folder`."""

    def __init__(self, sandbox: Sandbox, folder: str) -> None:
        self._sandbox = sandbox
        self._folder = folder
        self._file = TokenFile(os.path.join(folder, "tokens.json"))
        self._members: list[Worker] = []
        self._seen: float | None = None
        self._started = False

    def start(self) -> None:
        """Start the processes; they wait for `go`."""
        kinds = ["requests", "requests", "httpx", "asyncio", *(["httpx2"] if find_spec("httpx2") else [])]
        for number, kind in enumerate(kinds):
            self._members.append(self._member(kind, os.path.join(self._folder, f"errors-{number}")))
        for member in self._members:
            member.listen()

    def _member(self, kind: str, errors: str) -> Worker:
        # Away from the terminal's Ctrl-C, which is ours to answer; they end when stdin does, so when this
        # process does.
        options: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        with open(errors, "wb") as stderr:
            process = subprocess.Popen(  # noqa: S603 - our own module
                command_line(kind),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=_environment(self._sandbox, self._file),
                **options,
            )
        return Worker(kind, process, errors)

    @property
    def waiting_for(self) -> bool:
        """Whether a process is still getting ready."""
        return any(not member.ready.is_set() and member.process.poll() is None for member in self._members)

    def go(self) -> None:
        """Issue the first pair, and let everybody begin."""
        self._sandbox.write_token_file(self._file.path)
        self._started = True
        for member in self._members:
            assert member.process.stdin is not None
            with suppress(OSError):  # ended already; the sums tell
                member.process.stdin.write(b"g")
                member.process.stdin.flush()

    def rows(self) -> list[WorkerRow]:
        """Everybody as they stand now."""
        record = self._file.record()
        self._credit(record)
        return [self._row(member, record) for member in self._members]

    def _credit(self, record: Record) -> None:
        if record.rotated_at is None or record.rotated_at == self._seen:
            return
        self._seen = record.rotated_at
        for member in self._members:
            if member.process.pid == record.rotated_by:
                member.rotations += 1
                member.rotated_at = time.monotonic()

    def _row(self, member: Worker, record: Record) -> WorkerRow:
        doing, colour = self._doing(member, record)
        return WorkerRow(
            pid=member.process.pid,
            kind=member.kind,
            requests=member.count("requests"),
            failures=member.count("failures"),
            expiries=member.count("expiries"),
            rotations=member.rotations,
            token=member.report.get("token") or "",
            doing=doing,
            colour=colour,
        )

    def _doing(self, member: Worker, record: Record) -> tuple[str, str | None]:
        now = time.monotonic()
        if member.process.poll() is not None:
            return "has ended", "red"
        if record.state == SENDING and record.pid == member.process.pid:
            return "is trading the refresh token", "yellow"
        if now - member.rotated_at < HIGHLIGHT_SECONDS:
            return "got a new pair and wrote it to the file", "green"
        if self._seen is not None and now - member.token_changed_at < HIGHLIGHT_SECONDS:
            return "took the new pair from the file", "yellow"
        return "works", None

    def end(self) -> None:
        """Ask everybody to end, and see to it."""
        for member in self._members:
            with suppress(OSError):
                member.process.stdin.close()  # type: ignore[union-attr]
        deadline = time.monotonic() + SHUTDOWN_SECONDS
        for member in self._members:
            try:
                member.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()
            if member.reader is not None:
                member.reader.join(SHUTDOWN_SECONDS)
            member.process.stdout.close()  # type: ignore[union-attr]

    def sums(self, seconds: float, *, interrupted: bool) -> Sums:
        """What the processes have counted in so many seconds, and what the server has.

        Everybody has ended by now.
        """
        troubles = (
            [trouble for member in self._members if (trouble := member.trouble())] if self._started else []
        )
        if not self._started and not interrupted:
            troubles = [
                f"the processes were not ready in time: {'; '.join(_last_line(member.errors) for member in self._members)}"
            ]
        counts = self._sandbox.counts
        return Sums(
            seconds=seconds,
            requests=sum(member.count("requests") for member in self._members),
            failures=sum(member.count("failures") for member in self._members),
            expiries=sum(member.count("expiries") for member in self._members),
            rotations=counts.rotations,
            reused=counts.reused,
            rows=tuple(self.rows()),
            threads=THREADS,
            life=TOKEN_LIFE,
            troubles=tuple(troubles),
        )


def _run(crew: WorkerPool, args: argparse.Namespace, interrupt: Interrupt) -> float:
    """Start everybody and look on; gives the seconds that they worked."""
    if not args.json:
        echo(
            f"A local ADH whose access tokens live {TOKEN_LIFE:g} s, one token file, and several processes that share it."
        )
    crew.start()
    deadline = time.monotonic() + GET_READY
    while crew.waiting_for and not interrupt.came:
        if time.monotonic() > deadline:
            return 0.0
        time.sleep(LOOK)
    if interrupt.came:
        return 0.0
    crew.go()
    return _watch(crew, args.seconds, interrupt, screen(args.seconds, silent=args.json))


def _watch(crew: WorkerPool, seconds: float, interrupt: Interrupt, shown: Any) -> float:
    began = time.monotonic()
    try:
        while (elapsed := time.monotonic() - began) < seconds and not interrupt.came:
            shown.show(elapsed, crew.rows())
            time.sleep(LOOK)
        shown.show(elapsed, crew.rows())
        return elapsed
    finally:
        shown.close()


def _environment(sandbox: Sandbox, file: TokenFile) -> dict[str, str]:
    # A proxy of the user's would be asked for 127.0.0.1 otherwise.
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {**kept, **sandbox.environment(file.path)}


def _last_line(path: str) -> str:
    lines: list[str] = []
    with suppress(OSError), open(path, encoding="utf-8", errors="replace") as errors:
        lines = [line.strip() for line in errors if line.strip()]
    return lines[-1] if lines else "it said nothing"
