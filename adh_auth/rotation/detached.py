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
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ..common.clock import JobClock
from ..common.fork_safety import OwnDescriptor, no_fork
from ..common.limits import REFRESH_DEADLINE
from ..common.notices import logger
from ..common.secret import Secret
from ..errors import RefreshFailed
from ..tokens import Tokens
from .attempt import attempted
from .context import Launch, RotationContext, Step, Transaction

if TYPE_CHECKING:
    from ..store.base import InheritableLock

__all__ = [
    "ENDING",
    "HELPER_LIFE",
    "Helper",
    "Launcher",
    "Program",
    "TransportSpec",
    "begins_in_background",
    "forget_helpers",
    "greeting",
    "hand_over",
    "insist",
    "obstacle",
    "wants_helper",
]

#: Helpers of one process at once: a web application may have a thousand sessions that are due at once. And
#: the seconds to wait for the end of another, before the thread does it.
MAX_HELPERS, PLACE_TIMEOUT = 8, 2.0
#: Seconds until a helper says that it is ready: an interpreter starts, on a machine under load.
GREETING_TIMEOUT = 5.0
#: Seconds after which a helper ends, whatever happens, until it sends the token: the deadline of a refresh,
#: and a little for the disk. With `GREETING_TIMEOUT` still under `LOCK_TIMEOUT`, or waiters would give up on
#: one that is at work. From then on it says itself how long it will live.
HELPER_LIFE = REFRESH_DEADLINE + 5.0
#: Seconds more until the program kills one that has not ended by itself.
KILL_MARGIN = 15.0
#: Seconds to wait for the end of one that was killed.
REAP_TIMEOUT = 5.0
#: Seconds between two checks whether a helper has ended, once its pipe is closed.
EXIT_POLL = 0.001
#: Seconds between two checks whether the program is about to end.
LISTEN_INTERVAL = 0.1
#: Bytes of the configuration. An empty pipe holds at least 16 KiB; a longer text could wait for a reader for
#: ever.
CONFIGURATION_LIMIT = 16 * 1024
#: What the program writes after the configuration when it is about to end: no further try is begun then.
ENDING = b"E"

#: The names of interpreters. `sys.executable` may be uWSGI, Blender or the frozen program itself: starting
#: that would start the program again.
INTERPRETER = re.compile(r"(python|pypy|graalpy)[\d.]*(t?d?|-dbg|-intel64)", re.ASCII)
OTHER_TRANSPORT = "what carries the refresh is not a client as it was installed"
OTHER_STORE = "the store is an object of the program's, which no other process can open"
#: What is in the environment and a secret: the configuration brings it.
SECRET_VARIABLES = frozenset({"ADH_CLIENT_SECRET", "ADH_STORE", "ADH_STORE_KEY"})
#: The interpreter's own `sys.path` may lack what the program has put there: a zipapp, a folder of plug-ins.
#: The collector is off: it takes a tenth of the start. filelock would take a third, and an inherited lock
#: needs none.
BOOTSTRAP = (
    "import gc, sys; gc.disable(); sys.path[:] = sys.argv[6:]; "
    "sys.modules['filelock'] = type(sys)('filelock'); "
    "from adh_auth.helper.__main__ import main; main(sys.argv[1:6])"
)


def greeting() -> bytes:
    """Return what a helper of this very version says when it is ready."""
    # Read where it is: nothing imports the package's own module. An upgrade under a running program changes
    # the one on disk.
    version = sys.modules[__name__.partition(".")[0]].__version__
    return f"adh-auth helper {version}\n".encode()


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
                helper = start(spec.kind, self._store_kind(), lock)
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


def _warn_once(text: str, warn: Callable[[str], None]) -> None:
    """Warn of what each helper finds out anew, as a process that lives on does."""
    if text not in _noticed:
        _noticed.add(text)
        warn(text)


#: what helpers have warned of, beside what they say of their own refresh
_noticed: set[str] = set()
#: reasons that were logged: each once
_explained: set[str] = set()
#: the one that counts now: a forked child has one of its own, for what runs is the parent's
_places = [threading.Semaphore(MAX_HELPERS)]


def forget_helpers() -> None:
    """Begin anew in a forked child."""
    _places[:] = [threading.Semaphore(MAX_HELPERS)]


def start(kind: str, store_kind: str, lock: OwnDescriptor | None) -> Helper:
    """Start a helper that inherits the locked descriptor, if any.

    Raises `OSError`, or what else Popen raises.
    """
    inherited = [] if lock is None else [lock.number()]
    pipes: list[OwnDescriptor] = []
    try:
        with no_fork():
            pipes += [OwnDescriptor(fd) for _ in range(2) for fd in _high_pipe()]
        told, commands, events, says = pipes
        process = subprocess.Popen(  # noqa: S603 - this very interpreter
            command(kind, store_kind, told.number(), says.number(), *inherited),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=True,
            pass_fds=(told.number(), says.number(), *inherited),
            env=environment(os.environ),
            # The kill of a process group, or a hang-up of the terminal, does not reach it.
            start_new_session=True,
        )
    except BaseException:
        for pipe in pipes:
            pipe.close()
        raise
    told.close()
    says.close()
    return Helper(process, commands, events)


def _high_pipe() -> tuple[int, int]:
    """Return a pipe whose ends are 3 and above: the helper's standard streams get the lower numbers."""
    import fcntl

    low = os.pipe()
    try:
        reading, writing = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in low)
    finally:
        for fd in low:
            os.close(fd)
    return reading, writing


