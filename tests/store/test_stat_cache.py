"""The cheap check of the token file: another process's change takes effect on the next request, however it
was made.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import requests
from requests.adapters import BaseAdapter

from adh_auth import AdhAuth, TokenFile, TokenFileError, Tokens
from adh_auth.store import reservation, stat_cache
from adh_auth.store import token_file as token_file_module
from adh_auth.store.stat_cache import COARSE_TICK, MAX_DESCRIPTORS, TICK, TRUST_SECONDS, StatCache, state_of
from adh_auth.testing import Sandbox

from ..support.clients import CLIENTS, FAMILY, EveryClient
from ..support.faults import wait_until
from ..support.processes import child

URL = "http://127.0.0.1:9"
CLIENT: dict[str, Any] = {"client_id": "i", "client_secret": "s", "base_url": URL}
#: Requests after which a descriptor is open.
SOME = 5

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX system: Windows replaces no open file")


class Seen(BaseAdapter):
    """Answers at once and keeps the token it saw."""

    token = ""

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        Seen.token = str(request.headers["Authorization"]).removeprefix("Bearer ")
        response = requests.Response()
        response.status_code, response.request, response.url = 200, request, request.url or ""
        vars(response).update(_content=b"{}", _content_consumed=True, connection=self)
        return response

    def close(self) -> None:
        pass


def _through_requests(path: Path) -> Callable[[], str]:
    session = requests.Session()
    session.mount("http://", Seen())
    session.auth = AdhAuth(path, **CLIENT)

    def token() -> str:
        session.get(URL)
        return Seen.token

    return token


def _through(module: Any, auth: Any) -> Callable[[Path], Callable[[], str]]:
    def sender(path: Path) -> Callable[[], str]:
        client = module.Client(
            auth=auth(path, **CLIENT), transport=module.MockTransport(lambda _: module.Response(200))
        )
        return lambda: str(client.get(URL).request.headers["Authorization"].removeprefix("Bearer "))

    return sender


SENDERS = {
    "requests": _through_requests,
    **{family.name: _through(family.module, family.auth) for family in FAMILY},
}


@pytest.fixture(autouse=True)
def _trusted_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """For as long as a slow machine needs."""
    monkeypatch.setattr(stat_cache, "TRUST_SECONDS", 60.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path.resolve() / "adh"
    folder.mkdir()
    return _settled(_write(folder / "tokens.json", "first"))


def _settled(path: Path) -> Path:
    """Not changed just now: a file that young is checked by its path."""
    while time.time_ns() - path.stat().st_ctime_ns <= TICK:
        time.sleep(0.002)
    return path


@pytest.fixture(params=SENDERS)
def token(request: pytest.FixtureRequest, path: Path) -> Callable[[], str]:
    """Sends a request and returns the token that it carried; the descriptor is open already."""
    send = SENDERS[request.param](path)
    watches = StatCache.count
    assert {send() for _ in range(SOME)} == {"first"}
    assert StatCache.count == watches + 1
    return send


def _make_busy(auth: Any) -> None:
    """As after requests that followed each other closely."""
    _settled(Path(auth.token_file))
    for _ in range(SOME):
        auth._core.current_fast()
    assert auth._core.cache.value_if_unchanged() is not None


def _header(auth: AdhAuth) -> str | None:
    """What a request would carry."""
    return requests.Request("GET", URL, auth=auth).prepare().headers["Authorization"]


def _write(path: Path, token: str) -> Path:
    """In place, as an editor or a script does it."""
    path.write_text(json.dumps({"access_token": token, "refresh_token": f"rt-{token}"}))
    path.chmod(0o600)
    return path


def _replace(path: Path, token: str) -> None:
    os.replace(_write(path.with_name("new"), token), path)


def _save(path: Path, token: str) -> None:
    TokenFile(path).save(Tokens(access_token=token, refresh_token=f"rt-{token}"))


def _move_away(path: Path, token: str) -> None:
    path.rename(path.with_name("old"))
    _write(path, token)


def _link(path: Path, token: str) -> None:
    path.unlink()
    path.symlink_to(_write(path.with_name("elsewhere"), token))


@pytest.mark.parametrize("change", [_write, _replace, _save, _move_away, _link])
def test_any_change_is_seen_by_the_next_request(
    token: Callable[[], str], path: Path, change: Callable[[Path, str], Any]
) -> None:
    """Also by the one after it, and a second change as well as the first."""
    for name in ("other", "third"):
        change(path, name)
        assert [token() for _ in range(SOME)] == [name] * SOME


def test_a_file_that_is_gone_is_missed_by_the_next_request(token: Callable[[], str], path: Path) -> None:
    """As it would be by the first."""
    path.unlink()
    with pytest.raises(TokenFileError, match="is missing"):
        token()


def test_a_symlink_is_followed_by_every_request(path: Path) -> None:
    """A link that is turned elsewhere changes nothing about the open file, so none is kept open."""
    link = path.with_name("link.json")
    link.symlink_to(path)
    send = SENDERS["httpx"](link)
    assert {send() for _ in range(SOME)} == {"first"}
    _turn(link, _write(path.with_name("other.json"), "other"))
    assert send() == "other"


def test_a_symlinked_folder_is_followed_by_every_request(path: Path) -> None:
    """As deployments do it: ``current`` leads to the newest."""
    current = path.parent.with_name("current")
    current.symlink_to(path.parent)
    send = SENDERS["httpx"](current / path.name)
    assert {send() for _ in range(SOME)} == {"first"}
    path.parent.with_name("newest").mkdir()
    _turn(current, _write(path.parent.with_name("newest") / path.name, "other").parent)
    assert send() == "other"


def _turn(link: Path, target: Path) -> None:
    new = link.with_name("turned")
    new.symlink_to(target)
    os.replace(new, link)


def test_a_replacement_within_one_tick_of_the_clock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times may be as coarse as a few milliseconds: a file that has lost its name is another one, whatever
    its times.
    """
    found = _trusted(TokenFile(path))
    before = os.stat(path)
    _replace(path, "other")
    links = os.fstat(found._descriptor).st_nlink
    status = _status(os.stat(path), st_ctime_ns=before.st_ctime_ns, st_size=before.st_size, st_nlink=links)
    monkeypatch.setattr(os, "fstat", lambda _: status)
    changed = found.value_if_unchanged() is None
    monkeypatch.undo()
    assert changed


