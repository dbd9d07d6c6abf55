"""The pytest fixtures `adh_sandbox`, `adh_sandbox_factory`, `adh_sandbox_session`, `adh_sandbox_options`.

The sandbox is imported when a test asks for it.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from .testing import Sandbox

#: Fixtures of pytest that ours stand on, and the built-in plugin of each.
_PLUGINS = {"tmp_path": "tmpdir", "tmp_path_factory": "tmpdir", "monkeypatch": "monkeypatch"}
#: Variables that name another session than the token file's.
_OTHER_SESSION = ("ADH_STORE", "ADH_SESSION")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known: ``--strict-markers`` refuses others."""
    config.addinivalue_line(
        "markers",
        "adh_sandbox(**options): the arguments of adh_auth.testing.Sandbox for the fixture adh_sandbox, "
        'as in adh_sandbox(token_life=2, error_shape="oauth")',
    )


@pytest.fixture(scope="session")
def adh_sandbox_options() -> dict[str, Any]:
    """Arguments for every `Sandbox` of these fixtures. Override it in a conftest.py."""
    return {}


@pytest.fixture
def adh_sandbox(request: pytest.FixtureRequest, adh_sandbox_options: Mapping[str, Any]) -> Iterator[Sandbox]:
    """A running `Sandbox` with a signed-in token file (`.token_file`), for one test.

    The environment variables of this library point at both. The marker `adh_sandbox(token_life=2)` and an
    indirect parameter, a mapping, give it arguments.
    """
    folder, patch = _provided(request, "tmp_path"), _provided(request, "monkeypatch")
    options = {**adh_sandbox_options, **_marked(request), **getattr(request, "param", {})}
    with _signed_in(folder / "tokens.json", patch, _built(request, options)) as sandbox:
        yield sandbox


@pytest.fixture
def adh_sandbox_factory(
    request: pytest.FixtureRequest, adh_sandbox_options: Mapping[str, Any]
) -> Iterator[Callable[..., Sandbox]]:
    """A function that takes the arguments of `Sandbox` and returns a running one that is signed in.

    The environment points at the one that was made last. All stop at the end of the test.
    """
    from .testing import Sandbox

    folder, patch = _provided(request, "tmp_path"), _provided(request, "monkeypatch")
    numbers = count(1)
    with ExitStack() as stack:

        def make(**options: Any) -> Sandbox:
            sandbox = Sandbox(**{**adh_sandbox_options, **options})
            return stack.enter_context(_signed_in(folder / f"tokens-{next(numbers)}.json", patch, sandbox))

        yield make


@pytest.fixture(scope="session")
def adh_sandbox_session(
    request: pytest.FixtureRequest, adh_sandbox_options: Mapping[str, Any]
) -> Iterator[Sandbox]:
    """A running `Sandbox` as `adh_sandbox`, one for the whole session.

    The environment points at it from its first use on, but in a test that has a sandbox of its own. What one
    test does to it, the next one finds.
    """
    folder = _provided(request, "tmp_path_factory").mktemp("adh")
    built = _built(request, adh_sandbox_options)
    with pytest.MonkeyPatch.context() as patch, _signed_in(folder / "tokens.json", patch, built) as sandbox:
        yield sandbox


@contextmanager
def _signed_in(path: Path, patch: pytest.MonkeyPatch, sandbox: Sandbox) -> Iterator[Sandbox]:
    """Run the sandbox, sign in, and set the environment to both."""
    with sandbox:
        sandbox.write_token_file(path)
        for name, value in sandbox.environment(path).items():
            patch.setenv(name, value)
        for name in _OTHER_SESSION:
            patch.delenv(name, raising=False)
        yield sandbox


def _built(request: pytest.FixtureRequest, options: Mapping[str, Any]) -> Sandbox:
    """Return a sandbox, or fail with what is wrong with an option."""
    from .testing import Sandbox

    try:
        return Sandbox(**options)
    except (TypeError, ValueError) as error:
        problem = error
    pytest.fail(f"{request.fixturename}: {problem}", pytrace=False)


def _marked(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the arguments of the marker; those of a test win over its class's and its module's."""
    marks = [*request.node.iter_markers("adh_sandbox")]
    if any(mark.args for mark in marks):
        pytest.fail("the marker adh_sandbox takes keyword arguments only", pytrace=False)
    return {name: value for mark in reversed(marks) for name, value in mark.kwargs.items()}


def _provided(request: pytest.FixtureRequest, name: str) -> Any:
    """Return a fixture of pytest's own, or fail with what has turned it off."""
    try:
        return request.getfixturevalue(name)
    except pytest.FixtureLookupError as error:
        if error.argname != name:
            raise
    pytest.fail(
        f"{request.fixturename} needs pytest's fixture {name}: run without -p no:{_PLUGINS[name]}, or use "
        "adh_auth.testing.Sandbox as a context manager",
        pytrace=False,
    )
