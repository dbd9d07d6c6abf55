"""A world in which the real rotation code runs on a simulated disk, lock, clock and server, one step at a
time, in any order.

What is real: `rotation_transaction` and all that it decides. What is simulated are the `Store`, `Lock`,
`Reservation` and `Clock` that it asks for. A send is two steps here, the server's commit and the reply's
arrival; a write is two, the filled temporary file and the rename. A process can crash before each of its
steps; in a blackout the record, which is not durable, is lost as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, NamedTuple

from adh_auth.common.secret import Secret
from adh_auth.errors import AdhAuthError, LockTimeout, TokenFileError
from adh_auth.oauth.endpoint import REFRESH_PATH, EndpointCall, EndpointReply, Unreachable
from adh_auth.rotation import attempt
from adh_auth.rotation.context import RotationContext, Step, Transaction
from adh_auth.rotation.owner import Owner
from adh_auth.rotation.transaction import rotation_transaction
from adh_auth.store.base import Look, Pace
from adh_auth.store.record import NOTHING, Record
from adh_auth.store.token_file import is_successor
from adh_auth.tokens import Stored, Tokens

#: Seconds that a pause takes here, whatever was asked for: longer than any single wait, and short of
#: `REFRESH_DEADLINE` four times over.
A_PAUSE = 5.0
#: Waiters here wait for a change, not for a time; one that waits for ever is found as a deadlock.
EVER = 1e9


#: Steps that change nothing: a crash after one of them is the same as a crash before it, for all who live on.
READS = frozenset({"state", "load", "record", "call", "wait", "left behind"})
#: Steps that unfold into the smaller ones that they are made of.
UNFOLDED = frozenset({"look", "reread", "recover", "send", "write"})
#: A waiter tries the lock at each check: the time between two tries is no part of any order.
PACE = Pace(first_poll=1.0, last_poll=1.0, lock_interval=0.0, last_pauses=(0.1,) * 9)


class Broken(AssertionError):
    """A rule does not hold in some order of steps; the message lists them."""


class Choice(NamedTuple):
    """What happens next: a step of one process, or a fault in place of it."""

    what: str
    process: int


@dataclass
class Rules:
    """What may happen in a run."""

    processes: int = 2
    faults: int = 1
    kinds: tuple[str, ...] = ("crash", "blackout", "lost", "dropped", "ending", "refused", "broken")
    #: a spent token is answered with its successor, instead of the end of the session
    grace: bool = False
    #: another program signs in anew at any moment, without asking for the lock
    signs_in: bool = False


class Server:
    """A strict server: each refresh token works once, and one that comes back ends its session."""

    def __init__(self, rules: Rules) -> None:
        self._grace = rules.grace
        self._issued = 0
        self._successors: dict[str, Tokens | None] = {}
        self._sessions: dict[str, int] = {}
        self._access: dict[str, int] = {}
        self._ended: set[int] = set()
        #: refresh token -> what became of its last sending: who sent it, and "flying", "arrived", or how it
        #: was lost
        self.fates: dict[str, tuple[int, str]] = {}

    def sign_in(self) -> Tokens:
        """Return the pair of a new session."""
        return self._issue(len(self._ended) + len(set(self._sessions.values())))

    def lives(self, access_token: str) -> bool:
        """Return whether the API takes it. The first access token of the run has expired."""
        return access_token != "access-1" and self._access[access_token] not in self._ended

    def refresh(self, sender: int, token: str) -> EndpointReply:
        """Commit. Return the reply. Raises `Broken` for a token that was sent before, with no lost reply."""
        if self.fates.get(token, (0, ""))[1] in ("flying", "arrived"):
            raise Broken(f"{token} was sent twice: before by {self.fates[token]}, now by {sender}")
        session, successor = self._sessions[token], self._successors[token]
        if session in self._ended or (successor is not None and not self._grace):
            self._ended.add(session)
            return EndpointReply(400, {}, b'{"code": "invalid_grant"}')
        self.fates[token] = (sender, "flying")
        if successor is None:
            successor = self._successors[token] = self._issue(session)
        return EndpointReply(
            200,
            {},
            json.dumps(
                {"access_token": successor.access_token, "refresh_token": successor.refresh_token}
            ).encode(),
        )

    def arrive(self, token: str, reply: EndpointReply) -> EndpointReply:
        """Deliver the reply."""
        if self.fates.get(token, (0, ""))[1] == "flying":
            self.fates[token] = (self.fates[token][0], "arrived")
        return reply

    def lose(self, token: str) -> None:
        """Lose the reply on its way."""
        if token in self.fates:
            self.fates[token] = (self.fates[token][0], "lost")

    def _issue(self, session: int) -> Tokens:
        self._issued += 1
        pair = Tokens(f"access-{self._issued}", f"refresh-{self._issued}")
        self._successors[pair.refresh_token] = None
        self._sessions[pair.refresh_token] = self._access[pair.access_token] = session
        return pair

    def key(self) -> tuple[Any, ...]:
        """Return its state as a value."""
        return (
            self._issued,
            tuple(self._successors.items()),
            tuple(self.fates.items()),
            tuple(sorted(self._ended)),
        )


class World:
    """Everything that processes share, and the processes."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.server = Server(rules)
        self.file = stored(self.server.sign_in())
        self.newest = self.file.tokens
        self.changes = 0
        self.temporary: Stored | None = None
        self.record = NOTHING
        self.holder: int | None = None
        self.time = 1_000_000.0
        self.faults_left = rules.faults
        self.faults: list[str] = []
        #: refresh tokens whose successor has been on disk, if only in the temporary file
        self.durable: set[str] = set()
        self.installed: set[str] = {self.file.tokens.access_token}
        self.unsaved: set[str] = set()
        self.processes = [Process(self, number, uses_session) for number in range(1, rules.processes + 1)]
        if rules.signs_in:
            self.processes.append(Process(self, rules.processes + 1, signs_in))

    def choices(self) -> list[Choice]:
        """Return all that can happen next."""
        return [
            Choice(what, process.number)
            for process in self.processes
            if process.running
            for what in self._open_to(process)
        ]

    def _open_to(self, process: Process) -> Iterator[str]:
        if not process.is_stuck():
            yield "step"
        if self.faults_left:
            yield from (kind for kind in self.rules.kinds if kind in process.possible_faults())

    def do(self, choice: Choice) -> None:
        """Let it happen."""
        process = self.processes[choice.process - 1]
        if choice.what == "step":
            process.step()
            return
        self.faults_left -= 1
        self.faults.append(f"{choice.what} at {process.pending.name}")
        process.suffer(choice.what)

    def key(self) -> tuple[Any, ...]:
        """Return the whole state as a value: from equal states the same follows.

        A process is what its steps have returned so far.
        """
        return (
            tuple(process.key() for process in self.processes),
            self.server.key(),
            (
                self.file.tokens.access_token,
                None if self.temporary is None else self.temporary.tokens.access_token,
                self.record,
                self.holder,
            ),
            (self.time, self.faults_left, frozenset(self.durable)),
        )

    def changed(self) -> None:
        """Note that something which waiters check has changed."""
        self.changes += 1

    def crash(self, process: Process) -> None:
        """End a process: the kernel frees its lock, and what was in its memory only is gone."""
        process.end("crashed")
        self.server.fates = {
            token: (sender, "crashed" if sender == process.number and token not in self.durable else fate)
            for token, (sender, fate) in self.server.fates.items()
        }
        if self.holder == process.number:
            self.holder = None
            self.changed()

    @property
    def is_excused(self) -> bool:
        """Return whether a pair fell into the one window where no client can help.

        The server has committed, and the reply was lost or its reader died before it was on disk.
        """
        return not self.rules.grace and any(
            fate in ("lost", "crashed") for _, fate in self.server.fates.values()
        )


