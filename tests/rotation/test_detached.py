"""A refresh in a process of its own: when there is one, what it is given, and what follows from each of its ends."""

from __future__ import annotations

import copy
import errno
import logging
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
import requests
import urllib3.connection
from requests.adapters import HTTPAdapter

from adh_auth import (
    AdhAuth,
    AdhAuthError,
    AdhHttpx2Auth,
    AdhHttpxAuth,
    ConfigurationError,
    Event,
    ReauthorizationRequired,
    RefreshFailed,
    TokenFile,
    Tokens,
    TokenStore,
)
from adh_auth.clients import httpx_detached, requests_detached
from adh_auth.common.limits import LOCK_TIMEOUT, REFRESH_DEADLINE
from adh_auth.helper.__main__ import WRITE_LIFE
from adh_auth.rotation import detached, helper_process
from adh_auth.rotation.detached import Program, begins_in_background, obstacle, wants_helper
from adh_auth.store.folder import sessions_in
from adh_auth.testing import Sandbox

from ..support.clients import FAMILY, Family
from ..support.faults import ONE_CALL, auth_for, get, near_its_end, wait_until
from ..support.interpreters import changed_interpreter, fake_interpreter
from ..support.processes import PATIENCE, assert_nothing_lost, child

unix = pytest.mark.skipif(sys.platform == "win32", reason="needs descriptors that a child inherits")

# Decisions.

PYTHON = Program("/usr/bin/python3.11", is_executable=True, frozen=False, platform="linux", patched=False)


@pytest.mark.parametrize(
    "name",
    [
        "python",
        "python3",
        "python3.14t",
        "python3.13td",
        "python3.12d",
        "python3-dbg",
        "pypy3",
        "pypy3.11",
        "python3-intel64",
        "graalpy",
    ],
)
def test_an_interpreter_is_started(name: str) -> None:
    """The names that interpreters have."""
    assert obstacle(PYTHON._replace(executable=f"/opt/bin/{name}")) is None


@pytest.mark.parametrize(
    "program",
    [
        *(
            PYTHON._replace(executable=name)
            for name in (
                "",
                None,
                "/usr/bin/uwsgi",
                "/opt/blender",
                "/bin/true",
                "/x/python3.11-config",
                "/x/python.sh",
                "/x/mypython",
            )
        ),
        PYTHON._replace(is_executable=False),
        PYTHON._replace(frozen=True),
        PYTHON._replace(patched=True),
        PYTHON._replace(platform="win32"),
        PYTHON._replace(platform="emscripten"),
    ],
    ids=str,
)
def test_anything_else_is_not(program: Program) -> None:
    """Starting uWSGI, Blender or a frozen program would start that program again."""
    assert obstacle(program)


@pytest.mark.parametrize(
    ("argument", "in_background", "is_daemonic", "wanted"),
    [
        (None, True, False, True),
        (None, False, False, False),
        (None, False, True, True),
        (None, True, True, True),
        (True, True, False, True),
        (True, False, False, True),
        (True, False, True, True),
        (False, True, False, False),
        (False, False, False, False),
        (False, False, True, False),
    ],
)
def test_what_the_argument_means(
    argument: bool | None, in_background: bool, is_daemonic: bool, wanted: bool
) -> None:
    """None: in the background and in a daemonic child only; True: in the foreground, too; False: never."""
    assert wants_helper(argument, in_background=in_background, is_daemonic=is_daemonic) is wanted


@pytest.mark.parametrize("argument", [None, True, False])
def test_what_begins_in_the_background(argument: bool | None) -> None:
    """Without a helper, a daemonic child begins nothing that its end would cut off, unless it is asked to."""
    assert begins_in_background(argument, has_helper=True, is_daemonic=True)
    assert begins_in_background(argument, has_helper=False, is_daemonic=False)
    assert begins_in_background(argument, has_helper=False, is_daemonic=True) is (argument is False)


def test_waiters_outlast_a_helper() -> None:
    """They give up after the last moment of one that hangs. What follows a reply may take as long as a disk does."""
    assert helper_process.GREETING_TIMEOUT + helper_process.HELPER_LIFE < LOCK_TIMEOUT
    assert helper_process.HELPER_LIFE > REFRESH_DEADLINE
    assert WRITE_LIFE > LOCK_TIMEOUT


def test_secrets_stay_out_of_the_environment() -> None:
    """The configuration brings the client secret; nothing else is left out."""
    variables = {
        "PATH": "/bin",
        "ADH_CLIENT_SECRET": "s",
        "ADH_STORE": "postgresql://u:p@h",
        "ADH_STORE_KEY": "k",
        "ADH_CLIENT_ID": "c",
    }
    assert helper_process.environment(variables) == {"PATH": "/bin", "ADH_CLIENT_ID": "c"}


