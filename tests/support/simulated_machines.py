"""Two or three machines that share a register in memory, stepped in any order, with everything that goes wrong.

What is real: `rotation_transaction`, `RegistryStore` and all that they decide. What is simulated: the register
(`MemoryRegister`), the clocks, and the strict server of `simulated_world`. The server's commit comes right
after `before_send`; the reply arrives in a step of its own. Time passes only while every machine waits, is
stopped or is done, two seconds at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from random import Random
from types import GeneratorType, SimpleNamespace
from typing import Any

from adh_auth.common.secret import Secret
from adh_auth.errors import AdhAuthError, ReauthorizationRequired, StoreError
from adh_auth.oauth.endpoint import REFRESH_PATH, EndpointCall, EndpointReply, Unreachable
from adh_auth.rotation import attempt
from adh_auth.rotation.context import RotationContext, Step, Transaction
from adh_auth.rotation.transaction import rotation_transaction
from adh_auth.store import lease, registry
from adh_auth.store.base import LeaseLost, Pace
from adh_auth.store.lease import OBSERVED_SECONDS, SENDING_SECONDS
from adh_auth.store.record import Record
from adh_auth.store.register import Row
from adh_auth.store.registry import RegistryStore
from adh_auth.store.session_view import Known, Seen
from adh_auth.testing import MemoryRegister
from adh_auth.tokens import Stored, Tokens

from . import simulated_world
from .simulated_world import EVER, OWNER, Broken, Choice, Report, Server

#: Seconds that pass at once. An observation of the lease takes no longer gap.
TICK = 2.0
#: Ticks that a pause takes, whatever was asked for.
PAUSE_TICKS = 5
#: Ticks after which a stopped machine wakes, or is connected again: longer than a lease and an observation.
LONGEST_STOP = 28
#: Ticks in a row without any change that are a deadlock.
DEADLOCK = 60
SESSION = "session"
PACE = Pace(1.0, 1.0, 0.0, (0.1, 0.1), notices_records=True)
#: Steps that change the register: their answer can get lost.
CHANGES = frozenset({"lock", "note", "write", "unlock", "send"})
#: Steps that change nothing: a crash after one of them is the same as a crash before it.
READS = frozenset({"look", "load", "reread", "recover", "reserve", "call", "wait", "state", "begin"})
#: Steps that ask the register.
REMOTE = frozenset({"load", "look", "lock", "state", "reread", "note", "write", "unlock"})
#: Steps that ask neither the register nor the server.
LOCAL = frozenset({"recover", "reserve"})

KINDS = (
    "crash",
    "stop",
    "cut off",
    "answer lost",
    "dropped",
    "reply lost",
    "ending",
    "goes back 1",
    "goes back 2",
    "goes back to the sign-in",
    "flushed",
    "clock ahead",
)


@dataclass
class Rules(simulated_world.Rules):
    """What may happen in a run."""

    kinds: tuple[str, ...] = KINDS


class World:
    """The register, the server, the time, and the machines."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.time = 1_000_000.0
        self.idle_ticks = 0
        self.changes = 0
        self.faults_left = rules.faults
        self.faults: list[str] = []
        #: what has happened, in words
        self.log: list[str] = []
        #: why a token may have been sent twice, or a pair been lost
        self.holes: list[str] = []
        self.has_gone_back = self.clock_is_ahead = False
        self.server = MachineServer(self)
        self.shared = MemoryRegister(clock=lambda: self.time)
        self.history: list[object] = []
        #: access tokens that were in the register, and those that a process may use without that
        self.installed: set[str] = set()
        self.unsaved: set[str] = set()
        #: refresh tokens whose successor was in the register
        self.durable: set[str] = set()
        self.newest = self.server.sign_in()
        self.machines: list[Machine] = []
        first = simulated_world.stored(self.newest).to_bytes().decode()
        SimulatedRegister(self, None).put(SESSION, first, "0", None, None)
        self.changes = 0
        self.machines = [Machine(self, number, uses_session) for number in range(1, rules.processes + 1)]
        if rules.signs_in:
            self.machines.append(Machine(self, rules.processes + 1, signs_in))

    # What can happen.

    def choices(self) -> list[Choice]:
        """Return all that can happen next."""
        running = [machine for machine in self.machines if machine.running]
        choices = [Choice(what, machine.number) for machine in running for what in machine.options()]
        somebody_waits = any(not machine.is_stopped for machine in running)
        if somebody_waits and all(machine.is_idle() for machine in running):
            choices.append(Choice("tick", 0))
        if self.faults_left and running:
            choices += [Choice(kind, 0) for kind in self._own_faults() if kind in self.rules.kinds]
        return choices

    def _own_faults(self) -> Iterator[str]:
        if len(self.history) > 1:
            yield "goes back 1"
        if len(self.history) > 2:
            yield "goes back 2"
        if len(self.history) > 3:
            yield "goes back to the sign-in"
        yield "flushed"
        if not self.clock_is_ahead:
            yield "clock ahead"

    def do(self, choice: Choice) -> None:
        """Let it happen."""
        if choice.what != "step":
            self.log.append(f"  {choice.process}: {choice.what}")
        if choice.what == "tick":
            self._tick()
            return
        if choice.process == 0:
            self._suffer(choice.what)
            return
        machine = self.machines[choice.process - 1]
        if choice.what in ("step", "wake", "reconnect"):
            {"step": machine.step, "wake": machine.wake, "reconnect": machine.reconnect}[choice.what]()
            return
        self.faults_left -= 1
        self.faults.append(f"{choice.what} at {machine.pending.name}")
        machine.suffer(choice.what)

    def _tick(self) -> None:
        self.time += TICK
        self.idle_ticks += 1
        if self.idle_ticks > DEADLOCK:
            raise Broken("deadlock: nothing changes any more")

    def _suffer(self, what: str) -> None:
        self.faults_left -= 1
        self.faults.append(what)
        if what == "clock ahead":
            self.clock_is_ahead = True
            self.shared.advance(60.0)
        elif what == "flushed":
            self.has_gone_back = True
            self.shared.remove(SESSION)
        else:
            self.has_gone_back = True
            steps = {"goes back 1": 2, "goes back 2": 3}.get(what, len(self.history))
            self.shared.go_back(self.history[-steps])
        self.changed()

    def changed(self) -> None:
        """Note that something which waiters check has changed."""
        self.changes += 1
        self.idle_ticks = 0

    def trace(self) -> str:
        """Return the order of steps in words."""
        return "\n".join([*self.log, f"holes: {self.holes}"])

    def key(self) -> tuple[Any, ...]:
        """Return the whole state as a value: from equal states the same follows."""
        return (
            tuple(machine.key() for machine in self.machines),
            self.server.key(),
            repr(self.shared.snapshot()),
            (self.time, self.faults_left, frozenset(self.durable), tuple(self.holes)),
            (self.has_gone_back, self.clock_is_ahead, min(self.idle_ticks, DEADLOCK)),
            tuple(map(repr, self.history[:1] + self.history[-3:])) if self.faults_left else (),
        )

    # The rules.

    def is_hole(self, number: int, token: str) -> bool:
        """Return whether a store can't help it that another sends the token that this machine has sent."""
        if self.has_gone_back:  # and the note, the lease or the next pair with it
            return True
        limit = OBSERVED_SECONDS if self.clock_is_ahead else SENDING_SECONDS
        return self.machines[number - 1].was_absent and self.time - self.server.sent_at[token] >= limit

    @property
    def is_excused(self) -> bool:
        """Return whether something happened that no client of a register can help."""
        lost = any(fate in ("lost", "crashed", "hole") for _, fate in self.server.fates.values())
        return bool(self.holes) or (not self.rules.grace and lost)


