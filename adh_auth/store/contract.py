"""The tests that every register has to pass. See `StoreContract`."""

from __future__ import annotations

import json
import secrets
import threading
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from ..tokens import Stored, Tokens
from .record import DONE, FAILED, SENDING, Record
from .register import Register, Row
from .registry import RegistryStore

__all__ = ["StoreContract"]

#: Seconds of a lease that no test outlives.
LONG = 600.0


class Session(NamedTuple):
    """A session of one test in its register."""

    register: Register
    name: str

    def row(self) -> Row:
        """Return its row."""
        row = self.register.get(self.name)
        assert row is not None, "there is no row"
        return row

    def take(self, me: str = "me", seconds: float = LONG) -> bool:
        """Take the lease at the present version."""
        return self.register.take(self.name, self.row().version, me, seconds)

    def note(self, me: str = "me", record: str = "{}", seconds: float = LONG) -> bool:
        """Note `record`."""
        return self.register.note(self.name, me, record, seconds)

    def put(
        self,
        pair: str | None,
        spent: int | None = None,
        stamp: str = "stamp",
        record: str | None = None,
    ) -> bool:
        """Put a pair."""
        return self.register.put(self.name, pair, stamp, spent, record)

    def heal(self, version: int | None, pair: str = "healed", generation: int = 7) -> bool:
        """Put back a pair."""
        return self.register.heal(self.name, version, pair, "lost", generation)


def _new(register: Register) -> Session:
    return Session(register, f"contract/{secrets.token_hex(8)}")


def _signed_in(register: Register, pair: str = '{"a": 1}') -> Session:
    session = _new(register)
    assert session.put(pair, stamp="first")
    return session


def _clean(session: Session) -> None:
    session.put(None)


def _timeless(row: Row | None) -> Row:
    """Return the row without what changes by itself."""
    assert row is not None, "there is no row"
    return row._replace(lease_left=0.0)


