"""A refresh in a process of its own, a helper, which no kill of the program reaches (rule 5).

The job's thread takes the lock, re-reads and decides as ever. Where the decision is to refresh, it starts a
helper that inherits the locked descriptor, and waits for its end. So there is one helper for each expiry. Up
to the hand-over a helper that fails costs nothing: the thread still has the lock and goes on. After it, the
lock alone tells that the helper is gone, never a pipe.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import threading
import time
import types
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ..common.notices import logger
from ..common.secret import Secret
from ..errors import RefreshFailed
from . import helper_process
from .attempt import attempted
from .context import Launch, RotationContext, Step, Transaction
from .helper_process import Helper

if TYPE_CHECKING:
    from ..store.base import InheritableLock

__all__ = [
    "Launcher",
    "Program",
    "TransportSpec",
    "begins_in_background",
    "forget_helpers",
    "hand_over",
    "insist",
    "obstacle",
    "wants_helper",
]

#: Helpers of one process at once: a web application may have a thousand sessions that are due at once. And
#: the seconds to wait for the end of another, before the thread does it.
MAX_HELPERS, PLACE_TIMEOUT = 8, 2.0
#: Seconds between two checks whether the program is about to end.
LISTEN_INTERVAL = 0.1
#: Bytes of the configuration. An empty pipe holds at least 16 KiB; a longer text could wait for a reader for
#: ever.
CONFIGURATION_LIMIT = 16 * 1024
#: The names of interpreters. `sys.executable` may be uWSGI, Blender or the frozen program itself: starting
#: that would start the program again.
INTERPRETER = re.compile(r"(python|pypy|graalpy)[\d.]*(t?d?|-dbg|-intel64)", re.ASCII)
OTHER_TRANSPORT = "what carries the refresh is not a client as it was installed"
OTHER_STORE = "the store is an object of the program's, which no other process can open"


class TransportSpec(NamedTuple):
    """What carries the refresh, as values for another process. `kind`: "plain", or a client's name."""

    kind: str
    options: Mapping[str, Any]


class Program(NamedTuple):
    """What decides whether a helper can be started from here."""

    executable: str | None
    #: whether that file is there, and may be executed
    is_executable: bool
    #: whether this is one file that was made of a program (PyInstaller, Nuitka, cx_Freeze)
    frozen: bool
    #: `sys.platform`
    platform: str
    #: whether gevent, eventlet or a test has replaced what starts and reads processes
    patched: bool


def obstacle(program: Program) -> str | None:
    """Return why no helper can be started, None where one can."""
    if program.platform in ("win32", "emscripten", "wasi", "ios", "android"):
        return f"no descriptor is inherited on {program.platform}"
    if program.frozen:
        return "the program is frozen"
    if program.patched:
        return "subprocess, os or select is replaced"
    name = os.path.basename(program.executable or "")
    if not INTERPRETER.fullmatch(name) or not program.is_executable:
        return f"sys.executable is no Python interpreter ({name or 'empty'})"
    return None


def wants_helper(detached: bool | None, *, in_background: bool, is_daemonic: bool) -> bool:
    """Return whether a refresh is to run in a helper where that is possible.

    By default, one that may outlive its caller: in the background, or in a multiprocessing child that is
    marked daemonic. A caller there may give up after its timeout, and the end of its pool is a SIGTERM.
    """
    return in_background or is_daemonic if detached is None else detached


def begins_in_background(detached: bool | None, *, has_helper: bool, is_daemonic: bool) -> bool:
    """Return whether a background refresh may begin.

    A multiprocessing child that is marked daemonic is ended by SIGTERM with its parent, or its pool: a thread
    there would be cut off with a spent token.
    """
    return has_helper or detached is False or not is_daemonic


def this_program() -> Program:
    """Return what decides whether a helper can be started from here."""
    executable = sys.executable
    return Program(
        executable=executable,
        is_executable=bool(executable) and os.access(executable, os.X_OK),
        frozen=bool(getattr(sys, "frozen", False)) or "__compiled__" in globals(),
        platform=sys.platform,
        patched=_is_patched(),
    )


def _is_patched() -> bool:
    natives = (os.read, os.write, os.pipe, time.sleep, getattr(select, "poll", None))
    return subprocess.Popen.__module__ != "subprocess" or not all(
        isinstance(native, types.BuiltinFunctionType) for native in natives
    )


