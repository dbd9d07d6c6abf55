"""One sweep over everything a program may print, log, keep or pass on, in every fault: no token, no secret,
no code is in any of it.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import json
import logging
import os
import pickle
import sys
import threading
import traceback
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import filelock
import httpx
import httpx2
import pytest
import requests

import adh_auth
from adh_auth import AdhAuth, AdhHttpx2Auth, AdhHttpxAuth, TokenFile, Tokens
from adh_auth.common.secret import Secret
from adh_auth.testing import Sandbox
from adh_auth.tokens import Stored, fingerprint

from ..support.clients import CLIENTS, EveryClient
from ..support.privileges import CAN_GIVE_AWAY, STRANGER
from ..support.processes import PATIENCE

each_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)

SECRET = "s3cret-of-the-client"
CLIENT_ERRORS = (requests.RequestException, httpx.HTTPError, httpx2.HTTPError)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(client_secret=SECRET) as running:
        yield running


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adh_auth.rotation.attempt.PAUSES", (0.01, 0.01))
    monkeypatch.setattr("adh_auth.rotation.attempt.SAVE_PAUSES", (0.01,))


# What is collected.


class Sweep:
    """Keeps every string that a person might see, with a word about where it was."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []
        self._seen: set[int] = set()

    def add(self, where: str, *values: object) -> None:
        for value in values:
            self.texts.append((where, value.decode("latin-1") if isinstance(value, bytes) else str(value)))

    def leaks(self, secrets: Mapping[str, str]) -> list[str]:
        """Where a secret, or a good part of one, is to be found."""
        parts = {
            name: {secret, secret[-10:], secret.removeprefix("adh_rt_").removeprefix("adh_")[:10]}
            for name, secret in secrets.items()
        }
        return sorted(
            {
                f"{name} in {where}"
                for where, text in self.texts
                for name, found in parts.items()
                if any(part in text for part in found)
            }
        )

    def error(self, error: BaseException | None, where: str) -> None:
        """An error as it is printed, its attributes, what hangs on it, its frames of ours with their locals,
        and its whole chain.
        """
        if error is None or id(error) in self._seen:
            return
        self._seen.add(id(error))
        self.add(
            f"{where}: {type(error).__name__}",
            str(error),
            repr(error),
            repr(error.args),
            "".join(traceback.format_exception(error)),
        )
        self.frames(error.__traceback__, where)
        if isinstance(error, adh_auth.AdhAuthError):
            self.add(f"{where}: pickle of {type(error).__name__}", pickle.dumps(error, 0))
            for name, value in vars(error).items():
                self.add(f"{where}: {type(error).__name__}.{name}", repr(value))
            self.request(getattr(error, "request", None), where)
            self.response(getattr(error, "response", None), where, final=False)
        self.error(error.__cause__, where + ", its cause")
        self.error(error.__context__, where + ", its context")

    def frames(self, trace: types.TracebackType | None, where: str) -> None:
        """As Sentry and IPython's ``%xmode Verbose`` show them: arguments and locals."""
        for frame, line in traceback.walk_tb(trace):
            if _is_ours(frame):
                for name, value in frame.f_locals.items():
                    self.add(f"{where}: local {name} of {frame.f_code.co_name}:{line}", _repr(value))

    def request(self, request: Any, where: str) -> None:
        """A request that is kept for later."""
        if request is not None:
            self.add(
                f"{where}: kept request",
                repr(request),
                repr(dict(request.headers)),
                str(request.url),
                getattr(request, "body", b"") or b"",
            )

    def response(self, response: Any, where: str, *, final: bool = True) -> None:
        """A response. The last one's request carries the live token by the nature of the clients."""
        if response is None:
            return
        with suppress(*CLIENT_ERRORS, httpx.StreamError, httpx2.StreamError):
            self.add(f"{where}: response", repr(response), repr(dict(response.headers)), response.content)
        if not final:
            self.request(response.request, where)
        for past in response.history:
            self.response(past, where + ", history", final=False)

    def objects(self, start: object, where: str) -> None:
        """`repr` and `str` of an object of ours, and of every one of ours that hangs on it, through whatever
        holds it.
        """
        waiting, known = [start], set()
        while waiting:
            item = waiting.pop()
            if id(item) in known or isinstance(item, (type, types.ModuleType, types.FrameType)):
                continue
            known.add(id(item))
            if type(item).__module__.startswith("adh_auth") or isinstance(
                item, (functools.partial, BaseException)
            ):
                self.add(f"{where}: {type(item).__name__}", _repr(item), str(item))
            if type(item).__module__.startswith(("adh_auth", "functools", "builtins")) and not isinstance(
                item, types.FunctionType
            ):
                waiting += gc.get_referents(item)


