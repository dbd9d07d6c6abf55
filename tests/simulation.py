"""A simulated world for the real rotation: disk, lock, clock and server as values, and processes that take one step at a time.

The code under test is `adh_auth.steps.rotate_steps`, unchanged. What is simulated is what it touches. A schedule is a list of choices; a run is
repeated from its schedule, so that every order of steps can be visited, with a crash, a lost or dropped reply, or the program's end at each.

Steps are finer here than in the code, where a crash in between matters: ``send`` is the server's commit and the reply's arrival, ``write`` is
the content's way to the disk and the rename.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from adh_auth.attempts import NOTHING, Record
from adh_auth.endpoint import Call, Reply, Unreachable
from adh_auth.errors import AdhAuthError, LockTimeout, TokenFileError
from adh_auth.steps import Plan, Step, rotate_steps
from adh_auth.tokens import Secret, Stored, Tokens, encoded

__all__ = ["Explorer", "Run", "sample"]

#: A choice: what happens, and to which process.
Choice = tuple[str, int]


def pair(number: int) -> Stored:
    """The session's pair after so many rotations."""
    tokens = Tokens(f"adh_{number}", f"adh_rt_{number}")
    return Stored(tokens, {"access_token": tokens.access_token, "refresh_token": tokens.refresh_token})


@dataclass
class Server:
    """As strict as it must be assumed to be: a token that comes back ends the session, unless there is a `grace`."""

    grace: bool = False
    newest: int = 0
    spent: set[str] = field(default_factory=set)
    alive: bool = True
    sent: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    reused: int = 0
    signed_in: int = 0

    def refresh(self, token: str) -> Reply:
        self.sent.append(token)
        if token in self.spent and self.grace and token == f"adh_rt_{self.newest - 1}":
            return self._reply()
        if token in self.spent:
            self.reused += 1
            self.alive = False
        if not self.alive or token != f"adh_rt_{self.newest}":
            self.refused.append(token)
            return Reply(400, {}, b'{"code": "invalid_grant"}')
        self.spent.add(token)
        self.newest += 1
        return self._reply()

    def sign_in(self) -> Stored:
        """A new session, whose tokens have numbers of their own."""
        self.signed_in += 1
        self.newest = 100 * self.signed_in
        self.alive = True
        return pair(self.newest)

    def _reply(self) -> Reply:
        return Reply(200, {}, encoded(pair(self.newest).mapping))

    def takes(self, access_token: str) -> bool:
        return self.alive and access_token == f"adh_{self.newest}"

    def key(self) -> Any:
        return self.newest, frozenset(self.spent), self.alive, self.reused, self.signed_in, tuple(self.refused)


@dataclass
class Disk:
    """One token file, the room beside it, the record, the lock."""

    stored: Stored | None
    version: int = 0
    room: Stored | None = None
    record: Record = NOTHING
    holder: int | None = None

    def put(self, stored: Stored | None) -> None:
        self.stored = stored
        self.version += 1

    def key(self) -> Any:
        def name(item: Stored | None) -> str | None:
            return item.tokens.access_token if item else None

        return name(self.stored), self.version, name(self.room), self.record, self.holder


class SimLock:
    path = "sim.lock"

    def __init__(self, disk: Disk, owner: int) -> None:
        self._disk = disk
        self._owner = owner

    def take(self) -> bool:
        if self._disk.holder is None:
            self._disk.holder = self._owner
        return self._disk.holder == self._owner

    def release(self) -> None:
        if self._disk.holder == self._owner:
            self._disk.holder = None


class SimRoom:
    def __init__(self, process: Process) -> None:
        self._process = process

    def fill(self, fresh: Stored) -> None:
        self._process.world.disk.room = fresh

    def install(self, fresh: Stored, spent: Stored) -> bool:
        disk = self._process.world.disk
        disk.room = None
        if disk.stored is None or disk.stored.tokens.refresh_token != spent.tokens.refresh_token:
            return False
        disk.put(fresh)
        return True

    def replace(self, fresh: Stored, spent: Stored | None = None) -> bool:
        raise AssertionError("the simulation takes this step in two")

    def discard(self) -> None:
        if not self._process.dead:
            self._process.world.disk.room = None


