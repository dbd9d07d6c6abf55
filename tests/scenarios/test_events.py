"""`on_event`: what operators get to hear of rotations, and that whatever their hook does has no effect."""

from __future__ import annotations

import copy
import errno
import json
import logging
import os
import pickle
import queue
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests

import adh_auth
from adh_auth import AdhAuth, AdhHttpx2Auth, AdhHttpxAuth, ConfigurationError, Event, RefreshFailed
from adh_auth.errors import ReauthorizationRequired, TokenFileError
from adh_auth.rotation import attempt
from adh_auth.testing import Sandbox

from ..support.clients import CLIENTS, EveryClient
from ..support.faults import auth_for, get, near_its_end, wait_until
from ..support.processes import PATIENCE, assert_nothing_lost, child

pytestmark = pytest.mark.usefixtures("token_file")


class Events:
    """A hook that keeps each event, and the thread it came in."""

    def __init__(self) -> None:
        self._events: queue.Queue[tuple[Event, threading.Thread]] = queue.Queue()
        self.threads: list[threading.Thread] = []

    def __call__(self, event: Event) -> None:
        self._events.put((event, threading.current_thread()))

    def next(self) -> Event:
        event, thread = self._events.get(timeout=PATIENCE)
        self.threads.append(thread)
        return event

    def is_empty(self) -> bool:
        """Whether nothing more came, once no job is at work any more."""
        for thread in threading.enumerate():
            if thread.name.startswith("adh-auth rotation"):
                thread.join(PATIENCE)
        return self._events.empty()


@pytest.fixture
def events() -> Events:
    return Events()


def fails(sandbox: Sandbox, auth: AdhAuth) -> Exception:
    """Make a call that fails, and return its error."""
    with pytest.raises(requests.RequestException) as caught:
        get(sandbox, auth)
    return caught.value


# The five kinds.


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
@pytest.mark.parametrize("detached", [False, True], ids=["thread", "helper"])
def test_rotated(
    sandbox: Sandbox, arguments: dict[str, Any], client: EveryClient, detached: bool, events: Events
) -> None:
    """One event for one rotation, with its times, in the job's thread."""
    began = time.time()
    auth = client.auth(**arguments, on_event=events, detached=detached)
    url = sandbox.url + "/api/auth/me"
    client.get(auth, url)
    sandbox.expire()
    sandbox.refresh_seconds = 0.1
    assert client.get(auth, url).status_code == 200
    client.get(auth, url)
    event = events.next()
    assert event.kind == "rotated"
    assert (event.store, event.session, event.pid, event.error) == (
        arguments["token_file"],
        None,
        os.getpid(),
        None,
    )
    assert began <= event.at <= time.time() + 1
    assert event.duration >= 0.1
    assert 0 <= event.waited < event.duration
    assert isinstance(event.request_id, str)
    assert events.is_empty()
    assert events.threads[0].name == "adh-auth rotation"


def test_adopted(sandbox: Sandbox, token_file: Path, events: Events) -> None:
    """Another process held the lock, and its pair is used."""
    auth, hold = auth_for(sandbox, on_event=events), sandbox.hold_next()
    sandbox.expire()
    code = "from adh_auth import AdhAuth; AdhAuth().refresh()"
    with child(code, sandbox.environment(token_file)) as other:
        hold.wait(PATIENCE)
        answers: list[int] = []
        mine = threading.Thread(target=lambda: answers.append(get(sandbox, auth)))
        mine.start()
        wait_until(lambda: "adh-auth rotation" in [thread.name for thread in threading.enumerate()])
        hold.release()
        mine.join(PATIENCE)
        other.communicate(timeout=PATIENCE)
    event = events.next()
    assert (event.kind, event.error, event.request_id) == ("adopted", None, None)
    assert 0 <= event.waited <= event.duration
    assert answers == [200]
    assert events.is_empty()


