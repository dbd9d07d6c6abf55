"""A fleet on real servers: each machine is a process, the sandbox is strict, and the faults are real ones."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import anyio
import httpx
import pytest

from adh_auth import AdhHttpxAuth
from adh_auth.testing import Sandbox

from ..support import servers
from ..support.faults import wait_until
from ..support.fleet import Backend, Machine, PgBouncerBackend, PostgresBackend, RedisBackend, fleet
from ..support.processes import PATIENCE
from ..support.server_fixtures import need
from ..support.tcp_proxy import TcpProxy

pytestmark = [pytest.mark.servers, pytest.mark.timeout(240)]

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: its /proc; pytest -m servers")

#: Round trips of one machine that meets an expiry: a waiter polls four times a second or less.
MAX_TRIPS = 40


class Lease(NamedTuple):
    """Seconds of a lease under which a token is sent, and of the observation after it."""

    sending: float
    observed: float

    @property
    def patience(self) -> float:
        """Seconds in which another machine has followed."""
        return self.sending + self.observed + PATIENCE


#: The real times take three quarters of a minute.
leases = pytest.mark.parametrize(
    "lease",
    [
        pytest.param(Lease(4.0, 1.0), id="short"),
        pytest.param(Lease(35.0, 8.0), id="real", marks=pytest.mark.long),
    ],
)


@contextmanager
def machines(
    count: int, store: Backend, sandbox: Sandbox, session: str, lease: Lease | None = None, **options: Any
) -> Iterator[list[Machine]]:
    """So many machines that use the session."""
    with fleet(count) as members:
        for machine in members:
            machine.do("use", store.url(), **settings(sandbox, session), **options)
            if lease is not None:
                machine.do("tune", "store.lease", "SENDING_SECONDS", lease.sending)
                machine.do("tune", "store.lease", "OBSERVED_SECONDS", lease.observed)
        yield members


def settings(sandbox: Sandbox, session: str) -> dict[str, Any]:
    """Return the arguments of an auth object, but for the store."""
    return {
        "session": session,
        "base_url": sandbox.url,
        "client_id": sandbox.client_id,
        "client_secret": sandbox.client_secret,
    }


def get_all(members: list[Machine]) -> set[str]:
    """Let all make a call at once, and return the outcomes."""
    for machine in members:
        machine.begin("get")
    return {machine.result(60) for machine in members}


# Without a fault.


def test_sixteen_machines_under_load(backend: Backend, sandbox: Sandbox) -> None:
    """Two threads each, tokens of one second: no request fails, and no token is sent twice."""
    sandbox.token_life = 1.0
    session = backend.sign_in(sandbox)
    with machines(16, backend, sandbox, session) as members:
        for machine in members:
            machine.begin("load", threads=2, seconds=6.0, pause=0.1)
        outcomes: Counter[str] = sum((machine.result(60) for machine in members), Counter())
    assert set(outcomes) == {"200"}, outcomes
    assert sandbox.counts.rotations >= 3
    assert sandbox.counts.reused == 0


@pytest.mark.parametrize("state", ["warm", "just started"])
def test_sixteen_machines_meet_one_expiry(
    backend: Backend, sandbox: Sandbox, state: str, record_property: Any
) -> None:
    """One refresh call, an answer for each, and a bounded number of round trips."""
    session = backend.sign_in(sandbox)
    with machines(16, backend, sandbox, session, counted=True) as members:
        if state == "warm":
            assert get_all(members) == {"200"}
        for machine in members:
            machine.do("trips")
        sandbox.expire()
        statements = backend.statements()
        assert get_all(members) == {"200"}
        trips = [machine.do("trips") for machine in members]
    assert sandbox.counts.refresh_calls == 1
    assert sandbox.counts.reused == 0
    assert max(sum(each.values()) for each in trips) <= MAX_TRIPS, trips
    assert sum(each.get("put", 0) for each in trips) == 1
    record_property("trips", sorted(sum(each.values()) for each in trips))
    record_property("statements", backend.statements() - statements)


def test_no_round_trip_in_a_request(backend: Backend, sandbox: Sandbox) -> None:
    """What memory has is believed for 5 seconds: 100 requests ask the store once at most."""
    session = backend.sign_in(sandbox)
    with machines(1, backend, sandbox, session) as (machine,):
        machine.do("tune", "store.session_view", "TRUST_SECONDS", 3600.0)
        assert machine.do("get") == "200"
        before = backend.statements()
        assert machine.do("get", 100) == "200"
        assert backend.statements() == before


def test_eight_sessions_rotate_at_once_behind_one_connection(
    postgres: PostgresBackend, sandbox: Sandbox
) -> None:
    """No connection is held while the endpoint answers: a pooler with one serves all of them."""
    need("pgbouncer")
    with servers.pgbouncer(postgres.database, 1) as pooler, fleet(8) as members:
        backend = PgBouncerBackend(pooler)
        sandbox.refresh_seconds = 0.2
        for machine in members:
            machine.do("use", backend.url(), **settings(sandbox, backend.sign_in(sandbox)))
        assert get_all(members) == {"200"}
        sandbox.expire()
        assert get_all(members) == {"200"}
    assert sandbox.counts.rotations == 8
    assert sandbox.counts.reused == 0


@on_linux
def test_fork_after_the_first_use(backend: Backend, sandbox: Sandbox) -> None:
    """Parent and child both go on, and share no connection to the store."""
    session = backend.sign_in(sandbox)
    with machines(1, backend, sandbox, session) as (machine,):
        assert machine.do("get") == "200"
        parent, child, parents, childs = machine.do("fork", backend.port)
    assert (parent, child) == ("200", "200")
    assert sandbox.counts.rotations >= 1
    assert sandbox.counts.reused == 0
    assert parents
    assert childs
    assert not parents & childs


# A holder that is killed, or stopped.


@leases
def test_holder_is_killed_before_the_commit(own_backend: Backend, sandbox: Sandbox, lease: Lease) -> None:
    """The next goes on after the lease with the same token, which the server has not seen."""
    session = own_backend.sign_in(sandbox)
    with machines(2, own_backend, sandbox, session, lease) as (first, second):
        assert get_all([first, second]) == {"200"}
        sandbox.expire()
        sandbox.fail_next(drop="before")
        with sandbox.hold_next(at="before") as hold:
            first.begin("get")
            hold.wait(PATIENCE)
            first.kill()
        assert second.begin("get").result(lease.patience) == "200"
    assert sandbox.counts.refresh_calls == 2
    assert sandbox.counts.rotations == 1
    assert sandbox.counts.reused == 0


def test_holder_is_killed_after_the_commit(direct_backend: Backend, sandbox: Sandbox) -> None:
    """The pair is lost with it: the next one says so. The server ends the session, and nobody else asks."""
    session = direct_backend.sign_in(sandbox)
    with machines(3, direct_backend, sandbox, session, Lease(2.0, 1.0)) as (first, second, third):
        assert get_all([first, second, third]) == {"200"}
        sandbox.expire()
        with sandbox.hold_next(at="after") as hold:
            first.begin("get")
            hold.wait(PATIENCE)
            first.kill()
        assert second.begin("get").result(60).startswith("ReauthorizationRequired")
        calls = sandbox.counts.refresh_calls
        assert third.do("get") == "401"  # of another code than `token_expired`
    assert sandbox.counts.refresh_calls == calls == 2


@on_linux
@leases
def test_holder_is_stopped_before_it_sends(own_backend: Backend, sandbox: Sandbox, lease: Lease) -> None:
    """Another one takes over. The first one, let go on, finds that its lease is lost and sends nothing."""
    session = own_backend.sign_in(sandbox)
    with machines(2, own_backend, sandbox, session, lease) as (first, second):
        assert get_all([first, second]) == {"200"}
        sandbox.expire()
        first.do("stop_before_sending")
        first.begin("get")
        first.wait_stopped()
        assert second.begin("get").result(lease.patience) == "200"
        first.kill(signal.SIGCONT)
        assert first.result(lease.patience) == "200"
    assert sandbox.counts.refresh_calls == 1
    assert sandbox.counts.reused == 0


def test_sign_in_during_a_refresh_wins(direct_backend: Backend, sandbox: Sandbox) -> None:
    """The pair that comes late is that of an old session: it is not written over the new one."""
    session = direct_backend.sign_in(sandbox)
    with machines(2, direct_backend, sandbox, session) as (first, second):
        assert get_all([first, second]) == {"200"}
        sandbox.expire()
        with sandbox.hold_next(at="after") as hold:
            first.begin("get")
            hold.wait(PATIENCE)
            direct_backend.sign_in(sandbox, session)
            kept = direct_backend.pair(session)
        assert first.result() == "200"
        assert get_all([first, second]) == {"200"}
        assert direct_backend.pair(session) == kept
    assert sandbox.counts.refresh_calls == 1


# A store that is gone, cut off, or slow.


@pytest.mark.parametrize(
    "down", [pytest.param(0.0, id="moment"), pytest.param(45.0, id="45s", marks=pytest.mark.long)]
)
def test_store_crashes_before_the_write(own_backend: Backend, sandbox: Sandbox, down: float) -> None:
    """The pair is kept in memory, written once the store is back, and adopted by another machine."""
    session = own_backend.sign_in(sandbox)
    with machines(2, own_backend, sandbox, session) as (first, second):
        assert get_all([first, second]) == {"200"}
        sandbox.expire()
        with sandbox.hold_next(at="after") as hold:
            first.begin("get")
            hold.wait(PATIENCE)
            own_backend.crash()
        assert first.result() == "200"  # with the pair that is in memory only
        assert threading.Event().wait(down) is False
        own_backend.start()
        assert second.begin("get").result(60) == "200"
        assert first.do("get") == "200"
    assert sandbox.counts.refresh_calls == 1
    assert sandbox.counts.reused == 0


def test_store_crashes_twice_under_load(own_backend: Backend, sandbox: Sandbox) -> None:
    """No request fails, although tokens live for one second."""
    sandbox.token_life = 1.0
    session = own_backend.sign_in(sandbox)
    with machines(6, own_backend, sandbox, session) as members:
        assert get_all(members) == {"200"}
        for machine in members:
            machine.begin("load", threads=2, seconds=8.0, pause=0.1)
        for rotations in (2, 4):
            wait_until(lambda: sandbox.counts.rotations >= rotations)  # noqa: B023
            own_backend.server.restart_after_crash()
        outcomes: Counter[str] = sum((machine.result(60) for machine in members), Counter())
    assert set(outcomes) == {"200"}, outcomes
    assert sandbox.counts.reused == 0


@pytest.mark.parametrize("way", ["cut", "swallow"])
@pytest.mark.parametrize(
    "out", [pytest.param(0.0, id="moment"), pytest.param(22.0, id="22s", marks=pytest.mark.long)]
)
def test_holder_is_cut_off_before_the_write(
    direct_backend: Backend, sandbox: Sandbox, out: float, way: str
) -> None:
    """It goes on, the others wait, and adopt its pair once it is back."""
    session = direct_backend.sign_in(sandbox)
    with (
        machines(2, direct_backend, sandbox, session) as (first, second),
        TcpProxy(direct_backend.port) as proxy,
    ):
        first.do("use", direct_backend.url(proxy.port), **settings(sandbox, session))
        assert get_all([first, second]) == {"200"}
        sandbox.expire()
        with sandbox.hold_next(at="after") as hold:
            first.begin("get")
            hold.wait(PATIENCE)
            getattr(proxy, way)()
        assert first.result() == "200"
        second.begin("get")
        assert threading.Event().wait(out) is False
        proxy.heal()
        assert second.result(60) == "200"
    assert sandbox.counts.refresh_calls == 1
    assert sandbox.counts.reused == 0


def test_store_that_swallows_everything_with_a_good_token(direct_backend: Backend, sandbox: Sandbox) -> None:
    """No request waits for it, although each finds that memory is too old: a wait would last for ever."""
    session = direct_backend.sign_in(sandbox)
    with machines(1, direct_backend, sandbox, session) as (machine,), TcpProxy(direct_backend.port) as proxy:
        machine.do("use", direct_backend.url(proxy.port), **settings(sandbox, session))
        assert machine.do("get") == "200"
        for module in ("store.postgresql_connections", "store.redis_client"):
            machine.do("tune", module, "ANSWER_TIMEOUT", 3600.0)
        for name in ("TRUST_SECONDS", "SHORT_TRUST_SECONDS"):
            machine.do("tune", "store.session_view", name, 0.0)
        proxy.swallow()
        assert machine.do("get", 50) == "200"
        assert proxy.wait_held(PATIENCE)


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.long)])
def test_store_that_swallows_everything_with_a_dead_token(
    direct_backend: Backend, sandbox: Sandbox, quick: bool
) -> None:
    """A `StoreError` within moments of the 10 seconds, nothing is spent, and afterwards all is well."""
    session = direct_backend.sign_in(sandbox)
    with machines(1, direct_backend, sandbox, session) as (machine,), TcpProxy(direct_backend.port) as proxy:
        if quick:
            machine.do("tune", "store.session_view", "READ_PATIENCE", 1.0)
        machine.do("use", direct_backend.url(proxy.port), **settings(sandbox, session))
        assert machine.do("get") == "200"
        sandbox.expire()
        proxy.swallow()
        assert machine.begin("get").result(20).startswith("StoreError")
        assert sandbox.counts.refresh_calls == 0
        proxy.heal()
        assert machine.do("get") == "200"
    assert sandbox.counts.refresh_calls == 1


@pytest.mark.anyio
async def test_event_loop_goes_on_while_the_store_is_slow(direct_backend: Backend, sandbox: Sandbox) -> None:
    """The store answers only after another task of the loop has had fifty turns, at each step of the way."""
    session = direct_backend.sign_in(sandbox)
    with TcpProxy(direct_backend.port) as proxy:
        auth = AdhHttpxAuth(store=direct_backend.url(proxy.port), **settings(sandbox, session))
        async with httpx.AsyncClient(auth=auth, timeout=PATIENCE) as client:
            for expired in (False, True):
                if expired:
                    sandbox.expire()
                proxy.swallow("answer")
                async with anyio.create_task_group() as group:
                    group.start_soon(_tick, proxy)
                    assert (await client.get(f"{sandbox.url}/api/auth/me")).status_code == 200
    assert sandbox.counts.refresh_calls == 1
    assert sandbox.counts.reused == 0


async def _tick(proxy: TcpProxy) -> None:
    """Let the store answer after fifty turns that were had while it was asked."""
    turns = 0
    while turns < 50:
        await anyio.sleep(0.005)
        turns += proxy.wait_held(0)
    proxy.heal()


# A store that goes back.


def test_store_goes_back(backend: Backend, sandbox: Sandbox) -> None:
    """A failover has lost the newest pair: the machine that has it puts it back, and says so."""
    session = backend.sign_in(sandbox)
    with machines(2, backend, sandbox, session) as (first, second):
        assert get_all([first, second]) == {"200"}
        go_back = backend.snapshot(session)
        sandbox.expire()
        assert first.do("get") == "200"
        go_back()
        sandbox.expire()
        outcome, said = first.do("warned")
        assert outcome == "200"
        assert any("had lost its newest pair" in line for line in said), said
        assert second.do("get") == "200"
    assert sandbox.counts.reused == 0


def test_redis_is_flushed(redis_server: servers.RedisServer, sandbox: Sandbox) -> None:
    """The same where nothing is left."""
    backend = RedisBackend(redis_server)
    session = backend.sign_in(sandbox)
    with machines(2, backend, sandbox, session) as (first, second):
        assert get_all([first, second]) == {"200"}
        redis_server.execute("DEL", f"adh:session:{session}")
        sandbox.expire()
        outcome, said = first.do("warned")
        assert outcome == "200"
        assert any("had lost its newest pair" in line for line in said), said
        assert second.do("get") == "200"
    assert sandbox.counts.reused == 0


def test_sign_out_is_never_undone(backend: Backend, sandbox: Sandbox) -> None:
    """Neither by a machine that has the pair in memory, nor by a store that goes back."""
    session = backend.sign_in(sandbox)
    with machines(3, backend, sandbox, session) as (first, second, third):
        assert get_all([first, second, third]) == {"200"}
        go_back = backend.snapshot(session)
        second.do("tune", "store.session_view", "SHORT_TRUST_SECONDS", 0.0)
        first.do("sign_out")
        sandbox.expire()
        assert "holds no session" in second.do("get")
        go_back()
        outcome, said = second.do("warned")
        assert "holds no session" in outcome
        assert any("had lost" in line for line in said), said
        assert "holds no session" in third.do("get")
    assert sandbox.counts.refresh_calls == 0


# Several hosts.


class Host:
    """A host of its own: a network namespace on a bridge, whose loopback leads to the API and to the store."""

    def __init__(self, name: str, members: list[Machine]) -> None:
        self.name, self.members = name, members

    def lose(self, address: str) -> None:
        """Send what goes to that address to nobody: a partition."""
        ip(
            "-n",
            self.name,
            "neigh",
            "replace",
            address,
            "lladdr",
            "02:00:00:00:00:99",
            "dev",
            "eth0",
            "nud",
            "permanent",
        )

    def find(self, address: str) -> None:
        """End the partition."""
        ip("-n", self.name, "neigh", "del", address, "dev", "eth0")


def ip(*arguments: str) -> None:
    """Run ``ip``."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (arguments, done.stderr)


