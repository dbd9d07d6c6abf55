"""``adh-auth sandbox``: a local ADH for a shell, until Ctrl-C or SIGTERM, or for one command."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

from ..common.console import print_to_stderr
from ..errors import AdhAuthError
from ..store.remedies import shell_quoted
from ..store.token_file import TokenFile
from ..testing import Sandbox
from ..tokens import Tokens
from .program import run_program
from .terminal import echo, echo_json

__all__ = ["sandbox_command"]

#: Variables that name another session than the token file's.
OTHER_SESSION = ("ADH_STORE", "ADH_SESSION")
LOOPBACK = "127.0.0.1"


def sandbox_command(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM and return 0, or until the command ends and return its exit status.

    Raises `AdhAuthError` for a port in use, `TokenFileError` for a file that exists already.
    """
    with _temporary_folder(args.token_file) as folder, _running(args.port, args.token_life) as sandbox:
        file = TokenFile(args.token_file or os.path.join(folder, "tokens.json"))
        return (_run if args.program else _serve)(args, sandbox, file)


def _serve(args: argparse.Namespace, sandbox: Sandbox, file: TokenFile) -> int:
    try:
        _write_session(file, sandbox, overwrite=args.overwrite)
        _show(sandbox, file, args.json)
        _wait()
    except KeyboardInterrupt:
        pass
    _show_counts(sandbox, args.json)
    return 0


def _run(args: argparse.Namespace, sandbox: Sandbox, file: TokenFile) -> int:
    _write_session(file, sandbox, overwrite=args.overwrite)
    status = run_program(args.program, _environment(sandbox, file))
    if args.json:  # stdout is the program's
        print_to_stderr(json.dumps(asdict(sandbox.counts)))
    return status


def _environment(sandbox: Sandbox, file: TokenFile) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in OTHER_SESSION}
    return {**kept, **_past_the_proxy(), **sandbox.environment(file.path)}


def _past_the_proxy() -> dict[str, str]:
    """Return what keeps calls to this machine off the user's proxy, which can't reach its loopback."""
    # Where no proxy is named, the variable alone would make urllib ignore the settings of macOS.
    if not any(name.lower() in ("http_proxy", "all_proxy") for name in os.environ):
        return {}
    exceptions = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    value = f"{exceptions},{LOOPBACK}" if exceptions else LOOPBACK
    return {"no_proxy": value, "NO_PROXY": value}


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
    reply = {**sandbox.sign_in(), "base_url": sandbox.url, "client_id": sandbox.client_id}
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
        while True:  # a signal that comes just before a sleep is handled after it
            time.sleep(1)
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
