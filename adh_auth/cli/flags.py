"""The library's messages in the words of the command line: ``--client-id`` where they say ``client_id=``."""

from __future__ import annotations

import re

__all__ = ["in_flags"]

#: An argument as messages write it, and its flag.
_FLAGS = {
    "base_url=": "--base-url",
    "client_id=": "--client-id",
    "open_browser=False": "--no-browser",
    "paste=True": "--paste",
    "redirect_uri=": "--redirect-uri",
    "scope=": "--scope",
    "session=": "--session",
    "store=": "--store",
    "timeout=": "--timeout",
    "token_file=": "--token-file",
}
#: Words about arguments that no flag stands for: the secret is never on a command line.
_WITHOUT_FLAG = {
    "pass client_secret= or set": "set",
    "pass client_id= and client_secret=": "pass --client-id",
    ", or raise lock_timeout": "",
    "give token_file or session, not both": "give --token-file or --session, not both",
}
#: Not within a URL's query or a path.
_ARGUMENT = re.compile(rf"(?<![^\s(])({'|'.join(map(re.escape, _FLAGS))})(?![^\s,;:.)])")
#: What a message begins with, if it is about an argument's value.
_SUBJECT = re.compile(r"^(base_url|client_id|redirect_uri|scope|timeout|token_file)(?= must )")


def in_flags(message: str) -> str:
    """Return a message of the library with flags in the place of arguments."""
    for words, instead in _WITHOUT_FLAG.items():
        message = message.replace(words, instead)
    message = _SUBJECT.sub(lambda found: _FLAGS[f"{found[1]}="], message)
    return _ARGUMENT.sub(lambda found: _FLAGS[found[1]], message)
