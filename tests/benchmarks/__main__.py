"""``python -m tests.benchmarks [--smoke] [--only NAME] [--markdown]``: prints one table.

The peers come with the extra ``bench``.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from .measure import FULL, SMOKE
from .table import Row, printed

PARTS = (
    "per_request",
    "start_up",
    "herd",
    "stall",
    "one_loop",
    "threads",
    "growth",
    "window",
    "detached",
    "stores",
    "peers",
)


def main() -> None:
    """Measure what the arguments ask for, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes: shows that everything runs, and nothing else"
    )
    parser.add_argument(
        "--only",
        metavar="NAME",
        choices=PARTS,
        action="append",
        help=f"one of {', '.join(PARTS)}; may be repeated",
    )
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    options = parser.parse_args()
    rows: list[Row] = []
    for name in options.only or PARTS:
        print(f"{name} …", file=sys.stderr, flush=True)
        part = import_module(f".{name}", __package__)
        # Hide what earlier parts have imported from the collector, which would walk it during this one.
        gc.collect()
        gc.freeze()
        with tempfile.TemporaryDirectory(prefix="adh-bench-") as folder:
            rows += part.measure(SMOKE if options.smoke else FULL, Path(folder))
    print(printed(rows, markdown=options.markdown, judged=not options.smoke))


if __name__ == "__main__":
    main()
