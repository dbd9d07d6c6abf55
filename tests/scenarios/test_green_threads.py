"""gevent and eventlet, patched before or after our import: greenlets share one refresh, and the others go on
meanwhile.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from adh_auth import TokenFile
from adh_auth.testing import Sandbox

from ..support.clients import needs
from ..support.processes import PATIENCE, child

pytestmark = pytest.mark.clients

PATCHES = {
    "gevent": "from gevent import monkey\nmonkey.patch_all()\n",
    "eventlet": "import eventlet\neventlet.monkey_patch()\n",
}
SPAWN = {
    "gevent": "import gevent\nspawn, sleep, result = gevent.spawn, gevent.sleep, lambda green: green.get()\n",
    "eventlet": (
        "import eventlet\nspawn, sleep, result = eventlet.spawn, eventlet.sleep, lambda green: green.wait()\n"
    ),
}
IMPORT = "from adh_auth import AdhAuth\n"
CALLS = """
import os, requests
beats, met = [0], []
def heart():
    while True: beats[0] += 1; sleep(0.01)
def call():
    url = os.environ["ADH_BASE_URL"] + "/api/auth/me"
    try: return requests.get(url, auth=AdhAuth(), timeout=60).status_code
    except Exception as error: return f"{type(error).__name__} {error}"
spawn(heart)
answers = [result(green) for green in [spawn(call) for _ in range(4)]]
print(answers, beats[0] > 5)
"""


@pytest.mark.parametrize("detached", [None, True])
@pytest.mark.parametrize("late", [False, True], ids=["patched first", "patched late"])
@pytest.mark.parametrize("kind", PATCHES)
def test_greenlets_share_a_refresh(
    sandbox: Sandbox, token_file: Path, kind: str, late: bool, detached: bool | None
) -> None:
    """No greenlet is held up by a wait of ours, whenever the library was patched. No helper is started with
    what was patched.
    """
    needs(kind)
    patch = "import warnings\nwarnings.simplefilter('ignore')\n" + PATCHES[kind]
    code = (
        (IMPORT + patch if late else patch + IMPORT)
        + SPAWN[kind]
        + CALLS.replace("AdhAuth()", f"AdhAuth(detached={detached})")
    )
    sandbox.expire()
    sandbox.refresh_seconds = 0.3
    with child(code, sandbox.environment(token_file)) as process:
        output, errors = process.communicate(timeout=PATIENCE)
    assert "[200, 200, 200, 200] True" in output, errors
    assert sandbox.counts.refresh_calls == 1
    assert TokenFile(token_file).record().rotated_by == process.pid