@pytest.mark.parametrize("detached", [False, True], ids=["thread", "helper"])
def test_refused(sandbox: Sandbox, detached: bool, events: Events) -> None:
    """Once, however many requests meet the refusal that is on record."""
    auth = auth_for(sandbox, on_event=events, detached=detached)
    sandbox.expire()
    sandbox.fail_next(status=400, headers={"X-Request-Id": "req_7"}, body=b'{"code": "invalid_grant"}')
    for _ in range(3):
        assert isinstance(fails(sandbox, auth), ReauthorizationRequired)
    event = events.next()
    assert event.kind == "refused"
    assert type(event.error) is ReauthorizationRequired
    assert event.request_id == "req_7"
    assert event.error.token_file == event.store
    assert events.is_empty()
    assert sandbox.counts.refresh_calls == 1


def test_a_second_refusal_is_a_second_event(sandbox: Sandbox, token_file: Path, events: Events) -> None:
    """A new sign-in ends the first outcome."""
    auth = auth_for(sandbox, on_event=events)
    for _ in range(2):
        sandbox.write_token_file(token_file)
        sandbox.expire()
        sandbox.fail_next(status=400, body=b'{"code": "invalid_grant"}')
        fails(sandbox, auth)
    assert [events.next().kind for _ in range(2)] == ["refused", "refused"]
    assert events.is_empty()


@pytest.mark.parametrize("detached", [False, True], ids=["thread", "helper"])
def test_failed(sandbox: Sandbox, detached: bool, events: Events) -> None:
    """Each attempt that fails is an outcome, though its message may be the same."""
    auth = auth_for(sandbox, on_event=events, detached=detached)
    sandbox.expire()
    sandbox.fail_next(count=2, status=404)
    for _ in range(2):
        assert isinstance(fails(sandbox, auth), RefreshFailed)
    for _ in range(2):
        event = events.next()
        assert event.kind == "failed"
        assert isinstance(event.error, RefreshFailed)
        assert event.error.status == 404
    assert get(sandbox, auth) == 200
    assert events.next().kind == "rotated"
    assert events.is_empty()


def test_a_pause_that_the_server_asks_for_is_one_failure(sandbox: Sandbox, events: Events) -> None:
    """Until it is over, every request fails by the same attempt."""
    auth = auth_for(sandbox, on_event=events)
    sandbox.expire()
    sandbox.fail_next(status=503, retry_after=50)
    for _ in range(3):
        fails(sandbox, auth)
    event = events.next()
    assert event.kind == "failed"
    assert isinstance(event.error, RefreshFailed)
    assert event.error.retry_after == 50
    assert events.is_empty()


def test_a_failure_of_another_process_is_an_outcome_of_this_one_too(
    sandbox: Sandbox, token_file: Path, events: Events
) -> None:
    """Once in each process that waited for it or comes later."""
    auth = auth_for(sandbox, on_event=events)
    sandbox.expire()
    sandbox.fail_next(status=400, body=b'{"code": "invalid_grant"}')
    code = """
import requests, os
from adh_auth import AdhAuth
try: AdhAuth(on_event=lambda event: print(event.kind)).refresh()
except Exception: pass
"""
    with child(code, sandbox.environment(token_file)) as other:
        output, errors = other.communicate(timeout=PATIENCE)
    assert output == "refused\n", errors
    for _ in range(2):
        fails(sandbox, auth)
    assert events.next().kind == "refused"
    assert events.is_empty()
    assert sandbox.counts.refresh_calls == 1


def test_a_refusal_that_was_waited_for_is_reported_once(
    sandbox: Sandbox, token_file: Path, events: Events
) -> None:
    """Another process got it; what this one finds on record afterwards is the same one."""
    auth, hold = auth_for(sandbox, on_event=events), sandbox.hold_next()
    sandbox.expire()
    sandbox.fail_next(status=400, body=b'{"code": "invalid_grant"}')
    with child("from adh_auth import AdhAuth; AdhAuth().refresh()", sandbox.environment(token_file)) as other:
        hold.wait(PATIENCE)
        mine = threading.Thread(target=fails, args=(sandbox, auth))
        mine.start()
        wait_until(lambda: "adh-auth rotation" in [thread.name for thread in threading.enumerate()])
        hold.release()
        mine.join(PATIENCE)
        other.communicate(timeout=PATIENCE)
    fails(sandbox, auth)
    assert events.next().kind == "refused"
    assert events.is_empty()
    assert sandbox.counts.refresh_calls == 1