def _status(status: os.stat_result, **changed: int) -> SimpleNamespace:
    return SimpleNamespace(
        **{name: getattr(status, name) for name in dir(status) if name.startswith("st_")} | changed
    )


def _trusted(file: TokenFile) -> StatCache[str]:
    found = file.cached(file.state(), "what was made of it")
    found.revalidate()
    assert found.value_if_unchanged() is not None
    return found


@pytest.fixture
def usual_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is in a program."""
    monkeypatch.setattr(stat_cache, "TRUST_SECONDS", TRUST_SECONDS)


@pytest.mark.usefixtures("usual_trust")  # before `token`, which trusts the descriptor at once
def test_a_folder_that_is_replaced_is_seen_soon(token: Callable[[], str], path: Path) -> None:
    """The open file shows nothing of it: the path is checked every half second."""
    path.parent.rename(path.parent.with_name("adh.old"))
    path.parent.mkdir()
    _write(path, "other")
    until = time.monotonic() + TRUST_SECONDS
    while time.monotonic() < until:
        token()
    assert token() == "other"


@pytest.mark.parametrize("code", ["token_expired", "invalid_token"])
@pytest.mark.parametrize("name", SENDERS)
def test_a_401_is_followed_by_a_check_of_the_path(name: str, code: str, sandbox: Sandbox, path: Path) -> None:
    """Whatever the open file shows, the pair under the path is adopted, and nothing is spent."""
    sandbox.write_token_file(path)
    arguments: dict[str, Any] = {
        "client_id": sandbox.client_id,
        "client_secret": sandbox.client_secret,
        "base_url": sandbox.url,
    }
    module, auth = {
        "requests": (requests.Session, AdhAuth),
        **{f.name: (f.module.Client, f.auth) for f in FAMILY},
    }[name]
    with module() as client:
        client.auth = auth(path, **arguments)
        _make_busy(client.auth)
        shutil.copytree(path.parent, path.parent.with_name("copy"))
        path.parent.rename(path.parent.with_name("adh.old"))
        path.parent.with_name("copy").rename(path.parent)
        if code == "token_expired":
            sandbox.expire()
        else:
            sandbox.kills_old_access = True
        AdhAuth(path, **arguments).refresh()
        assert client.auth._core.cache.value_if_unchanged() is not None
        assert client.get(sandbox.url + "/api/auth/me").status_code == 200
        answer = client.get(sandbox.url + "/api/auth/me")
        assert answer.request.headers["Authorization"] == "Bearer " + TokenFile(path).load().access_token
        assert not answer.history
    assert sandbox.counts.refresh_calls == 1
    assert sandbox.counts.reused == 0


def test_a_pair_that_could_not_be_written_is_used_at_once(
    sandbox: Sandbox, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file did not change, and yet the next request carries the new pair."""
    sandbox.write_token_file(path)
    auth = AdhAuth(
        path, client_id=sandbox.client_id, client_secret=sandbox.client_secret, base_url=sandbox.url
    )
    with requests.Session() as session:
        session.auth = auth
        _make_busy(auth)

        def refuse(*_: Any) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(reservation.ReservedFile, "install", refuse)
        with pytest.warns(UserWarning, match="could not be written"):
            auth.refresh()
        answer = session.get(sandbox.url + "/api/auth/me")
        assert answer.request.headers["Authorization"] == "Bearer " + auth.tokens.access_token
        assert answer.status_code == 200
        assert sandbox.counts.refresh_calls == 1
        monkeypatch.undo()
        job = auth._core._job
        assert job is not None
        job.join()


