"""Rule 16: a pair that was received is kept and written, whatever is raised and whatever changes the file."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from adh_auth import AdhAuth, RefreshFailed, TokenFile, TokenFileError, Tokens
from adh_auth.oauth import replies
from adh_auth.oauth.endpoint import REFRESH_PATH
from adh_auth.rotation import attempt
from adh_auth.store import disk, file_checks, reservation, token_file
from adh_auth.store.file_lock import RotationLock
from adh_auth.store.record import SENDING, Record
from adh_auth.testing import Sandbox
from adh_auth.tokens import REPLACES, Stored, fingerprint

from ..support.clients import CLIENTS, EveryClient
from ..support.faults import ONE_CALL, auth_for, get, wait_until
from ..support.processes import PATIENCE, assert_nothing_lost, child
from ..support.rotation_threads import join_rotations

each_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "SAVE_PAUSES", (0.01,) * 5)
    for name in ("LONG_READ_PAUSES", "LAST_READ_PAUSES"):
        monkeypatch.setattr(token_file, name, (0.001,) * len(getattr(token_file, name)))


# A file that is missing or torn for a moment.


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def _moved_away(path: Path) -> None:
    path.rename(path.with_name("tokens.json~"))


def _not_one_yet(path: Path) -> None:
    path.write_bytes(b"{}")


each_tear = pytest.mark.parametrize(
    "tear", [_emptied, _cut_short, _moved_away, _not_one_yet], ids=lambda tear: tear.__name__[1:]
)


class Editor:
    """Tears a file, and restores it, with a comment of the user's, at one exact read."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = path
        self._content = json.dumps({**json.loads(path.read_bytes()), "comment": "mine"})
        self._reads_left = -1
        monkeypatch.setattr(disk, "read_regular", self._watched(disk.read_regular))

    def tear(self, tear: Callable[[Path], None], *, back_at: int) -> None:
        """Tear it now. `back_at`: the read that finds it whole again, 1 for the next."""
        tear(self._path)
        self._reads_left = back_at

    def repair(self) -> None:
        """Make the file whole again."""
        self._path.write_text(self._content)
        self._path.chmod(0o600)

    def _watched(self, read: Callable[[str], Any]) -> Callable[[str], Any]:
        def watched(path: str) -> Any:
            if path == str(self._path):
                self._reads_left -= 1
                if self._reads_left == 0:
                    self.repair()
            return read(path)

        return watched


@pytest.fixture
def editor(token_file: Path, monkeypatch: pytest.MonkeyPatch) -> Editor:
    return Editor(token_file, monkeypatch)


#: Reads of a file before a rotation takes it for gone: one, and one after each pause.
READS = len(token_file.LAST_READ_PAUSES) + 1
#: The same before there is a pair to be lost.
READS_BEFORE = len(token_file.LONG_READ_PAUSES) + 1


@each_tear
@pytest.mark.parametrize("back_at", [2, READS])
def test_torn_at_the_moment_of_the_write(
    sandbox: Sandbox, token_file: Path, editor: Editor, tear: Callable[[Path], None], back_at: int
) -> None:
    """An editor, or `cp` onto the file, writes no newer session: the new pair replaces it afterwards."""
    sandbox.expire()
    with sandbox.hold_next() as hold, ThreadPoolExecutor(1) as threads:
        answer = threads.submit(get, sandbox, auth_for(sandbox))
        hold.wait(PATIENCE)
        editor.tear(tear, back_at=back_at)
        hold.release()
        assert answer.result(PATIENCE) == 200
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


@each_tear
def test_torn_for_good_keeps_the_pair_beside_it(
    sandbox: Sandbox, token_file: Path, editor: Editor, tear: Callable[[Path], None]
) -> None:
    """What is not repaired in six seconds is left as it is; repaired later, it gets the pair.

    Only a file that is gone was a sign-out.
    """
    sandbox.expire()
    with sandbox.hold_next() as hold, ThreadPoolExecutor(1) as threads:
        answer = threads.submit(get, sandbox, auth_for(sandbox))
        hold.wait(PATIENCE)
        editor.tear(tear, back_at=READS + 100)
        hold.release()
        with pytest.raises(TokenFileError):
            answer.result(PATIENCE)
    assert Path(f"{token_file}.new").exists() is (tear is not _moved_away)
    if tear is not _moved_away:
        editor.repair()
        with pytest.warns(UserWarning, match="was found beside it"):
            assert_nothing_lost(sandbox, token_file)
        assert sandbox.counts.refresh_calls == 1