class MachineServer(Server):
    """The strict server; it knows what a register can't help."""

    def __init__(self, world: World) -> None:
        super().__init__(world.rules)
        self._world = world
        #: when a token was sent last
        self.sent_at: dict[str, float] = {}

    def refresh(self, sender: int, token: str) -> EndpointReply:
        """Commit. Raises `Broken` for a token that was sent before, and no store must let that happen."""
        successor = self._successors[token]
        if successor is not None and successor.access_token in self._world.machines[sender - 1].knows:
            raise Broken(f"machine {sender} sends {token}, and has seen its successor")
        before, fate = self.fates.get(token, (0, ""))
        if fate in ("flying", "arrived") and self._world.is_hole(before, token):
            self._world.holes.append(f"{token} was sent by {before} and {sender}")
            self.fates[token] = before, "hole"
        reply = super().refresh(sender, token)
        self.sent_at[token] = self._world.time
        return reply


class SimulatedRegister(MemoryRegister):
    """The register as one machine reaches it."""

    def __init__(self, world: World, machine: Machine | None) -> None:
        super().__init__()
        self._shared = world.shared._shared
        self._world = world
        self._machine = machine
        #: called before the operation after next: another machine comes between
        self.interruption: tuple[int, Callable[[], None]] | None = None

    def get(self, session: str) -> Row | None:
        row = super().get(session)
        if self._machine is not None:
            self._machine.saw(row)
        return row

    def _change(self, name: str, session: str, changed: Any) -> bool:
        done = False

        def observed(entry: Any) -> Any:
            nonlocal done
            fresh = changed(entry)
            done = fresh is not None
            return fresh

        try:
            return super()._change(name, session, observed)
        finally:
            if done:
                self._note_change(session)

    def _note_change(self, session: str) -> None:
        world = self._world
        world.changed()
        world.history.append(world.shared.snapshot())
        row = MemoryRegister.get(world.shared, session)
        if row is not None and row.pair is not None:
            access = _pair_in(row.pair).access_token
            world.installed.add(access)
            world.durable |= {
                spent
                for spent, successor in world.server._successors.items()
                if successor is not None and successor.access_token == access
            }
            if self._machine is not None:
                self._machine.knows.add(access)

    def _require_reach(self, name: str) -> None:
        if self.interruption is not None:
            left, interrupt = self.interruption
            self.interruption = (left - 1, interrupt) if left else None
            if not left:
                interrupt()
        self.calls.clear()
        super()._require_reach(name)