def test_requests_while_another_process_replaces_the_file(path: Path) -> None:
    """A request that starts after a replacement never carries an older token; many threads, one object."""
    auth = AdhAuth(path, **CLIENT)
    done, stale = [0], []
    stop = threading.Event()
    _replace(path, "0")

    def ask() -> None:
        while not stop.is_set():
            floor = done[0]
            carried = int(str(_header(auth)).removeprefix("Bearer "))
            if carried < floor:
                stale.append((carried, floor))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(1, 200):
        _replace(path, str(number))
        done[0] = number
    stop.set()
    for thread in threads:
        thread.join()
    assert stale == []


@pytest.fixture
def descriptors() -> Callable[[], int]:
    """How many more files this process has open than before."""
    gc.collect()
    before = len(os.listdir("/dev/fd"))
    return lambda: len(os.listdir("/dev/fd")) - before


@pytest.fixture(autouse=True)
def clean() -> None:
    """What other tests have left to the collector holds descriptors."""
    gc.collect()


def test_an_object_for_each_request_keeps_no_file_open(path: Path, descriptors: Callable[[], int]) -> None:
    """``requests.get(url, auth=AdhAuth())`` in a loop."""
    kept = [AdhAuth(path, **CLIENT) for _ in range(200)]
    for auth in kept:
        _header(auth)
    assert descriptors() == 0


def test_many_busy_objects_leave_the_descriptors_to_the_program(
    path: Path, descriptors: Callable[[], int]
) -> None:
    """A few hold a descriptor, all work, and nothing is left open when they are gone."""
    kept = [AdhAuth(path, **CLIENT) for _ in range(3 * MAX_DESCRIPTORS)]
    for auth in kept:
        assert {_header(auth) for _ in range(SOME)} == {"Bearer first"}
    assert 0 < descriptors() <= MAX_DESCRIPTORS
    del kept, auth
    gc.collect()
    assert descriptors() == 0