@each_tear
@pytest.mark.parametrize("back_at", [2, READS_BEFORE])
@pytest.mark.parametrize("nth", [1, 2], ids=["before the lock", "under the lock"])
def test_torn_before_the_spend(
    sandbox: Sandbox,
    token_file: Path,
    editor: Editor,
    monkeypatch: pytest.MonkeyPatch,
    tear: Callable[[Path], None],
    back_at: int,
    nth: int,
) -> None:
    """A rotation waits until an editor is done with the file, and spends the token that it holds then."""
    reads = []

    def read(file: TokenFile, real: Callable[[TokenFile], Stored] = TokenFile.read_patiently) -> Stored:
        reads.append(1)
        if len(reads) == nth:
            editor.tear(tear, back_at=back_at)
        return real(file)

    monkeypatch.setattr(TokenFile, "read_patiently", read)
    sandbox.expire()
    assert get(sandbox, auth_for(sandbox)) == 200
    assert len(reads) >= nth
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


@each_client
@each_tear
def test_torn_while_a_request_reads_it(
    sandbox: Sandbox, token_file: Path, editor: Editor, client: EveryClient, tear: Callable[[Path], None]
) -> None:
    """A request that meets a file torn for a moment is sent with what the file holds right afterwards."""
    auth = client.auth(
        token_file, client_id=sandbox.client_id, client_secret=sandbox.client_secret, base_url=sandbox.url
    )
    assert client.get(auth, sandbox.url + "/api/auth/me").status_code == 200
    for back_at in (2, 4):
        editor.tear(tear, back_at=back_at)
        assert client.get(auth, sandbox.url + "/api/auth/me").status_code == 200
    _emptied(token_file)
    with pytest.raises(TokenFileError, match="empty"):
        client.get(auth, sandbox.url + "/api/auth/me")


@each_tear
def test_a_sign_in_keeps_the_keys_of_a_file_that_is_torn_for_a_moment(
    sandbox: Sandbox, token_file: Path, editor: Editor, tear: Callable[[Path], None]
) -> None:
    """A user's comment survives a save during an edit; a missing file is not waited for."""
    editor.repair()
    editor.tear(tear, back_at=2)
    TokenFile(token_file).save(Tokens.from_response(sandbox.sign_in()))
    assert json.loads(token_file.read_bytes()).get("comment") == (None if tear is _moved_away else "mine")


# Whatever is raised.


class Odd(BaseException):
    """As gevent's GreenletExit and Timeout are."""


RAISED = (
    MemoryError(),
    RuntimeError("no"),
    OSError(errno.EIO, "EIO"),
    OSError("odd"),
    SystemExit(3),
    StopIteration(),
    Odd(),
    asyncio.CancelledError(),
)
#: Where something is raised once the reply has come.
PLACES: tuple[tuple[Any, str], ...] = (
    (replies, "classify"),
    (Stored, "rotated"),
    (Stored, "in_place_of"),
    (Stored, "to_bytes"),
    (reservation.ReservedFile, "fill"),
    (reservation.ReservedFile, "install"),
    (TokenFile, "still_holds"),
    (file_checks, "loose_mode"),
    (TokenFile, "note"),
    (RotationLock, "release"),
)


class Raising:
    """Raises at one place, `times` times, once the server has rotated."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        sandbox: Sandbox,
        place: tuple[Any, str],
        raised: BaseException,
        times: int,
    ) -> None:
        self.left = times
        owner, name = place
        real = getattr(owner, name)

        def raising(*arguments: Any, **named: Any) -> Any:
            if self.left and sandbox.counts.rotations:
                self.left -= 1
                raise raised
            return real(*arguments, **named)

        monkeypatch.setattr(owner, name, raising)


@pytest.mark.filterwarnings(
    "ignore:.*could not be written",
    "ignore:.*could be written again",
    "ignore:.*while it was written",
    "ignore:no",
)
@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize(
    "raised", RAISED, ids=lambda raised: type(raised).__name__ + ("-odd" if str(raised) == "odd" else "")
)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place[1])
def test_whatever_is_raised_with_the_pair_in_hand(
    sandbox: Sandbox,
    token_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: tuple[Any, str],
    raised: BaseException,
    times: int,
) -> None:
    """The caller gets the 200, the pair is in the file, and the token is sent once."""
    before = TokenFile(token_file).load()
    sandbox.expire()
    raising = Raising(monkeypatch, sandbox, place, raised, times)
    auth = auth_for(sandbox)
    assert get(sandbox, auth) == 200
    wait_until(lambda: TokenFile(token_file).load() != before)
    join_rotations()
    assert raising.left < times
    monkeypatch.undo()
    assert_nothing_lost(sandbox, token_file)
    assert sandbox.counts.refresh_calls == 1


def test_a_reply_that_is_never_understood_counts_as_lost(
    sandbox: Sandbox, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that never comes back ends in an error for the waiters, not in a thread that keeps the lock."""
    sandbox.expire()
    sandbox.grace = 60
    monkeypatch.setattr(attempt, "SAVE_PAUSES", (0.0,))
    monkeypatch.setattr(attempt, "PAUSES", (0.0,))
    Raising(monkeypatch, sandbox, (Stored, "rotated"), MemoryError(), 10**6)
    with pytest.raises(RefreshFailed, match=r"could not be read \(MemoryError\)") as caught:
        get(sandbox, auth_for(sandbox))
    assert caught.value.reply_lost_at is not None
    monkeypatch.undo()
    assert_nothing_lost(sandbox, token_file)