class StoreContract:
    """Tests of a register, to be inherited; pytest runs them.

        class TestMyRegister(StoreContract):
            @pytest.fixture
            def register(self) -> Iterator[MyRegister]:
                ...

    Each uses session names of its own, so that they may share one server, also in parallel.
    """

    # Reading.

    def test_no_row(self, register: Register) -> None:
        """A session that nobody has signed in has no row, and nothing can be done to it but a sign-in."""
        session = _new(register)
        assert register.get(session.name) is None
        assert not register.take(session.name, 1, "me", LONG)
        assert not session.note()
        assert not session.put("{}", spent=0)
        register.release(session.name, "me")
        assert register.get(session.name) is None

    def test_sign_in_makes_the_row(self, register: Register) -> None:
        """A put without a fence makes the row, free and without a record."""
        session = _signed_in(register)
        row = session.row()
        assert (row.pair, row.stamp, row.record, row.holder) == ('{"a": 1}', "first", None, "")
        assert row.lease_left <= 0
        assert _timeless(register.get(session.name)) == _timeless(row)
        _clean(session)

    def test_name_for_messages(self, register: Register) -> None:
        """It has a name that fits into a line, and says whether a row can get lost."""
        assert register.name.isprintable()
        assert register.missing_is_lost in (True, False)

    # The lease.

    def test_take_gives_the_lease(self, register: Register) -> None:
        """The lease is counted by the register's clock, and nothing else of the row changes."""
        session = _signed_in(register)
        before = session.row()
        assert session.take("me", 35.0)
        row = session.row()
        assert row.holder == "me"
        assert 25.0 < row.lease_left <= 35.0
        assert _timeless(row)._replace(version=before.version, holder="") == _timeless(before)
        _clean(session)

    def test_take_compares_the_version(self, register: Register) -> None:
        """Whoever saw another version does not get the lease, held or not."""
        session = _signed_in(register)
        version = session.row().version
        assert not register.take(session.name, version - 1, "early", LONG)
        assert not register.take(session.name, version + 1, "late", LONG)
        assert register.take(session.name, version, "first", LONG)
        assert not register.take(session.name, version, "second", LONG)
        assert session.row().holder == "first"
        _clean(session)

    def test_every_change_has_a_version_of_its_own(self, register: Register) -> None:
        """What `take` compares grows by every change, and by no failed one."""
        session = _signed_in(register)
        versions = [session.row().version]
        for change in (
            session.take,
            session.note,
            lambda: session.put("{}", spent=session.row().generation),
            session.take,
            lambda: register.release(session.name, "me"),
            lambda: session.heal(session.row().version, generation=session.row().generation),
            lambda: session.put(None),
        ):
            change()
            versions.append(session.row().version)
        assert versions == sorted(set(versions))
        assert not session.note("nobody")
        assert not session.put("{}", spent=1)
        assert session.row().version == versions[-1]

    def test_lease_that_is_over_can_be_taken(self, register: Register) -> None:
        """The register gives no opinion on a holder: it shows whose lease is over."""
        session = _signed_in(register)
        assert session.take("stopped", 0.0)
        row = session.row()
        assert row.holder == "stopped"
        assert row.lease_left <= 0
        assert session.take("next")
        assert session.row().holder == "next"
        _clean(session)

    def test_release_ends_the_lease_of_its_holder_only(self, register: Register) -> None:
        """A late release of an earlier holder does nothing, not even to the version."""
        session = _signed_in(register)
        session.take("me")
        held = session.row()
        register.release(session.name, "somebody else")
        assert _timeless(session.row()) == _timeless(held)
        register.release(session.name, "me")
        assert session.row().holder == ""
        assert session.row().lease_left <= 0
        _clean(session)

    def test_takes_of_many_threads(self, register: Register) -> None:
        """Of those that saw one version, one gets the lease."""
        session = _signed_in(register)
        version = session.row().version
        takers = [f"thread {number}" for number in range(8)]
        takes = _at_once([partial(register.take, session.name, version, me, LONG) for me in takers])
        assert takes.count(True) == 1
        assert session.row().holder == takers[takes.index(True)]
        _clean(session)

    # The record.

    def test_note_of_the_holder(self, register: Register) -> None:
        """A note keeps the record, renews the lease, and leaves the pair alone."""
        session = _signed_in(register)
        session.take("me", 10.0)
        before = session.row()
        assert session.note("me", '{"state": "sending"}', 100.0)
        row = session.row()
        assert row.record == '{"state": "sending"}'
        assert 90.0 < row.lease_left <= 100.0
        assert row[1:4] == before[1:4]
        _clean(session)

    def test_note_of_another(self, register: Register) -> None:
        """Who has lost the lease can note nothing: that keeps a token from being sent twice."""
        session = _signed_in(register)
        assert not session.note("me")
        session.take("me", 0.0)
        session.take("next")
        assert not session.note("me", '{"state": "sending"}')
        row = session.row()
        assert (row.holder, row.record) == ("next", None)
        register.release(session.name, "next")
        assert not session.note("next")
        _clean(session)

    def test_note_of_a_lease_that_ran_out(self, register: Register) -> None:
        """While nobody has taken it, its holder may go on."""
        session = _signed_in(register)
        session.take("slow", 0.0)
        assert session.note("slow", "{}", LONG)
        assert session.row().lease_left > 0
        _clean(session)

    def test_note_that_ends_the_lease(self, register: Register) -> None:
        """With no seconds the lease is over at once."""
        session = _signed_in(register)
        session.take()
        assert session.note("me", '{"state": "failed"}', 0.0)
        assert session.row().lease_left <= 0
        assert session.row().record == '{"state": "failed"}'
        _clean(session)

    # The pair.

    def test_put_over_the_spent_generation(self, register: Register) -> None:
        """A new pair is one generation later. Record and end of the lease come with it."""
        session = _signed_in(register)
        session.take()
        spent = session.row().generation
        assert session.put('{"b": 2}', spent, "second", '{"state": "done"}')
        row = session.row()
        assert (row.generation, row.pair, row.stamp) == (spent + 1, '{"b": 2}', "second")
        assert (row.record, row.holder) == ('{"state": "done"}', "")
        assert row.lease_left <= 0
        _clean(session)

    def test_put_over_another_generation(self, register: Register) -> None:
        """Rule 8: whatever is newer stays, and nothing older is assumed."""
        session = _signed_in(register)
        generation = session.row().generation
        session.put('{"b": 2}', generation)
        before = session.row()
        for spent in (generation - 1, generation, generation + 2, 0):
            assert not session.put('{"late": true}', spent)
        assert _timeless(session.row()) == _timeless(before)
        _clean(session)

    def test_put_asks_for_no_lease(self, register: Register) -> None:
        """Who has the pair writes it, also after another has taken the lease."""
        session = _signed_in(register)
        session.take("next")
        assert session.put('{"b": 2}', session.row().generation)
        assert session.row().holder == ""
        _clean(session)

    def test_puts_of_many_threads(self, register: Register) -> None:
        """Of those that spent one generation, one writes."""
        session = _signed_in(register)
        spent = session.row().generation
        pairs = [json.dumps({"thread": number}) for number in range(8)]
        puts = _at_once([partial(session.put, pair, spent) for pair in pairs])
        assert puts.count(True) == 1
        row = session.row()
        assert (row.pair, row.generation) == (pairs[puts.index(True)], spent + 1)
        _clean(session)

    def test_sign_in_over_a_session(self, register: Register) -> None:
        """A put without a fence wins, whoever works on the session; the record of the old pair is gone."""
        session = _signed_in(register)
        generation = session.row().generation
        session.take()
        session.note()
        assert session.put('{"new": true}', stamp="new")
        row = session.row()
        assert row.generation > generation
        assert (row.pair, row.stamp, row.record, row.holder) == ('{"new": true}', "new", None, "")
        assert not session.put('{"late": true}', generation)
        _clean(session)

    def test_sign_in_after_a_loss(self, register: Register) -> None:
        """A sign-in on a register that had gone back comes after the pair that was lost.

        The rotations since the last sign-in are lost here: each is one generation, and takes longer than a
        millisecond.
        """
        session = _signed_in(register)
        first = session.row().generation
        assert session.heal(session.row().version, generation=1)  # long ago
        assert session.put('{"new": true}')
        assert session.row().generation >= first
        _clean(session)

    # Signing out.

    def test_sign_out_leaves_a_tombstone(self, register: Register) -> None:
        """The row stays, without a pair and with a later generation: no late write brings a session back."""
        session = _signed_in(register)
        generation = session.row().generation
        session.take()
        assert session.put(None, stamp="gone")
        row = session.row()
        assert (row.pair, row.stamp, row.holder) == (None, "gone", "")
        assert row.generation > generation
        assert not session.put('{"late": true}', generation)
        assert session.name not in register.sessions()
        assert session.put('{"new": true}')
        assert session.row().generation > row.generation
        _clean(session)

    def test_sign_out_over_a_generation(self, register: Register) -> None:
        """A sign-out may be fenced, too: a sign-in that came before it wins."""
        session = _signed_in(register)
        generation = session.row().generation
        assert not session.put(None, generation + 1)
        assert session.put(None, generation)
        assert session.row().pair is None
        assert session.row().generation == generation + 1

    def test_sign_out_without_a_row(self, register: Register) -> None:
        """It is remembered."""
        session = _new(register)
        assert session.put(None)
        assert session.row().pair is None

    # Healing.

    def test_heal_puts_back_what_was_lost(self, register: Register) -> None:
        """The generation is the one that was lost, and nobody has the lease."""
        session = _signed_in(register)
        session.take()
        generation = session.row().generation + 3
        assert session.heal(session.row().version, '{"lost": true}', generation)
        row = session.row()
        assert (row.generation, row.stamp, row.pair) == (generation, "lost", '{"lost": true}')
        assert row.holder == ""
        assert row.lease_left <= 0
        assert not session.note()
        _clean(session)

    def test_heal_compares_the_version(self, register: Register) -> None:
        """What has changed since it was looked at is looked at again."""
        session = _signed_in(register)
        version = session.row().version
        session.take()
        before = session.row()
        assert not session.heal(version)
        assert not session.heal(version + 2)
        assert not session.heal(None)
        assert _timeless(session.row()) == _timeless(before)
        _clean(session)

    def test_heal_of_a_missing_row(self, register: Register) -> None:
        """A row is made where there is none, and only there."""
        session = _new(register)
        assert not session.heal(1)
        assert session.heal(None, '{"lost": true}', 41)
        assert not session.heal(None, '{"late": true}', 42)
        row = session.row()
        assert (row.generation, row.pair, row.holder) == (41, '{"lost": true}', "")
        assert session.put("{}", 41)
        _clean(session)

    # Texts.

    def test_names_don_t_mix(self, register: Register) -> None:
        """Names are compared as they are: case, accents, blanks, wildcards and separators count."""
        tag = secrets.token_hex(6)
        names = [
            "Ada",
            "ada",
            "a",
            "a b",
            "a  b",
            "a%",
            "a_",
            "a*",
            "a:b",
            "a/b",
            "{a}",
            "a'b",
            'a"b',
            "a\\b",
        ]
        names += [
            unicodedata.normalize("NFC", "é"),
            unicodedata.normalize("NFD", "é"),
            "à",
            "ß",
            "ss",
            "İ",
            "i",
        ]
        sessions = [Session(register, f"{tag}{name}") for name in names]
        for session in sessions:
            assert session.put(json.dumps(session.name))
        assert [json.loads(session.row().pair or "") for session in sessions] == [s.name for s in sessions]
        assert {session.name for session in sessions} <= set(register.sessions())
        for session in sessions:
            _clean(session)

    def test_longest_name(self, register: Register) -> None:
        """A name has up to 200 characters, of any script."""
        for letter in ("n", "ß", "漢", "🔑"):
            session = Session(register, secrets.token_hex(8) + 184 * letter)
            assert session.put(f'"{letter}"')
            assert session.take(200 * letter)
            assert session.row()[3:6] == (f'"{letter}"', None, 200 * letter)
            assert session.name in register.sessions()
            _clean(session)

    def test_large_pair(self, register: Register) -> None:
        """A megabyte is kept as it is: unknown keys of a token file are kept for ever."""
        session = _signed_in(register)
        pair = json.dumps({"unknown": "é漢🔑\\" * 50_000}, ensure_ascii=False)
        assert len(pair.encode()) > 500_000
        pair += " " * (1_000_000 - len(pair.encode()))
        assert session.put(pair, session.row().generation)
        row = session.row()
        assert row.pair == pair
        assert session.heal(row.version, pair + " ", row.generation)
        assert session.row().pair == pair + " "
        _clean(session)

    def test_sessions_are_sorted(self, register: Register) -> None:
        """All sessions that are signed in are listed, by name."""
        tag = secrets.token_hex(6)
        sessions = [Session(register, f"{tag}{name}") for name in ("c", "a", "b")]
        for session in sessions:
            session.put("{}")
        listed = [name for name in register.sessions() if name.startswith(tag)]
        assert listed == [f"{tag}a", f"{tag}b", f"{tag}c"]
        _clean(sessions[0])
        assert sessions[0].name not in register.sessions()
        for session in sessions[1:]:
            _clean(session)

    # Looking after it.

    def test_create_and_check(self, register: Register) -> None:
        """Both may be done again and again, and leave no session behind."""
        register.create()
        register.create()
        before = set(register.sessions())
        assert all(warning.endswith(".") for warning in register.check())
        left = set(register.sessions()) - before
        assert not any("check" in name for name in left)

    def test_close(self, register: Register) -> None:
        """It closes idle connections only: what comes next opens one."""
        session = _signed_in(register)
        register.close()
        register.close()
        assert session.row().pair == '{"a": 1}'
        _clean(session)

    # A whole rotation.

    def test_rotation(self, register: Register) -> None:
        """Sign in, take, note, send, write, adopt elsewhere, sign out."""
        name = _new(register).name
        here, elsewhere = RegistryStore(register, name), RegistryStore(register, name)
        here.save(Tokens("access-1", "refresh-1"))
        assert elsewhere.load() == Tokens("access-1", "refresh-1")
        lock, other = here.lock(), elsewhere.lock()
        assert lock.take()
        assert not other.take()
        look = here.look()
        reservation = here.reserve()
        record = Record(number=1, about="0123456789ab", state=SENDING)
        here.note(record)
        here.before_send()
        assert elsewhere.look().record == record
        fresh = Stored.of(Tokens("access-2", "refresh-2"), look.stored.mapping, {})
        assert reservation.replace(fresh, look.stored, Record(number=1, about="0123456789ab", state=DONE))
        lock.release()
        assert elsewhere.has_changed(look.state)
        assert elsewhere.look()[1:] == (fresh, Record(number=1, about="0123456789ab", state=DONE))
        assert other.take()
        elsewhere.look()
        elsewhere.note(Record(number=2, about="0123456789ab", state=FAILED))
        assert lock.take()
        here.look()
        here.remove()
        assert register.get(name) is not None
        assert name not in register.sessions()


def _at_once(calls: list[Callable[[], bool]]) -> list[bool]:
    """Return what the calls return, made in as many threads at the same moment."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], bool]) -> bool:
        barrier.wait(30)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))
