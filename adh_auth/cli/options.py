"""The options of each command, and what a value of them may be."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from ..common.secret import Secret
from ..store.store_url import has_password

__all__ = [
    "add_demo_options",
    "add_login_options",
    "add_sandbox_options",
    "add_save_options",
    "add_session_options",
    "add_store_command_options",
    "add_store_options",
]

#: Ten years. A huge number overflows the timers of the system.
MAX_SECONDS = 10 * 365 * 86400


def add_demo_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``adh-auth demo``."""
    command.add_argument(
        "--seconds", type=_seconds, default=10.0, metavar="S", help="how long the processes work (default 10)"
    )
    place = command.add_mutually_exclusive_group()
    place.add_argument(
        "--store",
        nargs="?",
        const=Secret(""),
        metavar="URL",
        action=_StoreWithoutPassword,
        help="let the processes be machines that share a session in this store; without a URL: $ADH_STORE",
    )
    place.add_argument(
        "--machines",
        action="store_true",
        help="the same, over a PostgreSQL of the demo's own",
    )
    # How a frozen program starts the processes of the demo.
    command.add_argument("--worker", help=argparse.SUPPRESS)


def add_login_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``adh-auth login``."""
    add_session_options(command)
    command.add_argument(
        "--redirect-uri", default="http://localhost:8765/callback", metavar="URI", help="default %(default)s"
    )
    command.add_argument(
        "--scope", default="profile:read discussions:read", help='separated by spaces, default "%(default)s"'
    )
    command.add_argument(
        "--no-browser", action="store_true", help="print the URL instead of opening a browser"
    )
    command.add_argument(
        "--paste", action="store_true", help="ask for the URL the browser ends on instead of listening for it"
    )
    command.add_argument(
        "--timeout",
        type=_seconds,
        default=300.0,
        metavar="S",
        help="seconds to wait for the sign-in (default 300)",
    )


def add_save_options(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``adh-auth save``."""
    command.add_argument(
        "file", nargs="?", default="-", metavar="FILE", help="the reply; - or nothing: stdin"
    )
    add_store_options(command)


def add_sandbox_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``adh-auth sandbox``."""
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
    command.add_argument("--overwrite", action="store_true", help="write it even if the file exists already")
    # Not nargs=REMAINDER: that takes options of ours for the program's. What follows `--` is the program's.
    command.add_argument(
        "program", nargs="*", metavar="COMMAND", help="after --: what to run with the environment set"
    )


def add_session_options(command: argparse.ArgumentParser) -> None:
    """Add the options of a command that calls the API."""
    add_store_options(command)
    command.add_argument(
        "--base-url", metavar="URL", help="the API (default: $ADH_BASE_URL, else the public one)"
    )
    command.add_argument(
        "--client-id",
        metavar="ID",
        help="the OAuth app (default: $ADH_CLIENT_ID); its secret: $ADH_CLIENT_SECRET",
    )
    command.add_argument("--client-secret", nargs="?", action=_OnlyFromEnvironment, help=argparse.SUPPRESS)


def add_store_options(command: argparse.ArgumentParser) -> None:
    """Add what says where the session is: ``--token-file``, or ``--store`` and ``--session``."""
    place = command.add_mutually_exclusive_group()
    place.add_argument(
        "--token-file", metavar="PATH", help="default: $ADH_TOKEN_FILE, else ~/.config/adh/tokens.json"
    )
    _add_store_option(place)
    command.add_argument(
        "--session", metavar="NAME", help="a session of the store (default: $ADH_SESSION, else default)"
    )


def add_store_command_options(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``adh-auth store``."""
    command.add_argument("action", choices=("init", "check", "list"), help="see above")
    _add_store_option(command)
    command.add_argument(
        "--print",
        action="store_true",
        dest="print_only",
        help="init: only print what it would run",
    )


def _add_store_option(command: Any) -> None:
    command.add_argument(
        "--store",
        metavar="URL",
        action=_StoreWithoutPassword,
        help="PostgreSQL, Redis, or a folder (file:///…), without a password (default: $ADH_STORE)",
    )


class _StoreWithoutPassword(argparse.Action):
    """Takes the URL of a store. One with a password is refused, and not printed again."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, url: Any, *_: object) -> None:
        if isinstance(url, Secret):  # none was given
            return setattr(namespace, self.dest, url)
        if not url:
            parser.error("--store is empty: name the URL of the store, or set ADH_STORE to it")
        if has_password(url):
            parser.error(
                "a password in --store is refused: every user of this machine can see a command line. "
                "Set ADH_STORE to the URL instead"
            )
        setattr(namespace, self.dest, Secret(url))


class _OnlyFromEnvironment(argparse.Action):
    """Refuses the option. argparse's own message about an unknown option would print the secret again."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser.error(
            "the client secret is read from ADH_CLIENT_SECRET only: every user of this machine can see a "
            "command line"
        )


def _seconds(text: str) -> float:
    value = _number(text)
    if not 0 < value <= MAX_SECONDS:  # false for NaN, too
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text!r}")
    return value


def _port(text: str) -> int:
    value = _number(text)
    if not (0 <= value <= 65535 and value == int(value)):
        raise argparse.ArgumentTypeError(f"must be a port from 0 to 65535, not {text!r}")
    return int(value)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
