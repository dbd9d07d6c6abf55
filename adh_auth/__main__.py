"""``python -m adh_auth`` is ``adh-auth``."""

import sys

from .cli import main

sys.exit(main())