def _is_ours(frame: types.FrameType) -> bool:
    # By the module: what dataclasses makes has "<string>" for its file.
    return str(frame.f_globals.get("__name__")).startswith("adh_auth")


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:
        return f"<repr failed: {type(error).__name__}>"


class _Log(logging.Handler):
    def __init__(self, sweep: Sweep) -> None:
        super().__init__(logging.DEBUG)
        self._sweep = sweep

    def emit(self, record: logging.LogRecord) -> None:
        # HTTP/2's own header compression logs what it compresses; that is not ours to stop.
        if not record.name.startswith("hpack"):
            self._sweep.add(
                f"log of {record.name}", self.format(record), repr(record.args), repr(record.exc_info)
            )
            if record.exc_info:
                self._sweep.error(record.exc_info[1], f"log of {record.name}")


@contextmanager
def watched(sweep: Sweep) -> Iterator[None]:
    """Every logger at DEBUG, every warning, uncaught errors of threads."""
    handler = _Log(sweep)
    loggers = [
        logging.root,
        *(item for item in logging.root.manager.loggerDict.values() if isinstance(item, logging.Logger)),
    ]
    levels = [(item, item.level) for item in loggers]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for item in loggers:
            item.setLevel(logging.DEBUG)
        logging.root.addHandler(handler)
        try:
            yield
        finally:
            logging.root.removeHandler(handler)
            for item, level in levels:
                item.setLevel(level)
            for warning in caught:
                sweep.add("warning", str(warning.message), repr(warning.message), warning.category.__name__)


def secrets_of(sandbox: Sandbox) -> dict[str, str]:
    """Return all generations of all that the server has given out, and the client secret."""
    ledger = sandbox._state
    found = {"client secret": sandbox.client_secret}
    for kind, given in (
        ("access token", ledger._access),
        ("refresh token", ledger._refresh),
        ("code", ledger._codes),
    ):
        found |= {f"{kind} {number}": token for number, token in enumerate(given)}
    return found


# The faults.

Fault = Callable[[Sandbox, Path], Any]


def _expire(sandbox: Sandbox, _: Path) -> None:
    sandbox.expire()


def _revoke(sandbox: Sandbox, _: Path) -> None:
    sandbox.revoke()


def _in_turn(*faults: Fault) -> Fault:
    def fault(sandbox: Sandbox, path: Path) -> None:
        for one in faults:
            one(sandbox, path)

    return fault


def _fails(count: int, **how: Any) -> Fault:
    return lambda sandbox, path: sandbox.fail_next(count, **how)


def _refresh_fails(**how: Any) -> Fault:
    return _in_turn(_expire, _fails(3, on="refresh", **how))


def _echoing(status: int) -> Fault:
    """A server that quotes what it was sent, in the place of a code and everywhere else."""

    def fault(sandbox: Sandbox, path: Path) -> None:
        tokens = TokenFile(path).load()
        quoting = f"{tokens.refresh_token} of {sandbox.client_secret} is unknown"
        body = json.dumps(
            {"code": tokens.refresh_token, "error": quoting, "message": quoting, "error_description": quoting}
        ).encode()
        sandbox.expire()
        sandbox.fail_next(3, on="refresh", status=status, body=body)

    return fault