class SimulatedStore(RegistryStore):
    """The real store; a waiter tries the lease at each check."""

    pace = PACE


class MachineClock:
    """The clocks of one machine. Pauses between two tries are counted, and take no time here."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def now(self) -> float:
        return self._machine.world.time

    monotonic = wall = now

    def sleep(self, seconds: float) -> None:
        """Count nothing: `patiently` counts its own pauses."""

    def ending(self) -> bool:
        return self._machine.is_ending


class Machine:
    """One machine, with one process that runs a program of steps."""

    def __init__(self, world: World, number: int, program: Callable[[Machine], Transaction]) -> None:
        self.world = world
        self.number = number
        self.register = SimulatedRegister(world, self)
        self.clock = MachineClock(self)
        self.store = SimulatedStore(self.register, SESSION, clock=self.clock)
        self.outcome: Any = None
        self.running = True
        self.is_stopped = self.is_ending = self.was_absent = self.is_busy = False
        #: access tokens that were read from the register here, or written to it
        self.knows: set[str] = set()
        self.names = 0
        self._absent_since = 0.0
        self._changes_before = 0
        self._last_done = "begin"
        self._checked_at: tuple[int, float] | None = None
        self._paused_until = 0.0
        self._unfolded: list[Transaction] = [program(self)]
        self.pending = Step("begin", lambda: None)
        with self._at_work():
            self._go_on(None, None)

    def key(self) -> tuple[Any, ...]:
        """Return its state as a value."""
        return (
            (self.running, self.is_stopped, self.is_ending, self.was_absent, self.names),
            (self.is_idle(), self.register.is_cut_off, self.pending.name, self._last_done in READS),
            (self._paused_until, self._absent_since if self.is_absent else 0.0),
            self.is_absent and self._changes_before == self.world.changes,
            tuple(sorted(self.knows)),
            _frozen(vars(self.store._view)) if self.running else repr(self.outcome),
            self.store._success,
            _frozen(list(self.store._leases.values())),
            tuple(_frozen(program) for program in self._unfolded),
        )

    @property
    def is_absent(self) -> bool:
        """Return whether it is stopped or cut off."""
        return self.is_stopped or self.register.is_cut_off

    def is_idle(self) -> bool:
        """Return whether nothing happens here before time passes, or something changes."""
        if self.is_stopped:
            return True
        if self.pending.name == "pause":
            return self.world.time < self._paused_until
        at = self.world.changes, self.world.time
        return self.pending.name == "wait" and self._checked_at == at and not self.is_ending

    # What can happen to it.

    def options(self) -> Iterator[str]:
        """Yield what can happen."""
        others = [other for other in self.world.machines if other.running and other is not self]
        overdue = self.is_absent and self.world.time - self._absent_since >= LONGEST_STOP * TICK
        if self.is_stopped:
            # Before the others have come to rest it makes no difference.
            if self._may_return(others) and all(other.is_idle() for other in others):
                yield "wake"
            return
        if self.register.is_cut_off and self._may_return(others):
            yield "reconnect"
        if not self.is_idle() and not overdue:
            yield "step"
        if self.world.faults_left:
            yield from (kind for kind in self._possible_faults() if kind in self.world.rules.kinds)

    def _may_return(self, others: list[Machine]) -> bool:
        """Return whether it makes a difference to come back now: not at each single tick."""
        ticks = round((self.world.time - self._absent_since) / TICK)
        changed = self.world.changes != self._changes_before
        nobody_waits = all(other.is_stopped for other in others)
        return changed or nobody_waits or ticks >= LONGEST_STOP or not ticks % 5

    def _possible_faults(self) -> Iterator[str]:
        name = self.pending.name
        if name == "sign in":
            return
        if name in CHANGES and not self.register.is_cut_off:
            yield "answer lost"
        if name == "send":
            yield "dropped"
        if name == "arrive":
            yield "reply lost"
        if not self.is_ending:
            yield "ending"
        if self._last_done not in READS:
            yield from ("crash", "stop")
        if name in REMOTE and not self.register.is_cut_off:
            yield "cut off"

    def suffer(self, what: str) -> None:
        """A fault before, or in place of, the next step."""
        if what == "crash":
            self.end("crashed")
        elif what == "stop":
            self.is_stopped = True
            self._leave()
        elif what == "cut off":
            self.register.is_cut_off = True
            self._leave()
        elif what == "ending":
            self.is_ending = True
        elif what == "answer lost":
            self.register.lost_answers = 1
            self.step()
            self.register.lost_answers = 0
        else:
            if what == "reply lost":
                self.world.server.lose(self._sent)
            with self._at_work():
                self._go_on(None, Unreachable("ReadError", sent=True))

    def _leave(self) -> None:
        self.was_absent = True
        self._absent_since, self._changes_before = self.world.time, self.world.changes

    def wake(self) -> None:
        """Go on after a stop."""
        self.is_stopped = False

    def reconnect(self) -> None:
        """Reach the register again."""
        self.register.is_cut_off = False

    # Its steps.

    def step(self) -> None:
        """Do the next step."""
        self.world.log.append(f"  {self.number}: {self.pending.name}")
        with self._at_work():
            self._last_done = self.pending.name
            if self.pending.name == "wait":
                self._checked_at = None
            if self.pending.name == "lock":
                self._checked_at = self.world.changes, self.world.time
            try:
                value = self.pending.work()
            except (AdhAuthError, Unreachable, LeaseLost) as error:
                self._go_on(None, error)
                return
            if self._last_done == "send":
                self._unfolded.append(value)
                value = None
            self._go_on(value, None)
        if self.running and (self.pending.name in LOCAL or self._last_done == "wait"):
            self.step()  # which nobody else notices: no order is lost

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Name leases and marks by the machine: the same in each run."""
        before = vars(lease)["secrets"], vars(registry)["secrets"]
        self.is_busy = True
        names: Any = SimpleNamespace(token_hex=self._name)
        lease.secrets = registry.secrets = names  # type: ignore[attr-defined]
        try:
            yield
        finally:
            lease.secrets, registry.secrets = before  # type: ignore[attr-defined]
            self.is_busy = False

    def _name(self, size: int) -> str:
        self.names += 1
        return f"{self.number}-{self.names}"

    def saw(self, row: Row | None) -> None:
        """Remember what the register has shown."""
        if row is not None and row.pair is not None:
            self.knows.add(_pair_in(row.pair).access_token)

    def end(self, outcome: Any) -> None:
        """It takes no further step. What was in its memory only is gone."""
        self.running, self.outcome = False, outcome
        gone = outcome == "crashed" or self.is_ending
        fates = self.world.server.fates
        for token, (sender, fate) in fates.items():
            if gone and sender == self.number and token not in self.world.durable:
                fates[token] = sender, "crashed" if fate in ("flying", "arrived") else fate

    def _go_on(self, value: Any, error: Exception | None) -> None:
        while self._unfolded:
            current = self._unfolded[-1]
            try:
                self.pending = current.send(value) if error is None else current.throw(error)
                if self.pending.name == "pause":
                    self._paused_until = self.world.time + PAUSE_TICKS * TICK
                return
            except StopIteration as end:
                value, error = end.value, None
            except (AdhAuthError, Unreachable, LeaseLost) as raised:
                value, error = None, raised
            self._unfolded.pop()
        self.end(value if error is None else error)

    # The server.

    def post(self, call: EndpointCall, seconds: float) -> Any:
        """Commit, and return what the arrival of the reply is made of."""
        self._sent = token = str(call.payload["refresh_token"])
        reply = self.world.server.refresh(self.number, token)

        def arrival() -> Transaction:
            return (yield Step("arrive", partial(self.world.server.arrive, token, reply)))

        return arrival()


