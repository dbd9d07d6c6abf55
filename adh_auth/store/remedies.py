"""What a user can do where no token file is found or the disk refuses it."""

from __future__ import annotations

import errno
import shlex
import sys

__all__ = ["login_command_line", "remedy_for", "shell_quoted", "system_reason"]


def login_command_line(path: str) -> str:
    """The command that makes a token file."""
    return f"sign in with: adh-auth login --token-file {shell_quoted(path)}"


#: What cmd.exe and the C runtime take for more than a letter, outside double quotes.
_SPECIAL_ON_WINDOWS = frozenset(" \t&|<>^()@!%;,=`'")


def shell_quoted(path: str) -> str:
    """The path as a word of a command that a person pastes into a shell: cmd.exe on Windows, a POSIX shell
    elsewhere.
    """
    if sys.platform == "win32":
        # As subprocess.list2cmdline, and what only cmd.exe reads as well: in C:\R&D it ends the command at
        # the `&`. No path holds a double quote there, and a file's does not end in a backslash.
        return f'"{path}"' if _SPECIAL_ON_WINDOWS.intersection(path) else path
    return shlex.quote(path)


def system_reason(refused: OSError | NotImplementedError) -> str:
    """What the system says."""
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
    """What to do about what the disk refuses."""
    return _REMEDIES.get(getattr(refused, "errno", None) or 0, "Look at the file, its folder and its disk")
