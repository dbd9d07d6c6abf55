"""Text for people: times, durations, untrusted text on one line."""

from __future__ import annotations

from datetime import datetime, timezone

__all__ = [
    "capitalized",
    "format_clock",
    "format_duration",
    "format_time",
    "format_time_relative",
    "one_line",
    "printable",
]

#: Characters of a header or a code that a message quotes.
QUOTED_LIMIT = 200


def format_time(epoch: float) -> str:
    """Return a local date and time with its zone, or the number where it is no time.

    `epoch`: epoch seconds.
    """
    local = _local_time(epoch)
    return f"{epoch:g}" if local is None else local.isoformat(sep=" ", timespec="seconds")


def format_clock(epoch: float) -> str:
    """Return the local time of day with its zone, for a time within the next minute, in epoch seconds."""
    local = _local_time(epoch)
    return f"{epoch:g}" if local is None else local.timetz().isoformat(timespec="seconds")


def _local_time(epoch: float) -> datetime | None:
    try:
        # With a time zone from the start: on Windows a naive one before 1970-01-02 raises OSError.
        return datetime.fromtimestamp(epoch, timezone.utc).astimezone()
    except (ValueError, OverflowError, OSError):
        return None


def capitalized(step: str) -> str:
    """Return a next step as a sentence of its own."""
    # str.capitalize() would make the rest lower case, and change the path in it.
    return step[:1].upper() + step[1:]


def one_line(text: str) -> str:
    """Return a whole line of output: a space for each line break and control character in it.

    It is ours but for a path or a reply that it names, and is not cut.
    """
    return "".join(char if char.isprintable() else " " for char in text)


def printable(value: str | None) -> str | None:
    """Return one untrusted value as a message quotes it, None for None.

    At most `QUOTED_LIMIT` characters of it, and a `?` for each that is not printable: a space would hide that
    the value is not what was sent.
    """
    if value is None:
        return None
    return "".join(char if char.isprintable() else "?" for char in value[:QUOTED_LIMIT])


def format_duration(seconds: float) -> str:
    """Return a number of seconds in its two largest units: ``59 s``, ``3 h 12 min``, ``2 d 4 h``."""
    whole = int(abs(seconds))
    if whole < 60:
        return f"{whole} s"
    for unit, name, smaller, smaller_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{whole // unit} {name}" + (f" {rest} {smaller_name}" if rest else "")
    return f"{whole // 60} min"


def format_time_relative(epoch: float, now: float) -> str:
    """Return a time and its distance from `now`, both in epoch seconds."""
    distance = format_duration(epoch - now)
    return f"{format_time(epoch)} ({f'in {distance}' if epoch > now else f'{distance} ago'})"
