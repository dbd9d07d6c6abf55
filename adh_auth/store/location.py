"""Where a token file is: an argument, the environment, a default. Reads the environment, not the disk."""

from __future__ import annotations

import os
import sys

from ..errors import ConfigurationError

__all__ = ["absolute", "default_path"]


def absolute(path: str | os.PathLike[str]) -> str:
    """Return the absolute path, so that a later change of the current folder has no effect.

    Raises `ConfigurationError`.
    """
    text = os.path.expanduser(os.fspath(path))
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigurationError("token_file must be the path of a file", setting="token_file")
    if text.startswith("~"):
        raise ConfigurationError(
            f"token_file {text!r}: no home folder is known for that user", setting="token_file"
        )
    return os.path.abspath(text)


def default_path() -> str:
    """Return the path of the token file where none is given.

    Raises `ConfigurationError` for a relative path in ``$ADH_TOKEN_FILE``, or where no home folder is known.
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
    # The XDG base directory specification has a relative path ignored.
    if not os.path.isabs(base):
        base = os.path.join(_home(), ".config")
    return absolute(os.path.join(base, "adh", "tokens.json"))


def _home() -> str:
    # A container's user often has neither a passwd entry nor HOME. expanduser() then leaves the ~, and takes
    # an empty HOME for the root folder.
    home = os.path.expanduser("~")
    if not os.path.isabs(home) or (sys.platform != "win32" and os.environ.get("HOME") == ""):
        problem = "no home folder is known for this user, so there is no default token file"
        raise ConfigurationError(
            f"{problem}: set ADH_TOKEN_FILE to an absolute path, or pass token_file=",
            setting="ADH_TOKEN_FILE",
        )
    return home
