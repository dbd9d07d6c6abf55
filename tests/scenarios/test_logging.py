"""What the logger `adh_auth` tells a person at three in the morning: each rotation's outcome, and where the
token did not go.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest

from adh_auth import AdhAuth, RefreshFailed, TokenFile
from adh_auth.testing import Sandbox
from adh_auth.tokens import fingerprint

from ..support.clients import CLIENTS, EveryClient
from ..support.raw_server import Answer, RawServer

each_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)


def test_a_rotation_is_told(
    sandbox: Sandbox, arguments: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """With the file and the fingerprint of the pair that is in force now."""
    caplog.set_level(logging.INFO, "adh_auth")
    auth = AdhAuth(**arguments)
    auth.refresh()
    auth._core._job.join()  # type: ignore[union-attr]
    token = TokenFile(arguments["token_file"]).load().access_token
    assert caplog.messages == [
        f"token file {arguments['token_file']}: the access token is now <{fingerprint(token)}>"
    ]


def test_a_rotation_that_failed_is_told(
    sandbox: Sandbox, arguments: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A background refresh has nobody else to tell it to."""
    caplog.set_level(logging.INFO, "adh_auth")
    sandbox.fail_next(status=400, body=b'{"code": "invalid_request"}')
    auth = AdhAuth(**arguments)
    with pytest.raises(RefreshFailed) as caught:
        auth.refresh()
    auth._core._job.join()  # type: ignore[union-attr]
    assert caplog.messages == [str(caught.value)]


@each_client
def test_a_request_that_gets_no_token_is_told(
    client: EveryClient, arguments: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A base_url that is another than the program's own is seen at level DEBUG; of the URL nothing but its
    origin.
    """
    caplog.set_level(logging.DEBUG, "adh_auth")
    with RawServer(lambda _: Answer(200)) as stranger:
        client.get(client.auth(**arguments), stranger.url + "/path?key=hidden")
    assert (
        f"a request to {stranger.url} carries no token: the API is {arguments['base_url']}" in caplog.messages
    )
    assert "hidden" not in "".join(
        record.getMessage() for record in caplog.records if record.name == "adh_auth"
    )
