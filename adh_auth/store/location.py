"""Where a token file is, and what its user can do where none is found or the disk refuses it.

No I/O; the environment is read.
"""

from __future__ import annotations

import os
import sys

from ..errors import ConfigurationError

__all__ = ["absolute", "default_path"]


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
