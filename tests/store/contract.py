"""What every store keeps, the token file and a register alike: the contract of `adh_auth.store.base.Store`."""

from __future__ import annotations

from typing import Any

import pytest

from adh_auth.errors import TokenStoreError
from adh_auth.store.record import DONE, FAILED, NOTHING, SENDING, Record
from adh_auth.tokens import Stored, Tokens, fingerprint

FIRST = Tokens("access-1", "refresh-1")
SECOND = Tokens("access-2", "refresh-2")
THIRD = Tokens("access-3", "refresh-3")
ABOUT = fingerprint(FIRST.refresh_token)
SENDING_FIRST = Record(number=1, about=ABOUT, state=SENDING, at=1_700_000_000.0, pid=7, host="pod-3")
SUCCESS = Record(number=1, about=ABOUT, state=DONE, rotated_at=1_700_000_001.0, rotated_by=7)


class SessionContract:
    """To be inherited, with a fixture `stores`: two stores of one session, as two processes have them."""

    # Reading.

    def test_no_session(self, stores: tuple[Any, Any]) -> None:
        """Nothing is there, and each way to read says so with the next step."""
        here, _ = stores
        assert here.state() is None
        for read in (here.read, here.look, here.load):
            with pytest.raises(TokenStoreError, match="adh-auth login"):
                read()

    def test_session(self, stores: tuple[Any, Any]) -> None:
        """Another process reads what one has saved, with its unknown keys."""
        here, there = stores
        here.save_mapping({"unknown": [1, "ä"], **_reply(FIRST)}, FIRST)
        look = there.look()
        assert (look.stored.tokens, look.record) == (FIRST, NOTHING)
        assert look.stored.mapping["unknown"] == [1, "ä"]
        assert there.read() == look.stored
        assert there.load() == FIRST
        assert there.record() == NOTHING

    def test_state(self, stores: tuple[Any, Any]) -> None:
        """It is the same until the session changes; after a look it is known."""
        here, _ = stores
        here.save(FIRST)
        here.look()
        state = here.state()
        assert state is not None
        assert here.state() == state
        assert here.read().tokens == FIRST
        _rotate(here)
        here.look()
        assert here.state() not in (None, state)

    def test_change_by_another(self, stores: tuple[Any, Any]) -> None:
        """A look's state tells a waiter whether another process has changed the session since."""
        here, there = stores
        here.save(FIRST)
        state = there.look().state
        assert not there.has_changed(state)
        _rotate(here)
        assert there.has_changed(state)
        state = there.look().state
        assert not there.has_changed(state)
        here.delete()
        assert there.has_changed(state)

    # The lock.

    def test_one_holder(self, stores: tuple[Any, Any]) -> None:
        """Of two processes one gets the lock; its release lets the other one in."""
        here, there = stores
        here.save(FIRST)
        first, second = here.lock(), there.lock()
        assert first.take()
        assert not second.take()
        assert here.is_locked() is not False
        first.release()
        first.release()
        assert second.take()
        second.release()

    # Records.

    def test_note(self, stores: tuple[Any, Any]) -> None:
        """A record is what the next look of any process sees, and leaves the pair alone."""
        here, there = stores
        here.save(FIRST)
        lock = here.lock()
        assert lock.take()
        here.look()
        for record in (SENDING_FIRST, Record(number=1, about=ABOUT, state=FAILED, reason="ü " * 40)):
            here.note(record)
            look = there.look()
            assert (look.stored.tokens, look.record) == (FIRST, record)
            assert there.record() == record
        lock.release()

    # The next pair.

    def test_replace(self, stores: tuple[Any, Any]) -> None:
        """The pair and its record are there for every process; unknown keys have stayed."""
        here, there = stores
        here.save_mapping({"unknown": 1, **_reply(FIRST)}, FIRST)
        there.read()
        _rotate(here)
        look = there.look()
        assert (look.stored.tokens, look.record) == (SECOND, SUCCESS)
        assert look.stored.mapping["unknown"] == 1
        assert there.read().tokens == SECOND

    @pytest.mark.parametrize("change", ["sign-in", "sign-out"])
    def test_replace_over_a_newer_state(self, stores: tuple[Any, Any], change: str) -> None:
        """Rule 8: a sign-out or a new sign-in during a refresh wins."""
        here, there = stores
        here.save(FIRST)
        lock = here.lock()
        assert lock.take()
        spent = here.look().stored
        reservation = here.reserve()
        here.note(SENDING_FIRST)
        here.before_send()
        self.change_without_the_lock(there, change)
        assert not reservation.replace(_fresh(spent), spent, SUCCESS)
        reservation.discard()
        lock.release()
        if change == "sign-in":
            assert here.look().stored.tokens == THIRD
        else:
            with pytest.raises(TokenStoreError):
                here.look()

    def change_without_the_lock(self, store: Any, change: str) -> None:
        """Sign in with `THIRD`, or sign out, while the lock is held."""
        raise NotImplementedError

    def test_reservation_that_is_not_used(self, stores: tuple[Any, Any]) -> None:
        """It leaves nothing behind."""
        here, there = stores
        here.save(FIRST)
        lock = here.lock()
        assert lock.take()
        look = here.look()
        here.reserve().discard()
        assert here.left_behind() is None
        assert here.recover(look.stored, look.record) is None
        lock.release()
        assert there.look().stored.tokens == FIRST

    def test_remove(self, stores: tuple[Any, Any]) -> None:
        """A sign-out counts for every process, and a later sign-in as well."""
        here, there = stores
        here.save(FIRST)
        there.read()
        lock = here.lock()
        assert lock.take()
        here.look()
        here.remove()
        lock.release()
        with pytest.raises(TokenStoreError, match="adh-auth login"):
            there.look()
        there.save(SECOND)
        assert here.look()[1:] == (there.look().stored, NOTHING)

    # Messages.

    def test_messages(self, stores: tuple[Any, Any]) -> None:
        """Each error names the store and the next step, and carries the attributes that name it."""
        here, _ = stores
        here.save(FIRST)
        assert here.what() == f"{here.kind} {here.name}"
        error = here.error("can't be read", "Do this")
        assert str(error) == f"{here.what()} can't be read. Do this"
        facts = here.facts_for_errors()
        assert facts
        assert {name: getattr(error, name) for name in facts} == facts
        timeout = here.lock_timeout(here.lock(), 45.0)
        assert here.name in str(timeout)
        assert {name: getattr(timeout, name) for name in facts} == facts
        assert here.sign_in_command().startswith("sign in with: adh-auth login ")
        assert here.facts().name == here.name
        assert isinstance(here.reads_block, bool)
        assert 0 < here.pace.first_poll <= here.pace.last_poll


def _rotate(store: Any) -> None:
    lock = store.lock()
    assert lock.take()
    spent = store.look().stored
    reservation = store.reserve()
    store.note(SENDING_FIRST)
    store.before_send()
    assert reservation.replace(_fresh(spent), spent, SUCCESS)
    lock.release()


def _fresh(spent: Stored) -> Stored:
    return Stored.of(SECOND, spent.mapping, {})


def _reply(tokens: Tokens) -> dict[str, Any]:
    return {"access_token": tokens.access_token, "refresh_token": tokens.refresh_token}