def need_namespaces() -> str:
    """Skip the test where no bridge and no namespace can be made. Returns a name that is free."""
    name = f"adh{secrets.token_hex(3)}"
    how = "needs network namespaces: apt-get install iproute2, as root on Linux; pytest -m servers"
    try:
        made = os.geteuid() == 0 and all(
            subprocess.run(["ip", *words, *kind], capture_output=True, check=False).returncode == 0
            for words, kind in (
                (("link", "add", name), ("type", "bridge")),
                (("netns", "add", name), ()),
                (("link", "del", name), ()),
                (("netns", "del", name), ()),
            )
        )
    except OSError:
        made = False
    if not made:
        pytest.skip(how)
    return name


@pytest.fixture
def network() -> Iterator[tuple[str, str, ExitStack]]:
    """A bridge: its name, the first three numbers of its addresses, and what ends it."""
    name = need_namespaces()
    with ExitStack() as stack:
        ip("link", "add", name, "type", "bridge")
        stack.callback(ip, "link", "del", name)
        block = f"10.213.{secrets.randbelow(256)}"
        for last in (1, 2):
            ip("addr", "add", f"{block}.{last}/24", "dev", name)
        ip("link", "set", name, "up")
        yield name, block, stack


def host_on(network: tuple[str, str, ExitStack], number: int, ports: dict[int, str], count: int) -> Host:
    """Return a host. `ports`: of its loopback, and the address that each leads to."""
    bridge, block, stack = network
    name = f"{bridge}-{number}"
    ip("netns", "add", name)
    stack.callback(ip, "netns", "del", name)
    ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
    ip("link", "set", name, "master", bridge, "up")
    ip("-n", name, "addr", "add", f"{block}.{number + 10}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        ip("-n", name, "link", "set", device, "up")
    members = stack.enter_context(fleet(count, within=("ip", "netns", "exec", name)))
    for port, address in ports.items():
        members[0].do("forward", port, address)
    return Host(name, members)


def test_hosts_on_a_network(
    own_backend: Backend, sandbox: Sandbox, network: tuple[str, str, ExitStack]
) -> None:
    """Three hosts with two machines each meet one expiry; then one is partitioned before its write."""
    _, block, stack = network
    api, store = f"{block}.1", f"{block}.2"
    api_port = int(sandbox.url.rpartition(":")[2])
    for port, address in ((api_port, api), (own_backend.port, store)):
        stack.enter_context(TcpProxy(port, host=address, port=port))
    session = own_backend.sign_in(sandbox)
    hosts = [host_on(network, number, {api_port: api}, 2) for number in range(3)]
    for machine in (machine for host in hosts for machine in host.members):
        machine.do("use", own_backend.url().replace("@127.0.0.1", f"@{store}"), **settings(sandbox, session))
    everybody = [machine for host in hosts for machine in host.members]
    assert get_all(everybody) == {"200"}
    sandbox.expire()
    assert get_all(everybody) == {"200"}
    assert sandbox.counts.refresh_calls == 1
    sandbox.expire()
    with sandbox.hold_next(at="after") as hold:
        hosts[0].members[0].begin("get")
        hold.wait(PATIENCE)
        hosts[0].lose(store)
    assert hosts[0].members[0].result() == "200"  # with the pair that is in memory only
    hosts[1].members[0].begin("get")
    hosts[0].find(store)
    assert hosts[1].members[0].result(60) == "200"
    assert get_all(hosts[1].members + hosts[2].members) == {"200"}
    assert sandbox.counts.refresh_calls == 2
    assert sandbox.counts.reused == 0
