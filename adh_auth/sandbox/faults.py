"""Faults on demand: replies that never come, come late or come broken, and calls that are held."""

import math
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

ENDPOINTS = ("refresh", "exchange", "revoke", "me", "api")
DROPS = ("before", "after", "midway")
MOMENTS = ("before", "after")

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, repr=False, eq=False)
class Fault:
    """The fault of one call. The default is a call without one."""

    status: int | None = None
    headers: Headers = ()
    body: bytes | None = None
    drop: str | None = None
    delay: float = 0.0


NO_FAULT = Fault()


class Hold:
    """A call that is held on the server until `release()`.

    As a context manager it releases on the way out.
    """

    def __init__(self) -> None:
        self.reached: threading.Event = threading.Event()
        """Set as soon as the call is held."""
        self._released = threading.Event()

    def wait(self, timeout: float = 10.0) -> None:
        """Wait until the call is held. Raises `TimeoutError` after `timeout` seconds."""
        if not self.reached.wait(timeout):
            raise TimeoutError(f"no call came to the held endpoint within {timeout:g} s")

    def release(self) -> None:
        """Let the call go on. Released beforehand, it is not held at all."""
        self._released.set()

    # Without a docstring: the server calls it, a test does not.
    def block(self) -> None:
        self.reached.set()
        self._released.wait()

    def __enter__(self) -> "Hold":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<Hold reached={self.reached.is_set()} released={self._released.is_set()}>"


@dataclass(repr=False, eq=False)
class _Planned:
    fault: Fault
    left: float


class Faults:
    """Faults and holds to come, first in first out, in one queue for each endpoint."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._planned: dict[str, deque[_Planned]] = {on: deque() for on in ENDPOINTS}
        self._holds: dict[tuple[str, str], deque[Hold]] = {
            (on, at): deque() for on in ENDPOINTS for at in MOMENTS
        }
        self._active: set[Hold] = set()
        self._closed = threading.Event()

    def plan(self, on: str, count: float | None, fault: Fault) -> None:
        """Add a fault for the next `count` calls of an endpoint, for all until `heal()` if that is None."""
        with self._lock:
            self._planned[on].append(_Planned(fault, math.inf if count is None else count))

    def hold(self, on: str, at: str) -> Hold:
        """Add a hold for the next call of an endpoint. Raises `ValueError`."""
        _check_choice("on", on, ENDPOINTS)
        _check_choice("at", at, MOMENTS)
        hold = Hold()
        with self._lock:
            self._holds[on, at].append(hold)
        return hold

    def heal(self) -> None:
        """Drop all faults to come."""
        with self._lock:
            for queue in self._planned.values():
                queue.clear()

    def take(self, on: str) -> Fault:
        """Return the fault of the call that has just arrived."""
        with self._lock:
            queue = self._planned.get(on)
            if not queue:
                return NO_FAULT
            first = queue[0]
            first.left -= 1
            if first.left <= 0:
                queue.popleft()
            return first.fault

    def pass_by(self, on: str, at: str) -> None:
        """Hold the call here if a hold was placed.

        Raises `ConnectionAbortedError` once the server stops: the call must not go on.
        """
        with self._lock:
            queue = self._holds.get((on, at))
            hold = queue.popleft() if queue else None
            if hold is not None and not self._closed.is_set():
                self._active.add(hold)
        if hold is not None:
            self._hold(hold)

    def sleep(self, seconds: float) -> None:
        """Delay the call. Raises `ConnectionAbortedError` once the server stops."""
        if seconds and self._closed.wait(seconds):
            raise ConnectionAbortedError("the sandbox is stopping")

    def open(self) -> None:
        """Let calls sleep and be held again, after `close`."""
        self._closed.clear()

    def close(self) -> None:
        """Wake every call that sleeps or is held, and end it."""
        with self._lock:
            self._closed.set()
            for hold in self._active:
                hold.release()

    def _hold(self, hold: Hold) -> None:
        if not self._closed.is_set():
            hold.block()
        with self._lock:
            self._active.discard(hold)
        if self._closed.is_set():
            raise ConnectionAbortedError("the sandbox is stopping")


def planned_fault(
    status: int | None,
    retry_after: float | str | None,
    headers: Mapping[str, str] | None,
    body: bytes | None,
    drop: str | None,
    delay: float,
) -> Fault:
    """Return the arguments of `fail_next` as a fault.

    Raises `ValueError` if they contradict each other or ask for nothing.
    """
    if status is None and drop is None and not delay:
        raise ValueError("a fault needs a status, a drop or a delay")
    if status is not None and drop is not None:
        raise ValueError("a dropped connection has no status: give status or drop")
    if status is None and not (retry_after is None and headers is None and body is None):
        raise ValueError("retry_after, headers and body belong to a reply: give its status too")
    _check_reply(status, body, delay)
    if drop is not None:
        _check_choice("drop", drop, DROPS)
    return Fault(status, _header_pairs(headers, retry_after), body, drop, delay)


def check_plan(on: str, count: float | None) -> None:
    """Raise `ValueError` for an endpoint or a count that does not exist."""
    _check_choice("on", on, ENDPOINTS)
    if count is not None and not (count >= 1 and (math.isinf(count) or count == int(count))):
        raise ValueError(f"count must be a whole number from 1 on, or None for until heal(), not {count!r}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def _check_reply(status: int | None, body: bytes | None, delay: float) -> None:
    if status is not None and not 200 <= status <= 599:
        raise ValueError(f"status must be a final HTTP status, 200 to 599, not {status!r}")
    if body is not None and not isinstance(body, bytes):
        raise ValueError(f"body must be bytes, not {type(body).__name__}")
    if not (math.isfinite(delay) and delay >= 0):
        raise ValueError(f"delay must be a number of seconds, 0 or more, not {delay!r}")


def _header_pairs(headers: Mapping[str, str] | None, retry_after: float | str | None) -> Headers:
    pairs = dict(headers or {})
    if retry_after is not None:
        pairs["Retry-After"] = retry_after if isinstance(retry_after, str) else f"{retry_after:.10g}"
    for name, value in pairs.items():
        if not (name + value).isprintable():
            raise ValueError(f"the header {name!r} holds a control character")
    return tuple(pairs.items())
