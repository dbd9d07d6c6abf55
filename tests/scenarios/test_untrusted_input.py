"""Bytes that mean harm: too many, too slow, too deep, or at the wrong place.

Each costs a bounded read, bounded memory, a typed error.
"""

from __future__ import annotations

import gzip
import json
import ssl
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
import requests
import trustme
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter

from adh_auth import AdhAuth, AdhHttpx2Auth, AdhHttpxAuth, RefreshFailed, TokenFile, TokenFileError, Tokens
from adh_auth.common.limits import BODY_LIMIT
from adh_auth.common.secret import Secret
from adh_auth.oauth.content_encoding import decoded
from adh_auth.oauth.endpoint import EndpointCall, Unreachable
from adh_auth.oauth.replies import error_code
from adh_auth.tokens import Stored

from ..fuzz import PARSERS, SEEDS
from ..support.clients import CLIENTS, EveryClient
from ..support.raw_server import NEW, OLD, Answer, RawServer, Seen, as_json, rotating

each_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
each_class = pytest.mark.parametrize("cls", [AdhAuth, AdhHttpxAuth, AdhHttpx2Auth])

#: Bytes of memory that no hostile answer may cost. The limits are 8 and 64 KiB; clients read in pieces of up
#: to 64 KiB.
MODEST = 3_000_000
#: Seconds within which a deadline of a fraction of one must have struck, on a loaded machine.
SOON = 10.0
CHALLENGE = {"WWW-Authenticate": 'Bearer error="token_expired"'}
PIECE = b"0" * 65536


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adh_auth.rotation.attempt.PAUSES", ())


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.json"
    path.write_text(json.dumps(OLD))
    path.chmod(0o600)
    return path


def auth_of(cls: Any, path: Path, base_url: str, **more: Any) -> Any:
    return cls(path, client_id="id", client_secret="s3cret-value", base_url=base_url, **more)


@contextmanager
def modest_memory() -> Iterator[None]:
    """No more than `MODEST` bytes are held at once in there."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MODEST
    finally:
        tracemalloc.stop()


def bomb(layers: int = 1, size: int = 50_000_000) -> bytes:
    """`size` zeros in a kilobyte or fifty."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join(packer.compress(PIECE) for _ in range(size // len(PIECE))) + packer.flush()
    return packed if layers == 1 else gzip.compress(packed, mtime=0)


BOMBS = {"one": ("gzip", bomb()), "small": ("gzip", bomb(size=7_000_000)), "two": ("gzip, gzip", bomb(2))}


# Answers of a server that does not stop.


class Endless:
    """Writes a head, then for ever. `written` counts the bytes, `gone` is set when the client has hung up."""

    def __init__(self, head: bytes, piece: bytes = PIECE, pause: float = 0.0) -> None:
        self.head, self.piece, self.pause = head, piece, pause
        self.written = 0
        self.gone = threading.Event()

    def __call__(self, wire: Any, closing: threading.Event) -> None:
        try:
            wire.write(self.head)
            while not closing.wait(self.pause):
                wire.write(self.piece)
                self.written += len(self.piece)
        except OSError:
            self.gone.set()


