"""`SignIn`: `start` and `finish` of a web application, against the sandbox."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import anyio
import pytest
import requests
from anyio.to_thread import run_sync
from hypothesis import given
from hypothesis import strategies as st

from adh_auth import (
    AdhAuth,
    AdhAuthError,
    ConfigurationError,
    ReauthorizationRequired,
    RefreshFailed,
    SignIn,
    Started,
    TokenFile,
    TokenFileError,
    Tokens,
)
from adh_auth.sign_in.two_steps import MAX_USED
from adh_auth.testing import Sandbox

from ..support.processes import PATIENCE, assert_nothing_lost, child

REDIRECT = "https://app.example/callback"


@pytest.fixture
def app(sandbox: Sandbox) -> dict[str, Any]:
    """The arguments of a sign-in that works."""
    sandbox.redirect_uris = [REDIRECT]
    return {
        "redirect_uri": REDIRECT,
        "client_id": sandbox.client_id,
        "client_secret": sandbox.client_secret,
        "base_url": sandbox.url,
    }


@pytest.fixture
def sign_in(app: dict[str, Any]) -> SignIn:
    return SignIn(**app)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The token file of one user; its folder does not exist yet."""
    return tmp_path / "users" / "ada.json"


def answer_to(started: Started) -> str:
    """Where the server sends the browser."""
    return requests.get(started.url, timeout=PATIENCE, allow_redirects=False).headers["Location"]


def test_a_user_signs_in(sandbox: Sandbox, sign_in: SignIn, file: Path) -> None:
    """The pair is returned and in the user's own file, which names its server and its client."""
    started = sign_in.start()
    tokens = sign_in.finish(answer_to(started), started.state, token_file=file)
    assert TokenFile(file).load() == tokens
    assert tokens.scope == "profile:read discussions:read"
    kept = json.loads(file.read_bytes())
    assert (kept["base_url"], kept["client_id"]) == (sandbox.url, sandbox.client_id)
    assert_nothing_lost(sandbox, file)


@pytest.mark.anyio
async def test_a_user_signs_in_from_a_task(sandbox: Sandbox, sign_in: SignIn, file: Path) -> None:
    """`afinish` does the same on asyncio and trio; the loop goes on meanwhile."""
    started = sign_in.start()
    answer = await run_sync(answer_to, started)
    with sandbox.hold_next(on="exchange") as hold:
        async with anyio.create_task_group() as tasks:
            got: list[Tokens] = []

            async def finish() -> None:
                got.append(await sign_in.afinish(answer, started.state, token_file=file))

            tasks.start_soon(finish)
            await run_sync(hold.wait, PATIENCE)
            hold.release()
    assert TokenFile(file).load() == got[0]


@pytest.mark.anyio
async def test_a_cancelled_task_leaves_the_exchange_to_its_end(
    sandbox: Sandbox, sign_in: SignIn, file: Path
) -> None:
    """The code is spent: the pair that it brings is saved, whoever waits (rule 5)."""
    started = sign_in.start()
    answer = await run_sync(answer_to, started)
    with sandbox.hold_next(on="exchange") as hold:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: sign_in.afinish(answer, started.state, token_file=file))
            await run_sync(hold.wait, PATIENCE)
            tasks.cancel_scope.cancel()
        assert not file.exists()
        worker = next(thread for thread in threading.enumerate() if thread.name == "adh-auth sign-in")
        hold.release()
    await run_sync(worker.join, PATIENCE)
    assert TokenFile(file).load().scope == "profile:read discussions:read"


@pytest.mark.anyio
async def test_an_error_reaches_the_task(sandbox: Sandbox, sign_in: SignIn, file: Path) -> None:
    """Both what is found before the exchange and what it brings."""
    started = sign_in.start()
    answer = await run_sync(answer_to, started)
    sandbox.fail_next(on="exchange", status=503)
    with pytest.raises(RefreshFailed, match="HTTP 503"):
        await sign_in.afinish(answer, started.state, token_file=file)
    with pytest.raises(ReauthorizationRequired, match="finished before"):
        await sign_in.afinish(answer, started.state, token_file=file)
    assert not file.exists()


