"""What a user would pick instead, each set up as its manual says, and what it does when processes share one
token file.

None of them speaks ADH's JSON at the refresh endpoint by itself, so an adapter turns the form into it.
A peer that is missing, or broken with what is installed here, is listed as that.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import requests
from requests.adapters import HTTPAdapter

from adh_auth import AdhAuth

from .measure import CLIENT, Sizes, session_of
from .server import sandbox_elsewhere
from .table import Row
from .workers import start_workers

#: Processes of the herd: enough that two of them always meet.
PROCESSES = 8


def measure(sizes: Sizes, folder: Path) -> list[Row]:
    """Processes that start with an expired pair in the file, for each library."""
    count = min(PROCESSES, max(sizes.herd))
    return [_herd(name, count, folder / name.replace(" ", "-")) for name in (AdhAuth.__name__, *_SESSIONS)]


def _herd(name: str, count: int, folder: Path) -> Row:
    what = f"{name}, {count} processes start with one expired pair"
    if name in _SESSIONS and (problem := _problem_with(name)):
        return Row("peers", what, problem)
    folder.mkdir()
    path = folder / "tokens.json"
    with sandbox_elsewhere(refresh_seconds=0.1) as sandbox:
        sandbox.ask("write_token_file", path)
        # Most peers go by the clock, not by the API's 401.
        _save(path, {**_load(path), "expires_at": time.time() - 1, "expires_in": 0})
        with start_workers(count, sandbox.url, path, name) as workers:
            workers.prepare(count, "start")
            sandbox.ask("expire")
            done = workers.together(count, "get")
        counts = sandbox.counts
        alive = (
            session_of()
            .post(sandbox.url + "/api/auth/refresh", json=refresh_payload(_load(path)["refresh_token"]))
            .ok
        )
    outcomes = ", ".join(
        f"{number} × {outcome}" for outcome, number in Counter(one.outcome for one in done).most_common()
    )
    value = (
        f"session {'alive' if alive else 'DEAD'}, {counts.refresh_calls} refresh calls, "
        f"{counts.reused} spent tokens sent again; "
        f"{outcomes} after {max(one.seconds for one in done) * 1000:.0f} ms"
    )
    goal = ("alive, 1 call", alive and counts.refresh_calls == 1) if name == AdhAuth.__name__ else ("", None)
    return Row("peers", what, value, *goal)


def session(name: str, url: str, path: Path) -> requests.Session:
    """Return a session of that library on the token file; of ours for an empty name."""
    if name in _SESSIONS:
        return session_of(session=_SESSIONS[name](url, path))
    return session_of(AdhAuth(path, base_url=url, **CLIENT))


def sessions(url: str, path: Path) -> Iterator[tuple[str, requests.Session]]:
    """Yield each library that works here, with a session."""
    for name in _SESSIONS:
        if not _problem_with(name):
            yield name, session(name, url, path)


def clients(module: Any, kind: str, path: Path, options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the same for a client of httpx or httpx2; a library serves one of the two."""
    for name, make in (("Authlib", _authlib_client), ("singleflight-auth", _singleflight_client)):
        try:
            client = make(module, kind, path, options)
        except Exception:
            continue
        if client is not None:
            yield name, client


def refresh_payload(token: str) -> dict[str, str]:
    """Return what ADH's refresh endpoint takes."""
    return {"grant_type": "refresh_token", "refresh_token": token, **CLIENT}


def _load(path: Path) -> dict[str, Any]:
    pair: dict[str, Any] = json.loads(path.read_text())
    return pair


def _save(path: Path, pair: Any) -> None:
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(dict(pair)))
    fresh.chmod(0o600)
    fresh.replace(path)


def _problem_with(name: str) -> str:
    try:
        _SESSIONS[name]("http://127.0.0.1:9", _NO_FILE)
    except ImportError:
        return "not installed"
    except FileNotFoundError:
        return ""
    except Exception as error:
        return f"not installed (broken here: {type(error).__name__})"
    return ""


