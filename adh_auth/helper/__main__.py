"""The process that refreshes for a program.

It greets, is told what to do over a pipe, and does the rest of the rotation with the very same code.

It is started by `adh_auth.rotation.detached`, holds the lock already, and outlives the program.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from ..common.clock import JobClock
from ..common.limits import REFRESH_DEADLINE
from ..common.notices import logger
from ..common.secret import Secret
from ..oauth.endpoint import EndpointCall, EndpointReply
from ..rotation.context import Calls, RotationContext, Transaction
from ..rotation.helper_process import GREETING_TIMEOUT, HELPER_LIFE, greeting
from ..rotation.transaction import rotate_locked
from ..store.base import Lock, Store
from ..store.inherited_lock import InheritedLock
from ..store.token_file import TokenFile
from ..tokens import Tokens

__all__ = ["main"]

#: Seconds for what follows a reply, which may have brought a pair: the file may be missing for six
#: (`token_file.IN_HAND`), a disk be slow, a look-up of the store's name hang for a minute.
WRITE_LIFE = 120.0
#: Seconds that a call may take longer than it was given: the client's own time-out comes first.
CALL_MARGIN = HELPER_LIFE - REFRESH_DEADLINE
#: Seconds for which a look at a store is tried again. The program looks itself if a helper gives up.
STORE_PATIENCE = 2.0
#: Seconds that a helper keeps trying to write a pair after its program is gone. Until then somebody has
#: made room on a full disk, or nobody will.
UNSAVED_LIFE = 600.0

#: Posts a call with the options of a `TransportSpec`; gives up after so many seconds.
PostWith = Callable[[EndpointCall, float, dict[str, Any]], EndpointReply]
#: Opens the store that it is told, and the lock in this process's hands.
OpenStore = Callable[[dict[str, Any], int], tuple[Store, Lock]]


def main(arguments: list[str]) -> NoReturn:
    """Run the helper.

    `arguments`: the descriptors of commands, events and lock (-1 for none), the kinds of transport and store.
    """
    commands, events, lock = (int(argument) for argument in arguments[:3])
    try:
        shield()
        # The program gives up on a greeting after so long, and its configuration follows at once.
        end_after(2 * GREETING_TIMEOUT)
        post = load_transport(arguments[3])
        open_store = load_store(arguments[4])
        os.write(events, greeting())
        configuration, more = read_line(commands)
        if configuration:
            told = json.loads(configuration)
            end_after(HELPER_LIFE)
            store, held = open_store(told, lock)
            clock = HelperClock(commands, is_ending=bool(more))
            Rotation(told, clock, events, store, held).run(post)
    finally:
        # Nothing of the interpreter's end: no exit handler, no thread is waited for.
        os._exit(0)


def shield() -> None:
    """Go on through the signals by which systemd and terminals end programs, long before SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # The program may have had the alarm ignored or blocked, and that is inherited.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})


