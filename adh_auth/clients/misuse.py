"""Messages for calls that can't be meant as they stand: what was meant, for the class that was called.

Rule 13: what was passed may be a token, so none of it is quoted but the names of arguments and types.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from ..tokens import Tokens

__all__ = ["misuse", "other_library"]

CLASSES = {"requests": "AdhAuth", "httpx": "AdhHttpxAuth", "httpx2": "AdhHttpx2Auth"}

SAVE = (
    "the pair is read from a token file, where a refresh can replace it: sign in with `adh-auth login`,"
    " or save the pair with TokenFile(path).save(Tokens(access_token, refresh_token))"
)
LOGIN = "that belongs to adh_auth.login()"
CLIENT = "set that on your client; for the refresh call, pass a client that has it as refresh_via"

#: What people write for an argument.
MEANT = {
    "token_file": "file path filename file_path token_path tokens_path token_cache cache cache_file",
    "client_id": "id app_id clientid oauth_client_id",
    "client_secret": "secret app_secret clientsecret oauth_client_secret",
    "base_url": "url host api api_url server endpoint api_base baseurl refresh_url token_url",
    "refresh_ahead": "ahead leeway margin skew refresh_before expiry_margin",
    "lock_timeout": "timeout lock_wait max_wait",
    "on_event": "hook callback on_refresh on_rotate on_token event_hook",
    "store": "store_url dsn database redis postgres backend storage",
    "session": "session_name session_id user user_id",
    "refresh_via": "transport http_client http_session adapter",
}
#: What is no argument here, by what to do instead.
ELSEWHERE = {
    SAVE: "token tokens access_token refresh_token bearer api_key key expires_at",
    LOGIN: "scope scopes redirect_uri open_browser paste echo",
    CLIENT: "verify cert certs proxy proxies trust_env headers retries",
}


def misuse(
    kind: type, known: Collection[str], given: tuple[Any, ...], named: Mapping[str, Any]
) -> TypeError | None:
    """Return the error for a call of the class `kind`, None where there is nothing to say about it."""
    name = kind.__name__
    first = given[0] if given else named.get("token_file")
    wrong = _wrong_first(name, first) or _wrong_session(name, named.get("session"))
    unknown = next((word for word in named if word not in known), None)
    if wrong is None and len(given) > 1:
        wrong = f"{name}() takes only the token file without a name: write client_id=…, client_secret=…"
    if wrong is None and unknown is not None:
        wrong = f"{name}() has no argument {unknown!r}: {_hint(unknown, known)}"
    return None if wrong is None else TypeError(wrong)


def _hint(unknown: str, known: Collection[str]) -> str:
    word = unknown.lower()
    elsewhere = next((hint for hint, words in ELSEWHERE.items() if word in words.split()), None)
    meant = [name for name, words in MEANT.items() if word in words.split()]
    name = next(iter(meant or get_close_matches(word, known, n=1)), None)
    if name is not None and elsewhere is None:
        return f"did you mean {name}?"
    return elsewhere or f"there are {', '.join(sorted(known))}"


def _wrong_first(name: str, first: object) -> str | None:
    """Return what is wrong about the first argument, None where it is a path or nothing."""
    if isinstance(first, str) and "://" in first:
        return f"{name}() takes the path of a token file, not a URL: pass that of a store as store=…"
    if first is None or (isinstance(first, (str, os.PathLike)) and not looks_like_a_token(first)):
        return None
    client = _client_of(first)
    if client is not None and hasattr(first, "url"):
        right = CLASSES[client]
        return f"{name} was passed to {client} as a class: write auth={right}() with parentheses"
    if client is not None:
        right = CLASSES[client]
        return f"{name}() takes a token file, not a client: pass auth={right}() to the client instead"
    if isinstance(first, (str, Tokens, Mapping)):
        return f"{name}() takes the path of a token file, not a token: {SAVE}"
    return None


def _wrong_session(name: str, session: object) -> str | None:
    client = _client_of(session)
    if client is None:
        return None
    return f"{name}() takes no session of {client}: set auth={CLASSES[client]}() on that session instead"


def looks_like_a_token(first: object) -> bool:
    """Return whether it is a token of the API's rather than a path: it must not end up in a message."""
    return isinstance(first, str) and first.startswith("adh_") and len(first) > 20 and first.isidentifier()


def _client_of(thing: object) -> str | None:
    """Return the library of a request or of a client, None for anything else."""
    modules = (base.__module__.partition(".")[0] for base in type(thing).__mro__)
    library = next((module for module in modules if module in CLASSES), None)
    return library if hasattr(thing, "headers") else None


def other_library(auth: object, request: object) -> TypeError:
    """Return the error for an auth object that was passed to a client of another library."""
    client = type(request).__module__.partition(".")[0]
    right = CLASSES.get(client)
    every = "use AdhAuth with requests, AdhHttpxAuth with httpx, AdhHttpx2Auth with httpx2"
    advice = f"use adh_auth.{right} with {client}" if right else every
    return TypeError(f"{type(auth).__name__} was given a request of {client}: {advice}")
