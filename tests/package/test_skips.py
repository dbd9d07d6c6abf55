"""The summary of a test run: what was skipped, and how to run it."""

from __future__ import annotations

import ast

from ..support.processes import ROOT
from ..support.skips import in_lines


def test_what_is_run_alike_is_one_line() -> None:
    """Skips are folded by the way to run them, and say what they need and where they are."""
    skipped = [
        ("tests/test_mocks.py::test_3", "Skipped: needs vcr: pip install x"),
        ("tests/test_clients.py::test_3", "Skipped: needs gql: pip install x"),
        ("tests/test_clients.py::test_4", "Skipped: needs gql: pip install x"),
        ("tests/test_browser.py::test_9", "Skipped: needs a Chromium: apt-get install chromium"),
    ]
    assert in_lines(skipped) == [
        "skipped 1, needs a Chromium (test_browser): apt-get install chromium",
        "skipped 3, needs gql and vcr (test_clients, test_mocks): pip install x",
    ]


def test_no_skip_is_no_line() -> None:
    """Where all has run, there is nothing to say."""
    assert in_lines([]) == []


def test_every_reason_says_what_it_needs() -> None:
    """A reason is `needs WHAT: HOW`, or `needs WHAT` where no command brings it."""
    reasons = {
        reason
        for path in (ROOT / "tests").rglob("*.py")
        for reason in _reasons(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert reasons
    assert [reason for reason in reasons if not reason.startswith("needs ")] == []


def _reasons(tree: ast.AST) -> list[str]:
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    calls = [
        call
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("skip", "skipif")
    ]
    said = [
        value
        for call in calls
        for value in (*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "reason"))
    ]
    return [value.value for value in said if isinstance(value, ast.Constant) and isinstance(value.value, str)]