def test_the_search_path_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is, less what is no text, and with this package's folder at its end where an import hook found it."""
    monkeypatch.setattr(sys, "path", ["", "/a:b", Path("/c")])
    found = helper_process.search_path()
    assert found[:2] == ["", "/a:b"]
    assert [Path(folder, "adh_auth").is_dir() for folder in found[2:]] == [True]


# The argument.


@pytest.mark.parametrize("kind", [AdhAuth, AdhHttpxAuth, AdhHttpx2Auth])
@pytest.mark.parametrize("value", [None, True, False])
def test_every_class_takes_it(kind: type, value: bool | None, arguments: dict[str, Any]) -> None:
    """And keeps it in a pickle and a copy."""
    auth = kind(**arguments, detached=value)
    for other in (auth, pickle.loads(pickle.dumps(auth)), copy.deepcopy(auth)):
        assert other.__getstate__()["detached"] is value


@pytest.mark.parametrize("value", [1, "yes", 0])
def test_what_is_no_choice_is_refused(value: Any, arguments: dict[str, Any]) -> None:
    """When the object is built."""
    with pytest.raises(ConfigurationError, match="detached must be True, False or None"):
        AdhAuth(**arguments, detached=value)


# What carries the refresh.


def _replaced(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    monkeypatch.setattr(owner, name, lambda *_, **__: None)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (HTTPAdapter, "send"),
        (HTTPAdapter, "build_response"),
        (requests.Session, "get_adapter"),
        (requests.Session, "send"),
        (urllib3.connection.HTTPSConnection, "connect"),
        (urllib3.connection.HTTPConnection, "getresponse"),
        (sys.modules["socket"], "create_connection"),
        (sys.modules["socket"], "getaddrinfo"),
        (sys.modules["socket"], "socket"),
        (sys.modules["ssl"], "SSLContext"),
    ],
    ids=lambda item: getattr(item, "__name__", item),
)
def test_a_patched_network_of_requests_is_found(
    owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mocks, recorders and truststore each patch something else on the way of a call."""
    assert requests_detached.describe_transport("https", "api.test", 443, {}) is not None
    _replaced(monkeypatch, owner, name)
    assert requests_detached.describe_transport("https", "api.test", 443, {}) is None


@pytest.mark.parametrize("name", ["Client.send", "HTTPTransport.handle_request", "Client", "HTTPTransport"])
def test_a_patched_httpx_is_found(name: str, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for httpx and httpx2."""
    client = family.module
    assert httpx_detached.describe_transport(client, "http") is not None
    *owner, method = name.split(".")
    _replaced(monkeypatch, getattr(client, owner[0]) if owner else client, method)
    assert httpx_detached.describe_transport(client, "http") is None


def test_what_only_watches_is_no_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentry and OpenTelemetry wrap methods and call the original."""
    watched = "def wrap(original):\n    def send(*a, **k): return original(*a, **k)\n    send.__wrapped__ = original\n    return send"
    module = types.ModuleType("sentry_sdk.integrations.stdlib")
    exec(watched, vars(module))
    monkeypatch.setattr(HTTPAdapter, "send", module.wrap(HTTPAdapter.send))
    assert requests_detached.describe_transport("https", "api.test", 443, {}) is not None
    monkeypatch.setattr(HTTPAdapter, "send", module.wrap(lambda *_: None))
    assert requests_detached.describe_transport("https", "api.test", 443, {}) is None


@pytest.mark.parametrize(
    ("sent_with", "kind"),
    [
        ({"verify": True}, "plain"),
        ({"verify": "/corp/ca.pem"}, "plain"),
        ({"verify": Path("/corp/ca.pem")}, "plain"),
        ({"verify": False}, "plain"),
        ({"verify": True, "cert": ("/me.pem", "/me.key")}, "requests"),
        ({"verify": True, "proxies": {"https": "http://proxy:3128"}}, "requests"),
        ({"verify": True, "proxies": {"http": "http://proxy:3128"}}, "plain"),
    ],
    ids=str,
)
def test_trust_and_proxies_go_along(sent_with: dict[str, Any], kind: str) -> None:
    """What the caller's own call was sent with, as another process can read it."""
    spec = requests_detached.describe_transport("https", "api.test", 443, sent_with)
    assert spec is not None
    assert spec.kind == kind
    if sent_with["verify"] is not True:
        assert str(spec.options["verify"]) == str(sent_with["verify"])


def test_trust_that_is_an_object_stays(arguments: dict[str, Any]) -> None:
    """It can't be told to another process."""
    assert requests_detached.describe_transport("https", "api.test", 443, {"verify": object()}) is None


@unix
@pytest.mark.parametrize("family", FAMILY, ids=lambda family: family.name)
def test_the_helper_uses_the_environments_proxy(
    family: Family,
    sandbox: Sandbox,
    arguments: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    starts: list[int],
) -> None:
    """This one refuses everything: the error is the one that a thread gives."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with pytest.raises(RefreshFailed, match="ConnectError: Connection refused"):
        family.auth(**arguments, detached=True).refresh()
    assert len(starts) == 1
    assert sandbox.counts.refresh_calls == 0


# What a helper does.


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The process ids of the helpers that this process starts."""
    found: list[int] = []
    real = helper_process.start

    def start(*arguments: Any) -> helper_process.Helper:
        helper = real(*arguments)
        found.append(helper._process.pid)
        return helper

    monkeypatch.setattr(helper_process, "start", start)
    return found


@pytest.fixture
def auth(sandbox: Sandbox, token_file: Path) -> AdhAuth:
    """An object whose refreshes run in a helper."""
    return auth_for(sandbox, detached=True)


@unix
def test_a_session_in_a_folder_has_a_helper(sandbox: Sandbox, tmp_path: Path, starts: list[int]) -> None:
    """It is a token file in all respects, and keeps saying whose it is."""
    url = (tmp_path / "adh").as_uri()
    TokenStore(url, "user/1").save(Tokens.from_response(sandbox.sign_in()))
    auth = AdhAuth(
        store=url,
        session="user/1",
        client_id=sandbox.client_id,
        client_secret=sandbox.client_secret,
        base_url=sandbox.url,
        detached=True,
    )
    before = auth.tokens
    assert auth.refresh() != before
    assert len(starts) == 1
    assert sessions_in(str(tmp_path / "adh")) == ["user/1"]


@unix
def test_it_refreshes(sandbox: Sandbox, token_file: Path, auth: AdhAuth, starts: list[int]) -> None:
    """The record names the process that did it, and nothing of it is left: no zombie, no descriptor."""
    sandbox.expire()
    before = len(os.listdir("/dev/fd"))
    assert get(sandbox, auth) == 200
    assert [TokenFile(token_file).record().rotated_by] == starts
    assert_nothing_lost(sandbox, token_file)
    assert sandbox.counts.rotations == 1
    wait_until(lambda: len(os.listdir("/dev/fd")) <= before)
    with pytest.raises(ProcessLookupError):
        os.kill(starts[0], 0)


@unix
def test_a_lock_file_that_is_broken_meanwhile(sandbox: Sandbox, token_file: Path, auth: AdhAuth) -> None:
    """The helper has written the pair: the request has it, though the lock can't be taken any more."""
    lock = Path(f"{token_file}.lock")
    sandbox.expire()
    with sandbox.hold_next() as hold, ThreadPoolExecutor(1) as thread:
        status = thread.submit(get, sandbox, auth)
        hold.wait(PATIENCE)
        lock.unlink()
        lock.mkdir()
        hold.release()
        assert status.result(PATIENCE) == 200
    lock.rmdir()
    assert_nothing_lost(sandbox, token_file)


@unix
@pytest.mark.parametrize("kind", [AdhAuth, AdhHttpxAuth, AdhHttpx2Auth])
def test_it_refreshes_for_every_client(
    kind: type, sandbox: Sandbox, arguments: dict[str, Any], starts: list[int]
) -> None:
    """Each of them, once for each expiry."""
    auth = kind(**arguments, detached=True)
    assert auth.refresh().refresh_token != auth.refresh().refresh_token
    assert len(starts) == sandbox.counts.rotations == 2


@unix
def test_those_who_wait_do_not_look_for_one(
    sandbox: Sandbox, auth: AdhAuth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a helper is possible is found out once for each refresh: a thousand tasks may meet an expiry."""
    found: list[object] = []
    real = requests_detached.describe_transport

    def describe(*arguments: Any) -> Any:
        found.append(real(*arguments))
        return found[-1]

    monkeypatch.setattr("adh_auth.clients.requests_auth.describe_transport", describe)
    sandbox.expire()
    with sandbox.hold_next() as hold, ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(get, sandbox, auth) for _ in range(8)]
        hold.wait(PATIENCE)
        wait_until(lambda: sandbox.counts.unauthorized == 8)
        hold.release()
        assert [answer.result(PATIENCE) for answer in answers] == [200] * 8
    assert len(found) == sandbox.counts.rotations == 1


@unix
def test_the_background_has_a_helper_by_default(
    sandbox: Sandbox, token_file: Path, starts: list[int]
) -> None:
    """The foreground has not."""
    auth = auth_for(sandbox, refresh_ahead=60)
    auth.refresh()
    assert starts == []
    near_its_end(token_file)
    assert get(sandbox, auth) == 200
    wait_until(lambda: sandbox.counts.rotations == 2)
    assert len(starts) == 1


@unix
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"status": 503}, RefreshFailed),
        ({"status": 429, "retry_after": 30}, RefreshFailed),
        ({"status": 400, "body": b'{"code": "invalid_grant"}'}, ReauthorizationRequired),
        ({"status": 401, "body": b'{"code": "invalid_client"}'}, ConfigurationError),
        ({"status": 200, "body": b"[]"}, RefreshFailed),
    ],
    ids=str,
)
def test_its_failure_is_the_callers(
    fault: dict[str, Any],
    error: type[Exception],
    sandbox: Sandbox,
    token_file: Path,
    auth: AdhAuth,
    starts: list[int],
) -> None:
    """With the message that a thread's has, and no second try in the thread."""
    said = []
    for one in (auth, auth_for(sandbox, detached=False)):
        sandbox.write_token_file(token_file)
        Path(f"{token_file}.record").unlink(missing_ok=True)
        sandbox.fail_next(None, **fault)
        with pytest.raises(error) as raised:
            one.refresh()
        sandbox.heal()
        said.append((type(raised.value), _without_times(str(raised.value))))
        calls = sandbox.counts.refresh_calls
    assert said[0] == said[1]
    assert calls % 2 == 0
    assert len(starts) == 1


def _without_times(message: str) -> str:
    return " ".join(word for word in message.split() if not word[:1].isdigit())


@unix
def test_it_says_nothing_of_its_secrets(
    sandbox: Sandbox, token_file: Path, auth: AdhAuth, starts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come over the pipe, not by arguments or environment; and it inherits no other descriptor."""
    monkeypatch.setenv("ADH_CLIENT_SECRET", sandbox.client_secret)
    ours, other = os.pipe()
    one, peer = socket.socketpair()
    for fd in (other, peer.fileno()):
        os.set_inheritable(fd, True)
    secrets = {sandbox.client_secret, *_texts(token_file)}
    with sandbox.hold_next() as hold:
        sandbox.expire()
        with _in_thread(lambda: get(sandbox, auth)):
            hold.wait(PATIENCE)
            process = Path(f"/proc/{starts[0]}")
            if not process.exists():
                pytest.skip("needs /proc")
            shown = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            files = sorted(os.readlink(link) for link in (process / "fd").iterdir())
            hold.release()
    os.close(ours)
    os.close(other)
    one.close()
    peer.close()
    assert not [secret for secret in secrets if secret.encode() in shown]
    names = [name for name in files if not name.startswith(("pipe:", "socket:"))]
    assert sorted(names) == sorted(["/dev/null"] * 3 + [f"{token_file}.lock", f"{token_file}.new"])
    assert len([name for name in files if name.startswith("pipe:")]) == 2
    assert len([name for name in files if name.startswith("socket:")]) == 1


def _texts(token_file: Path) -> set[str]:
    tokens = TokenFile(token_file).load()
    return {tokens.access_token, tokens.refresh_token}


class _in_thread:  # noqa: N801
    def __init__(self, work: Callable[[], Any]) -> None:
        import threading

        self._thread = threading.Thread(target=work)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()


@unix
def test_it_goes_by_the_programs_clock(
    sandbox: Sandbox, token_file: Path, auth: AdhAuth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test has moved it: the expiry is written as a thread would write it."""
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    fresh = auth.refresh()
    assert fresh.expires_at == pytest.approx(2_000_000_000.0 + sandbox.token_life, abs=60)


# Where it can't be had, or comes to an end of its own.


@unix
def test_how_many_run_at_once(
    sandbox: Sandbox, tmp_path: Path, starts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many sessions that are due in one process start no more than that: each of the others waits for one's end."""
    monkeypatch.setattr(detached, "_places", [threading.Semaphore(2)])
    monkeypatch.setattr(detached, "PLACE_TIMEOUT", PATIENCE)
    sandbox.refresh_seconds = 0.1
    auths = [
        auth_for(sandbox, sandbox.write_token_file(tmp_path / f"{number}.json"), detached=True)
        for number in range(6)
    ]
    alive: list[int] = []
    with ThreadPoolExecutor(6) as threads:
        answers = [threads.submit(auth.refresh) for auth in auths]
        while not all(answer.done() for answer in answers):
            alive.append(sum(map(_alive, starts[:])))
        for answer in answers:
            answer.result()
    assert 1 <= max(alive) <= 2
    assert len(starts) == sandbox.counts.rotations == 6


@unix
def test_no_place_for_another_in_time(
    sandbox: Sandbox, tmp_path: Path, starts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread refreshes. A forked child has places of its own."""
    monkeypatch.setattr(detached, "_places", [threading.Semaphore(1)])
    monkeypatch.setattr(detached, "PLACE_TIMEOUT", 0.1)
    slow, other = (
        auth_for(sandbox, sandbox.write_token_file(tmp_path / f"{number}.json"), detached=True)
        for number in range(2)
    )
    with sandbox.hold_next() as hold, _in_thread(slow.refresh):
        hold.wait(PATIENCE)
        other.refresh()
        assert len(starts) == 1
        if hasattr(os, "fork"):
            child = os.fork()
            if child == 0:
                os._exit(0 if detached._places[0].acquire(blocking=False) else 1)
            assert os.waitpid(child, 0)[1] == 0
        hold.release()
    other.refresh()
    assert len(starts) == 2


#: Each looks like an interpreter and is no helper.
NO_HELPERS = {
    "it ends at once": "",
    "it is silent": "import time; time.sleep(60)",
    "it says something else": "import os, sys\nos.write(int(sys.argv[sys.argv.index('-c') + 3]), b'hello, this is blender 4.1, at your service\\n')",
    "it can't import": "raise ImportError",
}


@unix
@pytest.mark.parametrize("script", NO_HELPERS.values(), ids=[*NO_HELPERS])
def test_no_helper_costs_nothing(
    script: str,
    sandbox: Sandbox,
    token_file: Path,
    tmp_path: Path,
    auth: AdhAuth,
    starts: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing was handed over: the thread has the lock, and refreshes."""
    monkeypatch.setattr(sys, "executable", fake_interpreter(tmp_path, script))
    monkeypatch.setattr(helper_process, "GREETING_TIMEOUT", 1.0)
    auth.refresh()
    assert len(starts) == 1
    assert TokenFile(token_file).record().rotated_by == os.getpid()
    assert sandbox.counts.refresh_calls == 1
    with pytest.raises(ProcessLookupError):
        os.kill(starts[0], 0)


@unix
def test_an_interpreter_that_the_system_refuses(
    sandbox: Sandbox,
    token_file: Path,
    tmp_path: Path,
    auth: AdhAuth,
    starts: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a limit on processes, or a sandbox that lets none be started: the thread refreshes."""
    path = tmp_path / "python3"
    path.write_text("#!/no/such/interpreter\n")
    path.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(path))
    before = len(os.listdir("/dev/fd"))
    auth.refresh()
    assert starts == []
    assert TokenFile(token_file).record().rotated_by == os.getpid()
    wait_until(lambda: len(os.listdir("/dev/fd")) <= before)


@pytest.mark.parametrize("executable", ["/bin/true", "/no/such/python3", "", None])
def test_no_interpreter_is_said_once(
    executable: str | None,
    sandbox: Sandbox,
    token_file: Path,
    auth: AdhAuth,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At the level of DEBUG; the thread refreshes."""
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(detached, "_explained", set())
    caplog.set_level(logging.DEBUG, "adh_auth")
    auth.refresh()
    auth.refresh()
    said = [record for record in caplog.records if "one of its own" in record.getMessage()]
    assert [record.levelname for record in said] == ["DEBUG"]
    assert TokenFile(token_file).record().rotated_by == os.getpid()


def test_a_client_of_the_callers_carries_it_itself(
    sandbox: Sandbox, arguments: dict[str, Any], starts: list[int]
) -> None:
    """`refresh_via` can't be told to another process."""
    with requests.Session() as session:
        AdhAuth(**arguments, detached=True, refresh_via=session).refresh()
    with httpx.Client(trust_env=False) as client:
        AdhHttpxAuth(**arguments, detached=True, refresh_via=client).refresh()
    with httpx2.Client(trust_env=False) as client2:
        AdhHttpx2Auth(**arguments, detached=True, refresh_via=client2).refresh()
    assert starts == []
    assert sandbox.counts.rotations == 3


def test_an_adapter_of_the_callers_is_no_plain_network(
    sandbox: Sandbox, auth: AdhAuth, starts: list[int]
) -> None:
    """It may bring an `SSLContext` of its own."""

    class Corporate(HTTPAdapter):
        pass

    sandbox.expire()
    with requests.Session() as session:
        session.mount("http://", Corporate())
        assert session.get(sandbox.url + "/api/auth/me", auth=auth, timeout=PATIENCE).status_code == 200
    assert starts == []


@pytest.mark.parametrize("ahead", [True, False], ids=["ahead of time", "on demand"])
def test_the_adapter_of_the_last_call_counts(
    ahead: bool, sandbox: Sandbox, token_file: Path, starts: list[int]
) -> None:
    """For a refresh that answers no response."""

    class Corporate(HTTPAdapter):
        pass

    auth = auth_for(sandbox, refresh_ahead=60) if ahead else auth_for(sandbox, detached=True)
    with requests.Session() as session:
        session.mount("http://", Corporate())
        session.auth = auth
        url = sandbox.url + "/api/auth/me"
        assert session.get(url, timeout=PATIENCE).status_code == 200
        if ahead:
            near_its_end(token_file)
            assert session.get(url, timeout=PATIENCE).status_code == 200
        else:
            auth.refresh()
    wait_until(lambda: TokenFile(token_file).record().state == "done")
    assert starts == []


#: Greets, and then stands still with the lock.
HANGS = """import os, sys, time, signal
rest = sys.argv[sys.argv.index("-c") + 2:]
sys.path[:] = rest[5:]
import adh_auth.rotation.helper_process as helper_process
import adh_auth
os.write(int(rest[1]), helper_process.greeting())
[signal.signal(n, signal.SIG_IGN) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
time.sleep(600)
"""


@unix
def test_a_helper_that_hangs(
    sandbox: Sandbox,
    token_file: Path,
    tmp_path: Path,
    auth: AdhAuth,
    starts: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is ended after its time; the lock is free then, and the thread decides anew: nothing was sent yet."""
    monkeypatch.setattr(sys, "executable", fake_interpreter(tmp_path, HANGS))
    monkeypatch.setattr(helper_process, "HELPER_LIFE", 0.5)
    monkeypatch.setattr(helper_process, "KILL_MARGIN", 0.5)
    auth.refresh()
    assert len(starts) == 1
    assert sandbox.counts.refresh_calls == 1
    assert TokenFile(token_file).record().rotated_by == os.getpid()


#: An interpreter whose alarms come ten times as early, and in which a rename takes 5 seconds.
SLOW_DISK = """import os, signal, sys, time
alarm, real = signal.setitimer, os.replace
signal.setitimer = lambda which, seconds: alarm(which, seconds / 10)
os.replace = lambda *arguments: (time.sleep(5), real(*arguments))
"""


@unix
def test_a_disk_that_is_slower_than_a_refresh_may_be(
    sandbox: Sandbox,
    token_file: Path,
    tmp_path: Path,
    auth: AdhAuth,
    starts: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once a pair may have come, neither the alarm nor the program ends the helper."""
    monkeypatch.setattr(sys, "executable", changed_interpreter(tmp_path, SLOW_DISK))
    monkeypatch.setattr(helper_process, "HELPER_LIFE", 3.5)
    monkeypatch.setattr(helper_process, "KILL_MARGIN", 0.1)
    auth.refresh()
    assert TokenFile(token_file).record().rotated_by == starts[0]
    assert len(starts) == sandbox.counts.refresh_calls == 1


@unix
def test_a_background_refresh_in_a_daemonic_child_has_a_helper_or_none(
    sandbox: Sandbox, token_file: Path, tmp_path: Path, starts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it does not start after all, nothing is sent: the end of the parent would cut off a thread."""
    monkeypatch.setattr("adh_auth.rotation.core.is_daemonic", lambda: True)
    monkeypatch.setattr(sys, "executable", fake_interpreter(tmp_path, NO_HELPERS["it can't import"]))
    near_its_end(token_file)
    auth = auth_for(sandbox, refresh_ahead=60)
    assert get(sandbox, auth) == 200
    wait_until(lambda: bool(starts))
    job = auth._core._job
    assert job is not None
    with pytest.raises(RefreshFailed, match="no process of its own could be started"):
        job.wait(PATIENCE)
    assert sandbox.counts.refresh_calls == 0


def test_a_notice_is_passed_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each helper finds out anew what a process that lives on says once."""
    monkeypatch.setattr(helper_process, "_noticed", set())
    said: list[str] = []
    for text in ("no append-only file", "no append-only file", "something else"):
        helper_process._warn_once(text, said.append)
    assert said == ["no append-only file", "something else"]


#: An interpreter whose alarms come after a second at the latest.
EARLY_ALARM = """import signal, sys
real = signal.setitimer
signal.setitimer = lambda which, seconds: real(which, min(seconds, 1.0))
"""


@unix
def test_a_helper_that_is_alone_ends_by_itself(sandbox: Sandbox, token_file: Path, tmp_path: Path) -> None:
    """The server never answers and the program is gone, which had the alarm ignored and blocked: the lock is
    free again, and the error names the helper.
    """
    interpreter = changed_interpreter(tmp_path, EARLY_ALARM)
    sandbox.expire()
    code = f"""
import signal, sys
sys.executable = {interpreter!r}
signal.signal(signal.SIGALRM, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
from adh_auth import AdhAuth
AdhAuth(detached=True).refresh()
"""
    with sandbox.hold_next() as hold, child(code, sandbox.environment(token_file)) as program:
        hold.wait(PATIENCE)
        helper = TokenFile(token_file).record().pid
        assert helper not in (0, program.pid, os.getpid())
        program.kill()
        program.wait(PATIENCE)
        wait_until(lambda: not TokenFile(token_file).is_locked())
        with pytest.raises(ReauthorizationRequired, match=f"process {helper} on"):
            auth_for(sandbox).refresh()


@unix
def test_a_helper_that_is_killed_after_it_has_sent(
    sandbox: Sandbox, token_file: Path, auth: AdhAuth, starts: list[int]
) -> None:
    """The rule for lost replies holds: another try, which this strict server refuses; the error names the
    helper.
    """
    sandbox.expire()
    raised: list[BaseException] = []

    def call() -> None:
        try:
            auth.refresh()
        except ReauthorizationRequired as error:
            raised.append(error)

    with sandbox.hold_next() as hold, _in_thread(call):
        hold.wait(PATIENCE)
        os.kill(starts[0], signal.SIGKILL)
    assert f"process {starts[0]} on" in str(raised[0])
    assert len(starts) == 1
    assert sandbox.counts.refresh_calls == 2


#: An interpreter in which a call fails, as on a full disk, as long as a file is there.
FULL_DISK = """import os, sys
real = os.{call}
def call(*arguments):
    if os.path.exists({flag!r}): raise OSError(28, "No space left on device")
    return real(*arguments)
os.{call} = call
"""


@unix
@pytest.mark.parametrize("call", ["replace", "lseek"])
def test_a_pair_that_a_helper_could_not_write(
    call: str,
    sandbox: Sandbox,
    token_file: Path,
    tmp_path: Path,
    auth: AdhAuth,
    starts: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The program goes on with it and says so; the helper keeps the lock and writes it once that works."""
    flag = tmp_path / "full"
    flag.touch()
    monkeypatch.setattr(
        sys, "executable", changed_interpreter(tmp_path, FULL_DISK.format(flag=str(flag), call=call))
    )
    sandbox.expire()
    before = token_file.read_bytes()
    with pytest.warns(UserWarning, match="could not be written"):
        assert get(sandbox, auth) == 200
    assert token_file.read_bytes() == before
    assert get(sandbox, auth) == 200
    _await_warning("could be written again", flag.unlink)
    wait_until(lambda: not _alive(starts[0]))
    assert len(starts) == sandbox.counts.rotations == 1
    assert_nothing_lost(sandbox, token_file)


@unix
@pytest.mark.filterwarnings("ignore:.*could (not )?be written:UserWarning")
def test_a_pair_that_a_helper_could_not_write_is_reported(
    sandbox: Sandbox, token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`on_event` is called here, where the program is, with what the helper has said."""
    flag, events = tmp_path / "full", queue.SimpleQueue[Event]()
    flag.touch()
    monkeypatch.setattr(
        sys, "executable", changed_interpreter(tmp_path, FULL_DISK.format(flag=str(flag), call="replace"))
    )
    sandbox.expire()
    assert get(sandbox, auth_for(sandbox, detached=True, on_event=events.put)) == 200
    unsaved = events.get(timeout=PATIENCE)
    assert (unsaved.kind, unsaved.pid) == ("unsaved", os.getpid())
    assert isinstance(unsaved.request_id, str)
    assert "No space left" in str(unsaved.error)
    flag.unlink()
    assert events.get(timeout=PATIENCE).kind == "rotated"
    assert_nothing_lost(sandbox, token_file)


@unix
@pytest.mark.parametrize("call", ["replace", "lseek"])
def test_a_helper_that_is_killed_with_a_pair_that_it_could_not_write(
    call: str,
    sandbox: Sandbox,
    token_file: Path,
    tmp_path: Path,
    auth: AdhAuth,
    starts: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The program has the pair, and writes it once that works. The spent token is not sent again."""
    flag = tmp_path / "full"
    flag.touch()
    monkeypatch.setattr(
        sys, "executable", changed_interpreter(tmp_path, FULL_DISK.format(flag=str(flag), call=call))
    )
    real = getattr(os, call)

    def refused(*arguments: Any) -> Any:
        if flag.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    sandbox.expire()
    before, file = token_file.read_bytes(), TokenFile(token_file)
    with pytest.warns(UserWarning, match="could not be written"):
        assert get(sandbox, auth) == 200
    monkeypatch.setattr(os, call, refused)
    ended = "the process that was to write it has ended"
    _await_warning(ended, lambda: os.kill(starts[0], signal.SIGKILL))
    assert file.record().pid == os.getpid()
    with pytest.raises(AdhAuthError, match=f"process {os.getpid()} on"):
        auth_for(sandbox).refresh()
    assert get(sandbox, auth) == 200
    assert token_file.read_bytes() == before
    _await_warning("could be written again", flag.unlink)
    assert file.record().state == "done"
    assert len(starts) == sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


def _await_warning(text: str, cause: Callable[[], object]) -> None:
    """Wait for a warning of the job's thread: it comes a moment after what it is about."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cause()
        wait_until(lambda: any(text in str(warning.message) for warning in caught))


@unix
@pytest.mark.parametrize("call", ["replace", "lseek"])
def test_a_program_that_ends_with_a_pair_that_a_helper_could_not_write(
    call: str, sandbox: Sandbox, token_file: Path, tmp_path: Path
) -> None:
    """It says so, after some tries, and does not send the spent token itself. What lies beside the file is used."""
    flag = tmp_path / "full"
    flag.touch()
    interpreter = changed_interpreter(tmp_path, FULL_DISK.format(flag=str(flag), call=call))
    sandbox.expire()
    code = (
        ONE_CALL.replace("AdhAuth()", "AdhAuth(detached=True)")
        + f"import sys\nsys.executable = {interpreter!r}\n"
        + f"def full(*_): raise OSError(28, 'No space left on device')\nos.{call} = full\ncall()"
    )
    with child(code, sandbox.environment(token_file)) as program:
        out, said = program.communicate(timeout=PATIENCE)
    assert out == "200\n"
    assert said.count("UserWarning: the program ends, and its new pair could not be written") == 1
    assert sandbox.counts.refresh_calls == 1
    if call == "replace":  # the helper has filled the file beside it
        assert_nothing_lost(sandbox, token_file)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@unix
def test_a_program_that_ends_waits_for_its_helper(sandbox: Sandbox, token_file: Path) -> None:
    """The end of a container ends the helper, too: a script's own end comes after the pair is written."""
    near_its_end(token_file)
    sandbox.refresh_seconds = 0.5
    code = (
        ONE_CALL
        + "print(requests.get(os.environ['ADH_BASE_URL'] + '/api/auth/me', auth=AdhAuth(refresh_ahead=60), timeout=60).status_code)"
    )
    with child(code, sandbox.environment(token_file)) as program:
        assert program.communicate(timeout=PATIENCE)[0] == "200\n"
        assert TokenFile(token_file).record().state == "done"
    assert sandbox.counts.rotations == 1


@unix
def test_a_dead_endpoint_does_not_hold_a_program_up(sandbox: Sandbox, token_file: Path) -> None:
    """A helper that is told of the program's end begins no further try."""
    near_its_end(token_file)
    sandbox.fail_next(None, status=503, delay=0.5)
    code = (
        ONE_CALL
        + "print(requests.get(os.environ['ADH_BASE_URL'] + '/api/auth/me', auth=AdhAuth(refresh_ahead=60), timeout=60).status_code)"
    )
    with child(code, sandbox.environment(token_file)) as program:
        assert program.communicate(timeout=PATIENCE)[0] == "200\n"
    assert sandbox.counts.refresh_calls == 1


@unix
def test_a_failure_ahead_is_no_second_try_in_a_thread(
    sandbox: Sandbox, token_file: Path, starts: list[int]
) -> None:
    """A background refresh that failed in a helper is over."""
    near_its_end(token_file)
    file = TokenFile(token_file)
    file.note(replace(file.record(), state=""))
    sandbox.fail_next(None, status=400, body=b'{"code": "invalid_request"}')
    auth = auth_for(sandbox, refresh_ahead=60)
    assert get(sandbox, auth) == 200
    wait_until(lambda: file.record().state == "failed")
    wait_until(lambda: not _alive(starts[0]))
    assert sandbox.counts.refresh_calls == 1
