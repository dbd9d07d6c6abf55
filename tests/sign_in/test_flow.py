"""`login` and ``adh-auth login``, against the sandbox, with a scripted browser."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import signal
import socket
import socketserver
import stat
import sys
import threading
import time
import traceback
import webbrowser
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from adh_auth import (
    AdhAuth,
    AdhAuthError,
    ConfigurationError,
    ReauthorizationRequired,
    RefreshFailed,
    TokenFile,
    TokenFileError,
    TokenStore,
    login,
)
from adh_auth.sign_in import listener as listener_module
from adh_auth.sign_in.callback import Callback
from adh_auth.sign_in.listener import Listener, listen_address_of
from adh_auth.sign_in.page import as_sentence
from adh_auth.store.remedies import login_command_line
from adh_auth.testing import Sandbox

from ..support.cli import started
from ..support.processes import PATIENCE, assert_nothing_lost, free_port

Script = Callable[[str], "requests.Response | None"]


class Browser:
    """A stand-in for `webbrowser.open`: runs its script with the URL, in the thread that opened it."""

    def __init__(self) -> None:
        self.script: Script = visit
        self.urls: list[str] = []
        self.page: requests.Response | None = None
        self.done = threading.Event()

    def open(self, url: str) -> bool:
        self.urls.append(url)
        try:
            self.page = self.script(url)
        finally:
            self.done.set()
        return True

    def text(self) -> str:
        assert self.done.wait(PATIENCE)
        assert self.page is not None
        return self.page.text


def visit(url: str) -> requests.Response:
    """Follow the redirects to the end, as a browser does."""
    return requests.get(url, timeout=PATIENCE)


def back(url: str) -> str:
    """Where the server sends the browser; without going there."""
    return requests.get(url, timeout=PATIENCE, allow_redirects=False).headers["Location"]


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> Browser:
    made = Browser()
    monkeypatch.setattr(webbrowser, "open", made.open)
    return made


@pytest.fixture
def redirect_uri(sandbox: Sandbox) -> str:
    """A registered one, with a free port."""
    uri = f"http://localhost:{free_port()}/callback"
    sandbox.redirect_uris = [uri, "https://app.example/callback"]
    return uri


@pytest.fixture
def session(arguments: dict[str, Any], redirect_uri: str) -> dict[str, Any]:
    """The arguments of a login that works."""
    return {**arguments, "redirect_uri": redirect_uri, "timeout": PATIENCE}


def test_signs_in(
    sandbox: Sandbox,
    session: dict[str, Any],
    browser: Browser,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The file and its folder are made, private; browser and user are greeted, and no token is shown."""
    session["token_file"] = tmp_path / "new" / "tokens.json"
    tokens = login(**session, scope="profile:read discussions:write")
    assert TokenFile(session["token_file"]).load() == tokens
    assert tokens.scope == "profile:read discussions:write"
    assert tokens.expires_at is not None
    assert stat.S_IMODE(session["token_file"].stat().st_mode) == 0o600
    assert "You are signed in" in browser.text()
    said = capsys.readouterr().out
    assert "Hello Sandbox User" in said
    assert str(session["token_file"]) in said
    for secret in (tokens.access_token, tokens.refresh_token, sandbox.client_secret):
        assert secret not in said + browser.text()
    assert_nothing_lost(sandbox, session["token_file"])


