"""The benchmarks run, with tiny sizes.

What they measure is no matter of the suite: no test asserts a time.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from ..benchmarks.__main__ import PARTS
from ..benchmarks.table import Row, printed
from ..support.processes import ROOT


@pytest.mark.long
@pytest.mark.parametrize("part", PARTS)
def test_each_part_runs(part: str) -> None:
    """Every part fills its rows of the table."""
    command = [sys.executable, "-m", "tests.benchmarks", "--smoke", "--markdown", "--only", part]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) > 1, done.stdout
    assert "missed" not in done.stdout


def test_the_table_says_which_goal_is_missed() -> None:
    """Except in a smoke run, whose numbers mean nothing."""
    rows = [Row("herd", "calls", "2", "1", False), Row("herd", "time", "1", "≤ 2", True)]
    assert printed(rows, markdown=True, judged=True).count("missed") == 1
    assert "missed" not in printed(rows, markdown=False, judged=False)
