"""Throws bytes at everything that reads a stranger's: ``python -m tests.fuzz --seconds 60`` (pip install
adh-auth[fuzz]).

Coverage-guided, by atheris; each parser gets its share of the time in a process of its own. Prints how many
inputs were tried. `test_hostile.py` calls the same parsers with what hypothesis thinks of.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

# What is under test is imported where it is used: atheris has to be watching by then.

__all__ = ["PARSERS", "SEEDS"]

ROOT = Path(__file__).resolve().parent.parent
KINDS = {"pair", "refused", "misconfigured", "again", "failed"}


def token_file(data: bytes) -> None:
    """A token file: a `MalformedTokens`, or a pair that fits a header, and a file that reads the same once
    written.
    """
    from adh_auth.errors import MalformedTokens
    from adh_auth.tokens import Stored

    try:
        stored = Stored.from_bytes(data)
    except MalformedTokens:
        return
    _assert_fits_a_header(stored.tokens.access_token, stored.tokens.refresh_token)
    assert Stored.from_bytes(stored.to_bytes()).tokens == stored.tokens
    repr(stored)


def token_reply(data: bytes) -> None:
    """A reply of the refresh: a verdict, and from a pair a file that can be written and read again."""
    from adh_auth.common.limits import REPLY_LIMIT
    from adh_auth.errors import MalformedTokens
    from adh_auth.oauth.endpoint import EndpointReply
    from adh_auth.oauth.replies import classify, revoked
    from adh_auth.tokens import Stored, Tokens

    status, header, body = _split(data)
    reply = EndpointReply(
        100 + status * 2,
        {"Retry-After": header, "X-Request-Id": header},
        body[:REPLY_LIMIT],
        cut=bool(status % 2),
    )
    verdict = classify(reply, 1.7e9)
    revoked(reply)
    assert verdict.kind in KINDS
    assert (verdict.reason + (verdict.code or "") + (verdict.request_id or "")).isprintable()
    assert verdict.retry_after is None or 0 <= verdict.retry_after < float("inf")
    if verdict.kind != "pair":
        return
    old = Stored(
        Tokens("adh_old", "adh_rt_old", scope="a"),
        {"access_token": "adh_old", "refresh_token": "adh_rt_old", "kept": 1},
    )
    try:
        fresh = old.rotated(verdict.mapping, 1.7e9)
    except MalformedTokens:
        return
    _assert_fits_a_header(fresh.tokens.access_token, fresh.tokens.refresh_token)
    read = Stored.from_bytes(fresh.to_bytes())
    assert read.tokens == fresh.tokens
    assert "kept" in read.mapping


def unauthorized(data: bytes) -> None:
    """A 401 with its headers: a code in snake_case, or none."""
    from adh_auth.common.limits import BODY_LIMIT
    from adh_auth.oauth.content_encoding import decoded, is_small
    from adh_auth.oauth.replies import error_code

    number, header, body = _split(data)
    encoding = ("", "gzip", "deflate", "identity", "br", "zstd", "gzip, gzip", header)[number % 8]
    code = error_code(
        {"content-encoding": encoding, "www-authenticate": header if number < 128 else "Bearer " + header},
        body,
    )
    assert code is None or re.fullmatch(r"[a-z][a-z0-9_.-]{0,63}", code)
    assert len(decoded(body, encoding, BODY_LIMIT)) <= BODY_LIMIT
    is_small(body, encoding)


PARSERS: dict[str, Callable[[bytes], None]] = {
    "token_file": token_file,
    "token_reply": token_reply,
    "unauthorized": unauthorized,
}

_PAIR = {
    "access_token": "adh_A",
    "refresh_token": "adh_rt_A",
    "expires_in": 3600,
    "token_type": "Bearer",
    "scope": "a b",
}
_REPLY = b"\x32" + b"120\n" + json.dumps(_PAIR).encode()
_CODE = b'{"error": {"code": "token_expired", "message": "m"}}'
#: What the fuzzer starts from.
SEEDS: dict[str, list[bytes]] = {
    "token_file": [
        json.dumps(_PAIR).encode(),
        json.dumps({**_PAIR, "expires_at": 1.7e9, "x": [[{}]]}).encode(),
        b"\xef\xbb\xbf{}",
    ],
    "token_reply": [
        _REPLY,
        b"\x96Wed, 21 Oct 2026 07:28:00 GMT\n" + _CODE,
        b"\xc8\n" + b'{"error": "invalid_grant"}',
    ],
    "unauthorized": [
        b'\x80realm="a", error="token_expired"\n' + _CODE,
        b"\x01\n" + zlib.compress(_CODE),
        b"\x00\n" + _CODE,
    ],
}


def _split(data: bytes) -> tuple[int, str, bytes]:
    """A number, one header's value, and a body."""
    head, _, body = data[1:].partition(b"\n")
    return (data[0] if data else 0), head.decode("latin-1"), body


def _assert_fits_a_header(*tokens: str) -> None:
    assert all(token and token.isascii() and token.isprintable() and " " not in token for token in tokens)


def main() -> int:
    """Fuzz all parsers, one after the other; 1 if one of them let something through."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--seconds", type=int, default=60, help="for all parsers together (default 60)")
    parser.add_argument("--only", choices=PARSERS, help=argparse.SUPPRESS)
    parser.add_argument("--corpus", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        _fuzz(args.only, args.seconds, args.corpus)
    tried = {name: _fuzzed(name, max(args.seconds // len(PARSERS), 1)) for name in PARSERS}
    for name, (count, _) in tried.items():
        print(f"{name:14}{count:>12,} inputs")
    print(f"{'together':14}{sum(count for count, _ in tried.values()):>12,} inputs")
    return int(any(failed for _, failed in tried.values()))


def _fuzzed(name: str, seconds: int) -> tuple[int, bool]:
    """The number of inputs that were tried, and whether one of them got through; then its bytes are on
    stderr.
    """
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(SEEDS[name]):
            Path(corpus, str(number)).write_bytes(seed)
        command = [
            sys.executable,
            "-m",
            "tests.fuzz",
            "--only",
            name,
            "--seconds",
            str(seconds),
            "--corpus",
            corpus,
        ]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False
        )
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    counts = re.findall(r"stat::number_of_executed_units: *(\d+)", done.stderr)
    return (int(counts[-1]) if counts else 0), done.returncode != 0


def _fuzz(name: str, seconds: int, corpus: str) -> None:
    """Never comes back: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["adh_auth"]):
        import adh_auth.oauth.replies
        import adh_auth.tokens  # noqa: F401 - for the parsers, watched
    # An input that takes longer than this hangs, as far as a request is concerned.
    options = [
        f"-max_total_time={seconds}",
        "-timeout=5",
        "-rss_limit_mb=512",
        "-max_len=70000",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    atheris.Setup(
        [sys.argv[0], *options, f"-artifact_prefix={tempfile.gettempdir()}/adh-auth-fuzz-", corpus],
        PARSERS[name],
    )
    atheris.Fuzz()


if __name__ == "__main__":
    raise SystemExit(main())
