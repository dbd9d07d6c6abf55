"""Where a token file is, and what its user can do where none is found or the disk refuses it.

No I/O; the environment is read.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys

from .errors import ConfigurationError

__all__ = ["absolute", "advice", "default_path", "quoted", "sentence", "sign_in", "system_reason"]


def absolute(path: str | os.PathLike[str]) -> str:
    """The path as it is meant now, whatever folder is current later."""
    text = os.path.expanduser(os.fspath(path))
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigurationError("token_file must be the path of a file", setting="token_file")
    if text.startswith("~"):
        raise ConfigurationError(
            f"token_file {text!r}: no home folder is known for that user", setting="token_file"
        )
    return os.path.abspath(text)


def default_path() -> str:
    """Where the token file is when nobody says so.

    Raises `ConfigurationError` for a path relative to whatever folder is current.
    """
    named = os.environ.get("ADH_TOKEN_FILE")
    if named:
        if not os.path.isabs(os.path.expanduser(named)):
            raise ConfigurationError(
                f"ADH_TOKEN_FILE must be an absolute path, not {named!r}", setting="ADH_TOKEN_FILE"
            )
        return absolute(named)
    variable = "APPDATA" if sys.platform == "win32" else "XDG_CONFIG_HOME"
    base = os.environ.get(variable, "")
    if not os.path.isabs(
        base
    ):  # the XDG base directory specification: a relative path there is to be ignored
        base = os.path.join(_home(), ".config")
    return absolute(os.path.join(base, "adh", "tokens.json"))


def _home() -> str:
    # A container's user often has neither a passwd entry nor HOME; expanduser() then leaves the ~, or takes
    # an empty HOME for the root.
    home = os.path.expanduser("~")
    if not os.path.isabs(home) or (sys.platform != "win32" and os.environ.get("HOME") == ""):
        problem = "no home folder is known for this user, so there is no default token file"
        raise ConfigurationError(
            f"{problem}: set ADH_TOKEN_FILE to an absolute path, or pass token_file=",
            setting="ADH_TOKEN_FILE",
        )
    return home


def sign_in(path: str) -> str:
    """The command that makes a token file."""
    return f"sign in with: adh-auth login --token-file {quoted(path)}"


#: What cmd.exe and the C runtime take for more than a letter, outside double quotes.
_SPECIAL_ON_WINDOWS = frozenset(" \t&|<>^()@!%;,=`'")


def quoted(path: str) -> str:
    """The path as a word of a command that a person pastes into a shell: cmd.exe on Windows, a POSIX shell
    elsewhere.
    """
    if sys.platform == "win32":
        # As subprocess.list2cmdline, and what only cmd.exe reads as well: in C:\R&D it ends the command at
        # the `&`. No path holds a double quote there, and a file's does not end in a backslash.
        return f'"{path}"' if _SPECIAL_ON_WINDOWS.intersection(path) else path
    return shlex.quote(path)


def sentence(step: str) -> str:
    """A next step as a sentence of its own."""
    # str.capitalize() would make the rest lower case, and the path in it another one.
    return step[:1].upper() + step[1:]


def system_reason(refused: OSError | NotImplementedError) -> str:
    """What the system says."""
    return getattr(refused, "strerror", None) or type(refused).__name__


_ADVICE = {
    errno.ENOSPC: "Free some space on its disk",
    errno.EDQUOT: "Free some of your quota",
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f)",
    errno.EROFS: "Mount its file system writable, or keep it elsewhere",
    errno.EACCES: "Give this user access to the file and write access to its folder",
    errno.EPERM: "Give this user access to the file and write access to its folder",
    errno.EBUSY: "Mount its folder instead of the single file",
}


def advice(refused: OSError | NotImplementedError) -> str:
    """What to do about what the disk refuses."""
    return _ADVICE.get(getattr(refused, "errno", None) or 0, "Look at the file, its folder and its disk")
