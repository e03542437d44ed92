"""Malformed frames, gRPC messages and TLS hellos: nothing crashes, hangs or grows, all goes on."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import grpc
import psutil
import pytest

from pipeline import frames
from pipeline.errors import FrameError, LinkClosed
from pipeline.frames import Decode, Goodbye, Hello, Loaded, Prefill, Ready, Result, Step, Welcome
from pipeline.link import Connection
from server.rpc import messages
from server.rpc.channel import CLIENT_OPTIONS
from server.rpc.service import SERVICE
from server.tls.contexts import node_tls
from server.tls.rpc import ClientTls
from tests.certificates import cluster_config
from tests.cluster.fuzz import changed, hellos
from tests.cluster.harness import HOST
from tests.cluster.tls import TlsCluster
from tests.server.rpc.samples import heartbeat, registration

PROMPT = (3, 1, 4, 1, 5, 9, 2, 6)
DEADLINE = 30.0  # seconds for an answer or an end; none takes one
GROWTH = 32 << 20  # bytes; what allocators keep for later, and far less than 10,000 leaks

COUNTS = [500, pytest.param(10_000, marks=pytest.mark.soak)]

FRAMES = [
    frames.encode(frame)
    for frame in (
        Hello(frames.PROTOCOL, 7, 0, 2),
        Welcome(1),
        Loaded(1000),
        Step(1, work=Prefill((3,), (tuple(range(200)),))),
        Step(2, released=(1, 2), work=Decode(0, (3, 4), (5, 6))),
        Ready(1, (0.5,)),
        Result(1, (5, 6)),
        Goodbye(),
    )
]


def alive(cluster: TlsCluster) -> Callable[[], None]:
    """To be called afterwards: the ranks are the same, have not grown, and answer as before."""
    before = cluster.complete(PROMPT, 8)["text"]
    ranks = [psutil.Process(pid) for pid in cluster.pids]
    held = [rank.memory_info().rss for rank in ranks]

    def check() -> None:
        assert cluster.complete(PROMPT, 8)["text"] == before
        for rank, bytes_before in zip(ranks, held, strict=True):
            assert rank.is_running()
            assert rank.memory_info().rss < bytes_before + GROWTH
            assert rank.num_fds() < 200

    return check


@pytest.mark.parametrize("count", COUNTS)
def test_frames(count: int) -> None:
    """Each on a connection of its own, as a rank reads it."""
    own = psutil.Process()
    held = own.memory_info().rss
    for data in changed(FRAMES, count, seed=1):
        sender, receiver = socket.socketpair()
        connection = Connection(receiver, "the peer")
        sender.sendall(data)
        sender.close()
        try:
            while True:
                connection.receive(DEADLINE)
        except (FrameError, LinkClosed):
            connection.close()
    assert own.memory_info().rss < held + GROWTH


@pytest.mark.parametrize("count", COUNTS)
def test_tls_hellos(tls_two: TlsCluster, count: int) -> None:
    ports = [
        tls_two.ports.gateway,
        tls_two.ports.coordinator,
        *(port for inference, _, health in tls_two.ports.nodes for port in (inference, health)),
    ]

    async def hello(port: int, data: bytes) -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        try:
            writer.write(data)
            writer.write_eof()
            while await reader.read(1 << 16):
                pass
        except ConnectionError:  # reset, as what was not read is
            pass
        finally:
            writer.close()

    async def all_of_them(seed: int) -> None:
        data = changed(hellos(), count, seed)
        for first in range(0, count, 20):
            some = [hello(ports[(first + i) % len(ports)], next(data)) for i in range(20)]
            await asyncio.wait_for(asyncio.gather(*some), DEADLINE)

    # Failed handshakes are garbage in cycles: the first round leaves as much of it as is ever kept.
    asyncio.run(all_of_them(2))
    check = alive(tls_two)
    asyncio.run(all_of_them(4))
    check()


@pytest.mark.parametrize("count", COUNTS)
def test_rpc_messages(tls_two: TlsCluster, count: int) -> None:
    """By a node that has a certificate, and may do no more harm than others."""
    check = alive(tls_two)
    tls = node_tls(cluster_config(tls_two.certificates), "n1")
    assert tls is not None
    client = ClientTls(tls, "n0")
    valid = [
        messages.registration_to(registration(1)).SerializeToString(),
        messages.heartbeat_to(heartbeat(1)).SerializeToString(),
        b"\x0a\x03abc",
    ]

    async def call(channel: Any, method: str, data: bytes) -> str:
        path = f"/{SERVICE.full_name}/{method}"
        try:
            await channel.unary_unary(path)(data, timeout=DEADLINE)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return "OK"

    async def all_of_them() -> set[str]:
        methods = [m.name for m in SERVICE.methods if m.name not in ("WatchState", "SetConfig")]
        data = changed(valid, count, seed=3)
        options = (*CLIENT_OPTIONS, *client.options())
        address = f"{HOST}:{tls_two.ports.coordinator}"
        said: set[str] = set()
        async with grpc.aio.secure_channel(address, client.credentials(), options) as channel:
            for first in range(0, count, 20):
                some = [
                    call(channel, methods[(first + i) % len(methods)], next(data))
                    for i in range(20)
                ]
                said.update(await asyncio.gather(*some))
        return said

    said = asyncio.run(all_of_them())
    assert "INVALID_ARGUMENT" in said
    assert said <= {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND"}
    check()