class BadHandler(logging.Handler):
    """A log handler of the program's that raises."""

    def __init__(self, raised: BaseException) -> None:
        super().__init__()
        self.raised = raised
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        raise self.raised


@pytest.fixture(params=[RuntimeError("handler"), SystemExit(1)], ids=["RuntimeError", "SystemExit"])
def bad_handler(request: pytest.FixtureRequest) -> Iterator[BadHandler]:
    """On the library's logger, for all levels."""
    handler, logger = BadHandler(request.param), logging.getLogger("adh_auth")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@each_client
@pytest.mark.parametrize("showing", ["error", "raising"])
@pytest.mark.parametrize("warning", ["loose mode", "bad disk", "leftover"])
def test_a_log_handler_that_raises_costs_nothing(
    client: EveryClient,
    warning: str,
    showing: str,
    bad_handler: BadHandler,
    sandbox: Sandbox,
    token_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor does a warning filter: a message about a rotation that succeeds, or goes on, is no error."""
    auth = client.auth(
        token_file, client_id=sandbox.client_id, client_secret=sandbox.client_secret, base_url=sandbox.url
    )
    sandbox.expire()
    if warning == "loose mode":
        token_file.chmod(0o644)
    elif warning == "bad disk":
        Raising(monkeypatch, sandbox, (reservation.ReservedFile, "fill"), OSError(errno.EIO, "EIO"), 1)
    else:
        _killed_before_the_rename(sandbox, token_file)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if showing == "error" else "always")
        if showing == "raising":
            monkeypatch.setattr(warnings, "showwarning", _raise)
            monkeypatch.setattr(warnings, "_showwarnmsg_impl", _raise)
        assert client.get(auth, sandbox.url + "/api/auth/me").status_code == 200
        join_rotations()
    assert bad_handler.count
    assert_nothing_lost(sandbox, token_file)
    assert sandbox.counts.refresh_calls == 1


@each_client
@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG], ids=logging.getLevelName)
@pytest.mark.parametrize(
    "raised", [RuntimeError("handler"), SystemExit(1)], ids=["RuntimeError", "SystemExit"]
)
def test_a_handler_that_raises_on_what_a_client_logs(
    client: EveryClient,
    raised: BaseException,
    level: int,
    sandbox: Sandbox,
    token_file: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """httpx logs each reply inside its `send`, as urllib3 and httpcore do at DEBUG: no reply is dropped."""

    class InTheRotation(BadHandler):
        def emit(self, record: logging.LogRecord) -> None:
            # Elsewhere the caller's own calls would raise.
            if threading.current_thread().name == "adh-auth rotation":
                super().emit(record)

    handler = InTheRotation(raised)
    caplog.set_level(level)
    logging.getLogger().addHandler(handler)
    try:
        sandbox.expire()
        auth = client.auth(
            token_file, client_id=sandbox.client_id, client_secret=sandbox.client_secret, base_url=sandbox.url
        )
        assert client.get(auth, sandbox.url + "/api/auth/me").status_code == 200
    finally:
        logging.getLogger().removeHandler(handler)
    assert handler.count or (client.name == "requests" and level == logging.INFO)
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


def test_what_a_client_logs_of_a_refresh_is_still_logged(
    sandbox: Sandbox, token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each message comes once."""
    caplog.set_level(logging.DEBUG, "urllib3")
    auth = auth_for(sandbox)
    auth.refresh()
    assert sum(REFRESH_PATH in message for message in caplog.messages) == 1


def _raise(*_: object, **__: object) -> None:
    raise RuntimeError("nothing is shown here")


# The temporary file itself says which token its pair replaces.


def _killed_before_the_rename(sandbox: Sandbox, token_file: Path) -> None:
    code = (
        f"import signal\nfrom adh_auth.store import reservation\n{ONE_CALL}\n"
        "reservation.ReservedFile.install = lambda _: os.kill(os.getpid(), signal.SIGKILL)\ncall()"
    )
    with child(code, sandbox.environment(token_file)) as process:
        process.communicate(timeout=PATIENCE)
        assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "record", [None, b"", b"x" * 5000, Record(number=9, about="0" * 12, state=SENDING, at=1.0).to_bytes()]
)
def test_a_pair_is_found_whatever_became_of_the_record(
    sandbox: Sandbox, token_file: Path, record: bytes | None
) -> None:
    """The record is not durable: after a power failure it may be gone, but the pair was synced."""
    sandbox.expire()
    _killed_before_the_rename(sandbox, token_file)
    beside = Path(f"{token_file}.record")
    beside.unlink()
    if record is not None:
        beside.write_bytes(record)
        beside.chmod(0o600)
    with pytest.warns(UserWarning, match="was found beside it"):
        assert get(sandbox, auth_for(sandbox)) == 200
    assert sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


