"""The command line.

Each command loads what it needs when it runs, so that ``adh-auth --help`` answers at once.

Exit codes: 0 fine, 1 an error of ours in one line on stderr, 2 usage, 130 Ctrl-C, 141 whoever read our output
has gone.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from .. import __version__
from ..common.console import a_reader_may_go, note, standard_streams
from ..errors import AdhAuthError

__all__ = ["main"]

FINE, FAILED, USAGE, INTERRUPTED, READER_GONE = 0, 1, 2, 130, 141

_ABOUT = "Keeps Python programs signed in to the Agentic Developer Hub (ADH) API."
_ENVIRONMENT = """\
environment:
  ADH_CLIENT_ID, ADH_CLIENT_SECRET   the OAuth app; the secret is read from here only
  ADH_TOKEN_FILE                     the token file, instead of ~/.config/adh/tokens.json
  ADH_BASE_URL                       the API, instead of https://api.agenticdeveloperhub.com
  NO_COLOR                           no colours

exit codes: 0 fine, 1 an error (one line on stderr), 2 usage, 130 Ctrl-C

example: adh-auth demo
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit code."""
    with standard_streams():
        return _guarded(argv)


def _guarded(argv: Sequence[str] | None) -> int:
    try:
        code = _run(argv)
        with a_reader_may_go():
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print_error(_interrupted())
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return READER_GONE
    except OSError as refused:  # a full disk behind stdout, no more processes
        _drop_output()
        print_error(f"stopped: {refused}")
        return FAILED


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    try:
        with a_reader_may_go():
            args = parser.parse_args(argv)
    except SystemExit as said:  # argparse has printed the help, or what is wrong with the usage
        return said.code if isinstance(said.code, int) else FINE
    if args.command is None:
        note(parser.format_help(), end="")
        return USAGE
    try:
        _let_warnings_be_lines()
        return _function_of(args.command)(args)
    except AdhAuthError as error:
        print_error(error.message)
        return FAILED


def _function_of(command: str) -> Callable[[argparse.Namespace], int]:
    # Every import is spelled out: PyInstaller and its like freeze what they see imported, and see no module
    # that a string names.
    if command == "demo":
        from .demo.command import demo_command as function
    elif command == "login":
        from .login_command import login_command as function
    elif command == "status":
        from .status_command import status_command as function
    elif command == "sandbox":
        from .sandbox_command import sandbox_command as function
    else:
        from . import session_commands

        return {
            "save": session_commands.save_command,
            "token": session_commands.token_command,
            "me": session_commands.me_command,
            "refresh": session_commands.refresh_command,
            "revoke": session_commands.revoke_command,
        }[command]
    return function


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the usage; argparse before 3.12 fails where stderr does."""
        note(f"{self.format_usage()}{self.prog}: error: {message}")
        raise SystemExit(USAGE)


def _parser() -> argparse.ArgumentParser:
    parser = _new(_Parser, prog="adh-auth", description=_ABOUT, epilog=_ENVIRONMENT)
    parser.add_argument("--version", action="version", version=f"adh-auth {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for add in (
        _add_demo,
        _add_login,
        _add_save,
        _add_status,
        _add_token,
        _add_me_refresh_and_revoke,
        _add_sandbox,
    ):
        add(commands)
    return parser


def _new(kind: Any, *names: str, **options: Any) -> argparse.ArgumentParser:
    # Without abbreviations: a script's `--token` must not change its meaning when an option is added.
    made: argparse.ArgumentParser = kind(
        *names, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options
    )
    # From 3.14 on argparse asks stdout whether colours are welcome, also for what goes to a file on stderr.
    made.color = False  # type: ignore[attr-defined, unused-ignore]
    return made


def _command(commands: Any, name: str, about: str, details: str, example: str) -> argparse.ArgumentParser:
    command = _new(commands.add_parser, name, help=about, description=details, epilog=f"example: {example}")
    command.add_argument("--json", action="store_true", help="JSON on stdout, for programs")
    return command


def _add_demo(commands: Any) -> None:
    command = _command(
        commands,
        "demo",
        "watch it work, without an account or a network",
        "Start a local ADH whose tokens live two seconds, and several processes (requests, httpx, asyncio) on one token file.\n"
        "Exit 1 if a request failed or a refresh token was used twice. With --json: only the sums, as one object.",
        "adh-auth demo --seconds 20",
    )
    command.add_argument(
        "--seconds", type=_seconds, default=10.0, metavar="S", help="how long the processes work (default 10)"
    )
    command.add_argument("--worker", help=argparse.SUPPRESS)  # one of those processes, of a frozen program


def _add_login(commands: Any) -> None:
    command = _command(
        commands,
        "login",
        "sign in with the browser",
        "Authorization code with PKCE: opens the browser, takes the code on the loopback port of --redirect-uri, writes the token file.\n"
        "The redirect URI has to be registered for the app exactly as it is given here. With --json, stdout is left to one object;\n"
        "what a person has to read is on stderr.",
        'adh-auth login --scope "profile:read discussions:read discussions:write"',
    )
    _add_session_options(command)
    command.add_argument(
        "--redirect-uri", default="http://localhost:8765/callback", metavar="URI", help="default %(default)s"
    )
    command.add_argument(
        "--scope", default="profile:read discussions:read", help='separated by blanks, default "%(default)s"'
    )
    command.add_argument(
        "--no-browser", action="store_true", help="print the address instead of opening a browser"
    )
    command.add_argument(
        "--paste", action="store_true", help="ask for the redirect address instead of listening for it"
    )
    command.add_argument(
        "--timeout",
        type=_seconds,
        default=300.0,
        metavar="S",
        help="seconds to wait for the sign-in (default 300)",
    )


