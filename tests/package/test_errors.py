"""The error tree: attributes, pickles, and twins that a client's own except clauses catch."""

from __future__ import annotations

import pickle
from typing import Any

import httpx
import httpx2
import pytest
import requests

import adh_auth
from adh_auth.errors import KINDS, AdhAuthError, RefreshFailed, fresh_copy, twin

BASES = (requests.RequestException, httpx.HTTPError, httpx2.HTTPError)


@pytest.mark.parametrize(
    "name",
    ["ConfigurationError", "TokenFileError", "LockTimeout", "RefreshFailed", "ReauthorizationRequired"],
)
def test_one_root(name: str) -> None:
    """Every error of the library is an AdhAuthError."""
    assert issubclass(getattr(adh_auth, name), adh_auth.AdhAuthError)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", KINDS.values())
def test_a_twin_is_caught_by_both_clauses(kind: type[AdhAuthError], base: type[Exception]) -> None:
    """An error out of a client's call is also that client's own error, under its own name, and pickles as
    such.
    """
    raised = twin(kind("what happened", token_file="/f", request_id="r"), base)
    assert isinstance(raised, kind)
    assert isinstance(raised, base)
    assert type(raised).__name__ == kind.__name__
    again = pickle.loads(pickle.dumps(raised))
    assert type(again) is type(raised)
    assert (str(again), again.token_file, again.request_id) == ("what happened", "/f", "r")


def test_a_pickle_leaves_the_request_behind() -> None:
    """The request that a client hangs on an error holds the token: a pickle does not carry it."""
    raised: Any = twin(RefreshFailed("no", status=503), requests.RequestException)
    raised.request = requests.Request(
        "GET", "https://a.example", headers={"Authorization": "Bearer adh_A"}
    ).prepare()
    pickled = pickle.dumps(raised)
    assert b"adh_A" not in pickled
    assert pickle.loads(pickled).status == 503


def test_a_copy_has_no_past() -> None:
    """What many threads raise is a copy each, without the traceback of the worker."""
    try:
        raise RefreshFailed("no", retry_after=3.0)
    except RefreshFailed as error:
        copied = fresh_copy(error)
    assert copied.__traceback__ is None
    assert copied.__context__ is None
    assert copied.retry_after == 3.0
