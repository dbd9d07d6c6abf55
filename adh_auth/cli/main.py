# PYTHON_ARGCOMPLETE_OK
"""The command line: run a command, and turn how it ended into an exit code.

No traceback and no secret reaches the terminal (rule 13).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress

from ..common.console import print_to_stderr, uniform_broken_pipe, usable_standard_streams
from ..errors import AdhAuthError
from .commands import COMMANDS
from .end_signals import end_signals_raise
from .flags import in_flags
from .parser import USAGE, new_parser

__all__ = ["main"]

#: Exit codes, with `USAGE`: success, an error in one line on stderr, Ctrl-C, a closed pipe behind stdout.
SUCCESS, FAILURE, INTERRUPTED, BROKEN_PIPE = 0, 1, 130, 141
#: Commands that end in order by themselves on SIGTERM.
WITH_OWN_SIGNALS = ("demo", "sandbox")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    with usable_standard_streams():
        return _guarded(argv)


def _guarded(argv: Sequence[str] | None) -> int:
    try:
        code = _run(argv)
        with uniform_broken_pipe():
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        _print_error(_ending_message("interrupted"))
        return INTERRUPTED
    except SystemExit as ended:  # by a signal
        _print_error(_ending_message("terminated"))
        return ended.code if isinstance(ended.code, int) else FAILURE
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except OSError as error:  # a full disk behind stdout, no more processes
        _drop_output()
        _print_error(f"stopped: {error}")
        return FAILURE


def _run(argv: Sequence[str] | None) -> int:
    parser = new_parser()
    _answer_shell(parser)
    try:
        with uniform_broken_pipe():
            args = parser.parse_args(argv)
            given = sys.argv[1:] if argv is None else argv
            if args.command == "sandbox" and given[-1] == "--":
                parser.error("name the COMMAND that is to run after --")
    except SystemExit as exit_request:  # argparse has printed the help, or what is wrong with the usage
        return exit_request.code if isinstance(exit_request.code, int) else SUCCESS
    if args.command is None:
        print_to_stderr(parser.format_help(), end="")
        return USAGE
    return _run_command(args)


def _answer_shell(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks for completions, and end; return at once where none asks."""
    if "_ARGCOMPLETE" in os.environ:
        with suppress(ImportError):  # the extra `completion`
            import argcomplete

            argcomplete.autocomplete(parser)


def _run_command(args: argparse.Namespace) -> int:
    _print_warnings_as_lines()
    try:
        with nullcontext() if args.command in WITH_OWN_SIGNALS else end_signals_raise():
            return COMMANDS[args.command].run(args)
    except AdhAuthError as error:
        _print_error(in_flags(error.message))
        return FAILURE


def _print_warnings_as_lines() -> None:
    # The library reports a problem twice, as a warning and to its logger. Printed by Python, a warning
    # brings a line of source code along.
    import logging
    import warnings

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            _print_error(record.getMessage())

    warnings.filterwarnings("ignore", category=UserWarning, module=r"adh_auth\.")
    logging.getLogger("adh_auth").addHandler(Lines())


def _print_error(text: str) -> None:
    print_to_stderr(f"adh-auth: {''.join(char if char.isprintable() else ' ' for char in text)}")


def _ending_message(how: str) -> str:
    import threading

    if any(thread.name == "adh-auth rotation" for thread in threading.enumerate()):
        return f"{how}; a refresh that is under way is finished first, or it would cost the session"
    return how


def _drop_output() -> None:
    # The interpreter flushes stdout when it ends, and prints a traceback where that fails. So what is
    # buffered goes to the null device.
    with suppress(OSError, AttributeError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