def test_signs_in_to_a_store(
    sandbox: Sandbox,
    session: dict[str, Any],
    browser: Browser,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Instead of a token file: the session of that name is written, and its user is greeted."""
    del session["token_file"]
    tokens = login(**session, store=(tmp_path / "adh").as_uri(), session="user/1")
    store = TokenStore((tmp_path / "adh").as_uri(), "user/1")
    assert store.load() == tokens
    assert "Hello Sandbox User" in capsys.readouterr().out
    again = login(**session, store=(tmp_path / "adh").as_uri(), session="user/2")
    assert store.load() == tokens != again


def test_pkce_and_state_are_fresh(session: dict[str, Any], browser: Browser) -> None:
    """Each sign-in has a state and a verifier of its own, of 32 random bytes, and sends the S256 challenge
    only.
    """
    login(**session)
    login(**session)
    first, second = (parse_qs(urlsplit(url).query) for url in browser.urls)
    for name in ("state", "code_challenge"):
        assert first[name] != second[name]
        assert re.fullmatch(r"[A-Za-z0-9_-]{43}", first[name][0])
    assert first["code_challenge_method"] == ["S256"]
    assert first["response_type"] == ["code"]
    assert "code_verifier" not in first


def test_replaces_the_session_and_keeps_unknown_keys(
    sandbox: Sandbox, session: dict[str, Any], token_file: Path, browser: Browser
) -> None:
    """A new sign-in takes the place of the old session; keys of others stay in the file."""
    token_file.write_text(json.dumps({**json.loads(token_file.read_bytes()), "note": "mine"}))
    old = TokenFile(token_file).load()
    login(**session)
    assert TokenFile(token_file).load().refresh_token != old.refresh_token
    assert json.loads(token_file.read_bytes())["note"] == "mine"
    assert_nothing_lost(sandbox, token_file)


def test_wins_over_a_refresh_in_flight(
    sandbox: Sandbox, session: dict[str, Any], arguments: dict[str, Any], token_file: Path, browser: Browser
) -> None:
    """The file is written under the lock: a refresh under way ends first, and the new session stays."""
    with ThreadPoolExecutor(2) as pool, sandbox.hold_next() as hold:
        refresh = pool.submit(AdhAuth(**arguments).refresh)
        hold.wait(PATIENCE)
        exchanged = sandbox.hold_next(on="exchange")
        signed_in = pool.submit(login, **session)
        exchanged.wait(PATIENCE)
        exchanged.release()
        hold.release()
        tokens = signed_in.result(PATIENCE)
        refresh.result(PATIENCE)
    assert TokenFile(token_file).load() == tokens
    assert_nothing_lost(sandbox, token_file)


def test_carried_by_a_session(sandbox: Sandbox, session: dict[str, Any], browser: Browser) -> None:
    """`refresh_via` carries every call of the sign-in but the browser's."""
    with requests.Session() as carrier:
        seen: list[str] = []
        carrier.hooks["response"].append(lambda response, **_: seen.append(urlsplit(response.url).path))
        login(**session, refresh_via=carrier)
    assert seen == ["/api/oauth/signin/exchange", "/api/auth/me"]


def test_signed_in_without_a_greeting(
    sandbox: Sandbox, session: dict[str, Any], browser: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failed call for the greeting is no failure of the sign-in."""
    sandbox.fail_next(on="me", status=503)
    login(**session)
    assert "Signed in, but the user could not be fetched" in capsys.readouterr().out


# Failures.


def deny(sandbox: Sandbox, _: dict[str, Any], browser: Browser) -> None:
    sandbox.deny_next()


def odd_error(_: Sandbox, __: dict[str, Any], browser: Browser) -> None:
    browser.script = lambda url: visit(re.sub(r"code=[^&]+", "error=<script>alert(1)</script>", back(url)))


def code_used_twice(sandbox: Sandbox, _: dict[str, Any], browser: Browser) -> None:
    def spend_it_first(url: str) -> requests.Response:
        callback = back(url)
        code = parse_qs(urlsplit(callback).query)["code"][0]
        client = {"client_id": sandbox.client_id, "client_secret": sandbox.client_secret}
        proof = {"code": code, "redirect_uri": sandbox.redirect_uris[0], "code_verifier": "v" * 43}
        requests.post(
            sandbox.url + "/api/oauth/signin/exchange",
            json={"grant_type": "authorization_code", **proof, **client},
            timeout=PATIENCE,
        )
        return visit(callback)

    browser.script = spend_it_first


def code_too_old(sandbox: Sandbox, _: dict[str, Any], browser: Browser) -> None:
    sandbox.code_life = 0.0


def code_for_another_redirect(sandbox: Sandbox, session: dict[str, Any], browser: Browser) -> None:
    def elsewhere(url: str) -> requests.Response:
        location = back(re.sub(r"redirect_uri=[^&]+", "redirect_uri=https://app.example/callback", url))
        return visit(location.replace("https://app.example/callback", session["redirect_uri"]))

    browser.script = elsewhere


def wrong_verifier(_: Sandbox, __: dict[str, Any], browser: Browser) -> None:
    browser.script = lambda url: visit(re.sub(r"code_challenge=[^&]+", f"code_challenge={'x' * 43}", url))


def wrong_secret(_: Sandbox, session: dict[str, Any], browser: Browser) -> None:
    session["client_secret"] = "not the secret of this client"


def invalid_request(sandbox: Sandbox, _: dict[str, Any], browser: Browser) -> None:
    sandbox.fail_next(
        on="exchange", status=400, body=b'{"code": "invalid_request", "message": "", "field": "redirect_uri"}'
    )


def rate_limited(sandbox: Sandbox, _: dict[str, Any], browser: Browser) -> None:
    sandbox.fail_next(on="exchange", status=429, retry_after=7)


def outage(sandbox: Sandbox, _: dict[str, Any], browser: Browser) -> None:
    sandbox.fail_next(on="exchange", status=503)


def dropped(sandbox: Sandbox, _: dict[str, Any], browser: Browser) -> None:
    sandbox.fail_next(on="exchange", drop="after")


def portal(sandbox: Sandbox, _: dict[str, Any], browser: Browser) -> None:
    sandbox.fail_next(on="exchange", status=200, body=b"<html>Welcome to the hotel</html>")


def useless_reply(sandbox: Sandbox, _: dict[str, Any], browser: Browser) -> None:
    sandbox.fail_next(on="exchange", status=200, body=b'{"access_token": "adh_only"}')


FAILURES: list[tuple[Any, type[AdhAuthError], str]] = [
    (deny, AdhAuthError, "the sign-in was denied"),
    (odd_error, AdhAuthError, "the server ended the sign-in: it gave a reason that is not documented"),
    (code_used_twice, ReauthorizationRequired, "used already"),
    (code_too_old, ReauthorizationRequired, "older than 60 s"),
    (code_for_another_redirect, ReauthorizationRequired, "another redirect URI"),
    (wrong_verifier, AdhAuthError, "invalid_verifier"),
    (wrong_secret, ConfigurationError, "check ADH_CLIENT_ID and ADH_CLIENT_SECRET"),
    (invalid_request, AdhAuthError, "registered for the app exactly"),
    (rate_limited, RefreshFailed, "HTTP 429"),
    (outage, RefreshFailed, "HTTP 503"),
    (dropped, RefreshFailed, "can't be reached"),
    (portal, RefreshFailed, "without tokens"),
    (useless_reply, RefreshFailed, "refresh_token is missing"),
]


@pytest.mark.parametrize(
    ("arrange", "kind", "words"), FAILURES, ids=lambda value: getattr(value, "__name__", None)
)
def test_each_failure_is_a_clear_line(
    sandbox: Sandbox,
    session: dict[str, Any],
    token_file: Path,
    browser: Browser,
    arrange: Callable[[Sandbox, dict[str, Any], Browser], None],
    kind: type[AdhAuthError],
    words: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The error is one line, and on the page; the old file is untouched, and no secret is shown anywhere."""
    caplog.set_level(logging.DEBUG, "adh_auth")
    before = token_file.read_bytes()
    arrange(sandbox, session, browser)
    with pytest.raises(kind) as raised:
        login(**session)
    assert words in raised.value.message
    assert "left as it was" in raised.value.message
    assert "\n" not in raised.value.message
    assert token_file.read_bytes() == before
    page = browser.text()
    assert "The sign-in did not work" in page
    assert "<script>" not in page
    library = library_frames(raised.value)
    assert 'File "' not in library  # no frame that the code went through
    code = _code_of(browser)
    for secret in (code, session["client_secret"], "code_verifier="):
        assert secret not in caplog.text + capsys.readouterr().out + page + library


def library_frames(error: AdhAuthError) -> str:
    """Its traceback with all locals, from `login` on: the test's own frame holds the arguments."""
    shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    return shown.partition(os.path.join("adh_auth", "sign_in", "flow.py"))[2]


def _code_of(browser: Browser) -> str:
    assert browser.page is not None
    return parse_qs(urlsplit(browser.page.request.url or "").query).get("code", ["no code came"])[0]


STRAYS = {
    "a wrong state": lambda url: re.sub(r"state=[^&]+", "state=another", back(url)),
    "a state beyond ASCII": lambda url: re.sub(r"state=[^&]+", "state=%C3%BC", back(url)),
    "no state": lambda url: re.sub(r"&state=[^&]+", "", back(url)),
    "two states": lambda url: f"{back(url)}&state=another",
    "an error of no server": lambda url: re.sub(r"\?.*", "?error=<script>", back(url)),
}


@pytest.mark.parametrize("stray", STRAYS.values(), ids=STRAYS)
def test_a_stray_visit_does_not_end_it(
    sandbox: Sandbox, session: dict[str, Any], browser: Browser, stray: Callable[[str], str]
) -> None:
    """A link of somebody's, an old tab: the page says what it is, and the right one is still waited for."""

    def browse(url: str) -> requests.Response:
        page = visit(stray(url))
        assert (page.status_code, "belongs to another sign-in" in page.text) == (400, True)
        assert "<script>" not in page.text
        return visit(url)

    browser.script = browse
    login(**session)
    assert "You are signed in" in browser.text()
    assert sandbox.counts.exchanges == 1


def test_stray_visits_alone_are_told_at_the_end(
    session: dict[str, Any], browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that loses the state shows in the error."""
    monotonic, passed = time.monotonic, [0.0]
    monkeypatch.setattr(listener_module, "time", SimpleNamespace(monotonic=lambda: monotonic() + passed[0]))

    def browse(url: str) -> requests.Response:
        page = visit(STRAYS["no state"](url))
        passed[0] = 2 * PATIENCE
        return page

    browser.script = browse
    with pytest.raises(AdhAuthError, match="What came had the state of another sign-in, or none"):
        login(**session)


def test_it_says_that_it_waits(
    session: dict[str, Any], browser: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    """A person sees where the browser has to come back to, for how long, and what to do if it can't."""
    login(**session)
    said = capsys.readouterr().out
    assert f"Waiting up to 30 s for the browser to come back to {session['redirect_uri']}\n" in said
    assert "start again with paste=True\n" in said


def test_denied_without_a_state(session: dict[str, Any], browser: Browser) -> None:
    """What a denial brings back is not documented: one without a state ends the sign-in, too."""
    browser.script = lambda url: visit(session["redirect_uri"] + "?error=access_denied")
    with pytest.raises(AdhAuthError, match="denied"):
        login(**session)


def test_the_browser_does_not_come_back(session: dict[str, Any], token_file: Path, browser: Browser) -> None:
    """A redirect URI that is not registered shows in the browser only, so the time-out says so."""
    before = token_file.read_bytes()
    browser.script = lambda url: None
    with pytest.raises(AdhAuthError, match=r"within 0\.05 s.*has to be registered"):
        login(**{**session, "timeout": 0.05})
    assert token_file.read_bytes() == before


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_in_use(session: dict[str, Any], browser: Browser, host: str) -> None:
    """The port may be taken on either address of localhost: a browser could reach the other program."""
    port = urlsplit(session["redirect_uri"]).port or 0
    with _taken(host, port), pytest.raises(ConfigurationError, match=f"port {port} .*in use"):
        login(**session)
    assert browser.urls == []
    login(**session)


def _taken(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError:
        pytest.skip(f"needs the address {host}: switch it on")


@pytest.mark.parametrize(
    "uri",
    ["https://localhost:8765/callback", "https://app.example/callback"],
)
def test_only_loopback_is_listened_on(session: dict[str, Any], browser: Browser, uri: str) -> None:
    """Any other redirect URI can only be pasted, and the error names the argument."""
    with pytest.raises(ConfigurationError, match="with paste=True"):
        login(**{**session, "redirect_uri": uri})
    assert browser.urls == []


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("redirect_uri", "localhost:8765"),
        ("redirect_uri", "http://localhost:8765/#f"),
        ("redirect_uri", "http://192.0.2.1:8765/callback"),
        ("scope", " "),
        ("timeout", 0),
        ("timeout", float("nan")),
    ],
)
def test_arguments_that_cannot_work(
    session: dict[str, Any], browser: Browser, argument: str, value: object
) -> None:
    """They are refused before anything is done."""
    with pytest.raises(ConfigurationError) as raised:
        login(**{**session, argument: value})
    assert raised.value.setting == argument
    assert browser.urls == []


def test_a_file_that_cannot_be_written(session: dict[str, Any], browser: Browser, tmp_path: Path) -> None:
    """The error comes before the user is sent to the browser."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "tokens.json", tmp_path / "folder"):
        with pytest.raises(TokenFileError):
            login(**{**session, "token_file": path})
    assert browser.urls == []


def test_a_lock_that_cannot_be_opened(
    session: dict[str, Any], browser: Browser, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is written under the lock: one of another user's is found before the sign-in, too."""
    lock, access = f"{token_file}.lock", os.access
    Path(lock).touch()
    monkeypatch.setattr(
        os, "access", lambda path, mode: path != lock and access(path, mode)
    )  # no mode stops root
    with pytest.raises(
        TokenFileError, match=re.escape(f"can't be written: {lock} can't be written by this user (mode ")
    ):
        login(**session)
    assert browser.urls == []


def test_a_file_that_cannot_be_written_in_the_end(
    session: dict[str, Any], browser: Browser, token_file: Path
) -> None:
    """The new pair is lost then, and no frame of the error's traceback holds it."""

    def browse(url: str) -> requests.Response:
        token_file.unlink()
        token_file.mkdir()
        return visit(url)

    browser.script = browse
    with pytest.raises(TokenFileError) as raised:
        login(**session)
    assert "adh_rt_" not in library_frames(raised.value)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("the code was refused", "The code was refused."),
        ("http://127.0.0.1:42993 can't be reached", "http://127.0.0.1:42993 can't be reached."),
        ("https://x.example: gone", "https://x.example: gone."),
        ("/home/ada/tokens.json is missing", "/home/ada/tokens.json is missing."),
        ("tokens.json, which was there, is gone", "tokens.json, which was there, is gone."),
        ("localhost:8765 is in use", "localhost:8765 is in use."),
        ("refused: really", "Refused: really."),
        ("is it registered?", "Is it registered?"),
    ],
)
def test_an_error_becomes_a_sentence(message: str, text: str) -> None:
    """On the page it begins with a capital, unless it begins with a URL or a file name."""
    assert as_sentence(message) == text


