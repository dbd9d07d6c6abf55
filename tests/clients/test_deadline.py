"""The end of a call to an auth endpoint: sockets are shut down in time, and nothing else is."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import freezegun
import pytest
import trustme
from urllib3.util.ssltransport import SSLTransport

from adh_auth.clients.deadline import Deadline
from adh_auth.clients.requests_compat import plain_socket
from adh_auth.common.limits import REPLY_LIMIT
from adh_auth.common.threads import THREAD_NAME_PREFIX

from ..support.faults import wait_until
from ..support.processes import PATIENCE

#: Seconds of the deadline of a test in which it passes.
SHORT = 0.2


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets. A read that the deadline does not end fails after `PATIENCE`."""
    here, there = socket.socketpair()
    here.settimeout(PATIENCE)
    with here, there:
        yield here, there


def read_to_its_end(reader: Any) -> bytes:
    """Return all that a socket gives until it ends or breaks off; a time-out is a failure of the test."""
    body = b""
    try:
        while piece := reader.recv(4096):
            body += piece
    except TimeoutError:
        raise
    except OSError:
        pass
    return body


def test_a_reply_that_trickles_ends(pair: tuple[socket.socket, socket.socket]) -> None:
    """Each byte comes within any read time-out; the whole ends with the deadline."""
    here, there = pair
    stop = threading.Event()

    def trickle() -> None:
        with suppress(OSError):
            while not stop.wait(0.01):
                there.send(b"x")

    with ThreadPoolExecutor(1) as threads:
        threads.submit(trickle)
        try:
            with Deadline(SHORT) as deadline:
                deadline.watch(lambda: here)
                started = time.monotonic()
                assert read_to_its_end(here)
            assert SHORT * 0.9 <= time.monotonic() - started < PATIENCE
        finally:
            stop.set()
    assert deadline.over


def test_every_watched_socket_is_shut_down(pair: tuple[socket.socket, socket.socket]) -> None:
    """One that is closed by then, one that is not there yet and one of a mock keep no other from its end."""

    def broken() -> Any:
        raise AttributeError("no connection")

    closed = socket.socket()
    closed.close()
    here, _ = pair
    with Deadline(SHORT) as deadline:
        for find in (lambda: closed, lambda: None, broken, object, lambda: here):
            deadline.watch(find)
        assert read_to_its_end(here) == b""


def test_a_socket_is_looked_up_when_the_time_is_up(pair: tuple[socket.socket, socket.socket]) -> None:
    """TLS replaces the socket of a connection after it was registered."""
    here, _ = pair
    connection = SimpleNamespace(sock=None)
    with Deadline(SHORT) as deadline:
        deadline.watch(lambda: connection.sock)
        connection.sock = here
        assert read_to_its_end(here) == b""


@pytest.fixture
def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of a client and of the server that it trusts."""
    authority, server = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("api.test").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return client, server


def test_tls_keeps_its_state(
    pair: tuple[socket.socket, socket.socket], tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """The thread that reads wakes up, and its TLS state is still there: it never gets bytes undecrypted."""
    here, there = pair
    client, server = tls
    with ThreadPoolExecutor(1) as threads:
        accepted = threads.submit(server.wrap_socket, there, server_side=True)
        with client.wrap_socket(here, server_hostname="api.test") as secure, accepted.result(PATIENCE):
            with Deadline(SHORT) as deadline:
                deadline.watch(lambda: secure)
                assert read_to_its_end(secure) == b""
            with pytest.raises(OSError):  # without its state, it is a ValueError
                secure.unwrap()


def test_tls_through_a_proxy_that_speaks_tls_itself(
    pair: tuple[socket.socket, socket.socket], tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """What urllib3 has for TLS inside TLS is no socket: the one below it is shut down."""
    here, there = pair
    client, server = tls
    with ThreadPoolExecutor(1) as threads:
        accepted = threads.submit(server.wrap_socket, there, server_side=True)
        transport = SSLTransport(here, client, "api.test")
        with accepted.result(PATIENCE), Deadline(SHORT) as deadline:
            deadline.watch(partial(plain_socket, SimpleNamespace(sock=transport)))
            assert read_to_its_end(transport) == b""


def test_a_call_that_is_over_is_left_alone(pair: tuple[socket.socket, socket.socket]) -> None:
    """After the block nothing is shut down, and the timer's thread ends."""
    here, there = pair
    with Deadline(SHORT) as deadline:
        deadline.watch(lambda: here)
    wait_until(lambda: not timers())
    time.sleep(2 * SHORT)
    there.send(b"x")
    assert here.recv(1) == b"x"
    assert not deadline.over