@cache
def _pair_in(text: str) -> Tokens:
    return Stored.from_bytes(text.encode()).tokens


def uses_session(machine: Machine) -> Transaction:
    """What a client does: load, call, on a 401 rotate, call again.

    Return whether the second call succeeded.
    """
    world, store = machine.world, machine.store
    pair = (yield Step("load", store.read)).tokens
    if not (yield Step("call", partial(world.server.lives, pair.access_token))):
        pair = yield from rotation_transaction(_context(machine), Secret(pair.access_token))
    if pair.access_token not in world.installed | world.unsaved:
        raise Broken(f"machine {machine.number} uses {pair.access_token} before it is in the register")
    return (yield Step("call", partial(world.server.lives, pair.access_token)))


def signs_in(machine: Machine) -> Transaction:
    """Sign in anew, whoever works on the old session."""

    def sign_in() -> None:
        machine.world.newest = machine.world.server.sign_in()
        # Its generation is the register's clock, and a rotation takes longer than a millisecond.
        machine.world.shared.advance(1.0)
        machine.store.save(machine.world.newest)

    yield Step("sign in", sign_in)
    return True


def _context(machine: Machine) -> RotationContext:
    return RotationContext(
        store=machine.store,
        clock=machine.clock,
        post=machine.post,
        refresh_call=lambda token: EndpointCall(REFRESH_PATH, {"refresh_token": token.reveal()}),
        owner=OWNER,
        who=(machine.number, "simulated"),
        lock_timeout=EVER,
        continue_unsaved=lambda tokens: machine.world.unsaved.add(tokens.access_token),
        warn=lambda message: None,
    )


