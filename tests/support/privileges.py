"""A child without root's rights over files.

It stays the same user, so it still reaches this checkout, the Python and the folders.
"""

from __future__ import annotations

import os
import sys
import tempfile

import pytest

#: The start of a child's code.
DROP = "from tests.support.privileges import drop\ndrop()\n"

PR_CAPBSET_DROP = 24
CAPABILITY_VERSION_3 = 0x20080522
#: Reading and searching every folder. Under root, the checkout, the Python or TMPDIR may lie in a folder of
#: another user, where a child without this right can't import any more.
CAP_DAC_READ_SEARCH = 2

#: A user id that no account has.
STRANGER = 12345


def _can_give_away() -> bool:
    """Whether this user may give a file to another user. Root of a container often may not."""
    if sys.platform == "win32" or os.geteuid() != 0:
        return False
    with tempfile.NamedTemporaryFile() as file:
        try:
            os.chown(file.name, STRANGER, -1)
        except OSError:
            return False
    return True


CAN_GIVE_AWAY = _can_give_away()
gives_away = pytest.mark.skipif(not CAN_GIVE_AWAY, reason="needs a file of another user's: run as root")


def need_ordinary_rights() -> None:
    """Skip the test where root's rights can't be dropped."""
    if sys.platform != "linux" and os.geteuid() == 0:
        pytest.skip("needs a user whom a mode stops: run as another user than root")


def drop() -> None:
    """Give up every capability but the one to read, for good and for every program started from here
    (capabilities(7)).

    Root may then write only what its modes allow its owner, as any other user. Call it before the first
    thread starts.
    """
    if sys.platform != "linux":
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0:
        # A program started by root gets everything in the bounding set back. An unknown number, EINVAL, ends
        # the list.
        for number in range(64):
            if number != CAP_DAC_READ_SEARCH and libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
                break
    kept = 1 << CAP_DAC_READ_SEARCH if os.geteuid() == 0 else 0
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    # effective, permitted, inheritable; then the same for the numbers from 32 on
    sets = (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)
    if libc.capset(header, sets) != 0:
        sets = (ctypes.c_uint32 * 6)()  # a container's root may lack the right to read, too
        if libc.capset(header, sets) != 0:
            raise OSError(ctypes.get_errno(), "capset")