class SimStore:
    """The store of one process."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @property
    def _disk(self) -> Disk:
        return self._process.world.disk

    def state(self) -> object:
        return self._disk.version

    def read(self) -> Stored:
        if self._disk.stored is None:
            raise TokenFileError("missing")
        return self._disk.stored

    def lock(self) -> SimLock:
        return SimLock(self._disk, self._process.number)

    def lock_timeout(self, lock: Any, waited: float) -> LockTimeout:
        return LockTimeout("too long")

    def reserve(self) -> SimRoom:
        self._disk.room = None
        return SimRoom(self._process)

    def remove(self) -> None:
        self._disk.put(None)

    def record(self) -> Record:
        return self._disk.record

    def note(self, record: Record) -> None:
        self._disk.record = record

    def left_behind(self) -> Stored | None:
        return self._disk.room

    def install_left_behind(self) -> None:
        self._disk.put(self._disk.room)
        self._disk.room = None

    def error(self, what: str, next_step: str) -> TokenFileError:
        return TokenFileError(what)


class SimClock:
    """Time passes only where a process sleeps and nobody else has anything to do."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def now(self) -> float:
        return 1000.0 + self._process.world.time

    def monotonic(self) -> float:
        return self._process.world.time

    def sleep(self, seconds: float) -> None:
        self._process.world.time = round(self._process.world.time + seconds, 6)

    def ending(self) -> bool:
        return self._process.ending


class Process:
    """One process that rotates away from the access token it was refused with."""

    def __init__(self, world: World, number: int, rejected: str) -> None:
        self.world = world
        self.number = number
        self.dead = False
        self.ending = False
        self.outcome: Tokens | AdhAuthError | None = None
        self.history: list[Any] = []
        self.in_between: tuple[str, Any] | None = None
        self.asleep_at: Any = None
        plan = Plan(
            store=SimStore(self),
            clock=SimClock(self),
            post=lambda call, seconds: world.server.refresh(call.payload["refresh_token"]),
            refresh_call=lambda token: Call("https://sim.invalid/", {"refresh_token": token.reveal()}),
            name="sim.json",
            who=(number, "sim"),
            lock_timeout=45.0,
            keep=lambda tokens: None,
            tell=lambda text: None,
        )
        self.steps = rotate_steps(plan, Secret(rejected))
        self.step: Step | None = None
        self._go_on(lambda: next(self.steps))

    @property
    def running(self) -> bool:
        return self.outcome is None and not self.dead

    @property
    def name(self) -> str:
        """The next step, finer than the code's where it matters."""
        if self.in_between is not None:
            return self.in_between[0]
        return "" if self.step is None else {"send": "commit", "write": "fill"}.get(self.step.name, self.step.name)

    def do(self) -> None:
        """Take the next step."""
        assert self.step is not None
        handler = getattr(self, "_do_" + self.name, None)
        if handler is not None:
            handler()
            return
        self._finish(self.step.work)

    def lose(self, *, committed: bool) -> None:
        """The connection drops, before the server has done anything or after."""
        assert self.step is not None
        if committed:
            self.step.work()
        self.in_between = None
        self.history.append(("lost", committed))
        self._go_on(lambda: self.steps.throw(Unreachable("dropped", sent=True)))

    def _do_commit(self) -> None:
        assert self.step is not None
        self.in_between = ("deliver", self.step.work())

    def _do_deliver(self) -> None:
        assert self.in_between is not None
        reply = self.in_between[1]
        self.in_between = None
        self._finish(lambda: reply)

    def _do_fill(self) -> None:
        work: Any = self.step.work if self.step else None
        room: SimRoom = work.func.__self__
        room.fill(work.args[0])
        self.in_between = ("install", (room, *work.args))

    def _do_install(self) -> None:
        assert self.in_between is not None
        room, fresh, spent = self.in_between[1]
        self.in_between = None
        self._finish(lambda: room.install(fresh, spent))

    def _do_wait(self) -> None:
        # A look that finds what the last one found changes nothing: sleep until there is something to see, or time has to pass.
        if self.asleep_at != self.world.visible():
            self.asleep_at = self.world.visible()
        assert self.step is not None
        self._finish(lambda: None)

    def _finish(self, work: Callable[[], Any]) -> None:
        try:
            value = work()
        except AdhAuthError as error:
            trouble = error
            self.history.append(("raised", type(error).__name__))
            self._go_on(lambda: self.steps.throw(trouble))
        else:
            self.history.append(value.tokens.access_token if isinstance(value, Stored) else value if not isinstance(value, SimRoom) else "room")
            self._go_on(lambda: self.steps.send(value))

    def _go_on(self, advance: Callable[[], Step]) -> None:
        try:
            self.step = advance()
        except StopIteration as end:
            self.outcome = end.value
        except AdhAuthError as error:
            self.outcome = error

    def blocked(self) -> bool:
        """Waiting, with nothing new to see."""
        return self.name == "wait" and self.asleep_at == self.world.visible()

    def key(self) -> Any:
        return tuple(map(repr, self.history)), self.dead, self.ending, self.in_between is not None, repr(self.outcome)


