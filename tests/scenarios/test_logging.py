"""What the logger `adh_auth` says: each rotation's outcome, and which requests carry no token."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from adh_auth import AdhAuth, RefreshFailed, TokenFile
from adh_auth.testing import Sandbox
from adh_auth.tokens import fingerprint

from ..support.clients import CLIENTS, EveryClient
from ..support.raw_server import Answer, RawServer
from ..support.rotation_threads import join_rotations

each_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)


def test_a_rotation_is_logged(
    sandbox: Sandbox, arguments: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The line names the file and the fingerprint of the access token in force now."""
    caplog.set_level(logging.INFO, "adh_auth")
    auth = AdhAuth(**arguments)
    auth.refresh()
    join_rotations()
    token = TokenFile(arguments["token_file"]).load().access_token
    assert caplog.messages == [
        f"token file {arguments['token_file']}: the access token is now <{fingerprint(token)}>"
    ]


def test_a_rotation_that_failed_is_logged(
    sandbox: Sandbox, arguments: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The error is logged: of a background refresh nothing else reports it."""
    caplog.set_level(logging.INFO, "adh_auth")
    sandbox.fail_next(status=400, body=b'{"code": "invalid_request"}')
    auth = AdhAuth(**arguments)
    with pytest.raises(RefreshFailed) as caught:
        auth.refresh()
    join_rotations()
    assert caplog.messages == [str(caught.value)]


@each_client
def test_a_request_that_gets_no_token_is_logged(
    client: EveryClient, arguments: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A request to another origin than `base_url` is logged at level DEBUG, with nothing of its URL but the
    origin.
    """
    caplog.set_level(logging.DEBUG, "adh_auth")
    with RawServer(lambda _: Answer(200)) as other:
        client.get(client.auth(**arguments), other.url + "/path?key=hidden")
    assert f"a request to {other.url} carries no token: the API is {arguments['base_url']}" in caplog.messages
    assert "hidden" not in "".join(
        record.getMessage() for record in caplog.records if record.name == "adh_auth"
    )
