"""``adh-auth sandbox``: a local ADH for a shell, until Ctrl-C."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

from ..errors import AdhAuthError
from ..store.remedies import shell_quoted
from ..store.token_file import TokenFile
from ..testing import Sandbox
from ..tokens import Tokens
from .terminal import echo, echo_json

__all__ = ["sandbox_command"]


def sandbox_command(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM.

    Raises `AdhAuthError` for a port in use, `TokenFileError` for a file that is there already.
    """
    with _folder(args.token_file) as folder, _running(args.port, args.token_life) as sandbox:
        file = TokenFile(args.token_file or os.path.join(folder, "tokens.json"))
        try:
            _write(file, sandbox, overwrite=args.overwrite)
            _show(sandbox, file, args.json)
            _wait()
        except KeyboardInterrupt:
            pass
        _sum_up(sandbox, args.json)
    return 0


def _folder(token_file: str | None) -> Any:
    if token_file is not None:
        return nullcontext("")
    return tempfile.TemporaryDirectory(prefix="adh-sandbox-", ignore_cleanup_errors=True)


@contextmanager
def _running(port: int, token_life: float) -> Iterator[Sandbox]:
    sandbox = Sandbox(port=port, token_life=token_life)
    trouble = None
    try:
        sandbox.start()
    except OSError as refused:
        trouble = refused.strerror or type(refused).__name__
    if trouble is not None:
        raise AdhAuthError(
            f"the sandbox can't listen on port {port}: {trouble}. Name another --port, or none for one that is free"
        )
    try:
        yield sandbox
    finally:
        sandbox.stop()


def _write(file: TokenFile, sandbox: Sandbox, *, overwrite: bool) -> None:
    if not overwrite and os.path.lexists(file.path):
        # It may be a real session, which nothing brings back.
        raise file.error(
            "is there already", "Name another --token-file, or add --overwrite if what it holds may be lost"
        )
    reply = sandbox.sign_in()
    file.save_mapping(reply, Tokens.from_response(reply))


def _show(sandbox: Sandbox, file: TokenFile, as_json: bool) -> None:
    environment = sandbox.environment(file.path)
    if as_json:  # in a line: a program reads one while this goes on
        facts = {"url": sandbox.url, "token_file": str(file.path), "token_life": sandbox.token_life}
        return echo_json({**facts, "environment": environment}, indent=None)
    # cmd.exe takes all between its quotes for the value, blanks and `&` included, and knows no comment but
    # `rem`.
    comment, assign = ("rem", 'set "{}={}"') if sys.platform == "win32" else ("#", "export {}={}")
    echo(f"{comment} A local ADH runs at {sandbox.url}. Paste this into another shell:")
    for name, value in environment.items():
        echo(assign.format(name, value if sys.platform == "win32" else shell_quoted(value)))
    echo(
        f"{comment} Then try: adh-auth me. Access tokens live {sandbox.token_life:g} s. Ctrl-C here ends it."
    )


def _wait() -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        while True:
            time.sleep(3600)
    finally:
        signal.signal(signal.SIGTERM, before)


def _sum_up(sandbox: Sandbox, as_json: bool) -> None:
    counts = sandbox.counts
    if as_json:
        return echo_json(asdict(counts), indent=None)
    echo()
    echo(
        f"requests                   {counts.requests}, of which {counts.unauthorized} were answered with a 401"
    )
    echo(f"sign-ins                   {counts.exchanges}")
    echo(f"rotations                  {counts.rotations}")
    echo(f"refreshes refused          {counts.refused}")
    echo(f"refresh tokens used twice  {counts.reused}")
    echo(f"revocations                {counts.revocations}")