def test_the_page_leaves_urls_as_they_are(
    sandbox: Sandbox, session: dict[str, Any], browser: Browser
) -> None:
    """An endpoint that can't be reached is named as the user wrote it."""
    sandbox.fail_next(on="exchange", drop="after")
    with pytest.raises(RefreshFailed):
        login(**session)
    assert f"<p>{sandbox.url} can&#x27;t be reached" in browser.text()


# The listener.


def test_only_a_callback_is_taken_for_one(session: dict[str, Any], browser: Browser) -> None:
    """Requests for the icon or without a code, another method, a silent connection don't end the sign-in."""

    def browse(url: str) -> requests.Response:
        uri = urlsplit(session["redirect_uri"])
        with socket.create_connection(("127.0.0.1", uri.port or 0)):
            for path in (
                "/favicon.ico",
                "/callback",
                "/callback/?code=x&state=y",
                "/callback?" + "a=b&" * 60,
            ):
                assert requests.get(f"http://{uri.netloc}{path}", timeout=PATIENCE).status_code == 404
            assert requests.post(session["redirect_uri"], timeout=PATIENCE).status_code == 501
            return visit(url)

    browser.script = browse
    login(**session)
    assert "You are signed in" in browser.text()


def test_a_callback_that_comes_twice(sandbox: Sandbox, session: dict[str, Any], browser: Browser) -> None:
    """A browser that loads the page twice gets the same page twice; the code is exchanged once."""

    def twice(url: str) -> requests.Response:
        callback = back(url)
        with ThreadPoolExecutor(2) as pool, sandbox.hold_next(on="exchange") as hold:
            pages = [pool.submit(visit, callback) for _ in range(2)]
            hold.wait(PATIENCE)
            hold.release()
            for page in pages:
                assert page.result(PATIENCE).status_code == 200
            return pages[1].result()

    browser.script = twice
    login(**session)
    assert "You are signed in" in browser.text()
    assert sandbox.counts.exchanges == 1