def is_daemonic() -> bool:
    """Return whether this is a multiprocessing child that ends with its parent."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and bool(process.current_process().daemon)


def hand_over(context: RotationContext, rejected: Secret, since: int) -> Transaction:
    """Let a helper do the rest of the rotation, and wait for its end.

    Return the helper, which takes the lock along; None where none was started. There is one for each job: the
    job's thread does what it leaves undone.
    """
    launch, context.launch_helper = context.launch_helper, None
    if launch is None:
        return None
    helper = yield Step("start helper", partial(launch, context, rejected, since))
    while helper is not None and not helper.ended:
        # A pause: those who wait for the pair have it, and a job without a thread goes on with this later.
        name = "listen" if helper.unsaved is None else "pause"
        yield from attempted(Step(name, partial(helper.listen, context, LISTEN_INTERVAL)))
    return helper


def insist(launch: Launch, context: RotationContext, rejected: Secret, since: int) -> Helper:
    """Start a helper as `launch` does. Raises `RefreshFailed` where none was started."""
    helper: Helper | None = launch(context, rejected, since)
    if helper is None:
        facts = context.store.facts_for_errors()
        raise RefreshFailed(
            "no process of its own could be started for the refresh; try again later", **facts
        )
    return helper


class Launcher:
    """Starts helpers for one core.

    `session`: what a helper has to know of the session, its store and its client; None for a store that no
    other process can open.
    """

    def __init__(self, detached: bool | None, session: Mapping[str, Secret] | None) -> None:
        self.detached = detached
        self._session = session

    def is_possible(self, spec: TransportSpec | None) -> bool:
        """Return whether a helper can be started for a refresh that is carried like that."""
        if self._session is None:
            reason: str | None = OTHER_STORE
        else:
            reason = obstacle(this_program()) if spec is not None else OTHER_TRANSPORT
        if reason is not None:
            _explain(reason)
        return reason is None

    def launch(
        self, spec: TransportSpec, context: RotationContext, rejected: Secret, since: int
    ) -> Helper | None:
        """Start a helper and hand the lock over to it; None where nothing was handed over."""
        helper = handed_over = None
        (places,) = _places
        if not places.acquire(timeout=PLACE_TIMEOUT):
            _explain(f"{MAX_HELPERS} of them are at work")
            return None
        try:
            held = _inheritable(context.lock)
            if held is None:
                return None
            configuration = self._configuration(spec, context, held, rejected, since)
            if len(configuration.reveal()) > CONFIGURATION_LIMIT:
                return None
            lock = held.descriptor()
            try:
                helper = helper_process.start(spec.kind, self._store_kind(), lock)
                if helper.is_ready():
                    held.hand_over()
                    handed_over, helper = helper, None
                    handed_over.lock, handed_over.when_ended = held, places.release
                    return handed_over
            finally:
                if lock is not None:
                    lock.close()
                # Last: the helper alone has the lock by now.
                if handed_over is not None:
                    handed_over.configure(configuration)
        # What can't be started here, and be it for a limit, is no reason for an error: the thread does it.
        except Exception as refused:  # noqa: BLE001
            _explain(f"it could not be started ({type(refused).__name__})")
        finally:
            if helper is not None:
                helper.kill()
            if handed_over is None:
                places.release()
        return None

    def _configuration(
        self,
        spec: TransportSpec,
        context: RotationContext,
        lock: InheritableLock,
        rejected: Secret,
        since: int,
    ) -> Secret:
        return Secret(
            json.dumps(
                {
                    "session": {name: value.reveal() for name, value in (self._session or {}).items()},
                    "transport": spec.options,
                    "rejected": rejected.reveal(),
                    "since": since,
                    "now": context.clock.now(),
                    "host": context.who[1],
                    "lock": lock.identity,
                }
            )
        )

    def _store_kind(self) -> str:
        """Return "file", or the scheme of the store's URL; with "+encrypted" where there are keys."""
        session = self._session or {}
        if "store" not in session:
            return "file"
        scheme = session["store"].reveal().partition(":")[0].lower()
        return scheme + ("+encrypted" if session["store_key"].reveal() else "")


def _inheritable(lock: Any) -> InheritableLock | None:
    """Return the lock if a helper can go on with it; that of another store than ours may not be so."""
    return lock if hasattr(lock, "hand_over") else None


def _explain(reason: str) -> None:
    if reason not in _explained:
        _explained.add(reason)
        logger.debug("a refresh runs in a thread of this process instead of one of its own: %s", reason)


#: reasons that were logged: each once
_explained: set[str] = set()
#: the one that counts now: a forked child has one of its own, for what runs is the parent's
_places = [threading.Semaphore(MAX_HELPERS)]


def forget_helpers() -> None:
    """Begin anew in a forked child."""
    _places[:] = [threading.Semaphore(MAX_HELPERS)]