class Broken(requests.Session):
    """A session of a user's whose code fails."""

    def post(self, *_: Any, **__: Any) -> Any:
        raise LookupError("with a secret")


@pytest.mark.anyio
async def test_whatever_an_exchange_raises_ends_the_wait(app: dict[str, Any], file: Path) -> None:
    """Only its type is told: its frames hold the code."""
    with Broken() as session:
        sign_in = SignIn(**app, refresh_via=session)
        started = sign_in.start()
        answer = await run_sync(answer_to, started)
        with pytest.raises(RefreshFailed, match=r"broke off: LookupError; start again$") as raised:
            await sign_in.afinish(answer, started.state, token_file=file)
    assert raised.value.__context__ is None


@pytest.mark.anyio
async def test_without_a_thread_nothing_is_sent(
    sandbox: Sandbox, sign_in: SignIn, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on threads is an error like any other."""
    started = sign_in.start()
    answer = await run_sync(answer_to, started)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched, pytest.raises(RefreshFailed, match="nothing was sent"):
        patched.setattr(threading.Thread, "start", refuse)
        await sign_in.afinish(answer, started.state, token_file=file)
    assert sandbox.counts.exchanges == 0


def test_the_end_of_the_program_waits_for_an_exchange(
    sandbox: Sandbox, app: dict[str, Any], file: Path
) -> None:
    """A loop that closes, and a program that ends, don't cut off the writing of the pair."""
    started = SignIn(**app).start()
    code = f"""
import anyio
from adh_auth import SignIn
async def main():
    with anyio.move_on_after(0.2):
        await SignIn(**{app!r}).afinish({answer_to(started)!r}, {started.state!r}, token_file={str(file)!r})
anyio.run(main)
print("ending", flush=True)
"""
    with sandbox.hold_next(on="exchange") as hold, child(code) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ending\n", program.communicate()
        hold.release()
        _, errors = program.communicate(timeout=PATIENCE)
        assert (program.returncode, errors) == (0, "")
    assert_nothing_lost(sandbox, file)


class MultiDict(dict[str, Any]):
    """As Werkzeug's, Starlette's and Django's: `get` returns one of the values, `getlist` all."""

    def getlist(self, name: str) -> list[str]:
        return list(dict.__getitem__(self, name))

    def get(self, name: str, default: Any = None) -> Any:
        return dict.__getitem__(self, name)[-1] if name in self else default


class OtherMultiDict(MultiDict):
    """As aiohttp's: `getall` raises for a parameter that did not come."""

    getlist = None  # type: ignore[assignment]

    def getall(self, name: str) -> list[str]:
        return list(self[name])


FORMS: dict[str, Callable[[str], Any]] = {
    "the URL": lambda url: url,
    "behind a proxy that ends TLS": lambda url: url.replace(REDIRECT, "http://10.0.0.7:8000/callback"),
    "the path": lambda url: url.replace("https://app.example", ""),
    "a path with a parameter": lambda url: url.replace(REDIRECT, "/callback;v=1"),
    "the query": lambda url: urlsplit(url).query,
    "the query with its mark": lambda url: "?" + urlsplit(url).query,
    "a fragment": lambda url: url + "#_=_",
    "more parameters": lambda url: url + "&from=a?b=c",
    "a question mark before": lambda url: "from=a?b&" + urlsplit(url).query,
    "a question mark behind": lambda url: urlsplit(url).query + "&from=a?b",
    "a dict": lambda url: dict(parse_qsl(urlsplit(url).query)),
    "lists": lambda url: parse_qs(urlsplit(url).query),
    "a multi-dict": lambda url: MultiDict(parse_qs(urlsplit(url).query)),
    "another multi-dict": lambda url: OtherMultiDict(parse_qs(urlsplit(url).query)),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_only_the_query_of_an_answer_is_read(sign_in: SignIn, file: Path, form: Callable[[str], Any]) -> None:
    """Whatever a framework or a proxy makes of the URL."""
    started = sign_in.start()
    sign_in.finish(form(answer_to(started)), started.state, token_file=file)
    assert file.exists()


def test_two_tabs_sign_in_at_once(sign_in: SignIn, tmp_path: Path) -> None:
    """Of several states the one counts that the answer names, in whatever order they end."""
    tabs = [sign_in.start() for _ in range(5)]
    states = [tab.state for tab in tabs]
    for number in (3, 0, 4):
        sign_in.finish(answer_to(tabs[number]), states, token_file=tmp_path / f"{number}.json")
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["0.json", "3.json", "4.json"]


# What is refused.


def missing(_: SignIn, started: Started) -> tuple[str, Any]:
    return answer_to(started), None


def none_kept(_: SignIn, started: Started) -> tuple[str, Any]:
    return answer_to(started), []


def of_another_browser(sign_in: SignIn, started: Started) -> tuple[str, Any]:
    return answer_to(started), [sign_in.start().state for _ in range(5)]


def too_old(_: SignIn, started: Started) -> tuple[str, Any]:
    return answer_to(started), _aged(started, 601)


def from_the_future(_: SignIn, started: Started) -> tuple[str, Any]:
    return answer_to(started), _aged(started, -3600)


def at_no_time(_: SignIn, started: Started) -> tuple[str, Any]:
    return answer_to(started), json.dumps({**json.loads(started.state), "at": -(10**400)})


def used(sign_in: SignIn, started: Started) -> tuple[str, Any]:
    answer = answer_to(started)
    with pytest.raises(ReauthorizationRequired, match="invalid_grant"):
        sign_in.finish(re.sub("code=[^&]+", "code=wrong", answer), started.state, token_file="used.json")
    return answer, started.state


def no_state(_: SignIn, started: Started) -> tuple[str, Any]:
    return re.sub("&state=[^&]+", "", answer_to(started)), started.state


def two_states(_: SignIn, started: Started) -> tuple[str, Any]:
    return answer_to(started) + "&state=another", started.state


def two_states_in_a_mapping(_: SignIn, started: Started) -> tuple[Any, Any]:
    query = parse_qs(urlsplit(answer_to(started)).query)
    return MultiDict({**query, "state": ["another", *query["state"]]}), started.state


def beyond_ascii(_: SignIn, started: Started) -> tuple[str, Any]:
    return re.sub("state=[^&]+", "state=%C3%BC", answer_to(started)), started.state


def no_answer(_: SignIn, started: Started) -> tuple[str, Any]:
    return REDIRECT, started.state


def a_strangers_error(_: SignIn, started: Started) -> tuple[str, Any]:
    return REDIRECT + "?error=a_strangers_words", started.state


def an_error_and_no_sign_in(_: SignIn, started: Started) -> tuple[str, Any]:
    return REDIRECT + "?error=access_denied", None


MISMATCHES: list[tuple[Any, str]] = [
    (missing, "no sign-in of that state"),
    (none_kept, "no sign-in of that state"),
    (of_another_browser, "no sign-in of that state"),
    (too_old, "more than 10 min ago"),
    (from_the_future, "more than 10 min ago"),
    (at_no_time, "no sign-in of that state"),
    (used, "finished before"),
    (no_state, "no sign-in of that state"),
    (two_states, "no sign-in of that state"),
    (two_states_in_a_mapping, "no sign-in of that state"),
    (beyond_ascii, "no sign-in of that state"),
    (no_answer, "without a code"),
    (a_strangers_error, "no sign-in of that state"),
    (an_error_and_no_sign_in, "no sign-in of that state"),
]


def _aged(started: Started, seconds: float) -> str:
    mapping = json.loads(started.state)
    return json.dumps({**mapping, "at": int(time.time() - seconds)})


@pytest.mark.parametrize(("arrange", "words"), MISMATCHES, ids=[row[0].__name__ for row in MISMATCHES])
def test_an_answer_of_no_sign_in_under_way_asks_for_a_new_one(
    sandbox: Sandbox,
    sign_in: SignIn,
    file: Path,
    arrange: Callable[[SignIn, Started], tuple[Any, Any]],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An application tells it by the code and sends the browser to a new `start`; nothing is sent for it."""
    monkeypatch.chdir(tmp_path)
    answer, states = arrange(sign_in, sign_in.start())
    calls = len(sandbox.log)
    with pytest.raises(ReauthorizationRequired, match=words) as raised:
        sign_in.finish(answer, states, token_file=file)
    assert raised.value.code == "state_mismatch"
    assert "start the sign-in again" in raised.value.message
    assert "stranger" not in raised.value.message
    assert len(sandbox.log) == calls
    assert not file.exists()


@pytest.mark.parametrize("age", [0, 599, -59])
def test_a_state_lives_for_its_time(sign_in: SignIn, file: Path, age: float) -> None:
    """Ten minutes; the clocks of two machines may differ by a minute."""
    started = sign_in.start()
    sign_in.finish(answer_to(started), _aged(started, age), token_file=file)


def test_a_state_lives_as_long_as_it_is_told(app: dict[str, Any], file: Path) -> None:
    """`max_age` in seconds."""
    sign_in = SignIn(**app, max_age=30)
    started = sign_in.start()
    with pytest.raises(ReauthorizationRequired, match="more than 30 s ago"):
        sign_in.finish(answer_to(started), _aged(started, 32), token_file=file)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"state": 1, "verifier": "v", "at": 1}',
        "[" * 100_000,
        "ä" * 5000,
        '{"state": "ü", "verifier": "v", "at": 1}',
    ],
)
def test_a_text_that_is_no_state_is_left_out(sign_in: SignIn, file: Path, text: str) -> None:
    """A cookie of an older release, or a session that was changed, costs a new sign-in and no crash."""
    started = sign_in.start()
    answer = answer_to(started)
    with pytest.raises(ReauthorizationRequired):
        sign_in.finish(answer, text, token_file=file)
    sign_in.finish(answer, [text, started.state], token_file=file)


def test_an_answer_that_is_loaded_again_in_another_process_costs_nothing(
    sandbox: Sandbox, app: dict[str, Any], file: Path
) -> None:
    """A code that comes twice would end the session that it began; the file knows which sign-in that was."""
    first, second = SignIn(**app), SignIn(**app)
    started = first.start()
    answer = answer_to(started)
    tokens = first.finish(answer, started.state, token_file=file)
    with pytest.raises(ReauthorizationRequired, match="finished before") as raised:
        second.finish(answer, started.state, token_file=file)
    assert raised.value.code == "state_mismatch"
    assert TokenFile(file).load() == tokens
    AdhAuth(file, **{name: app[name] for name in ("client_id", "client_secret", "base_url")}).refresh()
    with pytest.raises(ReauthorizationRequired, match="finished before"):
        SignIn(**app).finish(answer, started.state, token_file=file)
    assert_nothing_lost(sandbox, file)


def test_a_state_of_another_process_that_was_used_is_refused_by_the_server(
    app: dict[str, Any], file: Path, tmp_path: Path
) -> None:
    """Where even the file is another one: the code is spent."""
    started = SignIn(**app).start()
    answer = answer_to(started)
    SignIn(**app).finish(answer, started.state, token_file=file)
    with pytest.raises(ReauthorizationRequired) as raised:
        SignIn(**app).finish(answer, started.state, token_file=tmp_path / "other.json")
    assert raised.value.code == "invalid_grant"


def test_of_two_answers_at_once_one_counts(sandbox: Sandbox, sign_in: SignIn, file: Path) -> None:
    """A browser that calls back twice spends the code once."""
    started = sign_in.start()
    answer = answer_to(started)
    with ThreadPoolExecutor(1) as pool, sandbox.hold_next(on="exchange") as hold:
        first = pool.submit(sign_in.finish, answer, started.state, token_file=file)
        hold.wait(PATIENCE)
        with pytest.raises(ReauthorizationRequired, match="finished before"):
            sign_in.finish(answer, started.state, token_file=file)
        hold.release()
        first.result(PATIENCE)
    assert sandbox.counts.exchanges == 1


def test_what_is_remembered_of_used_states_is_bounded(
    sign_in: SignIn, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that runs for months keeps the newest only."""
    assert MAX_USED == 10_000
    monkeypatch.setattr("adh_auth.sign_in.two_steps.MAX_USED", 2)
    for _ in range(4):
        started = sign_in.start()
        sign_in.finish(answer_to(started), started.state, token_file=file)
    assert len(sign_in._used) == 2


def test_a_denial_is_told(sandbox: Sandbox, sign_in: SignIn, file: Path) -> None:
    """With a state, or, as nothing is documented, without one; the other tabs' sign-ins go on."""
    started, other = sign_in.start(), sign_in.start()
    sandbox.deny_next()
    states = [started.state, other.state]
    for answer in (answer_to(started), REDIRECT + "?error=access_denied"):
        with pytest.raises(AdhAuthError, match="was denied in the browser") as raised:
            sign_in.finish(answer, states, token_file=file)
        assert raised.value.code == "access_denied"  # type: ignore[attr-defined]
        assert not isinstance(raised.value, ReauthorizationRequired)
    sign_in.finish(answer_to(other), states, token_file=file)


def test_a_file_that_cannot_be_written_does_not_spend_the_code(
    sandbox: Sandbox, sign_in: SignIn, tmp_path: Path
) -> None:
    """It is checked before the exchange."""
    started = sign_in.start()
    with pytest.raises(TokenFileError):
        sign_in.finish(answer_to(started), started.state, token_file=tmp_path)
    assert sandbox.counts.exchanges == 0


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("redirect_uri", "http://app.example/callback"),
        ("redirect_uri", "https://app.example/callback#f"),
        ("redirect_uri", "/callback"),
        ("redirect_uri", None),
        ("scope", ""),
        ("scope", ["profile:read"]),
        ("max_age", 0),
        ("max_age", float("inf")),
        ("max_age", True),
        ("base_url", "http://api.example"),
        ("refresh_via", object()),
    ],
)
def test_arguments_that_cannot_work(app: dict[str, Any], argument: str, value: Any) -> None:
    """They are refused when the object is built."""
    with pytest.raises(ConfigurationError) as raised:
        SignIn(**{**app, argument: value})
    assert raised.value.setting == argument


@pytest.mark.parametrize(
    "uri", ["http://localhost:8765/callback", "http://127.0.0.1/cb", "http://[::1]:9/cb", REDIRECT]
)
def test_http_is_for_loopback(app: dict[str, Any], uri: str) -> None:
    """As the platform has it."""
    started = SignIn(**{**app, "redirect_uri": uri}).start()
    assert parse_qs(urlsplit(started.url).query)["redirect_uri"] == [uri]


def test_settings_come_from_the_environment(
    sandbox: Sandbox, file: Path, app: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for the auth classes; no token file and no home folder is looked for."""
    for name, value in sandbox.environment(file).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", "")
    monkeypatch.setenv("ADH_TOKEN_FILE", "relative")
    sign_in = SignIn(redirect_uri=REDIRECT)
    started = sign_in.start()
    sign_in.finish(answer_to(started), started.state, token_file=file)


@pytest.mark.parametrize(
    ("answer", "states", "word"),
    [
        (b"code=x", "{}", "answer"),
        (5, "{}", "answer"),
        ("code=x&state=y", 5, "states"),
        ("code=x&state=y", {"state": "s"}, "states"),
    ],
)
def test_a_wrong_type_is_named(sign_in: SignIn, file: Path, answer: Any, states: Any, word: str) -> None:
    """A mistake of the application's, and no mismatch that would send the browser round and round."""
    with pytest.raises(TypeError, match=f"^{word} must be"):
        sign_in.finish(answer, states, token_file=file)


def test_it_is_carried_by_a_session(app: dict[str, Any], file: Path) -> None:
    """`refresh_via` carries the exchange, for a proxy or a CA of one's own."""
    with requests.Session() as session:
        seen: list[str] = []
        session.hooks["response"].append(lambda response, **_: seen.append(urlsplit(response.url).path))
        sign_in = SignIn(**app, refresh_via=session)
        started = sign_in.start()
        sign_in.finish(answer_to(started), started.state, token_file=file)
    assert seen == ["/api/oauth/signin/exchange"]


def test_the_session_goes_on_as_any_other(sandbox: Sandbox, app: dict[str, Any], file: Path) -> None:
    """An auth object on the user's file survives an expiry, and signs out."""
    sign_in = SignIn(**app)
    started = sign_in.start()
    sign_in.finish(answer_to(started), started.state, token_file=file)
    auth = AdhAuth(file, **{name: app[name] for name in ("client_id", "client_secret", "base_url")})
    sandbox.expire()
    assert requests.get(sandbox.url + "/api/auth/me", auth=auth, timeout=PATIENCE).ok
    auth.revoke()
    assert not file.exists()


@given(st.one_of(st.text(), st.dictionaries(st.sampled_from(["code", "state", "error"]), st.text())))
def test_no_answer_breaks_anything(answer: Any) -> None:
    """Anybody can call the redirect URI with anything."""
    sign_in = SignIn(redirect_uri=REDIRECT, client_id="i", client_secret="s", base_url="https://api.example")
    with pytest.raises(ReauthorizationRequired):
        sign_in.finish(answer, None, token_file="never-written.json")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.one_of(
        st.text(),
        _JSON.map(json.dumps),
        st.fixed_dictionaries({"state": _JSON, "verifier": _JSON, "at": st.integers()}).map(json.dumps),
    )
)
def test_no_state_breaks_anything(text: str) -> None:
    """A session may hold what an older release, or another program, has left there."""
    sign_in = SignIn(redirect_uri=REDIRECT, client_id="i", client_secret="s", base_url="https://api.example")
    with pytest.raises(ReauthorizationRequired):
        sign_in.finish(
            "code=c&state=s", [text, '{"state": "s", "verifier": "v", "at": 1}'], token_file="never.json"
        )


#: An exchange of a task that prints each module that is imported in its thread.
FIRST_EXCHANGE = """
import sys, threading, anyio
from adh_auth import SignIn
sign_in = SignIn(redirect_uri={redirect!r})

class Finder:
    def find_spec(self, module, *_):
        if threading.current_thread().name == "adh-auth sign-in":
            print(module, flush=True)

sys.meta_path.insert(0, Finder())
async def main():
    return await sign_in.afinish({answer!r}, {state!r}, token_file={file!r})
print(anyio.run(main).scope)
"""


def test_the_thread_of_an_exchange_imports_nothing(sandbox: Sandbox, app: dict[str, Any], file: Path) -> None:
    """Threads import badly beside forks and at the end of a program (rule 17)."""
    started = SignIn(**app).start()
    names = {"redirect": REDIRECT, "answer": answer_to(started), "state": started.state, "file": str(file)}
    with child(FIRST_EXCHANGE.format(**names), sandbox.environment(file)) as program:
        output, errors = program.communicate(timeout=PATIENCE)
    assert (output, errors) == ("profile:read discussions:read\n", "")


# What is shown.


def test_a_state_fits_in_a_signed_cookie(sign_in: SignIn) -> None:
    """Five of them do, with what signing adds. It is JSON, so any session can hold it."""
    state = sign_in.start().state
    assert len(state) < 160
    assert sorted(json.loads(state)) == ["at", "state", "verifier"]


def test_each_sign_in_has_its_own_verifier_and_state(sign_in: SignIn) -> None:
    """32 random bytes each, and only the S256 challenge is sent (RFC 7636)."""
    from base64 import urlsafe_b64encode
    from hashlib import sha256

    first, second = sign_in.start(), sign_in.start()
    for name in ("state", "verifier"):
        values = [json.loads(started.state)[name] for started in (first, second)]
        assert values[0] != values[1]
        assert re.fullmatch(r"[A-Za-z0-9_-]{43}", values[0])
    query = parse_qs(urlsplit(first.url).query)
    verifier = json.loads(first.state)["verifier"]
    digest = sha256(verifier.encode()).digest()
    assert query["code_challenge"] == [urlsafe_b64encode(digest).rstrip(b"=").decode()]
    assert query["code_challenge_method"] == ["S256"]
    assert verifier not in first.url


def test_no_repr_shows_a_secret(app: dict[str, Any]) -> None:
    """Neither that of the object nor that of what is started."""
    sign_in = SignIn(**app)
    started = sign_in.start()
    mapping = json.loads(started.state)
    assert repr(started).startswith("Started(url='http")
    for secret in (mapping["state"], mapping["verifier"], app["client_secret"]):
        assert secret not in repr(sign_in) + repr(started) + str(started)


@pytest.mark.parametrize(
    "kind", ["refused", "used", "foreign", "denied", "outage", "useless", "client", "file", "types"]
)
def test_an_error_shows_no_secret(
    sandbox: Sandbox,
    app: dict[str, Any],
    file: Path,
    tmp_path: Path,
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither its message nor a local variable of our frames, nor the log."""
    caplog.set_level(logging.DEBUG, "adh_auth")
    if kind == "client":
        app["client_secret"] = "a-wrong-secret"
    sign_in = SignIn(**app)
    started = sign_in.start()
    if kind == "denied":
        sandbox.deny_next()
    answer, states, target = answer_to(started), [started.state], file
    if kind in ("refused", "used"):
        sandbox.code_life = 0.0
    if kind == "used":
        with pytest.raises(ReauthorizationRequired):
            sign_in.finish(answer, states, token_file=target)
    if kind == "foreign":
        states = [sign_in.start().state]
    if kind == "outage":
        sandbox.fail_next(on="exchange", drop="after")
    if kind == "useless":
        sandbox.fail_next(on="exchange", status=200, body=b'{"access_token": "adh_only"}')
    if kind == "file":
        target = tmp_path
    given: Any = answer if kind != "types" else answer.encode()
    with pytest.raises((AdhAuthError, TypeError)) as raised:
        sign_in.finish(given, states, token_file=target)
    shown = _own_frames(raised.value) + caplog.text
    mapping = json.loads(started.state)
    code = parse_qs(urlsplit(answer).query).get("code", ["no code came"])[0]
    for secret in (code, mapping["state"], mapping["verifier"], app["client_secret"], "adh_only"):
        assert secret not in shown


def _own_frames(error: BaseException) -> str:
    """The message, and the traceback with all locals but those of the test's own frame."""
    lines = traceback.TracebackException.from_exception(error, capture_locals=True)
    del lines.stack[0]
    assert {frame.name for frame in lines.stack} <= {
        "finish",
        "_accepted",
        "_named_by",
        "_use_up",
        "code_from",
        "complete",
    }
    return "".join(lines.format())
