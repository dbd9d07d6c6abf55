"""Machines that share a register in memory, with clocks that move as a test wants."""

from __future__ import annotations

from dataclasses import dataclass, field

from adh_auth.store.cipher import Cipher
from adh_auth.store.record import DONE, SENDING, Record
from adh_auth.store.registry import RegistryReservation, RegistryStore, RotationLease
from adh_auth.testing import MemoryRegister
from adh_auth.tokens import Stored, Tokens, fingerprint

FIRST = Tokens("access-1", "refresh-1")
SECOND = Tokens("access-2", "refresh-2")
THIRD = Tokens("access-3", "refresh-3")
EPOCH = 1_700_000_000.0


@dataclass
class MachineClock:
    """A clock that moves by sleeps and by hand. `suspended`: seconds that `monotonic` has not counted."""

    passed: float = 0.0
    suspended: float = 0.0
    slept: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.passed

    def wall(self) -> float:
        return EPOCH + self.passed + self.suspended

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.passed += seconds


class Machines:
    """A register, and the stores of machines that share it. All their clocks are one."""

    def __init__(self, *, missing_is_lost: bool = True, session: str = "reports") -> None:
        self.clock = MachineClock()
        self.register = MemoryRegister(missing_is_lost=missing_is_lost, clock=self.clock.wall)
        self.session = session

    def machine(self, *, cipher: Cipher | None = None, session: str | None = None) -> Machine:
        """Return one more machine."""
        register = self.register.for_another_machine()
        store = RegistryStore(register, session or self.session, cipher=cipher, clock=self.clock)
        return Machine(register, store, self.clock)

    def signed_in(self) -> Machines:
        """Sign in with `FIRST`, from a machine that is gone."""
        self.machine().store.save(FIRST)
        return self

    def row_pair(self) -> Tokens | None:
        """Return the pair in the row."""
        row = self.register.get(self.session)
        return None if row is None or row.pair is None else Stored.from_bytes(row.pair.encode()).tokens


@dataclass
class Machine:
    """One machine: its connection to the register, and its store over it."""

    register: MemoryRegister
    store: RegistryStore
    clock: MachineClock

    def begin(self, spent: Tokens = FIRST) -> Begun:
        """Take the lease, look, reserve and note that the token is being sent."""
        lock = self.store.lock()
        assert lock.take()
        look = self.store.look()
        record = Record(
            number=look.record.number + 1,
            about=fingerprint(spent.refresh_token),
            state=SENDING,
            pid=7,
            host="pod-3",
            at=self.clock.wall(),
        )
        reservation = self.store.reserve()
        self.store.note(record)
        return Begun(self, lock, look.stored, record, reservation)

    def rotate(self, fresh: Tokens, spent: Tokens = FIRST) -> None:
        """Do a whole rotation."""
        begun = self.begin(spent)
        self.store.before_send()
        assert begun.write(fresh)
        begun.lock.release()


@dataclass
class Begun:
    """A rotation whose token is being sent."""

    machine: Machine
    lock: RotationLease
    spent: Stored
    record: Record
    reservation: RegistryReservation

    def write(self, fresh: Tokens) -> bool:
        """Write the new pair."""
        new = Stored.of(fresh, self.spent.mapping, {})
        return self.reservation.replace(new, self.spent, self.done)

    @property
    def done(self) -> Record:
        """The record of its success."""
        return Record(number=self.record.number, about=self.record.about, state=DONE, rotated_at=EPOCH)
