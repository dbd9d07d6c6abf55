"""Text for people: times, durations, untrusted text on one line."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


import socket

__all__ = ["capitalized", "format_duration", "format_time", "format_time_relative", "one_line"]


def format_time(epoch: float) -> str:
    """A time as people read it, with its zone; the number where it is no time."""
    try:
        # Aware from the start: a naive one before 1970-01-02 is an OSError on Windows.
        return datetime.fromtimestamp(epoch, timezone.utc).astimezone().isoformat(sep=" ", timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return f"{epoch:g}"


def printable(text: str | None, limit: int = 200) -> str | None:
    """A stranger's text, fit for a message: one line, no control characters, bounded."""
    return None if text is None else "".join(char if char.isprintable() else "?" for char in text[:limit])


def capitalized(step: str) -> str:
    """A next step as a sentence of its own."""
    # str.capitalize() would make the rest lower case, and the path in it another one.
    return step[:1].upper() + step[1:]


def one_line(text: str) -> str:
    """A text without line breaks and control characters: a file's name or a stranger's reply may hold some."""
    return "".join(char if char.isprintable() else " " for char in text)


def format_duration(seconds: float) -> str:
    """A length of time in the two units that matter: ``59 s``, ``3 h 12 min``, ``2 d 4 h``."""
    whole = int(abs(seconds))
    if whole < 60:
        return f"{whole} s"
    for unit, name, smaller, smaller_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{whole // unit} {name}" + (f" {rest} {smaller_name}" if rest else "")
    return f"{whole // 60} min"


def format_time_relative(epoch: float, now: float) -> str:
    """A moment (epoch seconds) as people read it, and how far it is from `now`."""
    return f"{format_time(epoch)} ({f'in {format_duration(epoch - now)}' if epoch > now else f'{format_duration(now - epoch)} ago'})"


def host_name() -> str:
    """This machine's name, for the record."""
    return socket.gethostname()[:64]
