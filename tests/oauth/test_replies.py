"""The auth endpoints as values: what a reply means."""

from __future__ import annotations

import gzip
import json
import zlib
from email.utils import formatdate
from typing import Any

import pytest

from adh_auth import ConfigurationError
from adh_auth.common.limits import BODY_LIMIT
from adh_auth.oauth.endpoint import EndpointCall, EndpointReply
from adh_auth.oauth.origin import base_url_of, origin_of
from adh_auth.oauth.replies import classify, error_code, retry_after, revoked

PAIR = json.dumps({"access_token": "adh_A", "refresh_token": "adh_rt_A"}).encode()


def error(code: str) -> bytes:
    return json.dumps({"code": code, "message": "no"}).encode()


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, PAIR, "pair"),
        (201, PAIR, "pair"),
        (400, error("invalid_grant"), "refused"),
        (401, error("invalid_grant"), "refused"),
        (200, error("invalid_grant"), "refused"),
        (400, b'{"error": "invalid_grant"}', "refused"),
        (400, b'{"error": {"code": "invalid_grant"}}', "refused"),
        (500, error("invalid_grant"), "again"),
        (401, error("invalid_client"), "misconfigured"),
        (400, error("unauthorized_client"), "misconfigured"),
        (400, error("invalid_request"), "failed"),
        (400, error("not_invalid_grant"), "failed"),
        (400, b"invalid_grant", "failed"),
        (403, b"<html>", "failed"),
        (307, b"", "failed"),
        (404, b"", "failed"),
        (429, b"", "again"),
        (500, b"", "again"),
        (502, b"<html>", "again"),
        (503, PAIR, "again"),
        (200, b"<html>portal</html>", "again"),
        (200, b"", "again"),
        (200, PAIR[:-9], "again"),
        (200, b"[" * 100_000, "again"),
    ],
)
def test_what_a_reply_means(status: int, body: bytes, kind: str) -> None:
    """Only the code invalid_grant is terminal, never a status; a pair counts only with a success."""
    assert classify(EndpointReply(status, {}, body), now=0.0).kind == kind


def test_a_verdict_carries_what_support_asks_for() -> None:
    """The request id, the status, the code and the pause asked for come with the verdict, on one line."""
    verdict = classify(
        EndpointReply(429, {"X-Request-ID": "req\n-1", "Retry-After": "7"}, error("slow_down")), now=0.0
    )
    assert (verdict.request_id, verdict.status, verdict.code, verdict.retry_after) == (
        "req?-1",
        429,
        "slow_down",
        7.0,
    )


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3", 3.0), ("-3", 0.0), ("0.5", 0.5), ("soon", None), (None, None), ("inf", None), ("nan", None)],
)
def test_retry_after_in_seconds(value: str | None, seconds: float | None) -> None:
    """Retry-After is a number of seconds, and nothing where it makes no sense."""
    assert retry_after(value, now=1000.0) == seconds


def test_retry_after_as_a_date() -> None:
    """RFC 9110 allows a date."""
    assert retry_after(formatdate(1060, usegmt=True), now=1000.0) == 60.0


@pytest.mark.parametrize(
    ("headers", "body", "code"),
    [
        ({}, error("token_expired"), "token_expired"),
        ({}, b'{"error": {"code": "token_expired", "message": "m"}}', "token_expired"),
        ({}, b'{"error": "token_expired"}', "token_expired"),
        ({"www-authenticate": 'Bearer error="token_expired"'}, b"", "token_expired"),
        (
            {"www-authenticate": 'Bearer realm="x", error="token_expired", error_description="d"'},
            b"",
            "token_expired",
        ),
        ({"www-authenticate": "bearer error=token_expired"}, b"<html>", "token_expired"),
        ({"www-authenticate": 'Basic error="token_expired"'}, b"", None),
        ({}, error("token_expired_soon"), "token_expired_soon"),
        ({}, b'{"message": "token_expired"}', None),
        ({}, b'{"code": 401}', None),
        ({}, b"token_expired", None),
        ({"content-encoding": "gzip"}, gzip.compress(error("token_expired"), mtime=0), "token_expired"),
        ({"content-encoding": "deflate"}, zlib.compress(error("token_expired")), "token_expired"),
        ({"content-encoding": "gzip"}, b"not gzip", None),
    ],
)
def test_the_code_of_a_401(headers: dict[str, str], body: bytes, code: str | None) -> None:
    """The code is read from all four shapes, and from nowhere in a text."""
    assert error_code(headers, body) == code


def test_a_compressed_bomb_stays_small() -> None:
    """A megabyte of zeros behind a kilobyte of gzip is not unpacked."""
    bomb = gzip.compress(b'{"code": "token_expired", "pad": "' + b"0" * 10_000_000 + b'"}')[:BODY_LIMIT]
    assert error_code({"content-encoding": "gzip"}, bomb) is None


@pytest.mark.parametrize(
    ("status", "body", "gone"),
    [
        (204, b"", True),
        (200, b"whatever", True),
        (400, error("invalid_grant"), True),
        (500, b"", False),
        (401, error("invalid_client"), False),
    ],
)
def test_what_counts_as_revoked(status: int, body: bytes, gone: bool) -> None:
    """Any 2xx, or a token that the server does not know any more."""
    assert revoked(EndpointReply(status, {}, body)) is gone


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://API.example.com/x", "https://api.example.com:443/y"),
        ("https://api.example.com./", "https://api.example.com/"),
        ("http://[0:0:0:0:0:0:0:1]:8080/", "http://[::1]:8080/"),
        ("https://bücher.example/", "https://xn--bcher-kva.example/"),
        ("https://api.example.com@evil.test/", "https://evil.test/"),
    ],
)
def test_one_origin_in_two_spellings(one: str, other: str) -> None:
    """Case, the default port, a trailing dot, IDNA and the forms of IPv6 make no difference; a user name does
    not either.
    """
    assert origin_of(one) == origin_of(other) is not None


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a/",
        "https:///x",
        "//a/x",
        "https://a\\@b/",
        "https://a b/",
        "https://a:99999/",
        "https://[::1/",
        "",
        "https://a\x00/",
    ],
)
def test_no_clear_origin(url: str) -> None:
    """A URL that clients may read differently has no origin at all."""
    assert origin_of(url) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com",
        "http://127.0.0.1.evil.test",
        "http://localhost.evil.test",
        "api.example.com",
        "https://u:p@a.example",
        "https://a.example/?x=1",
        "https://a.example/#f",
        "ftp://localhost",
        "https://a\\b",
    ],
)
def test_a_base_url_that_is_no_place_for_tokens(url: str) -> None:
    """Plain http beyond loopback, user names, queries and unclear addresses are refused."""
    with pytest.raises(ConfigurationError) as caught:
        base_url_of(url)
    assert caught.value.setting == "base_url"


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example.com/",
        "http://localhost:8000",
        "http://127.0.0.1:1",
        "http://127.9.9.9",
        "http://[::1]:8080",
        "https://a.example/v2/",
    ],
)
def test_a_base_url_that_is_fine(url: str) -> None:
    """https anywhere and http on loopback."""
    assert base_url_of(url) == url.rstrip("/")


def test_a_call_shows_no_secret() -> None:
    """The payload has no place in a repr."""
    payload: dict[str, Any] = {"refresh_token": "adh_rt_A", "client_secret": "s3cret"}
    assert "adh_rt_A" not in repr(EndpointCall("https://a.example/x", payload))
    assert "adh_A" not in repr(EndpointReply(200, {"x": "adh_A"}, PAIR))