def _add_save(commands: Any) -> None:
    command = _command(
        commands,
        "save",
        "make an exchange reply the token file",
        "Read the JSON reply of the code exchange from FILE, or from stdin, and make it the session: written under the lock, private,\n"
        "with expires_at added. No token is printed.",
        "curl -s … /api/oauth/signin/exchange | adh-auth save",
    )
    command.add_argument(
        "file", nargs="?", default="-", metavar="FILE", help="the reply; - or nothing: stdin"
    )
    _add_token_file(command)


def _add_status(commands: Any) -> None:
    command = _command(
        commands,
        "status",
        "what is with the session, and what to do",
        "Tell what the token file and the record beside it say. Calls nobody, changes nothing, needs no client id or secret.\n"
        "Exit 1 if there is no usable token file, or its refresh token was refused.",
        "adh-auth status --json | jq .signed_in",
    )
    _add_token_file(command)


def _add_token(commands: Any) -> None:
    command = _command(
        commands,
        "token",
        "print an access token that works now",
        "Print the access token and nothing else; with --json, its type and expiry too. It is refreshed first if it has less than 30\n"
        "seconds to live by the stored expiry; where no expiry is stored, the API is asked (GET /api/auth/me). One that lives longer is\n"
        "printed without a call, and without a need for the client id and secret.",
        'curl -H "Authorization: Bearer $(adh-auth token)" https://api.agenticdeveloperhub.com/api/auth/me',
    )
    _add_session_options(command)


def _add_me_refresh_and_revoke(commands: Any) -> None:
    for name, about, details, example in (
        (
            "me",
            "who is signed in",
            "Print the user that the API knows (GET /api/auth/me).",
            "adh-auth me --json",
        ),
        (
            "refresh",
            "refresh now, whatever the clock says",
            "Trade the refresh token for a new pair now, or share the refresh that another process has under way.",
            "adh-auth refresh --json | jq .seconds_left",
        ),
        (
            "revoke",
            "sign out: tell the server, then remove the file",
            "End the session on the server, then remove the token file. If the server can't be told, the file stays.",
            "adh-auth revoke --token-file /srv/app/tokens.json",
        ),
    ):
        _add_session_options(_command(commands, name, about, details, example))


def _add_sandbox(commands: Any) -> None:
    command = _command(
        commands,
        "sandbox",
        "run a local ADH to develop against",
        "Run a local ADH until Ctrl-C and print the lines that point a shell at it. It is strict: a refresh token works once.\n"
        "With --json: one line with the environment variables at once, one with the counts at the end.",
        "adh-auth sandbox --port 8080 --token-life 10 --json",
    )
    command.add_argument("--port", type=_port, default=0, metavar="N", help="default: one that is free")
    command.add_argument(
        "--token-life",
        type=_seconds,
        default=3600.0,
        metavar="S",
        help="seconds an access token lives (default 3600)",
    )
    command.add_argument(
        "--token-file",
        metavar="PATH",
        help="write a session's token file here (default: into a temporary folder)",
    )
    command.add_argument(
        "--overwrite", action="store_true", help="write it even where a file is there already"
    )


def _add_session_options(command: argparse.ArgumentParser) -> None:
    _add_token_file(command)
    command.add_argument(
        "--base-url", metavar="URL", help="the API (default: $ADH_BASE_URL, else the public one)"
    )
    command.add_argument(
        "--client-id",
        metavar="ID",
        help="the OAuth app (default: $ADH_CLIENT_ID); its secret: $ADH_CLIENT_SECRET",
    )
    command.add_argument("--client-secret", nargs="?", action=_OnlyFromEnvironment, help=argparse.SUPPRESS)


def _add_token_file(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--token-file", metavar="PATH", help="default: $ADH_TOKEN_FILE, else ~/.config/adh/tokens.json"
    )


class _OnlyFromEnvironment(argparse.Action):
    """Answers whoever tries; the usual message about an unknown option would print the secret once more."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser.error(
            "the client secret is read from ADH_CLIENT_SECRET only: everybody on this machine can see a command line"
        )


def _seconds(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 10 * 365 * 86400:  # no timer takes more, and NaN is not in between either
        raise argparse.ArgumentTypeError(f"a number of seconds above 0, not {text!r}")
    return value


def _port(text: str) -> int:
    value = _number(text)
    if not (0 <= value <= 65535 and value == int(value)):
        raise argparse.ArgumentTypeError(f"a port is 0 to 65535, not {text!r}")
    return int(value)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _let_warnings_be_lines() -> None:
    """The library tells trouble twice, as a warning and to its logger, for programs that look at one of them:
    here it is one line.
    """
    import logging
    import warnings

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print_error(record.getMessage())

    warnings.filterwarnings("ignore", category=UserWarning, module=r"adh_auth\.")
    logging.getLogger("adh_auth").addHandler(Lines())


def print_error(text: str) -> None:
    note(f"adh-auth: {''.join(char if char.isprintable() else ' ' for char in text)}")


def _interrupted() -> str:
    import threading

    if any(thread.name == "adh-auth rotation" for thread in threading.enumerate()):
        return "interrupted; a refresh that is under way is finished first, or it would cost the session"
    return "interrupted"


def _drop_output() -> None:
    # What is still buffered would be flushed when the interpreter ends, and fail with a traceback that nobody
    # can catch.
    with suppress(OSError, AttributeError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
