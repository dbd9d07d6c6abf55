"""The standard streams of a command: all three exist and take any text, and a closed pipe is one error."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

__all__ = ["print_to_stderr", "uniform_broken_pipe", "usable_standard_streams"]


def print_to_stderr(text: str, end: str = "\n") -> None:
    """Write a line to stderr. A failure is ignored: there is no stream left to report it on."""
    if sys.stderr is not None:
        with suppress(Exception):
            sys.stderr.write(text + end)
            sys.stderr.flush()


@contextmanager
def uniform_broken_pipe() -> Iterator[None]:
    """Around a write to stdout: raise `BrokenPipeError` for a closed pipe, on every system."""
    try:
        yield
    except OSError as refused:
        # Windows' C runtime says EINVAL where a pipe's other end is closed (python/cpython#79935).
        if sys.platform == "win32" and refused.errno == errno.EINVAL:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
        raise


@contextmanager
def usable_standard_streams() -> Iterator[None]:
    """Around a command: make all three standard streams exist and take any text.

    A missing one (pythonw, ``adh-auth … >&-``) is replaced by the null device. That takes the descriptor that
    was closed, so that no token file is opened under the number of stdout.
    """
    with ExitStack() as stack:
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            if getattr(sys, name) is None:
                setattr(sys, name, stack.enter_context(open(os.devnull, mode, encoding="utf-8")))
                stack.callback(setattr, sys, name, None)
            # With LANG=C, or a code page of Windows, writing a "…" raises UnicodeEncodeError, and reading
            # what is pasted UnicodeDecodeError.
            with suppress(AttributeError, ValueError):
                getattr(sys, name).reconfigure(errors="replace")
        yield
