"""One helper process, as its program sees it: started, listened to, and ended if it hangs."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from ..common.clock import JobClock
from ..common.fork_safety import OwnDescriptor, no_fork
from ..common.limits import REFRESH_DEADLINE
from ..common.secret import Secret
from ..tokens import Tokens
from .context import RotationContext

if TYPE_CHECKING:
    from ..store.base import InheritableLock

__all__ = ["ENDING", "GREETING_TIMEOUT", "HELPER_LIFE", "Helper", "greeting", "start"]

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
#: What the program writes after the configuration when it is about to end: no further try is begun then.
ENDING = b"E"

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


def _warn_once(text: str, warn: Callable[[str], None]) -> None:
    """Warn of what each helper finds out anew, as a process that lives on does."""
    if text not in _noticed:
        _noticed.add(text)
        warn(text)


#: what helpers have warned of, beside what they say of their own refresh
_noticed: set[str] = set()