class Login:
    """Somebody signs in anew: under the lock as `TokenFile.save` does, or careless of it as `cp` is."""

    def __init__(self, world: World, number: int, *, careless: bool) -> None:
        self.world = world
        self.number = number
        self.dead = False
        self.ending = False
        self.outcome: Tokens | AdhAuthError | None = None
        self.name = "save" if careless else "lock"
        self._lock = SimLock(world.disk, number)

    @property
    def running(self) -> bool:
        return self.outcome is None and not self.dead

    def blocked(self) -> bool:
        return self.name == "lock" and self.world.disk.holder not in (None, self.number)

    def do(self) -> None:
        if self.name == "lock":
            if self._lock.take():
                self.name = "save"
        elif self.name == "save":
            self.world.disk.put(self.world.server.sign_in())
            self.name = "unlock"
        else:
            self._lock.release()
            self.outcome = self.world.disk.stored.tokens if self.world.disk.stored else None

    def key(self) -> Any:
        return self.name, self.dead, self.outcome is None


class World:
    """Everything, from the start."""

    def __init__(self, processes: int, *, grace: bool = False, login: str = "") -> None:
        self.time = 0.0
        self.server = Server(grace=grace)
        self.disk = Disk(pair(0))
        self.faults: list[tuple[str, str]] = []
        self.actors: list[Any] = [Process(self, number, "adh_0") for number in range(processes)]
        if login:
            self.actors.append(Login(self, processes, careless=login == "careless"))

    def visible(self) -> Any:
        """What a waiting process looks at."""
        return self.disk.version, self.disk.holder, self.disk.record

    def key(self) -> Any:
        return self.time, self.server.key(), self.disk.key(), tuple(actor.key() for actor in self.actors), len(self.faults)


