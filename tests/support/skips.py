"""What a run has skipped, in one line for each way to run it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

__all__ = ["in_lines"]


def in_lines(skipped: Iterable[tuple[str, str]]) -> list[str]:
    """Lines like ``skipped 3, needs gql and vcr (test_clients, test_mocks): pip install …``.

    `skipped`: the test's id and pytest's reason for each; our reasons are ``needs WHAT: HOW TO RUN IT``.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for test, said in skipped:
        what, _, how = said.removeprefix("Skipped: ").partition(": ")
        found.setdefault(how, []).append((what.removeprefix("needs "), Path(test.partition("::")[0]).stem))
    return [_line(how, found[how]) for how in sorted(found)]


def _line(how: str, cases: list[tuple[str, str]]) -> str:
    whats, files = ([*dict.fromkeys(sorted(column))] for column in zip(*cases, strict=True))
    return f"skipped {len(cases)}, needs {_and(whats)} ({', '.join(files)}){how and ': '}{how}"


def _and(words: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