def test_a_file_that_others_open_under_our_number_stays_open(path: Path, tmp_path: Path) -> None:
    """A daemon closes every descriptor, and its next file gets the number that was ours."""
    auth = AdhAuth(path, **CLIENT)
    for _ in range(SOME):
        _header(auth)
    number = auth._core.cache._descriptor
    (tmp_path / "log").touch()
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_NONBLOCK)
    os.dup2(log, number)
    os.close(log)
    try:
        _replace(path, "other")
        assert [_header(auth) for _ in range(SOME)] == ["Bearer other"] * SOME
        del auth
        gc.collect()
        assert os.write(number, b"still mine") == 10
    finally:
        os.close(number)


def test_the_token_file_that_others_open_under_our_number_stays_open(path: Path) -> None:
    """The same file, even: a program may hold a lock on it."""
    auth = AdhAuth(path, **CLIENT)
    _make_busy(auth)
    number = auth._core.cache._descriptor
    mine = os.open(path, os.O_RDWR)
    os.dup2(mine, number)
    os.close(mine)
    try:
        del auth
        gc.collect()
        assert os.fstat(number).st_size > 0
    finally:
        os.close(number)


def test_every_descriptor_closed(path: Path) -> None:
    """And nothing opened since: requests go on, and see changes."""
    auth = AdhAuth(path, **CLIENT)
    for _ in range(SOME):
        _header(auth)
    os.close(auth._core.cache._descriptor)
    assert _header(auth) == "Bearer first"
    _replace(path, "other")
    assert _header(auth) == "Bearer other"


def test_no_descriptor_to_be_had(path: Path) -> None:
    """Where none can be opened, each request checks the path."""
    code = f"""
import json, os, resource
import requests
from adh_auth import AdhAuth
auth = AdhAuth({str(path)!r}, client_id="i", client_secret="s", base_url={URL!r})
def header():
    return requests.Request("GET", {URL!r}, auth=auth).prepare().headers["Authorization"]
header()
resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
print({{header() for _ in range({SOME})}}, auth._core.cache.value_if_unchanged())
"""
    with child(code) as process:
        output, errors = process.communicate(timeout=60)
    assert output == "{'Bearer first'} None\n", errors


def test_a_child_of_a_fork_sees_changes(path: Path) -> None:
    """It has the descriptor too."""
    auth = AdhAuth(path, **CLIENT)
    for _ in range(SOME):
        _header(auth)
    pid = os.fork()
    if pid == 0:
        right = _header(auth) == "Bearer first"
        _replace(path, "other")
        right = right and _header(auth) == "Bearer other"
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert _header(auth) == "Bearer other"