def _malformed(name: str) -> Fault:
    def fault(sandbox: Sandbox, path: Path) -> None:
        pair = {**sandbox.sign_in()}
        pair[name] += "\r\nX-Injected: 1"
        sandbox.expire()
        sandbox.fail_next(3, on="refresh", status=200, body=json.dumps(pair).encode())

    return fault


def _file_holds(change: Callable[[bytes], bytes]) -> Fault:
    return lambda sandbox, path: path.write_bytes(change(path.read_bytes()))


def _read_only(sandbox: Sandbox, path: Path) -> None:
    sandbox.expire()
    path.chmod(0o400)


def _loose(sandbox: Sandbox, path: Path) -> None:
    sandbox.expire()
    path.chmod(0o644)


_EXPIRED = b'{"code": "token_expired"}'

FAULTS: dict[str, Fault] = {
    "none": _in_turn(),
    "expired": _expire,
    "revoked": _revoke,
    "refused": _refresh_fails(status=400, body=b'{"error": {"code": "invalid_grant"}}'),
    "refresh 400 invalid_grant": _refresh_fails(status=400, body=b'{"code": "invalid_grant"}'),
    "refresh 401 invalid_client": _refresh_fails(status=401, body=b'{"code": "invalid_client"}'),
    "refresh 400 other": _refresh_fails(
        status=400, body=b'{"code": "invalid_request", "field": "refresh_token"}'
    ),
    "refresh 429": _refresh_fails(status=429, retry_after=0),
    "refresh 503": _refresh_fails(status=503),
    "refresh 502 page": _refresh_fails(status=502, body=b"<html>Bad gateway</html>"),
    "refresh 302": _refresh_fails(status=302, headers={"Location": "/api/auth/me"}),
    "refresh 200 page": _refresh_fails(status=200, body=b"<html>Portal</html>"),
    "refresh 200 empty": _refresh_fails(status=200, body=b""),
    "refresh echoes 400": _echoing(400),
    "refresh echoes 200": _echoing(200),
    "refresh echoes 503": _echoing(503),
    "refresh drops before": _refresh_fails(drop="before"),
    "refresh drops after": _refresh_fails(drop="after"),
    "refresh drops midway": _refresh_fails(drop="midway"),
    "malformed access token": _malformed("access_token"),
    "malformed refresh token": _malformed("refresh_token"),
    "401 twice": _fails(2, on="me", status=401, body=_EXPIRED),
    "401 at a redirect": _fails(1, on="api", status=401, body=_EXPIRED),
    "401 of another code": _fails(2, on="me", status=401, body=b'{"code": "nope"}'),
    "the API drops": _fails(4, on="me", drop="midway"),
    "the API drops the resend": _in_turn(
        _fails(1, on="me", status=401, body=_EXPIRED), _fails(1, on="me", drop="midway")
    ),
    "cut file": _file_holds(lambda data: data[:-5]),
    "file with a broken token": _file_holds(lambda data: data.replace(b'"adh_', b'"\\nadh_')),
    "file that is a list": _file_holds(lambda data: b"[" + data + b"]"),
    "file that is empty": _file_holds(lambda data: b""),
    "no file": lambda sandbox, path: path.unlink(),
    "read-only file": _read_only,
    "loose file": _loose,
    "another user's file": lambda sandbox, path: (
        os.chown(path, STRANGER, -1) if CAN_GIVE_AWAY else path.unlink()
    ),
}


def use(client: EveryClient, auth: Any, sandbox: Sandbox, sweep: Sweep, where: str) -> None:
    """A call, one through a redirect, a forced refresh and what is left of it; with hooks that keep all they
    see.
    """
    for path in ("/api/auth/me", "/api/redirect?to=/api/auth/me"):
        try:
            sweep.response(client.get(auth, sandbox.url + path, **_hooks(client, sweep, where)), where)
        except (adh_auth.AdhAuthError, *CLIENT_ERRORS) as error:
            sweep.error(error, where)
    for work in (auth.refresh, lambda: auth.tokens, *_of_a_task(auth)):
        try:
            sweep.add(f"{where}: outcome", repr(work()))
        except adh_auth.AdhAuthError as error:
            sweep.error(error, where)
    sweep.objects(auth, where)
    with suppress(OSError):
        sweep.add(
            f"{where}: record",
            Path(auth.token_file + ".record").read_bytes(),
            Path(auth.token_file + ".lock").read_bytes(),
        )