def test_a_file_that_can_not_be_reserved_is_a_failure(
    sandbox: Sandbox, token_file: Path, events: Events
) -> None:
    """No attempt was made; each try is an outcome."""
    Path(f"{token_file}.new").mkdir()
    Path(f"{token_file}.new.old", "kept").mkdir(parents=True)  # so that the first can't be moved there
    auth = auth_for(sandbox, on_event=events)
    sandbox.expire()
    for _ in range(2):
        fails(sandbox, auth)
    for _ in range(2):
        event = events.next()
        assert event.kind == "failed"
        assert isinstance(event.error, TokenFileError)
    assert events.is_empty()


class FullDisk:
    """Renames fail until there is room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full, replace = True, os.replace
        monkeypatch.setattr(attempt, "SAVE_PAUSES", (0.02,))

        def refusing(*arguments: Any) -> None:
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            replace(*arguments)

        monkeypatch.setattr(os, "replace", refusing)


@pytest.mark.filterwarnings("ignore:.*could not be written:UserWarning", "ignore:.*again:UserWarning")
def test_unsaved(sandbox: Sandbox, token_file: Path, monkeypatch: pytest.MonkeyPatch, events: Events) -> None:
    """Said while the pair is in memory only; `rotated` follows once it is in the file."""
    disk, auth = FullDisk(monkeypatch), auth_for(sandbox, on_event=events)
    sandbox.expire()
    assert get(sandbox, auth) == 200
    event = events.next()
    assert event.kind == "unsaved"
    assert isinstance(event.error, TokenFileError)
    assert "could not be written" in event.error.message
    assert str(token_file) in event.error.message
    assert isinstance(event.request_id, str)
    disk.full = False
    assert events.next().kind == "rotated"
    assert events.is_empty()
    assert_nothing_lost(sandbox, token_file)


@pytest.mark.filterwarnings("ignore:.*could not be written:UserWarning", "ignore:.*again:UserWarning")
def test_a_hook_that_blocks_does_not_keep_an_unsaved_pair_from_the_file(
    sandbox: Sandbox, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job goes on trying beside it, and holds the lock no longer than it has to."""
    kinds: list[str] = []
    go_on = threading.Event()

    def block(event: Event) -> None:
        kinds.append(event.kind)
        assert go_on.wait(PATIENCE)

    disk, auth = FullDisk(monkeypatch), auth_for(sandbox, on_event=block)
    before = token_file.read_bytes()
    sandbox.expire()
    try:
        assert get(sandbox, auth) == 200
        disk.full = False
        wait_until(lambda: token_file.read_bytes() != before)
        assert_nothing_lost(sandbox, token_file)
        assert kinds == ["unsaved"]
    finally:
        go_on.set()


# The hook.


@pytest.mark.parametrize("raised", [ValueError, SystemExit, KeyboardInterrupt, BaseException])
def test_what_a_hook_raises_is_logged(
    sandbox: Sandbox, raised: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """It has no effect on the request, on the session, or on the next event."""
    called: list[str] = []

    def hook(event: Event) -> None:
        called.append(event.kind)
        raise raised("from the hook")

    auth = auth_for(sandbox, on_event=hook)
    for _ in range(2):
        sandbox.expire()
        assert get(sandbox, auth) == 200
    assert Events().is_empty()
    assert called == ["rotated", "rotated"]
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.name for record in errors] == ["adh_auth", "adh_auth"]
    assert "from the hook" in caplog.text