def head(status: str, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", "Content-Type: application/json", *headers, "", ""]).encode()


def first_then_rotating(first: Answer) -> Callable[[Seen], Answer]:
    """The API answers the old token with `first`, and goes on as a good one does."""

    def answer(seen: Seen) -> Answer:
        usual = rotating(seen)
        return first if usual.status == 401 else usual

    return answer


# A 401.


@each_client
@pytest.mark.parametrize(
    "framing", ["Content-Length: 100000000000", "Connection: close"], ids=["announced", "endless"]
)
def test_a_401_without_end(client: EveryClient, framing: str, old_file: Path) -> None:
    """Is read up to a bound, hung up on, and sent again; the history holds none of it."""
    endless = Endless(head("401 Unauthorized", framing, 'WWW-Authenticate: Bearer error="token_expired"'))
    with RawServer(first_then_rotating(Answer(stream=endless))) as api, modest_memory():
        answer = client.get(auth_of(client.auth, old_file, api.url), api.url + "/api/x")
        assert answer.status_code == 200
        assert [past.content for past in answer.history] == [b""]
        assert endless.gone.wait(SOON)
    assert (
        endless.written < 50_000_000
    )  # what the kernel's buffers take; the server would have gone on for ever


def test_a_401_without_end_gives_its_connection_back(old_file: Path) -> None:
    """A pool of one that blocks when it is empty goes on: what was hung up on is not in use any more."""
    endless = Endless(
        head("401 Unauthorized", "Connection: close", 'WWW-Authenticate: Bearer error="token_expired"')
    )
    with RawServer(first_then_rotating(Answer(stream=endless))) as api, requests.Session() as session:
        session.mount("http://", HTTPAdapter(pool_connections=1, pool_maxsize=1, pool_block=True))
        session.auth = auth_of(AdhAuth, old_file, api.url)
        assert [session.get(api.url + "/api/x", timeout=SOON).status_code for _ in range(3)] == [200] * 3


@each_client
def test_a_401_that_trickles(client: EveryClient, old_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then passes every read time-out; after a while only the header is read for the code."""
    for module in ("requests_body", "httpx_body"):
        monkeypatch.setattr(f"adh_auth.clients.{module}.PEEK_SECONDS", 0.2)
    slow = Endless(
        head("401 Unauthorized", "Connection: close", 'WWW-Authenticate: Bearer error="token_expired"'),
        b" ",
        0.02,
    )
    started = time.monotonic()
    with RawServer(first_then_rotating(Answer(stream=slow))) as api:
        assert client.get(auth_of(client.auth, old_file, api.url), api.url + "/api/x").status_code == 200
        assert slow.gone.wait(SOON)
    assert time.monotonic() - started < SOON


@each_client
@pytest.mark.parametrize("name", BOMBS)
def test_a_compressed_bomb_in_a_401(client: EveryClient, name: str, old_file: Path) -> None:
    """It is not unpacked: not to find the code, and not for the history, where the client would do it without
    a bound.
    """
    encoding, body = BOMBS[name]
    first = Answer(401, {**CHALLENGE, "Content-Encoding": encoding}, body)
    with RawServer(first_then_rotating(first)) as api, modest_memory():
        answer = client.get(auth_of(client.auth, old_file, api.url), api.url + "/api/x")
        assert answer.status_code == 200
        assert [past.content for past in answer.history] == [b""]


@each_client
def test_a_compressed_401_is_understood(client: EveryClient, old_file: Path) -> None:
    """A server may compress what the client has offered to unpack; history has it readable."""
    body = gzip.compress(b'{"code": "token_expired"}', mtime=0)
    first = Answer(401, {"Content-Encoding": "gzip"}, body)
    with RawServer(first_then_rotating(first)) as api:
        answer = client.get(auth_of(client.auth, old_file, api.url), api.url + "/api/x")
    assert answer.status_code == 200
    assert answer.history[0].json() == {"code": "token_expired"}


def _brotli(data: bytes) -> bytes:
    return bytes(pytest.importorskip("brotli", reason="needs brotli: pip install brotli").compress(data))


def _zstd(data: bytes) -> bytes:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        zstd = pytest.importorskip("zstandard", reason="needs zstandard: pip install zstandard")
    return bytes(zstd.compress(data))


ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": lambda data: zlib.compress(data)[2:-4],  # without the header that RFC 9110 asks for
    "br": _brotli,
    "zstd": _zstd,
}


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoding_that_a_client_offers(name: str) -> None:
    """The code is found in each; and a bomb in each stays small."""
    assert (
        error_code({"content-encoding": name}, ENCODERS[name](b'{"code": "token_expired"}'))
        == "token_expired"
    )
    packed = ENCODERS[name](b"0" * 20_000_000)[:BODY_LIMIT]
    with modest_memory():
        assert len(decoded(packed, name, BODY_LIMIT)) <= BODY_LIMIT


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br", "nonsense", "gzip"])
def test_an_encoding_that_is_not_understood(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs the code, no more: without its library, or with bytes that are something else, the 401 is the
    caller's.
    """
    for name in ("brotli", "brotlicffi", "zstandard", "compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    assert decoded(b"\x00\x01\x02", encoding, 100) == b""
    assert error_code({"content-encoding": encoding}, b"\x00\x01\x02") is None


@pytest.mark.parametrize("module", ["brotli", "zstandard", "compression.zstd"])
def test_a_decoder_is_given_the_bound(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each decompression library gets its bound as its own argument."""
    asked: list[int] = []

    class Decompressor:
        def process(self, data: bytes, *, output_buffer_limit: int) -> bytes:
            asked.append(output_buffer_limit)
            return b"x" * (output_buffer_limit + 1)  # a limit that brotli takes for a hint

        def decompress(self, data: bytes, max_length: int) -> bytes:
            asked.append(max_length)
            return b"x" * max_length

        def stream_reader(self, data: bytes) -> Any:
            return self

        def read(self, size: int) -> bytes:
            return self.decompress(b"", size)

    for name in ("brotli", "zstandard", "compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    fake = type(sys)(module)
    vars(fake).update(Decompressor=Decompressor, ZstdDecompressor=Decompressor)
    monkeypatch.setitem(sys.modules, module, fake)
    assert decoded(b"bomb", "br" if module == "brotli" else "zstd", 77) == b"x" * 77
    assert asked == [77]


@pytest.mark.parametrize(
    ("challenge", "code"),
    [
        ('Bearer error_description="it says error=token_expired"', None),
        ('Bearer error_description="it says, error=token_expired"', None),
        ('Bearer error_description="a \\", error=\\"token_expired", error="nope"', "nope"),
        ('Bearer xerror="token_expired"', None),
        ('Bearer error="not token_expired"', None),
        ('Basic error="token_expired"', None),
        ('Bearer realm="a, b", error="token_expired"', "token_expired"),
        ("bearer error = token_expired", "token_expired"),
        ("Bearer " + 'a="' * 3000 + "error=token_expired", None),
    ],
)
def test_the_code_is_not_found_in_a_quotation(challenge: str, code: str | None) -> None:
    """What a quoted text says is no parameter of the challenge."""
    assert error_code({"www-authenticate": challenge}, b"") == code


def test_a_challenge_is_read_in_linear_time() -> None:
    """No header of 8 KiB keeps a request waiting."""
    started = time.perf_counter()
    for piece in ("a", 'a="', 'a="\\', "a =", "a ", ",", '"'):
        error_code({"www-authenticate": "Bearer " + piece * (BODY_LIMIT // len(piece))}, b"")
    assert time.perf_counter() - started < 0.5


# A refresh reply.


@each_class
@pytest.mark.parametrize("carried", [False, True], ids=["direct", "refresh_via"])
@pytest.mark.parametrize(
    "framing", ["Content-Length: 100000000000", "Connection: close"], ids=["announced", "endless"]
)
def test_a_refresh_reply_without_end(cls: Any, carried: bool, framing: str, old_file: Path) -> None:
    """A hundred megabytes or more cost 64 KiB and a `RefreshFailed`."""
    endless = Endless(head("200 OK", framing))
    with RawServer(lambda _: Answer(stream=endless)) as api, _carrier(cls) as carrier, modest_memory():
        with pytest.raises(RefreshFailed):
            auth_of(cls, old_file, api.url, refresh_via=carrier if carried else None).refresh()
        assert endless.gone.wait(SOON)


def _carrier(cls: Any) -> Any:
    return {AdhAuth: requests.Session, AdhHttpxAuth: httpx.Client, AdhHttpx2Auth: httpx2.Client}[cls]()


@each_class
@pytest.mark.parametrize("name", BOMBS)
def test_a_compressed_bomb_in_a_refresh_reply(cls: Any, name: str, old_file: Path) -> None:
    """A compressed reply that was not asked for is unpacked to 64 KiB at most."""
    encoding, body = BOMBS[name]
    with (
        RawServer(lambda _: Answer(200, {"Content-Encoding": encoding}, body)) as api,
        modest_memory(),
        pytest.raises(RefreshFailed),
    ):
        auth_of(cls, old_file, api.url).refresh()


@each_class
def test_a_compressed_refresh_reply_is_understood(cls: Any, old_file: Path) -> None:
    """A server that compresses without being asked costs no session."""
    body = gzip.compress(json.dumps(NEW).encode())
    with RawServer(lambda _: Answer(200, {"Content-Encoding": "gzip"}, body)) as api:
        assert auth_of(cls, old_file, api.url).refresh().access_token == NEW["access_token"]


def call_to(base_url: str) -> EndpointCall:
    return EndpointCall(base_url + "/api/auth/refresh", {"refresh_token": "adh_rt"})


TRICKLES = {
    "head": (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
    "body": (head("200 OK", "Content-Length: 1000"), b" "),
    "body to the end": (head("200 OK", "Connection: close"), b" "),
    "chunks": (head("200 OK", "Transfer-Encoding: chunked"), b"1\r\n \r\n"),
}


def ended_by_the_deadline(auth: Any, base_url: str) -> None:
    """A call with 0.3 s ends soon after, and says that the token may be spent or the reply cut."""
    started = time.monotonic()
    try:
        reply = auth._post(call_to(base_url), 0.3)
    except Unreachable as unreachable:
        assert unreachable.sent
    else:
        assert reply.cut or not reply.body.strip()
    assert time.monotonic() - started < SOON


@each_class
@pytest.mark.parametrize("name", TRICKLES)
def test_a_refresh_reply_that_trickles(cls: Any, name: str, old_file: Path) -> None:
    """A read time-out starts anew with each byte; the deadline does not, wherever in the reply it strikes."""
    with RawServer(lambda _: Answer(stream=Endless(*TRICKLES[name], 0.02))) as api:
        ended_by_the_deadline(auth_of(cls, old_file, api.url), api.url)


@each_class
def test_a_carried_refresh_reply_that_trickles(cls: Any, old_file: Path) -> None:
    """Through `refresh_via` as well."""
    with (
        RawServer(lambda _: Answer(stream=Endless(*TRICKLES["body"], 0.02))) as api,
        _carrier(cls) as carrier,
    ):
        ended_by_the_deadline(auth_of(cls, old_file, api.url, refresh_via=carrier), api.url)


@each_class
@pytest.mark.parametrize("name", ["head", "body"])
def test_a_refresh_reply_that_trickles_through_tls(
    cls: Any, name: str, old_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket under the TLS is the one to be shut down."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(variable, str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with RawServer(lambda _: Answer(stream=Endless(*TRICKLES[name], 0.02)), context) as api:
        ended_by_the_deadline(auth_of(cls, old_file, api.url), api.url)
        assert api.to("/api/auth/refresh")


INJECTIONS = ["\r\nX-Injected: 1", "\n", "\r", "\t", " ", "\x00", "\x7f", "\u00e9", "\u2028", "\ud800"]


@each_class
@pytest.mark.parametrize("name", ["access_token", "refresh_token"])
def test_a_reply_whose_token_would_break_out_of_its_header(cls: Any, name: str, old_file: Path) -> None:
    """Is of no use: a typed error, the old pair is kept, and nothing was sent with it."""
    for evil in INJECTIONS:
        with RawServer(lambda _, evil=evil: as_json({**NEW, name: f"{NEW[name]}{evil}"})) as api:  # type: ignore[misc]
            with pytest.raises(RefreshFailed, match="of no use"):
                auth_of(cls, old_file, api.url).refresh()
            assert [seen.path for seen in api.seen] == ["/api/auth/refresh"]
    assert TokenFile(old_file).load() == Tokens(OLD["access_token"], OLD["refresh_token"])


@each_client
def test_a_file_whose_token_would_break_out_of_its_header(client: EveryClient, old_file: Path) -> None:
    """Is refused before anything is sent, with an error that existing `except` clauses catch."""
    with RawServer() as api:
        for evil in INJECTIONS:
            old_file.write_text(json.dumps({**OLD, "access_token": OLD["access_token"] + evil}))
            with pytest.raises(TokenFileError) as caught:
                client.get(auth_of(client.auth, old_file, api.url), api.url + "/api/x")
            assert isinstance(caught.value, (requests.RequestException, httpx.HTTPError, httpx2.HTTPError))
        assert api.seen == []


NOISE = {
    "deep": {"x": json.loads("[" * 500 + "]" * 500)},
    "many numbers": {"x": [1] * 20_000},
    "wide": {str(number): number for number in range(3_000)},
    "nothing is a number": {"expires_in": 1e308, "x": float("nan")},
    "a surrogate": {"\ud800": "\udfff"},
    "a huge number": {"expires_in": 10**400},
    "another pair's": {"expires_at": "never", "scope": ["a"], "token_type": 7},
}


@each_class
@pytest.mark.parametrize("name", NOISE)
def test_what_else_a_reply_says_never_costs_the_pair(cls: Any, name: str, old_file: Path) -> None:
    """The token is spent by then: whatever stands beside the new pair, it is written, and can be read and
    rotated again.
    """
    with RawServer(
        lambda _: as_json({**NOISE[name], **{k: v for k, v in NEW.items() if k != "expires_in"}})
    ) as api:
        auth = auth_of(cls, old_file, api.url)
        assert auth.refresh().access_token == NEW["access_token"]
        assert auth.refresh().access_token == NEW["access_token"]
    assert old_file.stat().st_size < 1_000_000


def test_a_reply_nested_deeper_than_python_calls_functions(old_file: Path) -> None:
    """json's parser takes thousands of levels, its writer does not: those keys are left out, and the file's
    own are kept.
    """
    for depth in (33, 900, 30_000):
        old_file.write_text(json.dumps({**OLD, "mine": {"a": [1]}}))
        text = json.dumps(NEW)[:-1] + ', "x": ' + "[" * depth + "]" * depth + "}"
        with RawServer(lambda _, text=text: Answer(200, {}, text.encode())) as api:  # type: ignore[misc]
            try:
                assert auth_of(AdhAuth, old_file, api.url).refresh().access_token == NEW["access_token"]
            except RefreshFailed as failed:  # more than the parser takes: it is no JSON to us
                assert "without tokens" in str(failed)
        assert json.loads(old_file.read_bytes())["mine"] == {"a": [1]}


def test_a_file_nested_too_deep_is_refused_before_it_is_spent(old_file: Path) -> None:
    """A file that could not be written again is no file to spend a token from."""
    for depth in (33, 900, 100_000):
        old_file.write_text(json.dumps(OLD)[:-1] + ', "x": ' + "[" * depth + "]" * depth + "}")
        with RawServer() as api:
            with pytest.raises(TokenFileError):
                auth_of(AdhAuth, old_file, api.url).refresh()
            assert api.seen == []


@each_class
@pytest.mark.parametrize(
    "retry_after", ["1e999", "-1", "nan", "9" * 4000, "Thu, 99 Foo 99999", "\xff", "0x10", "1_0"]
)
def test_headers_of_a_refresh_reply(
    cls: Any, retry_after: str, old_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `Retry-After` or a request id that makes no sense ends in a message of one bounded line."""
    headers = {"Retry-After": retry_after, "X-Request-Id": "\x1b[31m" + "x" * 5000}
    with (
        RawServer(lambda _: as_json({"code": "x" * 9000}, 503, **headers)) as api,
        pytest.raises(RefreshFailed) as caught,
    ):
        auth_of(cls, old_file, api.url).refresh()
    error = caught.value
    assert str(error).isprintable()
    assert len(str(error)) < 1000
    assert error.request_id is None or (error.request_id.isprintable() and len(error.request_id) <= 200)


# The three parsers, as `python -m tests.fuzz` throws bytes at them for longer.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    ["access_token", "refresh_token", "expires_in", "expires_at", "token_type", "scope", "code", "error", "x"]
)
OBJECTS = st.dictionaries(
    KEYS,
    st.sampled_from(["adh_A", "Bearer", "token_expired", "invalid_grant", 3600, "3600"]) | JSON,
    max_size=8,
)
BODIES = (
    st.binary(max_size=200)
    | OBJECTS.map(lambda value: json.dumps(value).encode())
    | JSON.map(lambda value: json.dumps(value).encode())
)
HEADERS = st.binary(max_size=60).map(lambda data: data.replace(b"\n", b" ")) | st.sampled_from(
    [
        b"",
        b"120",
        b'Bearer error="token_expired"',
        b"Wed, 21 Oct 2026 07:28:00 GMT",
        b"error=token_expired, realm=x",
    ]
)
PACKED = BODIES | BODIES.map(zlib.compress) | BODIES.map(lambda body: gzip.compress(body, mtime=0))
HUNDREDS = settings(
    max_examples=300, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)


@HUNDREDS
@given(BODIES)
@example(b"[" * 100_000)
@example(b"\xef\xbb\xbf" + json.dumps(OLD).encode("utf-16"))
@example(b"\xff\xfe{")
def test_any_token_file(data: bytes) -> None:
    """Gives a pair that fits a header, or a `MalformedTokens`; nothing else, whatever the bytes."""
    PARSERS["token_file"](data)


@HUNDREDS
@given(st.integers(0, 255), HEADERS, BODIES)
@example(50, b"", json.dumps({**NEW, "expires_in": 10**400}).encode())
@example(50, b"", (json.dumps(NEW)[:-1] + ', "x": ' + "[" * 900 + "]" * 900 + "}").encode())
def test_any_token_reply(status: int, header: bytes, body: bytes) -> None:
    """Gives a verdict, and a file that can be read again where it has a pair."""
    PARSERS["token_reply"](bytes([status]) + header + b"\n" + body)


@HUNDREDS
@given(st.integers(0, 255), HEADERS, PACKED)
def test_any_401(number: int, header: bytes, body: bytes) -> None:
    """Gives a code in snake_case, or none, from any body in any encoding and any challenge."""
    PARSERS["unauthorized"](bytes([number]) + header + b"\n" + body)


@pytest.mark.parametrize("name", SEEDS)
def test_the_seeds_reach_the_depths(name: str) -> None:
    """The fuzzer starts from inputs that mean something."""
    for seed in SEEDS[name]:
        PARSERS[name](seed)
    assert Stored.from_bytes(SEEDS["token_file"][0]).tokens.access_token == "adh_A"
    assert error_code({}, SEEDS["unauthorized"][2][2:]) == "token_expired"


def test_a_secret_is_no_text() -> None:
    """It cannot be put into a string by accident."""
    secret = Secret("adh_x")
    assert "adh_x" not in f"{secret} {secret!r} {[secret]} {secret!s:>30}"
    with pytest.raises(TypeError):
        "Bearer " + secret  # type: ignore[operator]
