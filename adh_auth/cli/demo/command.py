"""``adh-auth demo``: several processes share one token file whose tokens live two seconds.

This process runs the sandbox, watches the others (`worker`), shows what they do (`screen`), and ends them
however it ends itself.
"""

from __future__ import annotations

import argparse
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

from ...testing import Sandbox
from ..terminal import echo_json
from .place import Place, file_in, session_in_store
from .pool import WorkerPool
from .screen import Screen, print_meaning, print_wrapped, screen
from .worker import main as run_worker

__all__ = ["demo_command"]

#: Seconds that an access token lives here.
TOKEN_LIFE = 2.0
#: Seconds between two updates of the screen. The processes report every 0.2 s.
UPDATE_INTERVAL = 0.1
#: Seconds that the processes may take to get ready. Half a second is usual, more on a busy or cold machine.
READY_TIMEOUT = 60.0

#: Exit codes; 130 is a shell's for Ctrl-C.
SUCCESS, FAILURE, INTERRUPTED = 0, 1, 130


def demo_command(args: argparse.Namespace) -> int:
    """Run the demo and return the exit code.

    0: all went well. 1: a request failed, or a refresh token was used twice. 130: Ctrl-C, and no failure.
    Raises `AdhAuthError` for a store that can't be used.
    """
    if args.worker is not None:
        run_worker(args.worker)
        return SUCCESS
    with ExitStack() as stack:
        interrupt = stack.enter_context(_interrupts())
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="adh-demo-", ignore_cleanup_errors=True)
        )
        place = stack.enter_context(_place(args, folder))
        sandbox = stack.enter_context(Sandbox(token_life=TOKEN_LIFE))
        shown = stack.enter_context(closing(screen(args.seconds, silent=args.json)))
        pool = WorkerPool(sandbox, folder, place)
        try:
            seconds = _run(pool, args, interrupt, shown)
        finally:
            pool.end()
        totals = pool.totals(seconds, interrupted=interrupt.received)
        shown.finish(totals)
    if args.json:
        echo_json(totals.facts())
    else:
        print_meaning(totals)
    if not totals.good:
        return FAILURE
    return INTERRUPTED if interrupt.received else SUCCESS


@contextmanager
def _place(args: argparse.Namespace, folder: str) -> Iterator[Place]:
    """Make the place of the session; it is signed out there at the end."""
    if args.machines:
        from .machines import postgresql_in

        with postgresql_in(folder) as url, session_in_store(url) as place:
            yield place
    elif args.store is not None:
        with session_in_store(args.store) as place:
            yield place
    else:
        yield file_in(folder)


@dataclass
class Interrupt:
    """Whether a signal asked for the end."""

    received: bool = False


@contextmanager
def _interrupts() -> Iterator[Interrupt]:
    """Turn Ctrl-C, SIGTERM and a closed terminal into a flag.

    An exception in the middle of the clean-up would leave processes behind.
    """
    interrupt = Interrupt()

    def receive(*_: object) -> None:
        interrupt.received = True

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # What was ignored from the start (nohup) stays ignored.
    before = {
        number: handler for number in numbers if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }
    for number in before:
        signal.signal(number, receive)
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(pool: WorkerPool, args: argparse.Namespace, interrupt: Interrupt, shown: Screen) -> float:
    """Start the processes and watch them; return the seconds that they worked."""
    if not args.json:
        print_wrapped(f"{pool.place.summary} of a local ADH; access tokens live {TOKEN_LIFE:g} s.")
    pool.start()
    deadline = time.monotonic() + READY_TIMEOUT
    while pool.is_starting and not interrupt.received:
        if time.monotonic() > deadline:
            return 0.0
        time.sleep(UPDATE_INTERVAL)
    if interrupt.received:
        return 0.0
    pool.go()
    return _watch(pool, args.seconds, interrupt, shown)


def _watch(pool: WorkerPool, seconds: float, interrupt: Interrupt, shown: Screen) -> float:
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < seconds and not interrupt.received:
        shown.show(elapsed, pool.rows())
        time.sleep(UPDATE_INTERVAL)
    shown.show(elapsed, pool.rows())
    return elapsed