def command(kind: str, store_kind: str, told: int, says: int, lock: int = -1) -> list[str]:
    """Return the command line of a helper. It holds no secret."""
    flags = ["-E"] if sys.flags.ignore_environment else []
    if sys.version_info >= (3, 11):
        # Without this, Python 3.13.0 fails in a folder that is gone, at any name that a module lacks.
        flags.append("-P")
    # -S: site takes half of an interpreter's start, and `sys.path` goes along. -W: nobody sees a warning, and
    # PYTHONWARNINGS=error would end it.
    flags += ["-S", "-W", "ignore", "-X", f"utf8={sys.flags.utf8_mode}"]
    arguments = [str(told), str(says), str(lock), kind, store_kind]
    return [sys.executable, *flags, "-c", BOOTSTRAP, *arguments, *search_path()]


def search_path() -> list[str]:
    """Return `sys.path`, and where this package was found if it is not in there (an import hook's)."""
    ours = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = [entry for entry in sys.path if isinstance(entry, str)]
    return path if ours in path else [*path, ours]


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a helper: the program's, less what is a secret of ours."""
    return {name: value for name, value in variables.items() if name not in SECRET_VARIABLES}


class Helper:
    """A helper process: commands go to it, events come from it."""

    def __init__(
        self, process: subprocess.Popen[bytes], commands: OwnDescriptor, events: OwnDescriptor
    ) -> None:
        self._process = process
        #: the seconds of its clock at which the program kills it; None: `HELPER_LIFE` and `KILL_MARGIN`
        self._kill_at: float | None = None
        self._commands: OwnDescriptor | None = commands
        self._events: OwnDescriptor | None = events
        self._received = b""
        self._clock = JobClock()
        self._was_told_the_end = False
        #: whether it has ended, and was reaped
        self.ended: bool = False
        #: the new pair, where it could not be written yet
        self.unsaved: Tokens | None = None
        #: what it holds
        self.lock: InheritableLock | None = None
        #: called when it has ended
        self.when_ended: Callable[[], None] = lambda: None
        #: whether it said that it has done all it could: it was not killed
        self.has_finished: bool = False

    def is_ready(self) -> bool:
        """Wait for the greeting. False where it does not come, or another program says something else."""
        expected = greeting()
        while len(self._received) < len(expected):
            left = GREETING_TIMEOUT - self._clock.monotonic()
            if left <= 0 or not self._receive(left) or self._events is None:
                return False
        said, self._received = self._received, b""
        self._clock = JobClock()
        return said == expected

    def configure(self, configuration: Secret) -> None:
        """Tell it what to do. Where that fails it has ended, or will: the lock tells."""
        self._tell(configuration.reveal().encode("ascii") + b"\n")

    def _tell(self, data: bytes) -> None:
        with suppress(OSError):
            if self._commands is not None:
                os.write(self._commands.number(), data)

    def listen(self, context: RotationContext, seconds: float) -> None:
        """Heed what it says within `seconds`, and notice its end."""
        if context.clock.ending() and not self._was_told_the_end:
            self._was_told_the_end = True
            self._tell(ENDING)
        has_exited = self._process.poll() is not None
        if not self._receive(seconds) and has_exited:
            self._close()
        for line in self._lines():
            self._heed(line, context)
        kill_at = HELPER_LIFE + KILL_MARGIN if self._kill_at is None else self._kill_at
        if self.unsaved is None and self._clock.monotonic() > kill_at:
            self.kill()

    def _receive(self, seconds: float) -> bool:
        """Wait for what it says; False where nothing came."""
        if self._events is None:
            time.sleep(min(seconds, EXIT_POLL))
            return False
        try:
            poller = select.poll()
            poller.register(self._events.number(), select.POLLIN)
            if not poller.poll(max(1, int(seconds * 1000))):
                return False
            data = os.read(self._events.number(), 65536)
        except OSError:  # the program has closed it; whether the helper has ended is asked of the system
            data = b""
        if not data:
            self._events.close()
            self._events = None
        self._received += data
        return bool(data)

    def _lines(self) -> list[bytes]:
        *lines, self._received = self._received.split(b"\n")
        return lines

    def _heed(self, line: bytes, context: RotationContext) -> None:
        # No error here may end the job: the helper is at work.
        with suppress(Exception):
            kind, value = json.loads(line)
            if kind == "refreshed":
                context.refreshed = True
            elif kind == "ends_in":
                self._kill_at = self._clock.monotonic() + value + KILL_MARGIN
            elif kind == "request_id":
                context.request_id = str(value)
            elif kind == "problem":
                context.problem = str(value)
            elif kind == "warning":
                context.warn(str(value))
            elif kind == "notice":
                _warn_once(str(value), context.warn)
            elif kind == "unsaved":
                self.unsaved = Tokens(**value)
                context.continue_unsaved(self.unsaved)
            elif kind == "finished":
                self.has_finished = True

    def give_back_lock(self) -> None:
        """Let its lock be taken by this process, if the system says that it is gone."""
        if self.lock is not None and self._process.returncode is not None:
            self.lock.take_back()

    def kill(self) -> None:
        """End it at once, with what it may have started."""
        if self._process.poll() is None:
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with suppress(OSError):
                self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(REAP_TIMEOUT)
        self._close()

    def _close(self) -> None:
        for pipe in (self._commands, self._events):
            if pipe is not None:
                pipe.close()
        self._commands = self._events = None
        if not self.ended:
            self.ended = True
            self.when_ended()