def test_a_pair_that_replaces_another_token_is_not_taken(sandbox: Sandbox, token_file: Path) -> None:
    """After a new sign-in, the pair that a rotation of the old session has left is not installed.

    Not even where the record names an attempt on the new session.
    """
    sandbox.expire()
    _killed_before_the_rename(sandbox, token_file)
    sandbox.write_token_file(token_file)
    file = TokenFile(token_file)
    file.note(Record(number=9, about=fingerprint(file.load().refresh_token), state=SENDING, at=1.0))
    sandbox.expire()
    newer = file.load()
    assert get(sandbox, auth_for(sandbox)) == 200
    assert sandbox.counts.rotations == 2
    assert json.loads(token_file.read_bytes())[REPLACES] == fingerprint(newer.refresh_token)
    assert_nothing_lost(sandbox, token_file)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_pair_of_an_earlier_version_needs_the_record(
    sandbox: Sandbox, token_file: Path, recorded: bool
) -> None:
    """Such a pair does not name the token it replaces: the record of the unfinished attempt does."""
    sandbox.expire()
    _killed_before_the_rename(sandbox, token_file)
    beside = Path(f"{token_file}.new")
    mapping = json.loads(beside.read_bytes())
    del mapping[REPLACES]
    beside.write_text(json.dumps(mapping))
    if not recorded:
        Path(f"{token_file}.record").unlink()
        sandbox.grace = 60  # it has to send the token again
    assert _quietly(lambda: get(sandbox, auth_for(sandbox))) == 200
    assert sandbox.counts.refresh_calls == (1 if recorded else 2)
    assert_nothing_lost(sandbox, token_file)