class Process:
    """One client: it runs a program of steps, of which some unfold into smaller ones."""

    def __init__(self, world: World, number: int, program: Callable[[Process], Transaction]) -> None:
        self.world = world
        self.number = number
        self.outcome: Any = None
        self.running = True
        self.ending = False
        self.seen = 0
        self._last_done = "begin"
        self._checked_at = -1
        self._unfolded: list[Transaction] = [program(self)]
        self.pending = Step("begin", lambda: None)
        self._go_on(None, None)

    def key(self) -> tuple[Any, ...]:
        """Return its state as a value."""
        return self.seen, self.running, self.ending, self._checked_at == self.world.changes, self.pending.name

    def is_stuck(self) -> bool:
        """Return whether it waits, and nothing has changed since its last check.

        Polling on would change nothing either.
        """
        return self.pending.name == "wait" and self._checked_at == self.world.changes and not self.ending

    def possible_faults(self) -> set[str]:
        """Return what can fail at its next step."""
        if self.pending.name == "sign in":
            return set()
        special = {
            "commit": {"dropped"},
            "arrive": {"lost"},
            "fill": {"refused", "broken"},
            "install": {"refused", "broken"},
        }
        possible = set(special.get(self.pending.name, ()))
        if self.pending.name == "note" and (self.number, "arrived") in self.world.server.fates.values():
            possible.add("broken")
        return (
            possible
            | (set() if self.ending else {"ending"})
            | (set() if self._last_done in READS else {"crash", "blackout"})
        )

    def step(self) -> None:
        """Do the next step."""
        self._last_done = self.pending.name
        if self.pending.name == "lock":
            self._checked_at = self.world.changes
        try:
            value = self.pending.work()
        except (AdhAuthError, Unreachable) as error:
            self._go_on(None, error)
            return
        waited = self.pending.name == "wait"
        self._go_on(value, None)
        if waited:  # which changed nothing: no order is lost by checking at once
            self.step()

    def suffer(self, what: str) -> None:
        """A fault in place of the next step."""
        if what in ("crash", "blackout"):
            self.world.crash(self)
            if what == "blackout":
                self.world.record = NOTHING
        elif what == "ending":
            self.ending = True  # the caller is gone, and with it the program; the job goes on
        elif what == "refused":
            self._go_on(None, TokenFileError("the disk refuses"))
        elif what == "broken":
            self._go_on(None, MemoryError())
        else:
            if what == "lost":
                self.world.server.lose(self.world.file.tokens.refresh_token)
            self._go_on(None, Unreachable("ReadError", sent=True))

    def end(self, outcome: Any) -> None:
        """It takes no further step."""
        self.running, self.outcome = False, outcome

    def _go_on(self, value: Any, error: Exception | None) -> None:
        self.seen = hash((self.seen, self.pending.name, _key_of(value), _key_of(error), self.world.time))
        while self._unfolded:
            current = self._unfolded[-1]
            try:
                self.pending = current.send(value) if error is None else current.throw(error)
                if self.pending.name not in UNFOLDED:
                    return
                self._unfolded.append(self.pending.work())
                value, error = None, None
                continue
            except StopIteration as end:
                value, error = end.value, None
            except (AdhAuthError, Unreachable, MemoryError) as raised:
                value, error = None, raised
            self._unfolded.pop()
        self.end(value if error is None else error)