#: Classes whose objects are part of a machine's state.
PARTS = (lease.Lease, registry.RegistryReservation, attempt.Attempt)
#: What an object refers to that is no part of its state, or is counted elsewhere.
ELSEWHERE = frozenset(
    {
        "register",
        "clock",
        "name",
        "machine",
        "context",
        "world",
        "store",
        "_context",
        "_asked_at",
        "_leases",
        "_view",
    }
)


def _frozen(value: Any) -> Any:
    """Return the state of a machine's program, and of all that it refers to, as a value."""
    if isinstance(value, (str, bool, int, float, type(None), Secret, Tokens, Record, Seen)):
        return value
    if isinstance(value, Known):
        return value.seen
    if isinstance(value, Stored):
        return value.tokens
    if isinstance(value, GeneratorType):
        return _frozen_program(value)
    if isinstance(value, (tuple, list)):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return tuple((name, _frozen(item)) for name, item in value.items() if name not in ELSEWHERE)
    if isinstance(value, PARTS):
        return _frozen(vars(value))
    return type(value).__name__


def _frozen_program(program: Any) -> Any:
    if program.gi_frame is None:
        return None
    place = program.gi_code.co_name, program.gi_frame.f_lasti
    return place, _frozen(dict(program.gi_frame.f_locals)), _frozen(program.gi_yieldfrom)