_NO_FILE = Path("/nowhere/tokens.json")


def _authlib(url: str, path: Path) -> requests.Session:
    kind: Any = import_module("authlib.integrations.requests_client").OAuth2Session
    made: requests.Session = kind(
        CLIENT["client_id"],
        CLIENT["client_secret"],
        token=_load(path),
        token_endpoint=url + "/api/auth/refresh",
        update_token=lambda token, **old: _save(path, token),
    )
    made.mount(url + "/api/auth/refresh", _FormAsJson())
    return made


def _oauth2client(url: str, path: Path) -> requests.Session:
    module: Any = import_module("requests_oauth2client")
    carrier = session_of()
    carrier.mount(url, _FormAsJson())
    client = module.OAuth2Client(
        token_endpoint=url + "/api/auth/refresh", auth=tuple(CLIENT.values()), session=carrier, testing=True
    )
    pair = _load(path)
    expires_at = datetime.fromtimestamp(pair["expires_at"], timezone.utc)
    token = module.BearerToken(
        pair["access_token"], refresh_token=pair["refresh_token"], expires_at=expires_at
    )

    class Saving(module.OAuth2AccessTokenAuth):  # type: ignore[misc]
        def renew_token(self) -> None:
            super().renew_token()
            _save(path, {"access_token": self.token.access_token, "refresh_token": self.token.refresh_token})

    return session_of(Saving(client, token))


class _FormAsJson(HTTPAdapter):
    """Sends an OAuth form as the JSON that ADH takes."""

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        body = request.body.decode() if isinstance(request.body, bytes) else str(request.body)
        request.prepare_body(None, None, {**dict(parse_qsl(body)), **CLIENT})
        request.headers["Content-Type"] = "application/json"
        request.headers.pop("Authorization", None)
        return super().send(request, *args, **options)


def _singleflight(url: str, path: Path) -> requests.Session:
    return session_of(import_module("singleflight_auth").RequestsSingleFlightAuth(**_callables(url, path)))


def _callables(url: str, path: Path) -> dict[str, Callable[[], str]]:
    pair = _load(path)

    def refresh() -> str:
        reply = session_of().post(
            url + "/api/auth/refresh", json=refresh_payload(pair["refresh_token"]), timeout=60
        )
        reply.raise_for_status()
        pair.update(reply.json())
        _save(path, pair)
        return str(pair["access_token"])

    return {"get_token": lambda: pair["access_token"], "refresh": refresh}


def _google(url: str, path: Path) -> requests.Session:
    credentials: Any = import_module("google.auth.credentials").Credentials
    transport: Any = import_module("google.auth.transport.requests")
    parts = _callables(url, path)

    class Credentials(credentials):  # type: ignore[misc]
        def refresh(self, request: Any) -> None:
            self.token = parts["refresh"]()

    mine = Credentials()
    mine.token = parts["get_token"]()
    made: requests.Session = transport.AuthorizedSession(mine)
    return made


_SESSIONS: dict[str, Callable[[str, Path], requests.Session]] = {
    "Authlib": _authlib,
    "requests_oauth2client": _oauth2client,
    "singleflight-auth": _singleflight,
    "google-auth": _google,
}


def _authlib_client(module: Any, kind: str, path: Path, options: dict[str, Any]) -> Any:
    library: Any = import_module("authlib.integrations.httpx_client")
    made = library.AsyncOAuth2Client if kind == "AsyncClient" else library.OAuth2Client
    return made(token=_load(path), **options) if issubclass(made, getattr(module, kind)) else None


def _singleflight_client(module: Any, kind: str, path: Path, options: dict[str, Any]) -> Any:
    library: Any = import_module("singleflight_auth")
    auth = library.AsyncSingleFlightAuth if kind == "AsyncClient" else library.SingleFlightAuth
    if not issubclass(auth, module.Auth):
        return None
    return getattr(module, kind)(auth=auth(**_callables("http://127.0.0.1:9", path)), **options)