def uses_session(process: Process) -> Transaction:
    """What a client does: load, call, on a 401 rotate, call again.

    Return whether the second call succeeded.
    """
    store = SimulatedStore(process)
    pair = (yield Step("load", store.read)).tokens
    if not (yield Step("call", partial(process.world.server.lives, pair.access_token))):
        pair = yield from rotation_transaction(_context(process, store), Secret(pair.access_token))
    if pair.access_token not in process.world.installed | process.world.unsaved:
        raise Broken(f"process {process.number} uses {pair.access_token} before it is on disk")
    return (yield Step("call", partial(process.world.server.lives, pair.access_token)))


def signs_in(process: Process) -> Transaction:
    """Sign in and replace the file without a lock, as an editor or another tool would."""

    def sign_in() -> None:
        world = process.world
        world.file = stored(world.server.sign_in())
        world.newest = world.file.tokens
        world.installed.add(world.file.tokens.access_token)
        world.changed()

    yield Step("sign in", sign_in)
    return True


OWNER = Owner("https://api.example", "app")


def _context(process: Process, store: SimulatedStore) -> RotationContext:
    return RotationContext(
        store=store,
        clock=SimulatedClock(process),
        post=store.post,  # type: ignore[arg-type] # it unfolds into two steps
        refresh_call=lambda token: EndpointCall(REFRESH_PATH, {"refresh_token": token.reveal()}),
        owner=OWNER,
        who=(process.number, "simulated"),
        lock_timeout=EVER,
        continue_unsaved=lambda tokens: process.world.unsaved.add(tokens.access_token),
        warn=lambda message: None,
    )


