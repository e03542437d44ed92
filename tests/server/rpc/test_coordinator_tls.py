"""The coordinator behind mutual TLS: who gets in, and as whom."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE

import grpc
import pytest

from server.__main__ import GRPC_VERBOSITY
from server.rpc.client import CoordinatorClient
from server.rpc.coordinator import Coordinator
from server.rpc.errors import CoordinatorLost, Refused
from server.rpc.records import HealthPolicy, TimelineReport
from server.rpc.registry import ClusterRegistry
from server.tls.contexts import ClusterTls, launcher_tls
from server.tls.rpc import ClientTls, server_credentials
from tests.certificates import cluster_config, make_folder, tls_of
from tests.server.rpc.samples import NODES, heartbeat, registration
from tests.server.rpc.test_coordinator import TwoKeys

pytestmark = pytest.mark.anyio

DEADLINE = 60.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("certificates") / "tls", NODES)


@asynccontextmanager
async def coordinator(folder: Path) -> AsyncIterator[int]:
    served = Coordinator(ClusterRegistry(7, 3, HealthPolicy(60, 3)), TwoKeys())
    served.credentials = server_credentials(tls_of(folder, NODES[0]))
    port = await served.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        await served.stop(1.0)


@asynccontextmanager
async def client(
    port: int, tls: ClusterTls | None, callee: str = NODES[0]
) -> AsyncIterator[CoordinatorClient]:
    made = CoordinatorClient(
        "127.0.0.1",
        port,
        call_timeout_s=DEADLINE,
        tls=None if tls is None else ClientTls(tls, callee),
    )
    try:
        yield made
    finally:
        await made.close()


async def test_nodes_register_under_their_own_names_only(made: Path) -> None:
    async with coordinator(made) as port, client(port, tls_of(made, NODES[1])) as own:
        with pytest.raises(Refused, match="is of node mini2, not of node master"):
            await own.register(registration(2), DEADLINE)
        await own.register(registration(1), DEADLINE)
        await own.heartbeat(heartbeat(1))
        with pytest.raises(Refused, match="is of node mini2, not of node mini1"):
            await own.heartbeat(heartbeat(0))
        with pytest.raises(Refused, match="is of node mini2, not of node mini1"):
            await own.send_timeline(TimelineReport(7, 0, NODES[0], 1, ()))
        assert [rank.node for rank in (await own.status()).ranks] == [NODES[1]]
        # The name of a rank that is there, by a process that is not that node.
        async with client(port, tls_of(made, NODES[2])) as other:
            with pytest.raises(Refused, match="is of node master, not of node mini2"):
                await other.register(replace(registration(1), pid=9), DEADLINE)


async def test_the_launcher_asks_and_registers_nothing(made: Path) -> None:
    tls = launcher_tls(cluster_config(made))
    async with coordinator(made) as port, client(port, tls) as launcher:
        assert (await launcher.status()).ranks == ()
        with pytest.raises(Refused, match="is of launcher launcher, not of node mini1"):
            await launcher.register(registration(0), DEADLINE)


async def refused_at_the_door(own: CoordinatorClient) -> str:
    """What the transport says; the call itself was never looked at."""
    with pytest.raises(CoordinatorLost) as caught:
        await own.status()
    cause = caught.value.__cause__
    assert isinstance(cause, grpc.aio.AioRpcError)
    assert cause.code() is grpc.StatusCode.UNAVAILABLE
    return str(caught.value)


async def test_strangers_get_no_further_than_the_handshake(made: Path, tmp_path: Path) -> None:
    strangers = make_folder(tmp_path / "strangers", NODES)
    async with coordinator(made) as port:
        async with client(port, None) as plain:
            await refused_at_the_door(plain)
        # It does not know the coordinator either.
        async with client(port, tls_of(strangers, NODES[1])) as stranger:
            await refused_at_the_door(stranger)
        unknown = tls_of(strangers, NODES[1])
        unknown.ca = made / "ca.pem"  # it trusts the coordinator, which does not trust it
        async with client(port, unknown) as stranger:
            await refused_at_the_door(stranger)
        async with client(port, tls_of(made, NODES[1])) as own:
            assert (await own.status()).ranks == ()


async def test_a_coordinator_on_another_node_is_not_spoken_to(made: Path) -> None:
    async with (
        coordinator(made) as port,
        client(port, tls_of(made, NODES[1]), callee=NODES[2]) as own,
    ):
        await refused_at_the_door(own)


SERVE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import grpc
from server.tls.rpc import server_credentials
from tests.certificates import tls_of
server = grpc.server(ThreadPoolExecutor(1))
port = server.add_secure_port("127.0.0.1:0", server_credentials(tls_of(Path(sys.argv[1]), sys.argv[2])))
server.start()
print(port, flush=True)
sys.stdin.read()
server.stop(None).wait()
"""


@pytest.mark.parametrize("verbosity", [GRPC_VERBOSITY, "ERROR"])
def test_strangers_write_nothing_on_stderr(made: Path, verbosity: str) -> None:
    """With more verbosity they do: this test would notice."""
    environment = {**os.environ, "GRPC_VERBOSITY": verbosity}
    command = [sys.executable, "-c", SERVE, str(made), NODES[0]]
    with subprocess.Popen(
        command, env=environment, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True
    ) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        for name in ("zebrafish.test", "", "zebrafish"):
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", port), DEADLINE) as raw,
                context.wrap_socket(raw, server_hostname=name or None) as wrapped,
            ):
                wrapped.recv(1)
        _, written = server.communicate(timeout=DEADLINE)
    assert ("zebrafish" in written) == (verbosity == "ERROR"), written
