"""Whose session a store holds: the server and the client that its tokens belong to.

Rule 12: nothing of a session is sent to another server. A session says which one is its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..common.text import printable
from ..errors import ConfigurationError
from ..oauth.origin import origin_of, origin_url
from ..tokens import OWNER_KEYS, Stored, fingerprint

if TYPE_CHECKING:
    from ..store.base import NamedStore

__all__ = ["Owner", "check_server", "owner_facts", "owner_in"]


def owner_facts(mapping: Mapping[str, Any]) -> dict[str, str]:
    """Return what a session says of its owner; a value that makes no sense is left out."""
    facts = {
        name: mapping[name] for name in OWNER_KEYS if isinstance(mapping.get(name), str) and mapping[name]
    }
    url = facts.get("base_url", "")
    origin = origin_of(url)
    if url and origin is None:
        del facts["base_url"]
    elif origin is not None and "@" in url:
        facts["base_url"] = origin_url(origin)  # shown by `status`, and a URL may hold a password
    return facts


def check_server(facts: Mapping[str, str], store: NamedStore, ours: str) -> None:
    """Raise `ConfigurationError` where the session of these `facts` belongs to another server than `ours`."""
    theirs = facts.get("base_url")
    if theirs is not None and origin_of(theirs) != origin_of(ours):
        raise _foreign("base_url", store, _origin_of(theirs), _origin_of(ours), "ADH_BASE_URL")


def owner_in(mapping: Mapping[str, Any]) -> Owner | None:
    """Return the owner that a session names, None unless it names server and client."""
    facts = owner_facts(mapping)
    if "base_url" not in facts or "client_id" not in facts:
        return None
    return Owner(facts["base_url"], facts["client_id"])


class Owner:
    """The server and the client of one auth object."""

    def __init__(self, base_url: str, client_id: str) -> None:
        self.base_url = base_url
        self.client_id = client_id
        self._fingerprint = ""

    @property
    def fingerprint(self) -> str:
        """Return 12 hex digits of this server, as an origin, and this client: for the record."""
        # No cached_property: before Python 3.12 its lock is one for all objects, and a fork may find it held.
        if not self._fingerprint:
            self._fingerprint = fingerprint(f"{origin_of(self.base_url)} {self.client_id}")
        return self._fingerprint

    def check(self, stored: Stored, store: NamedStore) -> None:
        """Raise `ConfigurationError` where the session belongs to another server or client.

        `store`: for the message. Servers are compared as origins, not as texts.
        """
        facts = owner_facts(stored.mapping)
        check_server(facts, store, self.base_url)
        theirs, ours = facts.get("client_id"), self.client_id
        if theirs is not None and theirs != ours:
            raise _foreign("client_id", store, theirs, ours, "ADH_CLIENT_ID")

    def name_in(self, reply: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys of a reply that brought a session, with this owner instead of any that it names."""
        kept = {name: value for name, value in reply.items() if name not in OWNER_KEYS}
        return {**kept, "base_url": self.base_url, "client_id": self.client_id}

    def mark(self, fresh: Stored, spent: Stored) -> Stored:
        """Return `fresh` with the owner of `spent`, and this one where that says nothing.

        What a reply of the server says of it does not count.
        """
        return Stored(fresh.tokens, {**self.name_in(fresh.mapping), **owner_facts(spent.mapping)})


def _origin_of(url: str) -> str:
    # Not the text of a file: it may hold a password.
    origin = origin_of(url)
    return url if origin is None else origin_url(origin)


def _foreign(setting: str, store: NamedStore, theirs: str, ours: str, variable: str) -> ConfigurationError:
    whose = "the server" if setting == "base_url" else "the client"
    return ConfigurationError(
        f"the session in {store.name} belongs to {whose} {printable(theirs)}, but {setting} is {ours}:"
        f" nothing was sent. Set {variable} (or {setting}=) to {printable(theirs)},"
        f" or name another {store.kind}",
        setting=setting,
        **store.facts_for_errors(),
    )