def _of_a_task(auth: Any) -> list[Callable[[], Any]]:
    return [lambda: asyncio.run(auth.arefresh())] if hasattr(auth, "arefresh") else []


def _hooks(client: EveryClient, sweep: Sweep, where: str) -> dict[str, Any]:
    def on_request(request: Any) -> None:
        # The live request with its header is there by the nature of hooks; the refresh is not.
        with suppress(httpx.RequestNotRead, httpx2.RequestNotRead):  # a hop of a redirect; it has no body
            sweep.add(f"{where}: request hook", request.content)
        sweep.add(f"{where}: request hook", str(request.url))

    def on_response(response: Any, *_: Any, **__: Any) -> None:
        sweep.add(f"{where}: response hook", repr(response), str(response.url), repr(dict(response.headers)))

    async def on_request_in_a_task(request: Any) -> None:
        on_request(request)

    async def on_response_in_a_task(response: Any) -> None:
        on_response(response)

    if client.auth is AdhAuth:
        return {"hooks": {"response": [on_response]}}
    if client.name.endswith("-task"):
        return {"event_hooks": {"request": [on_request_in_a_task], "response": [on_response_in_a_task]}}
    return {"event_hooks": {"request": [on_request], "response": [on_response]}}


def auth_of(client: EveryClient, sandbox: Sandbox, path: Path, **more: Any) -> Any:
    return client.auth(
        path, client_id=sandbox.client_id, client_secret=sandbox.client_secret, base_url=sandbox.url, **more
    )


def sweep_over(client: EveryClient, sandbox: Sandbox, tmp_path: Path, faults: Mapping[str, Fault]) -> Sweep:
    sweep = Sweep()
    with watched(sweep):
        for where, fault in faults.items():
            path = sandbox.write_token_file(tmp_path / f"{where}.json")
            sandbox.heal()
            fault(sandbox, path)
            use(client, auth_of(client, sandbox, path), sandbox, sweep, where)
    return sweep