def test_a_hook_that_blocks_delays_no_request(sandbox: Sandbox) -> None:
    """Those who wait have the outcome before it is called."""
    go_on = threading.Event()
    auth = auth_for(sandbox, on_event=lambda event: go_on.wait(PATIENCE))
    try:
        for _ in range(2):
            sandbox.expire()
            assert get(sandbox, auth) == 200
        assert not go_on.is_set()
    finally:
        go_on.set()
    assert sandbox.counts.rotations == 2


def test_a_hook_may_use_the_auth_object(sandbox: Sandbox) -> None:
    """An alert may go through the API itself."""
    answers: queue.Queue[int] = queue.Queue()
    auth: AdhAuth = auth_for(sandbox, on_event=lambda event: answers.put(get(sandbox, auth)))
    sandbox.expire()
    assert get(sandbox, auth) == 200
    assert answers.get(timeout=PATIENCE) == 200


def test_a_background_refresh_is_reported(sandbox: Sandbox, token_file: Path, events: Events) -> None:
    """Nobody waits for it; it runs in a helper process where there can be one."""
    near_its_end(token_file)
    auth = auth_for(sandbox, on_event=events, refresh_ahead=60)
    assert get(sandbox, auth) == 200
    event = events.next()
    assert (event.kind, event.pid) == ("rotated", os.getpid())
    assert events.is_empty()


def test_without_a_rotation_nothing_is_reported(sandbox: Sandbox, events: Events) -> None:
    """Not for a request, not for a pair that was found in the file, not for the end of the session."""
    auth = auth_for(sandbox, on_event=events)
    get(sandbox, auth)
    auth_for(sandbox).refresh()
    get(sandbox, auth)
    auth.revoke()
    assert events.is_empty()


def test_no_event_holds_a_secret(sandbox: Sandbox, token_file: Path, events: Events) -> None:
    """Neither its repr, nor its error's, nor its pickle."""
    auth = auth_for(sandbox, on_event=events)
    stored = json.loads(token_file.read_text())
    sandbox.expire()
    get(sandbox, auth)
    fresh = json.loads(token_file.read_text())
    sandbox.expire()
    sandbox.fail_next(status=400, body=b'{"code": "invalid_grant"}')
    fails(sandbox, auth)
    for event in (events.next(), events.next()):
        shown = repr(event) + str(event.error) + repr(pickle.dumps(event))
        assert pickle.loads(pickle.dumps(event)).kind == event.kind
        for tokens in (stored, fresh):
            assert tokens["access_token"] not in shown
            assert tokens["refresh_token"] not in shown
        assert sandbox.client_secret not in shown
        with pytest.raises(AttributeError):
            event.kind = "other"  # type: ignore[misc, assignment]


# The argument.


def module_hook(event: Event) -> None:
    """A hook that can be pickled."""


@pytest.mark.parametrize("kind", [AdhAuth, AdhHttpxAuth, AdhHttpx2Auth])
def test_the_argument_goes_along(arguments: dict[str, Any], kind: Any) -> None:
    """A pickle and a copy have it, like every argument."""
    auth = kind(**arguments, on_event=module_hook)
    for other in (pickle.loads(pickle.dumps(auth)), copy.copy(auth), copy.deepcopy(auth)):
        assert other.__getstate__()["on_event"].__name__ == "module_hook"
    assert "module_hook" not in repr(auth)


async def a_coroutine_function(event: Event) -> None:
    """Nobody would await it."""


@pytest.mark.parametrize("hook", ["print", 7, a_coroutine_function])
def test_what_can_not_be_called_is_refused(arguments: dict[str, Any], hook: Any) -> None:
    """When the object is built, not in the middle of a rotation."""
    with pytest.raises(ConfigurationError, match="on_event must be a function") as caught:
        AdhAuth(**arguments, on_event=hook)
    assert caught.value.setting == "on_event"


def test_the_event_is_public() -> None:
    """By its own name, from the package."""
    assert adh_auth.Event is Event
