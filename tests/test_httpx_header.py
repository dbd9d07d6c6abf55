"""The header is put on a request of httpx and httpx2 exactly as the client's own way does it, whatever is there already."""

from __future__ import annotations

from typing import Any

import pytest

from adh_auth import httpx_header
from adh_auth.httpx_header import among_items, put, quickest

from .support import FAMILY, Family

BEFORE = {
    "nothing": [],
    "others": [("Host", "h"), ("Accept", "*/*"), ("X-Authorization", "x")],
    "one": [("Host", "h"), ("authorization", "old"), ("Accept", "*/*")],
    "two": [("AUTHORIZATION", "old"), ("Host", "h"), ("Authorization", "older")],
}


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("family", FAMILY, ids=lambda family: family.name)
def test_the_quick_way_does_what_the_client_does(family: Family, before: str) -> None:
    """In the same place, and in place of all that were there."""
    quick, usual = (family.module.Headers(BEFORE[before]) for _ in range(2))
    for header in ("Bearer first", "Bearer second"):
        among_items(family.module.Headers)(quick, header)
        put(usual, header)
        assert quick.raw == usual.raw
        assert quick == usual
        assert quick["Authorization"] == header


@pytest.mark.parametrize("family", FAMILY, ids=lambda family: family.name)
def test_the_quick_way_is_taken(family: Family) -> None:
    """With the releases that are installed here."""
    assert quickest(family.module.Headers) is not put


@pytest.mark.parametrize("family", FAMILY, ids=lambda family: family.name)
def test_headers_of_the_callers_own(family: Family) -> None:
    """What somebody has put in their place is asked in the public way: a dict, or a class that wants to know."""

    class Told(family.module.Headers):  # type: ignore[misc, name-defined]
        def __setitem__(self, name: str, value: str) -> None:
            super().__setitem__(name, value + ", told")

    told, plain = Told(), dict[str, str]()
    for headers in (told, plain):
        quickest(family.module.Headers)(headers, "Bearer x")
    assert told["Authorization"] == "Bearer x, told"
    assert plain == {"Authorization": "Bearer x"}


class Pairs(dict[str, str]):
    """Headers of a release to come."""

    @property
    def raw(self) -> list[tuple[bytes, bytes]]:
        return [(name.encode(), value.encode()) for name, value in self.items()]


class Elsewhere(Pairs):
    """Has such a list, and what is put there is not sent."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._list: list[tuple[bytes, bytes, bytes]] = []


class Indexed(Elsewhere):
    """Sends what is put there, and doesn't find it by its name."""

    @property
    def raw(self) -> list[tuple[bytes, bytes]]:
        return [(b"A", b"a"), *((name, value) for name, _, value in self._list)]


class Unsent(Elsewhere):
    """Finds what is put there, and doesn't send it."""

    def __getitem__(self, name: str) -> str:
        found = [value.decode() for _, lower, value in self._list if lower == name.lower().encode()]
        return found[0] if found else super().__getitem__(name)

    def __setitem__(self, name: str, value: str) -> None:
        self._list[:] = [(name.encode(), name.lower().encode(), value.encode())]


@pytest.mark.parametrize("kind", [Pairs, Elsewhere, Indexed, Unsent])
def test_headers_that_are_kept_otherwise(kind: Any) -> None:
    """A release to come may keep its items as it likes: the public way is taken then."""
    assert quickest(kind) is put
    headers = kind()
    quickest(kind)(headers, "Bearer x")
    assert headers["Authorization"] == "Bearer x"


@pytest.mark.parametrize("family", FAMILY, ids=lambda family: family.name)
def test_a_request_by_the_public_way(family: Family, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """It carries the token all the same."""
    monkeypatch.setattr(httpx_header, "among_items", lambda _: None)
    path = tmp_path / "tokens.json"
    path.write_text('{"access_token": "a", "refresh_token": "r"}')
    auth = family.auth(path, client_id="i", client_secret="s", base_url="http://127.0.0.1:9")
    with family.module.Client(auth=auth, transport=family.module.MockTransport(lambda _: family.module.Response(200))) as client:
        sent = client.get("http://127.0.0.1:9/x", headers={"authorization": "Bearer mine"}).request
    assert sent.headers.get_list("Authorization") == ["Bearer a"]
