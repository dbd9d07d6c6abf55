"""Real Celery, RQ and gunicorn end their workers while a refresh is under way. What these ends rest on
(`os._exit`, signals, SIGKILL) is tested without them in `test_ends_of_workers`.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from adh_auth import TokenFile
from adh_auth.testing import Sandbox

from ..support.clients import needs
from ..support.faults import near_its_end, wait_until
from ..support.processes import PATIENCE, ROOT, assert_nothing_lost, free_port, reaped

pytestmark = [
    pytest.mark.workers,
    pytest.mark.skipif(sys.platform == "win32", reason="needs descriptors that a child inherits"),
]

#: A task: one request, with which a refresh begins in the background. It returns once the server has
#: committed, and its worker ends.
JOB = """
import os, time, requests
from pathlib import Path
from adh_auth import AdhAuth
def job():
    status = requests.get(os.environ["ADH_BASE_URL"] + "/api/auth/me", auth=AdhAuth(refresh_ahead=60), timeout=60).status_code
    Path("worker.tmp").write_text(f"{os.getpid()} {status}")
    os.rename("worker.tmp", "worker")
    while not os.path.exists("go on"): time.sleep(0.01)
    return status
"""

CELERY = """
from celery import Celery
import jobs
app = Celery("tasks", broker="filesystem://")
app.conf.broker_transport_options = {"data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "queue"}
job = app.task(jobs.job, name="job", ignore_result=True)
"""

WSGI = """
import os, requests
from pathlib import Path
from adh_auth import AdhAuth
def app(environ, start_response):
    Path("worker.tmp").write_text(f"{os.getpid()} 200")
    os.rename("worker.tmp", "worker")
    answer = requests.get(os.environ["ADH_BASE_URL"] + "/api/auth/me", auth=AdhAuth(detached=True), timeout=60)
    start_response("200 OK", [])
    return [answer.content]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the modules that the workers import."""
    path = tmp_path / "project"
    (path / "queue").mkdir(parents=True)
    for name, code in (("jobs", JOB), ("tasks", CELERY), ("web", WSGI)):
        (path / f"{name}.py").write_text(code)
    return path


@contextmanager
def _running(folder: Path, environment: dict[str, str], *command: str) -> Iterator[subprocess.Popen[str]]:
    """A server in a session of its own, which is killed as a whole at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.pid > 1
    with reaped(process):
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _worker_that_ended(folder: Path, hold: Any) -> None:
    """Let the worker end while the server holds the reply, and let the reply go afterwards."""
    hold.wait(PATIENCE)
    wait_until((folder / "worker").exists)
    pid, status = (folder / "worker").read_text().split()
    assert (status, int(pid) > 1) == ("200", True)
    (folder / "go on").touch()
    wait_until(lambda: not _is_alive(int(pid)))
    hold.release()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _assert_written(sandbox: Sandbox, token_file: Path) -> None:
    wait_until(lambda: TokenFile(token_file).record().state == "done")
    assert sandbox.counts.rotations == sandbox.counts.refresh_calls == 1
    assert_nothing_lost(sandbox, token_file)


def test_celery_ends_a_worker_after_a_task(sandbox: Sandbox, token_file: Path, folder: Path) -> None:
    """`--max-tasks-per-child 1`: the child ends as soon as its task has returned."""
    needs("celery", "workers")
    near_its_end(token_file)
    environment = sandbox.environment(token_file)
    options = "--pool prefork --concurrency 1 --max-tasks-per-child 1 --without-gossip --without-mingle --without-heartbeat"
    send = "-c", "import tasks; tasks.job.delay()"
    paths = {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    subprocess.run(
        [sys.executable, *send], cwd=folder, env={**os.environ, **environment, **paths}, check=True
    )
    with sandbox.hold_next() as hold:
        with _running(folder, environment, "celery", "-A", "tasks", "worker", *options.split()):
            _worker_that_ended(folder, hold)
            _assert_written(sandbox, token_file)


def test_rq_ends_a_work_horse(sandbox: Sandbox, token_file: Path, folder: Path) -> None:
    """Each job has a process of its own, which ends by `os._exit`."""
    rq, redis = needs("rq", "workers"), needs("redis", "workers")
    near_its_end(token_file)
    with _redis_server(folder) as port, redis.Redis(port=port) as connection, sandbox.hold_next() as hold:
        wait_until(lambda: _answers(port))
        rq.Queue(connection=connection).enqueue("jobs.job")
        worker = ["rq.cli", "worker", "--burst", "--url", f"redis://127.0.0.1:{port}/0"]
        with _running(folder, sandbox.environment(token_file), *worker):
            _worker_that_ended(folder, hold)
            _assert_written(sandbox, token_file)


@contextmanager
def _redis_server(folder: Path) -> Iterator[int]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("needs redis-server: install it and run python -m pytest -m workers")
    port = free_port()
    # Nothing on disk, and no client from outside.
    options = f"--bind 127.0.0.1 --port {port} --appendonly no"
    server = subprocess.Popen(
        [program, *options.split(), "--save", ""], cwd=folder, stdout=subprocess.PIPE, text=True
    )
    with reaped(server):
        yield port


def test_gunicorn_kills_a_worker_that_takes_too_long(
    sandbox: Sandbox, token_file: Path, folder: Path
) -> None:
    """Its time-out ends the worker during a request's own refresh, which `detached=True` carries to its end."""
    needs("gunicorn", "workers")
    sandbox.expire()
    port = free_port()
    options = f"--bind 127.0.0.1:{port} --workers 1 --timeout 2 --graceful-timeout 1"
    with sandbox.hold_next() as hold:
        with _running(folder, sandbox.environment(token_file), "gunicorn", "web:app", *options.split()):
            wait_until(lambda: _answers(port))
            with suppress(requests.ConnectionError):  # or a 500, where the worker got that far
                assert requests.get(f"http://127.0.0.1:{port}/", timeout=PATIENCE).status_code == 500
            _worker_that_ended(folder, hold)
            _assert_written(sandbox, token_file)


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
