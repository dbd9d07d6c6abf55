"""The error tree: attributes, pickles, and the errors that a client's own except clauses catch."""

from __future__ import annotations

import pickle
import traceback
from typing import Any

import httpx
import httpx2
import pytest
import requests

import adh_auth
from adh_auth.errors import KINDS, AdhAuthError, RefreshFailed, error_for_client, fresh_copy, replaced_errors

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
def test_an_error_is_caught_by_the_clients_clauses_too(
    kind: type[AdhAuthError], base: type[Exception]
) -> None:
    """An error out of a client's call is also that client's own error, keeps its name, and pickles so."""
    raised = error_for_client(kind("what happened", token_file="/f", request_id="r"), base)
    assert isinstance(raised, kind)
    assert isinstance(raised, base)
    assert type(raised).__name__ == kind.__name__
    again = pickle.loads(pickle.dumps(raised))
    assert type(again) is type(raised)
    assert (str(again), again.token_file, again.request_id) == ("what happened", "/f", "r")


def test_an_error_for_one_client_becomes_one_for_another() -> None:
    """Converted twice, an error is the second client's and no longer the first's."""
    first = error_for_client(RefreshFailed("no", status=503), requests.RequestException)
    second = error_for_client(first, httpx.HTTPError)
    bases = type(second).__mro__
    assert httpx.HTTPError in bases
    assert requests.RequestException not in bases
    assert vars(second)["status"] == 503


def test_a_pickle_leaves_the_request_behind() -> None:
    """The request that a client sets on an error holds the token: a pickle does not carry it."""
    raised: Any = error_for_client(RefreshFailed("no", status=503), requests.RequestException)
    raised.request = requests.Request(
        "GET", "https://a.example", headers={"Authorization": "Bearer adh_A"}
    ).prepare()
    pickled = pickle.dumps(raised)
    assert b"adh_A" not in pickled
    assert pickle.loads(pickled).status == 503


def test_a_copy_has_no_traceback() -> None:
    """Each of many threads raises its own copy, without the traceback of the worker."""
    try:
        raise RefreshFailed("no", retry_after=3.0)
    except RefreshFailed as error:
        copied = fresh_copy(error)
    assert copied.__traceback__ is None
    assert copied.__context__ is None
    assert copied.retry_after == 3.0


def _fails_with_a_token(token: str) -> None:
    raise OSError("busy")


def test_a_replaced_error_keeps_no_frame_of_the_first() -> None:
    """Neither its context nor a frame of its traceback leads to the error that it replaces."""
    with pytest.raises(RefreshFailed, match="busy") as caught:
        with replaced_errors(OSError, by=lambda error: RefreshFailed(str(error))):
            _fails_with_a_token("adh_A")
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
    for frame, _ in traceback.walk_tb(caught.value.__traceback__):
        if frame.f_globals["__name__"] == "adh_auth.errors":
            assert not any(isinstance(value, BaseException) for value in frame.f_locals.values())


def test_a_replaced_error_keeps_what_the_caller_was_handling() -> None:
    """The exception that the caller's own code handles stays the context."""
    own = KeyError("own")
    with pytest.raises(RefreshFailed) as caught:
        try:
            raise own
        except KeyError:
            with replaced_errors(OSError, by=lambda error: RefreshFailed(str(error))):
                _fails_with_a_token("adh_A")
    assert caught.value.__context__ is own


def test_another_error_is_not_replaced() -> None:
    """Only the kinds named are replaced; a block without an error is left alone."""
    with replaced_errors(OSError, by=lambda error: RefreshFailed(str(error))):
        pass
    with pytest.raises(KeyError):
        with replaced_errors(OSError, by=lambda error: RefreshFailed(str(error))):
            raise KeyError