class SimulatedClock:
    """Time moves by pauses only."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def now(self) -> float:
        return self._process.world.time

    monotonic = now

    def sleep(self, seconds: float) -> None:
        if self._process.pending.name == "pause":
            self._process.world.time += A_PAUSE

    def ending(self) -> bool:
        return self._process.ending


class SimulatedStore:
    """What one process sees of the shared file, lock, record and temporary file, and of the server."""

    name = "tokens.json"
    kind = "token file"
    path = "tokens.json.lock"
    pace = PACE
    reads_block = False

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world

    def state(self) -> object:
        return self._world.file.tokens.access_token

    def read(self) -> Stored:
        return self._world.file

    def has_changed(self, state: object) -> bool:
        return self.state() != state

    def cached(self, state: object, made: Any) -> None:
        """Return none."""

    def look(self) -> Any:
        """Unfold into the steps of `TokenFile.look`, in its order."""
        return self._looking()

    def _looking(self) -> Transaction:
        state = yield Step("state", self.state)
        stored = yield Step("load", self.read)
        return Look(state, stored, (yield Step("record", self.record)))

    def before_send(self) -> None:
        """Do nothing."""

    def record(self) -> Record:
        return self._world.record

    def note(self, record: Record) -> None:
        self._world.record = record
        self._world.changed()

    def left_behind(self) -> Stored | None:
        return self._world.temporary

    def recover(self, stored: Stored, record: Record) -> Any:
        """Unfold into the steps of `TokenFile.recover`."""
        return self._recovering(stored, record)

    def _recovering(self, stored: Stored, record: Record) -> Transaction:
        left = yield Step("left behind", self.left_behind)
        if left is None or not is_successor(left, stored, record):
            return None
        held = yield Step("recover left", partial(self._install_over, left, stored))
        return "recovered" if held else ""

    def what(self) -> str:
        return f"{self.kind} {self.name}"

    def facts_for_errors(self) -> dict[str, str]:
        return {"token_file": self.name}

    def sign_in_command(self) -> str:
        return "sign in"

    def error(self, what: str, next_step: str) -> TokenFileError:
        return TokenFileError(f"{what}. {next_step}")

    def remove(self) -> None:
        raise NotImplementedError

    # The lock.

    def lock(self) -> SimulatedStore:
        return self

    def lock_timeout(self, lock: Any, waited: float) -> LockTimeout:
        return LockTimeout("too long")

    def take(self) -> bool:
        if self._world.holder is not None:
            return False
        self._world.holder = self._process.number
        return True

    def release(self) -> None:
        self._require_lock()
        self._world.holder = None
        self._world.changed()

    def _require_lock(self) -> None:
        if self._world.holder != self._process.number:
            raise Broken(f"process {self._process.number} acts without the lock")

    # The temporary file.

    def reserve(self) -> SimulatedStore:
        self._require_lock()
        self._world.temporary = None
        return self

    def replace(self, fresh: Stored, spent: Stored, record: Record) -> Any:
        """Unfold into the steps of `Reservation.replace`."""
        return self._replacing(fresh, spent, record)

    def _replacing(self, fresh: Stored, spent: Stored, record: Record) -> Transaction:
        yield Step("fill", partial(self._fill, fresh.in_place_of(spent), spent))
        if not (yield Step("install", partial(self._install_over, fresh, spent))):
            return False
        with suppress(TokenFileError):
            yield Step("note", partial(self.note, record))
        return True

    def _fill(self, fresh: Stored, spent: Stored) -> None:
        self._require_lock()
        self._world.temporary = fresh
        self._world.durable.add(spent.tokens.refresh_token)

    def _install_over(self, fresh: Stored, spent: Stored) -> bool:
        if self._world.file.tokens.refresh_token != spent.tokens.refresh_token:
            self.discard()
            return False
        self._install(fresh)
        return True

    def _install(self, fresh: Stored) -> None:
        self._require_lock()
        self._world.file, self._world.temporary = fresh, None
        self._world.installed.add(fresh.tokens.access_token)
        self._world.changed()

    def discard(self) -> None:
        # A crashed process's generators are closed when the world is thrown away: too late to do anything in
        # it.
        if self._process.running:
            self._world.temporary = None

    def leave(self) -> None:
        """Leave the temporary file as it is."""

    # The server.

    def post(self, call: EndpointCall, seconds: float) -> Transaction:
        self._require_lock()
        token = call.payload["refresh_token"]
        reply = yield Step("commit", partial(self._world.server.refresh, self._process.number, token))
        return (yield Step("arrive", partial(self._world.server.arrive, token, reply)))


def stored(tokens: Tokens) -> Stored:
    """Return the pair as a file holds it."""
    return Stored(tokens, {"access_token": tokens.access_token, "refresh_token": tokens.refresh_token})


def _key_of(value: Any) -> Any:
    if isinstance(value, Stored):
        return value.tokens.access_token
    if isinstance(value, EndpointReply):
        return value.body
    if isinstance(value, Exception):
        return type(value).__name__, str(value)
    return value if isinstance(value, (str, bool, Record, Tokens, type(None))) else type(value).__name__


# Running it.


@dataclass
class Report:
    """What was explored."""

    runs: int = 0
    states: int = 0
    orders: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.runs} runs, {self.states} states, {self.orders} orders of steps"


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
        if not path:  # the clients are alike: the orders that another one begins are the mirror image
            choices = [
                choice for choice in choices if choice.process == 1 or choice.process > rules.processes
            ]
        if not choices or not any(process.running for process in world.processes):
            report.runs += 1
            check_end(world, path, report)
            orders_from[key] = 1
            return 1
        orders = 0
        for turn, choice in enumerate(choices):
            here = world if turn == 0 else _replayed(rules, path)
            orders += visit(_done(here, choice, path), [*path, choice])
        orders_from[key] = orders
        return orders

    report.orders = visit(World(rules), [])
    return report


def sample(rules: Rules, runs: int, seed: int) -> Report:
    """Random orders of steps with random faults, the same for the same seed."""
    report, random = Report(), Random(seed)
    for _ in range(runs):
        world, path = World(rules), list[Choice]()
        while choices := world.choices():
            going_on = [choice for choice in choices if choice.what == "step"]
            # A run is about thirty steps of each process: few of them shall be faults, and those anywhere.
            choice = random.choice(choices if not going_on or random.random() < 0.1 else going_on)
            _done(world, choice, path)
            path.append(choice)
        report.runs += 1
        report.orders += 1
        check_end(world, path, report)
    return report


def _replayed(rules: Rules, path: list[Choice]) -> World:
    world = World(rules)
    for choice in path:
        world.do(choice)
    return world


def _done(world: World, choice: Choice, path: list[Choice]) -> World:
    try:
        world.do(choice)
    except Broken as broken:
        raise Broken(f"{broken}\n{_trace(world, [*path, choice])}") from None
    return world


def check_end(world: World, path: list[Choice], report: Report) -> None:
    """The rules at the end of a run, and then for a fresh client on what the run has left behind."""
    try:
        _check_outcomes(world, report)
        _check_fresh_client(world)
    except Broken as broken:
        raise Broken(f"{broken}\n{_trace(world, path)}") from None


def _check_outcomes(world: World, report: Report) -> None:
    if any(process.running for process in world.processes):
        raise Broken(
            "deadlock: "
            + ", ".join(
                f"{process.number} at {process.pending.name}"
                for process in world.processes
                if process.running
            )
        )
    for process in world.processes:
        word = (
            type(process.outcome).__name__ if isinstance(process.outcome, Exception) else str(process.outcome)
        )
        report.outcomes[word] = report.outcomes.get(word, 0) + 1
        if process.outcome is True or process.outcome == "crashed":
            continue
        if not world.faults:
            raise Broken(f"process {process.number} ended with {process.outcome!r}, and nothing had failed")
        if word in ("False", "ReauthorizationRequired") and not world.is_excused:
            raise Broken(f"process {process.number} ended with {word} outside the one window")
        if word != "False" and not isinstance(process.outcome, AdhAuthError):
            raise Broken(f"process {process.number} ended with {process.outcome!r}")
    rotations = len(world.server.fates)
    if not (world.faults or world.rules.signs_in) and rotations != 1:
        raise Broken(f"{rotations} refreshes where one would do")
    if (
        world.rules.signs_in
        and world.server._sessions[world.file.tokens.refresh_token]
        != world.server._sessions[world.newest.refresh_token]
    ):
        raise Broken("an old session came back over a new sign-in")


def _check_fresh_client(world: World) -> None:
    """Nothing lost: a client that comes last gets its 200, or the one window is the reason why not."""
    world.faults_left = 0
    last = Process(world, len(world.processes) + 1, uses_session)
    world.processes.append(last)
    while last.running:
        if last.is_stuck():
            raise Broken("the lock is held by nobody who lives")
        last.step()
    if last.outcome is not True and not world.is_excused:
        raise Broken(
            f"a fresh client ends with {last.outcome!r}: the session was lost outside the one window"
        )


def _trace(world: World, path: list[Choice]) -> str:
    """Return the order of steps in words."""
    lines, again = [], World(world.rules)
    for choice in path:
        fault = choice.what if choice.what != "step" else ""
        lines.append(f"  {choice.process}: {fault} {again.processes[choice.process - 1].pending.name}")
        try:
            again.do(choice)
        except Broken:
            break
    return "\n".join(lines)


#: What is explored in full, and what in a sample: rules, runs, seed.
FULL = {
    "two clients, any one fault, a strict server": Rules(),
    "two clients, and a sign-in without the lock at any moment": Rules(faults=0, signs_in=True),
    "one client, any two faults": Rules(processes=1, faults=2),
}
#: A minute's work, so not in every test run: python -m tests.support.simulated_world
LONG = {
    "two clients, any one fault, a server with grace": Rules(grace=True),
    "two clients, any one fault, and a sign-in without the lock at any moment": Rules(signs_in=True),
    "three clients, no fault": Rules(processes=3, faults=0),
}
SAMPLES = {
    "two clients, one fault, a server with grace": (Rules(grace=True), 1500, 20240228),
    "three clients, two faults, a strict server": (Rules(processes=3, faults=2), 1500, 20240229),
    "three clients, two faults, a server with grace": (
        Rules(processes=3, faults=2, grace=True),
        1000,
        20240301,
    ),
    "three clients, two faults, and a sign-in": (Rules(processes=3, faults=2, signs_in=True), 1000, 20240302),
}


def without_polling() -> None:
    """Waiters here pause in one go: the time between two tries is no part of any order."""
    attempt.PAUSE_SLICE = EVER


def main() -> None:
    """Explore everything, and print how much that was."""
    without_polling()
    for name, rules in (FULL | LONG).items():
        print(f"{name}: {explore(rules)}", flush=True)
    for name, (rules, runs, seed) in SAMPLES.items():
        print(f"{name}: {sample(rules, 10 * runs, seed)}", flush=True)


if __name__ == "__main__":
    main()