def test_an_interrupted_sign_in_says_so_in_the_browser(redirect_uri: str) -> None:
    """A browser that waits for its page sees it, and the port is free again."""
    with ThreadPoolExecutor(1) as pool:
        with Listener(redirect_uri) as listener:
            page = pool.submit(visit, redirect_uri + "?code=c&state=s")
            assert listener.wait(PATIENCE) is not None
        assert "interrupted" in page.result(PATIENCE).text
    with Listener(redirect_uri):
        pass


def test_the_page_is_on_its_way_before_the_port_is_closed(
    redirect_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program may end right after a sign-in: it first waits until the browser has its page."""
    order: list[str] = []
    end_headers, shutdown = BaseHTTPRequestHandler.end_headers, socketserver.BaseServer.shutdown

    def end_headers_late(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.2)  # without the wait, the port is closed meanwhile
        order.append("page")
        end_headers(handler)

    def shut_down(server: socketserver.BaseServer) -> None:
        order.append("closed")
        shutdown(server)

    monkeypatch.setattr(BaseHTTPRequestHandler, "end_headers", end_headers_late)
    monkeypatch.setattr(socketserver.BaseServer, "shutdown", shut_down)
    with ThreadPoolExecutor(1) as pool:
        with Listener(redirect_uri) as listener:
            page = pool.submit(visit, redirect_uri + "?code=c&state=s")
            listener.wait(PATIENCE)
            listener.show(good=True, text="")
        assert page.result(PATIENCE).status_code == 200
    assert order[0] == "page"


def test_a_callback_shows_no_secret() -> None:
    """Neither code nor state is in its repr; a parameter that comes twice counts as missing."""
    callback = Callback.from_query("code=c0de&state=st4te")
    assert callback is not None
    assert "c0de" not in repr(callback)
    assert "st4te" not in repr(callback)
    assert Callback.from_query("code=a&code=b") is None


def test_where_to_listen() -> None:
    """An IP address is listened on alone, localhost on both; the default port is 80."""
    assert listen_address_of("http://[::1]:9/cb") == (("::1",), 9, "/cb")
    assert listen_address_of("http://localhost") == (("127.0.0.1", "::1"), 80, "/")


# The command line.

DENIED = "adh-auth: the sign-in was denied in the browser (access_denied). The session was left as it was"


@pytest.fixture
def environment(sandbox: Sandbox, token_file: Path) -> dict[str, str]:
    return sandbox.environment(token_file)


def test_the_command(
    sandbox: Sandbox, environment: dict[str, str], redirect_uri: str, token_file: Path
) -> None:
    """`adh-auth login --no-browser` prints the URL, waits for the browser to come back, and greets."""
    before = token_file.read_bytes()
    with started("login", "--no-browser", "--redirect-uri", redirect_uri, env=environment) as command:
        assert "You are signed in" in visit(_url_in(command.stdout)).text
        said, complaint = command.communicate(timeout=PATIENCE)
        assert (command.returncode, complaint) == (0, "")
    assert "Hello Sandbox User" in said
    assert token_file.read_bytes() != before
    assert_nothing_lost(sandbox, token_file)


def test_the_command_opens_the_browser(
    sandbox: Sandbox, environment: dict[str, str], redirect_uri: str, token_file: Path
) -> None:
    """The user's own browser is opened, one that runs in the foreground as well as any other."""
    browser = f"{shlex.quote(sys.executable)} -c 'import sys, requests; requests.get(sys.argv[1])' %s"
    with started("login", "--redirect-uri", redirect_uri, env={**environment, "BROWSER": browser}) as command:
        said, complaint = command.communicate(timeout=PATIENCE)
        assert (command.returncode, complaint) == (0, "")
    assert "Opening the browser" in said
    assert sandbox.counts.exchanges == 1
    assert_nothing_lost(sandbox, token_file)


def test_the_command_speaks_json(
    sandbox: Sandbox, environment: dict[str, str], redirect_uri: str, token_file: Path
) -> None:
    """With `--json`, stdout has one object, the pair's facts and the user; URL and greeting are on stderr."""
    with started(
        "login", "--json", "--no-browser", "--redirect-uri", redirect_uri, env=environment
    ) as command:
        visit(_url_in(command.stderr))
        said, stderr = command.communicate(timeout=PATIENCE)
        assert command.returncode == 0
    facts, tokens = json.loads(said), TokenFile(token_file).load()
    assert facts["seconds_left"] == pytest.approx(3600, abs=PATIENCE)
    assert facts["user"]["id"] == "usr_sandbox"
    assert (facts["token_file"], facts["expires_at"], facts["scope"]) == (
        str(token_file),
        tokens.expires_at,
        tokens.scope,
    )
    assert sorted(facts) == sorted(
        [
            "token_file",
            "access_token_fingerprint",
            "refresh_token_fingerprint",
            "scope",
            "expires_at",
            "seconds_left",
            "user",
        ]
    )
    assert "Hello Sandbox User" in stderr
    assert not [
        secret
        for secret in (tokens.access_token, tokens.refresh_token, sandbox.client_secret)
        if secret in said + stderr
    ]
    assert_nothing_lost(sandbox, token_file)


def test_the_command_speaks_json_without_a_greeting(
    sandbox: Sandbox, environment: dict[str, str], redirect_uri: str
) -> None:
    """A failed call for the greeting is no failure of the sign-in: the user is null then."""
    sandbox.fail_next(None, on="me", status=503)
    with started(
        "login", "--json", "--no-browser", "--redirect-uri", redirect_uri, env=environment
    ) as command:
        visit(_url_in(command.stderr))
        said, stderr = command.communicate(timeout=PATIENCE)
        assert command.returncode == 0
    assert json.loads(said)["user"] is None
    assert "the user could not be fetched" in stderr


def test_a_browser_does_not_mix_with_json(environment: dict[str, str], redirect_uri: str) -> None:
    """What a browser writes to its stdout (Chrome: "Opening in existing browser session.") goes to stderr as
    well.
    """
    code = 'import sys, requests; print("Opening", flush=True); requests.get(sys.argv[1])'
    browser = f"{shlex.quote(sys.executable)} -c '{code}' %s"
    with started(
        "login", "--json", "--redirect-uri", redirect_uri, env={**environment, "BROWSER": browser}
    ) as command:
        said, stderr = command.communicate(timeout=PATIENCE)
        assert command.returncode == 0
    assert json.loads(said)["user"]["id"] == "usr_sandbox"
    assert "\nOpening\n" in stderr


def test_a_pasted_url_and_json(sandbox: Sandbox, environment: dict[str, str]) -> None:
    """The prompt of `--paste` goes to stderr."""
    sandbox.redirect_uris = ["https://app.example/callback"]
    options = ("--no-browser", "--paste", "--redirect-uri", "https://app.example/callback")
    with started("login", "--json", *options, env=environment, stdin=-1) as command:
        assert command.stdin is not None
        assert command.stderr is not None
        command.stdin.write(back(_url_in(command.stderr)))
        command.stdin.close()
        command.stdin = None
        # communicate() would miss what was buffered with the URL.
        assert "Paste that URL here: " in command.stderr.read()
        said, _ = command.communicate(timeout=PATIENCE)
        assert command.returncode == 0
    assert json.loads(said)["user"]["id"] == "usr_sandbox"


def test_a_command_that_fails_says_nothing_in_json(
    sandbox: Sandbox, environment: dict[str, str], redirect_uri: str
) -> None:
    """An error leaves stdout empty: one line on stderr, after what was said there before, and exit 1."""
    sandbox.deny_next()
    with started(
        "login", "--json", "--no-browser", "--redirect-uri", redirect_uri, env=environment
    ) as command:
        visit(_url_in(command.stderr))
        said, rest = command.communicate(timeout=PATIENCE)
        assert (command.returncode, said) == (1, "")
    assert rest.splitlines()[-1] == DENIED


@pytest.mark.parametrize("closed", [1, 2])
def test_a_closed_stream_does_not_cost_the_sign_in(
    closed: int, sandbox: Sandbox, environment: dict[str, str], redirect_uri: str, token_file: Path
) -> None:
    """`adh-auth login --json >&-` signs in without a word and without an object, `2>&-` without a word."""
    before = token_file.read_bytes()
    browser = f"{shlex.quote(sys.executable)} -c 'import sys, requests; requests.get(sys.argv[1])' %s"
    arguments = ("login", "--json", "--redirect-uri", redirect_uri)
    with started(
        *arguments, env={**environment, "BROWSER": browser}, preexec_fn=lambda: os.close(closed)
    ) as command:
        said, stderr = command.communicate(timeout=PATIENCE)
        assert command.returncode == 0
    assert said == "" if closed == 1 else json.loads(said)["user"]["id"] == "usr_sandbox"
    assert stderr == ""
    assert token_file.read_bytes() != before


def test_a_command_that_fails(
    sandbox: Sandbox, environment: dict[str, str], redirect_uri: str, token_file: Path
) -> None:
    """One line on stderr, exit 1, and the old token file untouched."""
    before = token_file.read_bytes()
    sandbox.deny_next()
    with started("login", "--no-browser", "--redirect-uri", redirect_uri, env=environment) as command:
        visit(_url_in(command.stdout))
        _, complaint = command.communicate(timeout=PATIENCE)
        assert command.returncode == 1
    assert complaint == DENIED + "\n"
    assert token_file.read_bytes() == before


def test_an_interrupted_command(environment: dict[str, str], redirect_uri: str, token_file: Path) -> None:
    """Ctrl-C ends the wait at once, with one line."""
    before = token_file.read_bytes()
    with started("login", "--no-browser", "--redirect-uri", redirect_uri, env=environment) as command:
        _url_in(command.stdout)
        command.send_signal(signal.SIGINT)
        _, complaint = command.communicate(timeout=PATIENCE)
        assert command.returncode == 130
    assert complaint == "adh-auth: interrupted\n"
    assert token_file.read_bytes() == before


@pytest.mark.parametrize("redirect", ["http://localhost:8765/callback", "https://app.example/callback"])
def test_a_pasted_url(sandbox: Sandbox, environment: dict[str, str], redirect: str, token_file: Path) -> None:
    """`--paste` listens nowhere, and takes the URL that the browser ends on, whichever it is."""
    sandbox.redirect_uris = [redirect]
    options = ("--no-browser", "--paste", "--redirect-uri", redirect)
    with started("login", *options, env=environment, stdin=-1) as command:
        answer = back(_url_in(command.stdout))
        said, complaint = command.communicate(f"  '{answer}' \n", timeout=PATIENCE)
        assert (command.returncode, complaint) == (0, "")
    assert "Hello Sandbox User" in said
    assert_nothing_lost(sandbox, token_file)


@pytest.mark.parametrize(
    ("typed", "words"),
    [("", "no URL"), ("hello\n", "no code"), ("http://x/?code=1&state=2\n", "wrong state")],
)
def test_a_wrong_paste(environment: dict[str, str], token_file: Path, typed: str, words: str) -> None:
    """One line, exit 1, and the old token file untouched."""
    before = token_file.read_bytes()
    with started("login", "--no-browser", "--paste", env=environment, stdin=-1) as command:
        _, complaint = command.communicate(typed, timeout=PATIENCE)
        assert command.returncode == 1
    assert words in complaint
    assert complaint.count("\n") == 1
    assert token_file.read_bytes() == before


def test_a_wrong_paste_is_asked_for_again(sandbox: Sandbox, environment: dict[str, str]) -> None:
    """The code alone, or the URL of another tab, cost a line and not the sign-in."""
    with started("login", "--no-browser", "--paste", env=environment, stdin=-1) as command:
        answer = back(_url_in(command.stdout))
        other = re.sub(r"state=[^&]+", "state=another", answer)
        said, complaint = command.communicate(f"c0de\n\n{other}\n{answer}\n", timeout=PATIENCE)
        assert (command.returncode, complaint) == (0, "")
    assert said.count("it has no code") == 2
    assert said.count("wrong state") == 1
    assert "Hello Sandbox User" in said
    assert sandbox.counts.exchanges == 1


def test_a_program_behind_stdin_does_not_paste_for_ever(environment: dict[str, str]) -> None:
    """`yes | adh-auth login --paste` ends."""
    with started("login", "--no-browser", "--paste", env=environment, stdin=-1) as command:
        said, complaint = command.communicate("y\n" * 1000, timeout=PATIENCE)
        assert command.returncode == 1
    assert said.count("Paste that URL here") == 10
    assert complaint.count("\n") == 1


@pytest.mark.parametrize(
    ("redirect", "example"),
    [
        ("http://localhost:8765/callback", "http://localhost:8765/callback?code=…&state=…"),
        ("https://app.example/callback?app=1", "https://app.example/callback?app=1&code=…&state=…"),
    ],
)
def test_a_pasted_code(environment: dict[str, str], redirect: str, example: str) -> None:
    """For a pasted code alone, the error names what to paste, and does not repeat the code."""
    with started(
        "login", "--no-browser", "--paste", "--redirect-uri", redirect, env=environment, stdin=-1
    ) as command:
        said, complaint = command.communicate("c0de-of-mine\n", timeout=PATIENCE)
        assert command.returncode == 1
    assert complaint == (
        "adh-auth: that is not the URL that a sign-in ends on: it has no code. "
        f"Paste the whole URL, like {example}. The session was left as it was; start again\n"
    )
    assert "c0de-of-mine" not in said


def _url_in(output: Any) -> str:
    lines: Iterator[str] = iter(output.readline, "")
    return next(line.strip() for line in lines if line.strip().startswith("http"))


def test_the_error_names_the_command(sandbox: Sandbox, arguments: dict[str, Any]) -> None:
    """`ReauthorizationRequired` names the whole command, with the token file in it."""
    sandbox.revoke()
    with pytest.raises(ReauthorizationRequired) as raised:
        AdhAuth(**arguments).refresh()
    assert login_command_line(arguments["token_file"]) in raised.value.message
    assert os.path.isabs(arguments["token_file"])
