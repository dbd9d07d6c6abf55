"""The threads in which rotations run."""

from __future__ import annotations

import threading

from .processes import PATIENCE

__all__ = ["join_rotations"]


def join_rotations() -> None:
    """Wait until no rotation of this process has a thread any more: also what follows its outcome is done."""
    for thread in threading.enumerate():
        if thread.name == "adh-auth rotation":
            thread.join(PATIENCE)
            assert not thread.is_alive()
