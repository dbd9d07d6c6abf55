"""The argument parser, built from the table of commands."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from .. import __version__
from ..common.console import print_to_stderr
from .commands import COMMANDS, Command

__all__ = ["USAGE", "new_parser"]

#: Exit code of a usage that makes no sense.
USAGE = 2

_ABOUT = "Keeps Python programs signed in to the Agentic Developer Hub (ADH) API."
_ENVIRONMENT = """\
environment:
  ADH_CLIENT_ID, ADH_CLIENT_SECRET   the OAuth app; the secret is read from here only
  ADH_TOKEN_FILE                     the token file, instead of ~/.config/adh/tokens.json
  ADH_STORE, ADH_SESSION             a session in PostgreSQL, Redis or a folder, instead of a token file
  ADH_STORE_KEY                      keys that encrypt what a store holds
  ADH_BASE_URL                       the API, instead of https://api.agenticdeveloperhub.com
  NO_COLOR                           no colours

exit codes: 0 success, 1 an error (one line on stderr), 2 usage, 130 Ctrl-C

example: adh-auth demo
"""


def new_parser() -> argparse.ArgumentParser:
    """Return the parser of ``adh-auth``; its result names the command as `command`, None if there is none."""
    parser = _plain(_Parser, prog="adh-auth", description=_ABOUT, epilog=_ENVIRONMENT)
    parser.add_argument("--version", action="version", version=f"adh-auth {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        _add_command(commands, name, command)
    return parser


def _add_command(commands: Any, name: str, command: Command) -> None:
    parser = _plain(
        commands.add_parser,
        name,
        help=command.summary,
        description=command.description,
        epilog=f"example: {command.example}",
    )
    parser.add_argument("--json", action="store_true", help="JSON on stdout, for programs")
    command.add_options(parser)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print the usage and the error. argparse before 3.12 raises where stderr can't be written."""
        print_to_stderr(f"{self.format_usage()}{self.prog}: error: {message}")
        raise SystemExit(USAGE)


def _plain(new: Any, *names: str, **arguments: Any) -> argparse.ArgumentParser:
    # With abbreviations, a script's `--token` would change its meaning when an option is added.
    parser: argparse.ArgumentParser = new(
        *names, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **arguments
    )
    # From 3.14 on argparse checks stdout for a terminal, also for what goes to a file on stderr.
    parser.color = False  # type: ignore[attr-defined, unused-ignore]
    return parser