def _quietly(work: Callable[[], int]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return work()


def test_the_mark_does_not_pile_up(sandbox: Sandbox, token_file: Path) -> None:
    """The file has one at most, of its last rotation, and none after a sign-in; the user's keys stay."""
    first = json.loads(token_file.read_bytes())
    token_file.write_text(json.dumps({**first, "team": 7}))
    file, auth = TokenFile(token_file), auth_for(sandbox)
    for _ in range(3):
        spent = file.load().refresh_token
        auth.refresh()
        mapping = json.loads(token_file.read_bytes())
        assert set(mapping) == {*first, "team", "expires_at", "base_url", "client_id", REPLACES}
        assert (mapping["team"], mapping[REPLACES]) == (7, fingerprint(spent))
    file.save(Tokens.from_response(sandbox.sign_in()))
    assert REPLACES not in json.loads(token_file.read_bytes())
    assert os.listdir(token_file.parent)
    assert_nothing_lost(sandbox, token_file)


# The temporary file is removed or replaced while the reply is on its way.


def _removed(path: Path) -> None:
    path.unlink()


def _replaced(path: Path) -> None:
    path.unlink()
    path.write_text("{}")


@each_client
@pytest.mark.parametrize("all_of_them", [False, True], ids=["the prepared file", "every companion"])
@pytest.mark.parametrize("change", [_removed, _replaced])
def test_the_prepared_file_is_gone_in_mid_refresh(
    sandbox: Sandbox,
    arguments: dict[str, Any],
    token_file: Path,
    client: EveryClient,
    change: Callable[[Path], None],
    all_of_them: bool,
) -> None:
    """A cleaner may remove it, or another program replace it: only our own becomes the token file."""
    auth = client.auth(**arguments)
    sandbox.expire()
    with sandbox.hold_next() as hold, ThreadPoolExecutor(1) as threads:
        answer = threads.submit(client.get, auth, sandbox.url + "/api/auth/me")
        hold.wait(PATIENCE)
        if all_of_them:
            for companion in ("lock", "record"):
                Path(f"{token_file}.{companion}").unlink()
        change(Path(f"{token_file}.new"))
        hold.release()
        assert answer.result(PATIENCE).status_code == 200
    # At once, without the pauses of a disk that fails: the next expiry may be near.
    sandbox.expire()
    assert client.get(auth, sandbox.url + "/api/auth/me").status_code == 200
    assert_nothing_lost(sandbox, token_file)
    assert sandbox.counts.refresh_calls == 2


def test_the_prepared_file_is_replaced_between_write_and_rename(
    sandbox: Sandbox, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename goes by name, and the name may belong to another file by then."""
    fill, filled = reservation.ReservedFile.fill, list[bytes]()

    def fill_and_lose(reserved: reservation.ReservedFile, data: bytes) -> None:
        fill(reserved, data)
        if not filled:
            filled.append(data)
            _replaced(Path(reserved.path))

    monkeypatch.setattr(reservation.ReservedFile, "fill", fill_and_lose)
    sandbox.expire()
    assert get(sandbox, auth_for(sandbox)) == 200
    assert_nothing_lost(sandbox, token_file)
    assert sandbox.counts.refresh_calls == 1


def _directory(path: Path) -> None:
    path.mkdir()
    (path / "users").touch()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


@each_client
@pytest.mark.parametrize("planted", [_directory, _fifo])
def test_what_is_no_record_stops_no_refresh(
    sandbox: Sandbox,
    arguments: dict[str, Any],
    token_file: Path,
    client: EveryClient,
    planted: Callable[[Path], None],
) -> None:
    """A refresh needs no record: what is in its place is moved aside, a folder with its content."""
    record = Path(f"{token_file}.record")
    planted(record)
    sandbox.expire()
    assert client.get(client.auth(**arguments), sandbox.url + "/api/auth/me").status_code == 200
    assert record.is_file()
    assert planted is not _directory or (Path(f"{record}.old") / "users").exists()
    assert_nothing_lost(sandbox, token_file)


# The end of the program.


@pytest.mark.parametrize("name", ["requests", "httpx", "httpx2"])
def test_a_disk_that_fails_for_a_moment_at_the_end(sandbox: Sandbox, token_file: Path, name: str) -> None:
    """A script of one request: the disk works again after main has returned, and the pair is saved."""
    auth = {"requests": "AdhAuth", "httpx": "AdhHttpxAuth", "httpx2": "AdhHttpx2Auth"}[name]
    code = f"""
import os, {name}
from adh_auth import {auth}
write, refusals = os.write, [True] * 4
def failing(fd, data):
    if b"access_token" in bytes(data) and refusals:
        refusals.pop()
        raise OSError({errno.ENOSPC}, "No space left on device")
    return write(fd, data)
os.write = failing
print({name}.get(os.environ["ADH_BASE_URL"] + "/api/auth/me", auth={auth}(), timeout=60).status_code)
"""
    sandbox.expire()
    with child(code, sandbox.environment(token_file)) as process:
        printed, errors = process.communicate(timeout=PATIENCE)
    assert printed == "200\n", errors
    assert_nothing_lost(sandbox, token_file)
    assert sandbox.counts.refresh_calls == 1


# Hooks of the client that carries the refresh.


@pytest.mark.parametrize("raised", [requests.HTTPError, ValueError, KeyError, MemoryError, SystemExit])
@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
def test_a_hook_of_refresh_via_that_raises_drops_no_reply(
    sandbox: Sandbox, arguments: dict[str, Any], token_file: Path, raised: type[BaseException], always: bool
) -> None:
    """The session that carries the refresh runs its hooks on the reply; what they raise costs no pair."""
    seen: list[str] = []

    def hook(response: requests.Response, **_: Any) -> None:
        seen.append(response.url)
        if always or len(seen) == 1:
            raise raised("a hook")

    sandbox.expire()
    with requests.Session() as session:
        session.hooks["response"] = hook
        answer = requests.get(
            sandbox.url + "/api/auth/me", auth=AdhAuth(**arguments, refresh_via=session), timeout=PATIENCE
        )
    assert answer.status_code == 200
    assert seen == [sandbox.url + "/api/auth/refresh"]
    assert_nothing_lost(sandbox, token_file)
    assert sandbox.counts.refresh_calls == 1
