"""What a user can do next: the command that signs in, and a remedy for each error of the disk."""

from __future__ import annotations

import errno
import shlex
import sys

__all__ = ["login_command_line", "remedy_for", "shell_quoted", "system_reason"]


def login_command_line(path: str) -> str:
    """Return the command that makes a token file, as the end of a sentence."""
    return f"sign in with: adh-auth login --token-file {shell_quoted(path)}"


#: Characters that mean something to cmd.exe or the C runtime outside double quotes.
_SPECIAL_ON_WINDOWS = frozenset(" \t&|<>^()@!%;,=`'")


def shell_quoted(path: str) -> str:
    """Return the path as one word of a command to paste into cmd.exe on Windows, a POSIX shell elsewhere."""
    if sys.platform == "win32":
        # subprocess.list2cmdline leaves C:\R&D as it is, and cmd.exe ends the command at the `&`. No path
        # holds a double quote there, and none of a file ends in a backslash.
        return f'"{path}"' if _SPECIAL_ON_WINDOWS.intersection(path) else path
    return shlex.quote(path)


def system_reason(refused: OSError | NotImplementedError) -> str:
    """Return the system's reason."""
    return getattr(refused, "strerror", None) or type(refused).__name__


_REMEDIES = {
    errno.ENOSPC: "Free some space on its disk",
    errno.EDQUOT: "Free some of your quota",
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f)",
    errno.EROFS: "Mount its file system writable, or keep it elsewhere",
    errno.EACCES: "Give this user access to the file and write access to its folder",
    errno.EPERM: "Give this user access to the file and write access to its folder",
    errno.EBUSY: "Mount its folder instead of the single file",
}


def remedy_for(refused: OSError | NotImplementedError) -> str:
    """Return the next step after an error of the disk."""
    return _REMEDIES.get(getattr(refused, "errno", None) or 0, "Check the file, its folder and its disk")