def timers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME_PREFIX + "deadline"]


def test_its_thread_is_told_from_the_programs() -> None:
    """It has a name of ours and is no daemon, which a sub-interpreter refuses."""
    with Deadline(PATIENCE):
        assert [thread.daemon for thread in timers()] == [False]


def test_without_a_thread_the_call_goes_on(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of the interpreter no thread starts; then the client's own time-outs count."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    here, there = pair
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with Deadline(SHORT) as deadline:
        deadline.watch(lambda: here)
        there.send(b"x")
        assert here.recv(1) == b"x"
    assert not deadline.over


def test_a_frozen_clock_keeps_no_deadline_from_its_end(pair: tuple[socket.socket, socket.socket]) -> None:
    """A test of a user's may stop the clock."""
    here, _ = pair
    with freezegun.freeze_time("2026-01-01"), Deadline(SHORT) as deadline:
        deadline.watch(lambda: here)
        assert read_to_its_end(here) == b""
        assert deadline.over


def test_a_clock_that_jumps_cuts_no_reply() -> None:
    """A test of a user's may move the clock while a reply is read; it is read to its end."""
    with freezegun.freeze_time("2026-01-01") as clock, Deadline(PATIENCE) as deadline:

        def chunks() -> Iterator[bytes]:
            for _ in range(3):
                clock.tick(3600)
                yield b"x"

        assert deadline.collect(chunks(), ()) == (b"xxx", False)


@pytest.mark.parametrize(
    ("size", "read", "cut"),
    [(0, 0, False), (REPLY_LIMIT, REPLY_LIMIT, False), (REPLY_LIMIT + 1, REPLY_LIMIT, True)],
)
def test_a_reply_is_read_up_to_its_bound(size: int, read: int, cut: bool) -> None:
    """Exactly the bound is a whole reply, one byte more is cut off."""
    deadline = Deadline(PATIENCE)
    pieces = [b"x" * 1000] * (size // 1000) + [b"x" * (size % 1000)]
    assert deadline.collect(pieces, ()) == (b"x" * read, cut)


def test_an_endless_reply_is_not_read_on() -> None:
    """Once the bound is passed, no further piece is asked for."""
    pieces = iter([b"x" * REPLY_LIMIT, b"x", b"never asked for"])
    assert Deadline(PATIENCE).collect(pieces, ()) == (b"x" * REPLY_LIMIT, True)
    assert next(pieces) == b"never asked for"


def test_a_reply_that_breaks_off_is_cut() -> None:
    """By an error of the client's; what had arrived is returned. Any other error is raised."""

    def breaking() -> Iterator[bytes]:
        yield b"x"
        raise ConnectionResetError

    deadline = Deadline(PATIENCE)
    assert deadline.collect(breaking(), (OSError,)) == (b"x", True)
    with pytest.raises(ConnectionResetError):
        deadline.collect(breaking(), (ValueError,))


def test_a_reply_that_is_still_coming_when_the_time_is_up_is_cut() -> None:
    """A mock has no socket to shut down: its pieces are not read on."""

    def endless() -> Iterator[bytes]:
        while True:
            time.sleep(0.01)
            yield b"x"

    with Deadline(SHORT) as deadline:
        body, cut = deadline.collect(endless(), ())
    assert cut
    assert 0 < len(body) < REPLY_LIMIT
