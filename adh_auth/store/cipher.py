"""Encryption of the pair at rest in a store, optional: Fernet keys from ``ADH_STORE_KEY``.

The session's name is inside the plaintext: a row that was copied under another name is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..common.secret import Secret
from ..errors import ConfigurationError, replaced_errors

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

__all__ = ["Cipher", "ForeignContent", "KeyUnfit", "cipher_from", "is_encrypted", "require_library"]

#: The environment variable with the keys, separated by commas. The first one encrypts, each decrypts.
VARIABLE = "ADH_STORE_KEY"
#: What every Fernet token begins with: its version, 0x80, and the first bytes of a 64-bit time.
FERNET_PREFIX = "gAAAA"


class KeyUnfit(Exception):
    """No key decrypts it."""


class ForeignContent(Exception):
    """It was encrypted for a session of another name."""


class Cipher:
    """Encrypts and decrypts with several keys, so that they can be rotated."""

    __slots__ = ("_fernet",)

    def __init__(self, fernet: MultiFernet) -> None:
        self._fernet = fernet

    def encrypt(self, session: str, content: Secret) -> Secret:
        """Return the text to store."""
        plaintext = Secret(json.dumps({"session": session, "content": content.reveal()}))
        return Secret(self._fernet.encrypt(plaintext.reveal().encode("ascii")).decode("ascii"))

    def decrypt(self, session: str, text: Secret) -> Secret:
        """Return what was encrypted for that session. Raises `KeyUnfit` and `ForeignContent`."""
        from cryptography.fernet import InvalidToken

        with replaced_errors((InvalidToken, ValueError), by=lambda _: KeyUnfit()):
            whole = Secret(self._fernet.decrypt(text.reveal().encode("ascii")).decode("ascii"))
        return _content_for(session, whole)


def _content_for(session: str, whole: Secret) -> Secret:
    with replaced_errors((ValueError, TypeError, KeyError), by=lambda _: ForeignContent()):
        mapping = json.loads(whole.reveal())
        if mapping["session"] != session:
            del mapping  # a traceback with locals would show it
            raise ForeignContent
        return Secret(str(mapping["content"]))


def is_encrypted(text: Secret) -> bool:
    """Return whether it is a Fernet token. JSON begins otherwise."""
    return text.reveal().startswith(FERNET_PREFIX)


def cipher_from(environment: Mapping[str, str] = os.environ) -> Cipher | None:
    """Return the cipher with the keys of ``ADH_STORE_KEY``; None where it is not set.

    Raises `ConfigurationError` for a key that is none, and where cryptography is not installed.
    """
    keys = [Secret(key.strip()) for key in environment.get(VARIABLE, "").split(",") if key.strip()]
    del environment  # a traceback with locals shows the arguments of every frame
    return _cipher_of(keys) if keys else None


def require_library() -> None:
    """Raise `ConfigurationError` where cryptography is not installed."""
    with replaced_errors(ImportError, by=lambda _: _missing()):
        import cryptography.fernet  # noqa: F401


def _cipher_of(keys: list[Secret]) -> Cipher:
    require_library()
    from cryptography.fernet import Fernet, MultiFernet

    with replaced_errors(ValueError, by=lambda _: _unusable()):
        return Cipher(MultiFernet([Fernet(key.reveal()) for key in keys]))


def _missing() -> ConfigurationError:
    return ConfigurationError(
        f"{VARIABLE} is set, and cryptography is not installed. Install it:"
        ' pip install "adh-auth[encrypted]"',
        setting=VARIABLE,
    )


def _unusable() -> ConfigurationError:
    return ConfigurationError(
        f"{VARIABLE} holds no usable key: it takes Fernet keys, separated by commas. Make one with: python -c"
        ' "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"',
        setting=VARIABLE,
    )
