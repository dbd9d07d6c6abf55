"""``adh-auth sandbox``: a local ADH for a shell, until Ctrl-C or SIGTERM."""

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
    """Serve until Ctrl-C or SIGTERM, and return 0.

    Raises `AdhAuthError` for a port in use, `TokenFileError` for a file that exists already.
    """
    with _temporary_folder(args.token_file) as folder, _running(args.port, args.token_life) as sandbox:
        file = TokenFile(args.token_file or os.path.join(folder, "tokens.json"))
        try:
            _write_session(file, sandbox, overwrite=args.overwrite)
            _show(sandbox, file, args.json)
            _wait()
        except KeyboardInterrupt:
            pass
        _show_counts(sandbox, args.json)
    return 0


def _temporary_folder(token_file: str | None) -> Any:
    if token_file is not None:
        return nullcontext("")
    return tempfile.TemporaryDirectory(prefix="adh-sandbox-", ignore_cleanup_errors=True)


@contextmanager
def _running(port: int, token_life: float) -> Iterator[Sandbox]:
    sandbox = Sandbox(port=port, token_life=token_life)
    problem = None
    try:
        sandbox.start()
    except OSError as error:
        problem = error.strerror or type(error).__name__
    if problem is not None:
        raise AdhAuthError(
            f"the sandbox can't listen on port {port}: {problem}. Name another --port, or none for one that "
            "is free"
        )
    try:
        yield sandbox
    finally:
        sandbox.stop()


def _write_session(file: TokenFile, sandbox: Sandbox, *, overwrite: bool) -> None:
    if not overwrite and os.path.lexists(file.path):
        # It may hold a real session, which would be lost (rule 8).
        raise file.error(
            "exists already", "Name another --token-file, or add --overwrite if what it holds may be lost"
        )
    reply = sandbox.sign_in()
    file.save_mapping(reply, Tokens.from_response(reply))


def _show(sandbox: Sandbox, file: TokenFile, as_json: bool) -> None:
    environment = sandbox.environment(file.path)
    if as_json:  # in one line: a program reads it while this command runs on
        facts = {"url": sandbox.url, "token_file": str(file.path), "token_life": sandbox.token_life}
        return echo_json({**facts, "environment": environment}, indent=None)
    # cmd.exe takes all between its quotes for the value, spaces and `&` included. Its only comment is `rem`.
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


def _show_counts(sandbox: Sandbox, as_json: bool) -> None:
    counts = sandbox.counts
    if as_json:
        return echo_json(asdict(counts), indent=None)
    echo()
    answered = f"{counts.requests}, of which {counts.unauthorized} were answered with a 401"
    echo(f"requests                   {answered}")
    echo(f"sign-ins                   {counts.exchanges}")
    echo(f"rotations                  {counts.rotations}")
    echo(f"refreshes refused          {counts.refused}")
    echo(f"refresh tokens used twice  {counts.reused}")
    echo(f"revocations                {counts.revocations}")