@pytest.mark.parametrize(
    ("fraction", "age", "trusted"),
    [
        (1, TICK + 1, True),
        (1, TICK, False),
        (1, -COARSE_TICK, False),  # a clock that is ahead
        (0, TICK + 1, False),  # whole seconds: a clock that has nothing finer
        (0, COARSE_TICK + 1, True),
    ],
)
def test_a_file_that_changed_just_now_is_not_trusted(
    path: Path, fraction: int, age: int, *, trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another change within the same tick of its file system's clock would not show."""
    found = _trusted(TokenFile(path))
    changed = 1_700_000_000_000_000_000 + fraction
    status = _status(os.fstat(found._descriptor), st_ctime_ns=changed)
    found.state = state_of(cast(os.stat_result, status))
    with monkeypatch.context() as now:
        now.setattr(stat_cache, "time_ns", lambda: changed + age)
        now.setattr(os, "fstat", lambda _: status)
        found.revalidate()
    assert (found._since > stat_cache.NEVER) is trusted


def test_a_file_that_lost_its_name_before_it_was_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaced between the check of the path and the opening, within one tick: the state is the same, the
    file is not.
    """
    file = TokenFile(path)
    found = file.cached(file.state(), "what was made of it")
    gone = _status(os.fstat(found._descriptor), st_nlink=0)
    with monkeypatch.context() as now:
        now.setattr(os, "fstat", lambda _: gone)
        found.revalidate()
    assert found.value_if_unchanged() is None


def test_a_difference_that_means_nothing(path: Path) -> None:
    """Another process has read the file, and its file system keeps the time of that.

    After one check of the path the descriptor is trusted again.
    """
    auth = AdhAuth(path, **CLIENT)
    _make_busy(auth)
    auth._core.cache._known = "of another time"
    assert _header(auth) == "Bearer first"
    assert auth._core.cache.value_if_unchanged() is not None


def test_a_file_that_was_replaced_before_it_was_opened_is_not_trusted(path: Path) -> None:
    """The state is that of another file by then."""
    file = TokenFile(path)
    state = file.state()
    _replace(path, "other")
    _settled(path)
    found = file.cached(state, "what was made of the first")
    found.revalidate()
    assert found.value_if_unchanged() is None


def test_httpx_tasks_share_one_descriptor(path: Path, descriptors: Callable[[], int]) -> None:
    """Many clients with one auth object."""
    auth = FAMILY[0].auth(path, **CLIENT)
    for _ in range(SOME):
        with httpx.Client(auth=auth, transport=httpx.MockTransport(lambda _: httpx.Response(200))) as client:
            client.get(URL)
    assert descriptors() == 1


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_change_that_leaves_no_trace_is_seen_after_the_next_rotation(
    client: EveryClient, sandbox: Sandbox, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewritten in place, as long as before, within one tick of a clock that ticks every second or two
    (exFAT, HFS+, NFS).
    """
    for module in (token_file_module, stat_cache):
        monkeypatch.setattr(module, "state_of", lambda status: (status.st_ino, status.st_size))
    path.write_text(first := json.dumps(sandbox.sign_in()))
    auth = client.auth(
        path, client_id=sandbox.client_id, client_secret=sandbox.client_secret, base_url=sandbox.url
    )
    url = sandbox.url + "/api/auth/me"
    assert client.get(auth, url).status_code == 200
    sandbox.expire()
    path.write_text(second := json.dumps(sandbox.sign_in()))
    assert len(first) == len(second)
    answers = [client.get(auth, url) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[1].request.headers["Authorization"] == f"Bearer {json.loads(second)['access_token']}"
    assert sandbox.counts.refresh_calls == 0


def test_a_pair_that_could_not_be_written_outlives_a_forced_refresh(
    sandbox: Sandbox, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the file holds meanwhile is spent: it does not take the place of the pair in memory."""
    sandbox.write_token_file(path)
    auth = AdhAuth(
        path, client_id=sandbox.client_id, client_secret=sandbox.client_secret, base_url=sandbox.url
    )
    bad = True
    real = os.replace

    def replace(*arguments: Any) -> None:
        if bad:
            raise OSError(5, "Input/output error")
        real(*arguments)

    monkeypatch.setattr(os, "replace", replace)
    sandbox.expire()
    with pytest.warns(UserWarning, match="could not be written"):
        assert requests.get(sandbox.url + "/api/auth/me", auth=auth, timeout=60).status_code == 200
    with pytest.raises(TokenFileError, match="could not write it"):
        auth.refresh()
    assert requests.get(sandbox.url + "/api/auth/me", auth=auth, timeout=60).status_code == 200
    bad = False
    wait_until(lambda: TokenFile(path).record().state == "done")
    assert requests.get(sandbox.url + "/api/auth/me", auth=auth, timeout=60).status_code == 200
    assert sandbox.counts.refresh_calls == 1