@each_client
def test_no_secret_in_any_fault(
    client: EveryClient, sandbox: Sandbox, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Logs, reprs, errors with their chains and frames, history, hooks, warnings, records and outputs hold
    none of any generation.
    """
    sweep = sweep_over(client, sandbox, tmp_path, FAULTS)
    sweep.add("output", *capfd.readouterr())
    assert sweep.leaks(secrets_of(sandbox)) == []
    assert len(secrets_of(sandbox)) > 2 * len(FAULTS)
    assert len(sweep.texts) > 20 * len(FAULTS)


PLANTED = [
    (Secret, "__repr__", lambda self: self.reveal()),
    (Tokens, "__repr__", lambda self: self.access_token),
    (adh_auth.errors.AdhAuthError, "__str__", lambda self: fingerprint("") + str(_planted_by(self))),
]


def _planted_by(error: Any) -> str:
    with suppress(Exception):
        return TokenFile(error.token_file).load().refresh_token
    return ""


@pytest.mark.parametrize(("kind", "name", "leaky"), PLANTED, ids=["Secret", "Tokens", "errors"])
def test_the_sweep_would_find_one(
    kind: Any, name: str, leaky: Any, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep that finds nothing means something: it finds what is planted."""
    monkeypatch.setattr(kind, name, leaky)
    faults = {where: FAULTS[where] for where in ("expired", "refresh 503", "refused")}
    assert sweep_over(CLIENTS[0], sandbox, tmp_path, faults).leaks(secrets_of(sandbox))


# Beside the calls.


@each_client
def test_no_secret_when_the_disk_refuses_the_new_pair(
    client: EveryClient, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loud last resort, a pair that could not be written, is loud about everything but the pair."""
    sweep = Sweep()
    path = sandbox.write_token_file(tmp_path / "tokens.json")
    install, refusals = (
        adh_auth.store.reservation.ReservedFile.install,
        iter([OSError(28, "No space left on device")] * 2),
    )

    def refusing(reserved: Any) -> None:
        for refusal in refusals:
            raise refusal
        install(reserved)

    monkeypatch.setattr(adh_auth.store.reservation.ReservedFile, "install", refusing)
    with watched(sweep):
        auth = auth_of(client, sandbox, path)
        use(client, auth, sandbox, sweep, "full disk")
        for thread in threading.enumerate():
            if thread.name == "adh-auth rotation":  # it goes on trying after its outcome is known
                thread.join(PATIENCE)
    assert any("could not be written" in text for _, text in sweep.texts)
    assert sweep.leaks(secrets_of(sandbox)) == []


@each_client
def test_no_secret_when_the_lock_is_held(client: EveryClient, sandbox: Sandbox, tmp_path: Path) -> None:
    """A wait that was too long names the lock file, no more."""
    sweep = Sweep()
    path = sandbox.write_token_file(tmp_path / "tokens.json")
    sandbox.expire()
    with watched(sweep), filelock.FileLock(f"{path}.lock"):
        use(client, auth_of(client, sandbox, path, lock_timeout=0.05), sandbox, sweep, "lock")
    assert any("LockTimeout" in where for where, _ in sweep.texts)
    assert sweep.leaks(secrets_of(sandbox)) == []


@pytest.mark.parametrize("cls", [AdhAuth, AdhHttpxAuth, AdhHttpx2Auth])
@pytest.mark.parametrize(
    "wrong",
    [
        {"client_id": None},
        {"client_id": 5},
        {"base_url": "http://api.example.com"},
        {"base_url": 5},
        {"refresh_via": object()},
        {"refresh_ahead": -1},
        {"lock_timeout": "soon"},
        {"token_file": ""},
        {"token_file": "~nobody-of-that-name/x"},
        {"client_secret": SECRET.encode()},
        {"client_secret": [SECRET]},
        {"client_secrets": SECRET},
    ],
    ids=lambda wrong: next(f"{name}-{type(value).__name__}" for name, value in wrong.items()),
)
def test_no_secret_when_an_object_is_not_built(cls: Any, wrong: dict[str, Any]) -> None:
    """Arguments are in the frames of an error; the client secret is in none of ours."""
    sweep = Sweep()
    arguments = {
        "token_file": "t.json",
        "client_id": "id",
        "client_secret": SECRET,
        "base_url": "https://api.example.com",
        **wrong,
    }
    with pytest.raises((adh_auth.AdhAuthError, TypeError)) as caught:
        cls(**arguments)
    sweep.error(caught.value, "construction")
    assert sweep.leaks({"client secret": SECRET}) == []


ACCESS, REFRESH = "adh_Kq8vXw2NfRt5", "adh_rt_Zy7bLm4PdGh9"


@pytest.mark.parametrize(
    "mistake",
    [
        lambda path: Tokens(ACCESS + "\n", REFRESH),
        lambda path: Tokens(access_token=ACCESS, refresh_token=REFRESH + " "),
        lambda path: Tokens.from_response({"access_token": ACCESS, "refresh_token": REFRESH + "\u00e9"}),
        lambda path: Tokens.from_response({"access_token": ACCESS}),
        lambda path: Tokens.from_response([ACCESS, REFRESH]),  # type: ignore[arg-type]
        lambda path: Tokens.from_response(json.dumps({"access_token": ACCESS})),  # type: ignore[arg-type]
        lambda path: Stored.from_bytes(
            f'{{"access_token": "{ACCESS}", "refresh_token": "{REFRESH}"'.encode()
        ),
        lambda path: Stored.from_bytes(f'["{ACCESS}"]'.encode()),
        lambda path: TokenFile(path).save(Tokens(ACCESS, REFRESH)),
        lambda path: TokenFile(path / "x" / "t.json").save(Tokens(ACCESS, REFRESH)),
        lambda path: TokenFile("/proc/nowhere/t.json").save(Tokens(ACCESS, REFRESH)),
        lambda path: TokenFile("/dev/null").save(Tokens(ACCESS, REFRESH)),
        lambda path: TokenFile(path).save({"access_token": ACCESS}),  # type: ignore[arg-type]
    ],
)
def test_no_secret_when_tokens_are_not_taken(mistake: Callable[[Path], Any], tmp_path: Path) -> None:
    """A pair that cannot be sent or saved shows in no frame of ours, not even as an argument."""
    sweep = Sweep()
    path = tmp_path / "a-folder"
    path.mkdir()
    (path / "x").write_text("a file in the way")
    with pytest.raises(Exception, match=r".") as caught:
        mistake(path)
    sweep.error(caught.value, "mistake")
    assert sweep.leaks({"access token": ACCESS, "refresh token": REFRESH}) == []


def test_no_secret_in_the_hands_of_the_wrong_client(sandbox: Sandbox, arguments: dict[str, Any]) -> None:
    """The TypeError that names the right class comes with nothing else."""
    sweep = Sweep()
    for work in (
        lambda: requests.get(sandbox.url, auth=AdhHttpxAuth(**arguments), timeout=PATIENCE),
        lambda: httpx.get(sandbox.url, auth=AdhAuth(**arguments)),  # type: ignore[arg-type]
        lambda: httpx2.get(sandbox.url, auth=AdhHttpxAuth(**arguments)),
    ):
        with pytest.raises(TypeError) as caught:
            work()
        sweep.error(caught.value, "wrong client")
    assert sweep.leaks(secrets_of(sandbox)) == []


@pytest.mark.parametrize("cls", [AdhAuth, AdhHttpxAuth, AdhHttpx2Auth])
def test_a_pickle_carries_no_tokens(
    cls: Any, sandbox: Sandbox, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the client secret only if it was passed as an argument."""
    for name, value in sandbox.environment(token_file).items():
        monkeypatch.setenv(name, value)
    passed, from_environment = cls(client_secret=SECRET), cls()
    for auth in (passed, from_environment):
        auth.refresh()
    sweep = Sweep()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        sweep.add(
            "pickle",
            pickle.dumps(from_environment, protocol),
            pickle.dumps(copy.deepcopy(from_environment), protocol),
        )
    assert sweep.leaks(secrets_of(sandbox)) == []
    sweep.add("pickle", pickle.dumps(passed))
    assert sweep.leaks(secrets_of(sandbox)) == ["client secret in pickle"]


def test_a_notebook_shows_no_secret(sandbox: Sandbox, arguments: dict[str, Any]) -> None:
    """Whatever a notebook asks an object for, to display it: its plain form and every rich one."""
    sweep = Sweep()
    auth = AdhAuth(**arguments)
    for shown in (auth, auth.tokens, TokenFile(auth.token_file), auth._core, auth._core.current()):
        for name in ("html", "markdown", "json", "latex", "svg", "mimebundle"):
            sweep.add(f"notebook: {name}", getattr(shown, f"_repr_{name}_", str)())
        sweep.add("notebook", repr(shown), str(shown), f"{shown}", f"{shown!r}")
    assert sweep.leaks(secrets_of(sandbox)) == []


def test_support_gets_what_it_needs(sandbox: Sandbox, arguments: dict[str, Any], token_file: Path) -> None:
    """A fingerprint, which is a hash, the request id, the file and the times are there instead."""
    refresh_token = TokenFile(token_file).load().refresh_token
    sandbox.revoke()
    with pytest.raises(adh_auth.ReauthorizationRequired) as caught:
        AdhAuth(**arguments).refresh()
    error = caught.value
    assert error.fingerprint == fingerprint(refresh_token)
    assert error.fingerprint not in refresh_token
    assert error.token_file == str(token_file)
    assert (error.request_id or "").startswith("req_")
    assert error.refused_at is not None
    assert error.fingerprint in repr(TokenFile(token_file).load())


# The command line.


def _adh(*arguments: str, env: Mapping[str, str], text: str | None = None) -> tuple[str, str]:
    from ..support.cli import adh

    done = adh(*arguments, env=env, **({} if text is None else {"input": text}))
    return done.stdout, done.stderr


COMMANDS: dict[str, tuple[list[str], Fault]] = {
    "status": (["status"], FAULTS["none"]),
    "status --json": (["status", "--json"], FAULTS["none"]),
    "status of a cut file": (["status"], FAULTS["cut file"]),
    "me": (["me"], FAULTS["expired"]),
    "me, refused": (["me", "--json"], _in_turn(_expire, _revoke)),
    "refresh": (["refresh"], FAULTS["none"]),
    "refresh --json": (["refresh", "--json"], FAULTS["none"]),
    "refresh, echoed": (["refresh"], _echoing(400)),
    "refresh, malformed": (["refresh"], FAULTS["malformed access token"]),
    "refresh of a loose file": (["refresh"], FAULTS["loose file"]),
    "token of a broken file": (["token"], FAULTS["file with a broken token"]),
    "revoke, refused": (["revoke"], lambda sandbox, path: sandbox.fail_next(on="revoke", status=503)),
    "revoke": (["revoke"], FAULTS["none"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_but_token_prints_a_secret(name: str, sandbox: Sandbox, token_file: Path) -> None:
    """Neither on stdout nor on stderr, with every warning on, in good times and bad."""
    arguments, fault = COMMANDS[name]
    fault(sandbox, token_file)
    sweep = Sweep()
    sweep.add(name, *_adh(*arguments, env={**sandbox.environment(token_file), "PYTHONWARNINGS": "always"}))
    assert sweep.leaks(secrets_of(sandbox)) == []


@pytest.mark.parametrize(
    "change", [lambda text: text, lambda text: text[:-9], lambda text: text.replace('"adh_', '"\\u00e9')]
)
def test_save_repeats_nothing(change: Callable[[str], str], sandbox: Sandbox, tmp_path: Path) -> None:
    """A reply on stdin, whole or broken, is not printed back."""
    reply = json.dumps(sandbox.sign_in())
    sweep = Sweep()
    sweep.add("save", *_adh("save", env=sandbox.environment(tmp_path / "new.json"), text=change(reply)))
    assert sweep.leaks(secrets_of(sandbox)) == []


def test_login_shows_neither_code_nor_tokens(sandbox: Sandbox, tmp_path: Path) -> None:
    """The authorization code, spent or refused, the PKCE verifier's secret counterparts and the first pair
    stay out of all outputs.
    """
    from ..support.cli import started

    for fault in (None, 503):
        if fault:
            sandbox.fail_next(None, on="exchange", status=fault)
        environment = {**sandbox.environment(tmp_path / f"{fault}.json"), "PYTHONUNBUFFERED": "1"}
        sandbox.redirect_uris = ("http://localhost:8765/callback", *sandbox.redirect_uris)
        with started(
            "login", "--no-browser", "--paste", "--timeout", "20", env=environment, stdin=-1
        ) as process:
            assert process.stdin
            assert process.stdout
            assert process.stderr
            address = _address_in(process)
            back = requests.get(address, allow_redirects=False, timeout=PATIENCE).headers["Location"]
            assert parse_qs(urlsplit(back).query)["code"]
            output, errors = process.communicate(back + "\n", PATIENCE)
        sweep = Sweep()
        sweep.add("login", output, errors)
        assert sweep.leaks(secrets_of(sandbox)) == []
    assert len(sandbox._state._codes) == 2


def _address_in(process: Any) -> str:
    for line in process.stdout:
        for word in line.split():
            if word.startswith("http") and "signin/start" in word:
                return str(word)
    raise AssertionError("no address was printed: " + process.stderr.read())


if sys.platform == "win32":
    pytest.skip("needs modes and owners: run it on a POSIX system", allow_module_level=True)
