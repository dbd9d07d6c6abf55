"""The endpoints of the sandbox: a request in, a reply out, and a fault in between if one is planned."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

from .faults import Fault, Faults
from .server import Reply, Request, json_reply
from .settings import SandboxSettings
from .state import Refusal, State

START = "/api/oauth/signin/start"
_NAMED = {
    START: "start",
    "/api/oauth/signin/exchange": "exchange",
    "/api/auth/refresh": "refresh",
    "/api/auth/revoke": "revoke",
    "/api/auth/me": "me",
}
_METHODS = {
    "start": ("GET",),
    "exchange": ("POST",),
    "refresh": ("POST",),
    "revoke": ("POST",),
    "me": ("GET", "HEAD"),
}
_WITH_TOKEN = frozenset({"me", "api"})
_USER = {"id": "usr_sandbox", "email": "sandbox@example.com", "name": "Sandbox User"}
_REDIRECTS = (301, 302, 303, 307, 308)
_STREAM_LIMIT = 10_000
# RFC 7636 section 4.2.
_CHALLENGE = re.compile(r"[A-Za-z0-9._~-]{43,128}")
_PAYLOAD = {
    "exchange": ("code", "redirect_uri", "client_id", "client_secret", "code_verifier"),
    "refresh": ("refresh_token", "client_id", "client_secret"),
    "revoke": ("token", "client_id", "client_secret"),
}
_GRANT_TYPES = {"exchange": "authorization_code", "refresh": "refresh_token"}


class Routes:
    """Finds the endpoint of a request, applies faults and holds, and counts."""

    def __init__(self, settings: SandboxSettings, state: State, faults: Faults) -> None:
        self._settings = settings
        self._state = state
        self._faults = faults
        self._endpoints: dict[str, Callable[[Request], Reply]] = {
            "start": self._start,
            "exchange": self._exchange,
            "refresh": self._refresh,
            "revoke": self._revoke,
            "me": self._me,
            "api": self._api,
            "nowhere": _nowhere,
        }

    def answer(self, request: Request) -> Reply:
        """Return the reply to a request."""
        on = _endpoint(request.path)
        self._count_arrival(on)
        reply = self._with_fault(on, request, self._faults.take(on))
        sent = None if reply.cut else reply.status
        if on in _WITH_TOKEN and sent == 401:
            self._state.count("unauthorized")
        self._state.record(request.method, request.path, sent)
        return reply

    def _count_arrival(self, on: str) -> None:
        if on == "refresh":
            self._state.count("refresh_calls")
        elif on in _WITH_TOKEN:
            self._state.count("requests")

    def _with_fault(self, on: str, request: Request, fault: Fault) -> Reply:
        self._faults.pass_by(on, "before")
        reply = self._outcome(on, request, fault)
        self._faults.pass_by(on, "after")
        self._faults.sleep(fault.delay)
        if fault.drop is not None:
            return replace(reply, cut="half" if fault.drop == "midway" else "all")
        return reply

    def _outcome(self, on: str, request: Request, fault: Fault) -> Reply:
        if fault.status is not None:
            return _planned_reply(fault.status, fault)
        if fault.drop == "before":
            return Reply(503)  # dropped, never sent
        return self._without_fault(on, request)

    def _without_fault(self, on: str, request: Request) -> Reply:
        try:
            if request.method not in _METHODS.get(on, (request.method,)):
                raise Refusal(405, "method_not_allowed", f"Use {_METHODS[on][0]}.")
            if on in _WITH_TOKEN:
                self._state.check(_bearer(request))
            return self._endpoints[on](request)
        except Refusal as refusal:
            return self._refused(refusal, on)

    def _refused(self, refusal: Refusal, on: str) -> Reply:
        shape = self._settings.error_shape
        if shape == "header" and not (on in _WITH_TOKEN and refusal.status == 401):
            # RFC 6750 has this header for the 401 of a bearer token only. Other errors need a body.
            shape = "code"
        return _error(refusal, shape)

    # The endpoints, in the order in which a client calls them.

    def _start(self, request: Request) -> Reply:
        query = dict(parse_qsl(request.query))
        self._check_start(query)
        if self._state.take_denial():
            return _back(query, error="access_denied")
        return _back(
            query, code=self._state.authorize(query["code_challenge"], query["redirect_uri"], query["scope"])
        )

    def _exchange(self, request: Request) -> Reply:
        payload = self._payload(request, "exchange")
        return json_reply(
            200, self._state.exchange(payload["code"], payload["redirect_uri"], payload["code_verifier"])
        )

    def _refresh(self, request: Request) -> Reply:
        payload = self._payload(request, "refresh")
        self._faults.sleep(self._settings.refresh_seconds)
        return json_reply(200, self._state.rotate(payload["refresh_token"]))

    def _revoke(self, request: Request) -> Reply:
        self._state.revoke(self._payload(request, "revoke")["token"])
        return Reply(204)

    def _me(self, _: Request) -> Reply:
        return json_reply(200, _USER)

    def _api(self, request: Request) -> Reply:
        name = request.path.removeprefix("/api/")
        query = dict(parse_qsl(request.query))
        if name == "redirect":
            return _redirect(query)
        if name == "stream":
            return _stream(query)
        if re.fullmatch(r"status/[2-5]\d\d", name):
            return json_reply(int(name[-3:]), {"status": int(name[-3:])})
        cookies = query.items() if name == "cookie" else ()
        return json_reply(
            200,
            _echo(request),
            tuple(("Set-Cookie", _printable(f"{key}={value}; Path=/")) for key, value in cookies),
        )

    # Checks.

    def _check_start(self, query: Mapping[str, str]) -> None:
        if query.get("client_id") != self._settings.client_id:
            raise Refusal(401, "invalid_client", "The client is unknown.")
        # RFC 6749 section 4.1.2.1: an unregistered redirect_uri gets no redirect, it may be an attacker's.
        if query.get("redirect_uri") not in self._settings.redirect_uris:
            raise _invalid("redirect_uri")
        for name, value in (("response_type", "code"), ("code_challenge_method", "S256")):
            if query.get(name) != value:
                raise _invalid(name)
        if not _CHALLENGE.fullmatch(query.get("code_challenge", "")):
            raise _invalid("code_challenge")
        for name in ("scope", "state"):
            if not query.get(name):
                raise _invalid(name)

    def _payload(self, request: Request, on: str) -> dict[str, str]:
        payload = _json_object(request)
        if payload.get("grant_type") != _GRANT_TYPES.get(on, payload.get("grant_type")):
            raise _invalid("grant_type")
        for name in _PAYLOAD[on]:
            if not (isinstance(payload.get(name), str) and payload[name]):
                raise _invalid(name)
        if (payload["client_id"], payload["client_secret"]) != (
            self._settings.client_id,
            self._settings.client_secret,
        ):
            raise Refusal(401, "invalid_client", "The client is unknown or its secret is wrong.")
        return payload


def _endpoint(path: str) -> str:
    return _NAMED.get(path) or ("api" if path.startswith("/api/") else "nowhere")


def _planned_reply(status: int, fault: Fault) -> Reply:
    code = "rate_limited" if status == 429 else "server_error"
    usual = _error(Refusal(status, code, "The sandbox was asked to fail."), "code")
    given = {name.lower() for name, _ in fault.headers}
    kept = tuple(pair for pair in usual.headers if pair[0].lower() not in given)
    return Reply(status, (*kept, *fault.headers), usual.body if fault.body is None else fault.body)


def _error(refusal: Refusal, shape: str) -> Reply:
    if shape == "header":
        return Reply(refusal.status, (("WWW-Authenticate", f'Bearer error="{refusal.code}"'),))
    if shape == "oauth":
        return json_reply(refusal.status, {"error": refusal.code})
    details = {"code": refusal.code, "message": refusal.message}
    if refusal.field is not None:
        details["field"] = refusal.field
    return json_reply(refusal.status, {"error": details} if shape == "nested" else details)


def _invalid(name: str) -> Refusal:
    return Refusal(400, "invalid_request", f"{name} is missing or wrong.", name)


def _json_object(request: Request) -> dict[str, Any]:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise Refusal(415, "invalid_request", "The body must be application/json.")
    try:
        payload = json.loads(request.body.kept or b"")
    except ValueError:
        payload = None
    if not isinstance(payload, dict):
        raise Refusal(400, "invalid_request", "The body must be a JSON object.")
    return payload


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Refusal(401, "unauthorized", "An access token is needed.")
    return token.strip()


def _back(query: Mapping[str, str], **result: str) -> Reply:
    uri = query["redirect_uri"]
    parameters = urlencode({**result, "state": query["state"]})
    return Reply(302, (("Location", f"{uri}{'&' if '?' in uri else '?'}{parameters}"),))


def _nowhere(_: Request) -> Reply:
    raise Refusal(404, "not_found", "There is nothing here.")


def _redirect(query: Mapping[str, str]) -> Reply:
    status = int(query.get("status", "302")) if query.get("status", "302").isdecimal() else 0
    if status not in _REDIRECTS:
        raise _invalid("status")
    if not query.get("to"):
        raise _invalid("to")
    return Reply(status, (("Location", _printable(query["to"])),))


def _stream(query: Mapping[str, str]) -> Reply:
    count = query.get("chunks", "3")
    if not (count.isdecimal() and int(count) <= _STREAM_LIMIT):
        raise _invalid("chunks")
    pieces = tuple(b"chunk %d\n" % number for number in range(int(count)))
    return Reply(200, (("Content-Type", "text/plain"),), pieces=pieces)


def _printable(value: str) -> str:
    # A line break would end the header and start another one.
    if not (value.isascii() and value.isprintable()):
        raise Refusal(400, "invalid_request", "Only printable ASCII fits in a header.")
    return value


def _echo(request: Request) -> dict[str, Any]:
    return {
        "method": request.method,
        "path": request.path,
        "query": request.query,
        "headers": {name: value for name, value in request.headers.items() if name != "authorization"},
        "length": request.body.length,
        "sha256": request.body.sha256,
        "body": _text(request.body.kept),
    }


def _text(kept: bytes | None) -> str | None:
    try:
        return None if kept is None else kept.decode()
    except UnicodeDecodeError:
        return None
