"""The tests that a register has to pass, as `adh_auth.testing` has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import adh_auth.testing

__all__ = ["StoreContract"]

if TYPE_CHECKING:

    class StoreContract:
        """See `adh_auth.testing.StoreContract`."""

else:
    StoreContract = getattr(adh_auth.testing, "StoreContract", object)
