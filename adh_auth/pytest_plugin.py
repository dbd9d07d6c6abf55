"""The pytest fixture `adh_sandbox`. The sandbox is imported when a test asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .testing import Sandbox


@pytest.fixture
def adh_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A running `Sandbox` with a signed-in token file (`.token_file`).

    The environment variables of this library point at both.
    """
    from .testing import Sandbox

    with Sandbox() as sandbox:
        sandbox.write_token_file(tmp_path / "tokens.json")
        for name, value in sandbox.environment(sandbox.token_file).items():
            monkeypatch.setenv(name, value)
        yield sandbox
