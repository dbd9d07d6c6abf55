"""Messages about a token file: which file, what the disk refused, and the next step."""

from __future__ import annotations

import errno
from functools import partial

from ..common.notices import warn_loudly
from ..common.text import capitalized
from ..errors import TokenFileError, replaced_errors
from .file_checks import ModesUnsupported, UnsafeFile
from .remedies import login_command_line, remedy_for, system_reason

__all__ = ["lock_error", "reading", "token_file_error", "unusable_content", "writing"]

#: errno values by which a file system says that it has no locks.
NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP})


def token_file_error(path: str, problem: str, next_step: str) -> TokenFileError:
    """Return an error that names the file, the problem and the next step."""
    # No full stop: where the next step is a command, it would be copied along.
    return TokenFileError(f"token file {path} {problem}. {next_step}", token_file=path)


def reading(path: str) -> replaced_errors[OSError]:
    """Around work that reads the token file: an `OSError` becomes a `TokenFileError`."""
    return replaced_errors(OSError, by=partial(_read_error, path))


def writing(path: str, problem: str) -> replaced_errors[OSError]:
    """Around work that writes: an `OSError` becomes a `TokenFileError`.

    `problem`: what the message says when the work fails, such as "can't be rewritten".
    """
    return replaced_errors(OSError, by=partial(_write_error, path, problem))


def _read_error(path: str, refused: OSError) -> TokenFileError:
    if isinstance(refused, FileNotFoundError):
        return token_file_error(path, "is missing", capitalized(login_command_line(path)))
    return _disk_error(path, "can't be read", refused)


def _write_error(path: str, problem: str, refused: OSError) -> TokenFileError:
    if isinstance(refused, FileNotFoundError):
        next_step = capitalized(login_command_line(path))
        return token_file_error(path, f"{problem}: its folder is missing", next_step)
    return _disk_error(path, problem, refused)


def _disk_error(path: str, problem: str, refused: OSError) -> TokenFileError:
    if isinstance(refused, UnsafeFile):
        return token_file_error(
            path, f"is refused: {refused}", "Move it away and sign in again, or name another file"
        )
    if isinstance(refused, ModesUnsupported):
        return token_file_error(
            path,
            f"{problem}: its file system can't make it private ({refused})",
            "Keep it on one that can, or mount this one so that only you can read it (umask=077)",
        )
    return token_file_error(path, f"{problem}: {system_reason(refused)}", remedy_for(refused))


def lock_error(path: str, lock_path: str, refused: OSError | NotImplementedError) -> TokenFileError:
    """Return the error for a lock that can't be taken."""
    if isinstance(refused, NotImplementedError) or refused.errno in NO_LOCKS:
        return token_file_error(
            path, f"is on a file system without real locks ({lock_path})", "Keep it on a local disk"
        )
    if isinstance(refused, UnsafeFile):
        return token_file_error(path, f"can't be locked: {refused}", "Move that file away")
    if isinstance(refused, FileNotFoundError):
        return token_file_error(
            path, "is missing, and so is its folder", capitalized(login_command_line(path))
        )
    return token_file_error(
        path, f"can't be locked: {lock_path}: {system_reason(refused)}", remedy_for(refused)
    )


def unusable_content(path: str, reason: str) -> TokenFileError:
    """Return the error for a file that holds no pair."""
    return token_file_error(
        path,
        f"is not a usable token file: {reason}",
        f"It was left as it is: repair it if you can, or {login_command_line(path)}",
    )


#: Token files on file systems without modes. One warning is enough: there would be one at each refresh.
_warned_of: set[str] = set()


def warn_of_mode(path: str, before: int, after: int) -> None:
    """Warn that others could read the file before it was written, or still can.

    `before`, `after`: the file's mode, 0 where it is private.
    """
    if after and path not in _warned_of:
        _warned_of.add(path)
        warn_loudly(
            f"token file {path} can be read by others (mode {after:04o}): its file system keeps no modes. "
            "Keep the file on one that does"
        )
    elif before and not after:
        warn_loudly(
            f"token file {path} could be read by others (mode {before:04o}); it is private now (0600)"
        )