class Run:
    """One run along a schedule."""

    def __init__(self, make: Callable[[], World], most_faults: int) -> None:
        self.world = make()
        self._most_faults = most_faults

    def choices(self) -> list[Choice]:
        """What may happen next; empty at the end."""
        running = [actor for actor in self.world.actors if actor.running]
        ready = [actor for actor in running if not actor.blocked()]
        if not ready and running:
            return [("time", 0)]
        found: list[Choice] = [("step", actor.number) for actor in ready]
        if len(self.world.faults) < self._most_faults:
            found += itertools.chain.from_iterable(self._faults_of(actor) for actor in ready if isinstance(actor, Process))
        return found

    def _faults_of(self, process: Process) -> Iterator[Choice]:
        yield "crash", process.number
        if not process.ending:
            yield "end", process.number
        if process.name == "commit":
            yield "drop", process.number
            yield "lose", process.number

    def take(self, choice: Choice) -> None:
        """Let it happen."""
        what, number = choice
        actor = self.world.actors[number]
        if what == "step":
            actor.do()
        elif what == "time":
            self._pass_time()
        else:
            self.world.faults.append((what, actor.name))
            getattr(self, "_" + what)(actor)

    def _pass_time(self) -> None:
        self.world.time += 50.0
        for actor in self.world.actors:
            if isinstance(actor, Process):
                actor.asleep_at = None

    def _crash(self, process: Process) -> None:
        process.dead = True
        if self.world.disk.holder == process.number:
            self.world.disk.holder = None  # a kernel lock goes with its holder

    def _end(self, process: Process) -> None:
        process.ending = True

    def _drop(self, process: Process) -> None:
        process.lose(committed=False)

    def _lose(self, process: Process) -> None:
        process.lose(committed=True)

    def check(self) -> None:
        """What must hold at the end, whatever happened."""
        world = self.world
        assert world.disk.holder is None, "the lock is still held"
        kinds = {fault for fault, _ in world.faults}
        for actor in world.actors:
            if actor.dead:
                continue
            assert actor.outcome is not None, "a process has no outcome"
            if not kinds:
                assert isinstance(actor.outcome, Tokens), actor.outcome
        sent_twice = len(world.server.sent) != len(set(world.server.sent))
        if not kinds and not world.server.signed_in:
            assert len(world.server.sent) == 1, "more than one refresh for one expiry"
        # The refusal itself may have been what was lost.
        if "crash" not in kinds and sum(fault == "lose" for fault, _ in world.faults) < 2:
            assert len(world.server.refused) == len(set(world.server.refused)), "a refused token was sent again"
        if sent_twice:
            assert kinds & {"drop", "lose", "crash"}, "a token was sent twice though every reply arrived"
        if not self.is_excused():
            assert world.server.reused == 0, "a spent token was sent to a strict server"
            self._a_fresh_process_works()

    def is_excused(self) -> bool:
        """The one window of a strict server: the reply was lost, or the process killed between the server's commit and the write."""
        return not self.world.server.grace and any(
            fault == "lose" or (fault == "crash" and at in ("deliver", "fill")) for fault, at in self.world.faults
        )

    def _a_fresh_process_works(self) -> None:
        world = self.world
        assert world.disk.stored is not None
        access = world.disk.stored.tokens.access_token
        if world.server.takes(access):
            return
        fresh = Process(world, 99, access)
        for _ in range(100):
            if not fresh.running:
                break
            fresh.do()
        assert isinstance(fresh.outcome, Tokens), f"the session is lost: {fresh.outcome!r}"
        assert world.server.takes(fresh.outcome.access_token)


class Explorer:
    """Every order of steps, each state once."""

    def __init__(self, make: Callable[[], World], most_faults: int) -> None:
        self._make = make
        self._most_faults = most_faults
        self._seen: set[Any] = set()
        self.states = 0
        self.runs = 0

    def explore(self) -> None:
        """Visit all. Raises AssertionError with the schedule of the run that broke a rule."""
        waiting: list[tuple[Choice, ...]] = [()]
        while waiting:
            waiting += self._follow(waiting.pop())

    def _follow(self, schedule: tuple[Choice, ...]) -> list[tuple[Choice, ...]]:
        """Run along `schedule` and on to the end; gives the branches that were passed."""
        run = Run(self._make, self._most_faults)
        branches = []
        try:
            for choice in schedule:
                run.take(choice)
            while choices := run.choices():
                key = run.world.key()
                if key in self._seen:
                    return branches
                self._seen.add(key)
                self.states += 1
                branches += [(*schedule, other) for other in choices[1:]]
                schedule = (*schedule, choices[0])
                assert len(schedule) < 400, "no end in sight"
                run.take(choices[0])
            self.runs += 1
            run.check()
        except AssertionError as broken:
            raise AssertionError(f"{broken} after {schedule}") from broken
        return branches


def sample(make: Callable[[], World], most_faults: int, runs: int, seed: int) -> int:
    """Random orders, the same for the same seed; gives the number of runs."""
    dice = random.Random(seed)
    for _ in range(runs):
        run = Run(make, most_faults)
        schedule = []
        # Faults are rare choices among many: else nearly every run would be over before the interesting part.
        while choices := run.choices():
            steps = [choice for choice in choices if choice[0] in ("step", "time")]
            choice = dice.choice(choices if dice.random() < 0.15 else steps)
            schedule.append(choice)
            run.take(choice)
        try:
            run.check()
        except AssertionError as broken:
            raise AssertionError(f"{broken} after {schedule}") from broken
    return runs