# Running it.


def explore(rules: Rules) -> Report:
    """Every order of steps, with every fault at every step.

    States that were met before are not gone on from again: the same follows.
    """
    report = Report()
    orders_from: dict[int, int] = {}

    def visit(world: World, path: list[Choice]) -> int:
        key = hash(world.key())
        if key in orders_from:
            return orders_from[key]
        report.states += 1
        choices = world.choices()
        if not path:  # the machines are alike
            choices = [
                choice for choice in choices if choice.process in (0, 1) or choice.process > rules.processes
            ]
        if not any(machine.running for machine in world.machines):
            report.runs += 1
            check_end(world, report)
            orders_from[key] = 1
            return 1
        if not choices:
            raise Broken(f"deadlock\n{world.trace()}")
        orders = 0
        for turn, choice in enumerate(choices):
            here = world if turn == 0 else _replayed(rules, path)
            orders += visit(_done(here, choice), [*path, choice])
        orders_from[key] = orders
        return orders

    report.orders = visit(World(rules), [])
    return report


def sample(rules: Rules, runs: int, seed: int) -> Report:
    """Random orders of steps with random faults, the same for the same seed.

    Here one machine may also come between two operations of a single step of another.
    """
    report, random = Report(), Random(seed)
    for _ in range(runs):
        world = World(rules)
        while choices := world.choices():
            usual = [choice for choice in choices if choice.what in ("step", "tick")]
            # A run is about forty steps of each machine: few of them shall be faults, and those anywhere.
            choice = random.choice(choices if not usual or random.random() < 0.1 else usual)
            if choice.what == "step" and random.random() < 0.1:
                _plan_interruption(world, choice, random)
            _done(world, choice)
        report.runs += 1
        report.orders += 1
        check_end(world, report)
    return report


def _plan_interruption(world: World, choice: Choice, random: Random) -> None:
    others = [machine for machine in world.machines if machine.number != choice.process and machine.running]
    if not others:
        return
    other, steps = random.choice(others), random.randint(1, 6)

    def interrupt() -> None:
        for _ in range(steps):
            if other.running and not other.is_busy and not other.is_idle():
                other.step()

    world.machines[choice.process - 1].register.interruption = random.randint(0, 2), interrupt


def _replayed(rules: Rules, path: list[Choice]) -> World:
    world = World(rules)
    for choice in path:
        world.do(choice)
    return world


def _done(world: World, choice: Choice) -> World:
    try:
        world.do(choice)
    except Broken as broken:
        raise Broken(f"{broken}\n{world.trace()}") from None
    return world


def check_end(world: World, report: Report) -> None:
    """The rules at the end of a run, and then for a fresh client on what the run has left behind."""
    try:
        _check_outcomes(world, report)
        _check_nothing_lost(world)
        _check_fresh_client(world)
    except Broken as broken:
        raise Broken(f"{broken}\n{world.trace()}") from None