def end_after(seconds: float) -> None:
    """Let the system end this process then, whatever hangs."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def load_transport(kind: str) -> PostWith:
    """Import what carries the refresh, before anything depends on it."""
    if kind == "plain":
        from .plain_post import post

        return post
    if kind == "requests":
        from ..clients import requests_transport

        return lambda call, seconds, options: requests_transport.post(
            call, seconds, None, {**options, "cert": _tuple(options["cert"])}
        )
    from importlib import import_module

    from ..clients.httpx_transport import Transport

    client = import_module(kind)
    return lambda call, seconds, _: Transport(client, None).post(call, seconds)


def load_store(kind: str) -> OpenStore:
    """Import what opens the store, also before anything depends on it.

    `kind`: "file", or the scheme of a URL; with "+encrypted" where the pair is.
    """
    if kind == "file":
        return lambda told, lock: (
            TokenFile(told["session"]["token_file"]),
            InheritedLock(told["lock"], lock),
        )
    from ..store import factory

    scheme, _, encrypted = kind.partition("+")
    factory.load_driver(scheme, encrypted=bool(encrypted))

    def open_registry(told: dict[str, Any], _: int) -> tuple[Store, Lock]:
        session = told["session"]
        url, keys = Secret(session["store"]), Secret(session["store_key"])
        store = factory.open_registry(url, session["session"], keys, patience=STORE_PATIENCE)
        return store, store.inherited_lock(told["lock"])

    return open_registry


def _tuple(cert: Any) -> Any:
    """Return a client certificate as requests takes it; JSON knows no tuple."""
    return tuple(cert) if isinstance(cert, list) else cert


def read_line(fd: int) -> tuple[bytes, bytes]:
    """Return the first line and what came after it; nothing where the program ended before it wrote that."""
    received = b""
    while b"\n" not in received:
        data = os.read(fd, 65536)
        if not data:
            return b"", b""
        received += data
    line, _, more = received.partition(b"\n")
    return line, more


class Rotation:
    """The rest of one rotation: what is told, and what is reported."""

    def __init__(
        self, told: dict[str, Any], clock: HelperClock, events: int, store: Store, lock: Lock
    ) -> None:
        self._told = told
        self._clock = clock
        self._clock.set(told["now"])
        self._events = events
        self._store = store
        self._lock = lock

    def run(self, post: PostWith) -> None:
        """Do it. Its outcome is in the file or in the record, for whoever waits for the lock."""
        session, options = self._told["session"], self._told["transport"]
        calls = Calls(session["base_url"], session["client_id"], Secret(session["client_secret"]))
        context = RotationContext(
            store=self._store,
            clock=self._clock,
            post=partial(self._post, post, options),
            refresh_call=calls.refresh,
            owner=calls.owner,
            who=(os.getpid(), self._told["host"]),
            lock_timeout=0.0,
            continue_unsaved=lambda tokens: self._report_unsaved(context, tokens),
            warn=lambda message: self._report("warning", message),
            lock=self._lock,
        )
        logger.addHandler(Notices(self._report))
        try:
            with suppress(Exception):  # who waits finds out from the file and the record, and decides anew
                run_steps(rotate_locked(context, Secret(self._told["rejected"]), self._told["since"]))
            self._report_fact("request_id", context.request_id)
            if context.refreshed:
                self._report("refreshed", value=True)
            self._report("finished", value=True)
        finally:
            self._lock.release()

    def _post(
        self, post: PostWith, options: dict[str, Any], call: EndpointCall, seconds: float
    ) -> EndpointReply:
        self._live(seconds + CALL_MARGIN)
        reply = post(call, seconds, options)
        # There may be a pair in hand now: neither the alarm nor the program may take it away.
        self._live(WRITE_LIFE)
        return reply

    def _live(self, seconds: float) -> None:
        end_after(seconds)
        self._report("ends_in", seconds)

    def _report_unsaved(self, context: RotationContext, tokens: Tokens) -> None:
        self._clock.is_unsaved = True
        end_after(UNSAVED_LIFE)
        gc.enable()  # it may try for hours, as long as the program lives
        self._report_fact("request_id", context.request_id)
        self._report_fact("problem", context.problem)
        self._report("unsaved", vars(tokens))

    def _report_fact(self, kind: str, value: str | None) -> None:
        if value is not None:
            self._report(kind, value)

    def _report(self, kind: str, value: Any) -> None:
        with suppress(OSError):  # the program may be gone
            os.write(self._events, json.dumps([kind, value]).encode("ascii") + b"\n")


class Notices(logging.Handler):
    """Passes on what the store warns of: this process has no stream that anybody reads."""

    def __init__(self, report: Callable[[str, str], None]) -> None:
        super().__init__(logging.WARNING)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        """Pass it on."""
        self._report("notice", record.getMessage())


def run_steps(steps: Transaction) -> Any:
    """Do each step of a transaction and return its outcome."""
    value: Any = None
    error: BaseException | None = None
    while True:
        try:
            step = steps.send(value) if error is None else steps.throw(error)
        except StopIteration as end:
            return end.value
        value, error = None, None
        try:
            value = step.work()
        except BaseException as raised:  # noqa: BLE001 - the generator gets it, whatever it is
            error = raised


class HelperClock(JobClock):
    """The program's time, which a test may have moved, and whether the program is about to end."""

    def __init__(self, commands: int, *, is_ending: bool = False) -> None:
        super().__init__()
        self._poller = select.poll()
        self._poller.register(commands, select.POLLIN)
        self._commands = commands
        self._is_ending = is_ending
        self._is_alone = False
        self.is_unsaved = False

    def set(self, now: float) -> None:
        """Go by the program's time, in epoch seconds."""
        self._began = now - self.monotonic()

    def ending(self) -> bool:
        """Return whether the program waits for this helper at its end.

        A program that was killed waits for nothing, and further tries may still save its session.
        """
        if not self._is_alone and self._poller.poll(0):
            if os.read(self._commands, 64):
                self._is_ending = True
            else:
                self._is_alone = True
        if self.is_unsaved and not self._is_alone:
            end_after(UNSAVED_LIFE)
        return self._is_ending


if __name__ == "__main__":
    main(sys.argv[1:])
