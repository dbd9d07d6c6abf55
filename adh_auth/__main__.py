"""``python -m adh_auth`` is ``adh-auth``."""

import sys

from .cli.main import main

sys.exit(main())