def _check_outcomes(world: World, report: Report) -> None:
    for machine in world.machines:
        outcome = machine.outcome
        word = type(outcome).__name__ if isinstance(outcome, Exception) else str(outcome)
        report.outcomes[word] = report.outcomes.get(word, 0) + 1
        if outcome is True or outcome == "crashed":
            continue
        if not world.faults:
            raise Broken(f"machine {machine.number} ended with {outcome!r}, and nothing had failed")
        if (outcome is False or isinstance(outcome, ReauthorizationRequired)) and not world.is_excused:
            raise Broken(f"machine {machine.number} ended with {outcome!r}, and no hole is the reason")
        if outcome is not False and not isinstance(outcome, AdhAuthError):
            raise Broken(f"machine {machine.number} ended with {outcome!r}")
    rotations = len(world.server.fates)
    if not (world.faults or world.rules.signs_in) and rotations != 1:
        raise Broken(f"{rotations} refreshes where one would do")


def _check_nothing_lost(world: World) -> None:
    """What a process that lives has seen is in the register, once each has looked once more."""
    world.faults_left = 0
    alive = [machine for machine in world.machines if machine.outcome != "crashed"]
    for machine in alive:
        machine.reconnect()
        with suppress(StoreError):
            machine.store.look()
    row = MemoryRegister.get(world.shared, SESSION)
    held = None if row is None or row.pair is None else _pair_in(row.pair)
    known = set().union(*(machine.knows for machine in alive)) if alive else set[str]()
    if held is None and known:
        raise Broken("no session is left, and a process that lives has seen one")
    if held is not None:
        successor = world.server._successors[held.refresh_token]
        if successor is not None and successor.access_token in known:
            raise Broken(f"the register is left with {held.refresh_token}, and its successor is known")
    new = world.newest.access_token
    if held is not None and world.rules.signs_in and new in known:
        sessions = world.server._sessions
        if sessions[held.refresh_token] != sessions[world.newest.refresh_token]:
            raise Broken("an old session came back over a new sign-in")


def _check_fresh_client(world: World) -> None:
    """Nothing lost: a client that comes last gets its 200, or a hole is the reason why not."""
    last = Machine(world, len(world.machines) + 1, uses_session)
    world.machines.append(last)
    while last.running:
        if last.is_idle():
            world._tick()
        else:
            last.step()
    nobody_knew = world.has_gone_back and isinstance(last.outcome, StoreError)
    if last.outcome is not True and not world.is_excused and not nobody_knew:
        raise Broken(f"a fresh client ends with {last.outcome!r}, and no hole is the reason")


#: What is explored in full, and what in a sample: rules, runs, seed.
FULL = {
    "two machines, any one fault, a strict server": Rules(),
    "two machines, and a sign-in at any moment": Rules(faults=0, signs_in=True),
}
#: Minutes of work: python -m tests.support.simulated_machines
LONG = {
    "two machines, any one fault, and a sign-in at any moment": Rules(signs_in=True),
    "one machine, any two faults": Rules(processes=1, faults=2),
    "three machines, no fault": Rules(processes=3, faults=0),
}
SAMPLES = {
    "two machines, two faults, a strict server": (Rules(faults=2), 600, 20240301),
    "three machines, two faults, a strict server": (Rules(processes=3, faults=2), 600, 20240302),
    "three machines, three faults, a server with grace": (
        Rules(processes=3, faults=3, grace=True),
        400,
        20240303,
    ),
    "three machines, two faults, and a sign-in": (Rules(processes=3, faults=2, signs_in=True), 400, 20240304),
}


def main() -> None:
    """Explore everything, and print how much that was."""
    attempt.PAUSE_SLICE = EVER
    for name, rules in (FULL | LONG).items():
        print(f"{name}: {explore(rules)}", flush=True)
    for name, (rules, runs, seed) in SAMPLES.items():
        print(f"{name}: {sample(rules, 20 * runs, seed)}", flush=True)


if __name__ == "__main__":
    main()
