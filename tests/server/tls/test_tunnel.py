"""The tunnel's parts over real sockets: who meets whom, and that all bytes arrive, whoever is slow."""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from config import Config
from config.tls import TlsConfig
from pipeline.errors import LinkClosed, StartFailed
from server.tls.tunnel.meet import WELCOME, Failed, Reception, call
from server.tls.tunnel.messages import Plan, read_plan
from server.tls.tunnel.pump import Pump
from server.tls.tunnel.rank_side import Tunnel, open_tunnel
from tests.certificates import ENOUGH, cluster_config, make_folder, shake_hands, tls_of

LOCAL = "127.0.0.1"
SHORT = 0.3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("certificates") / "tls", ("n0", "n1", "n2"))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def free_addresses(count: int) -> list[str]:
    with ExitStack() as stack:
        bound = [stack.enter_context(socket.create_server((LOCAL, 0))) for _ in range(count)]
        return [f"{LOCAL}:{sock.getsockname()[1]}" for sock in bound]


def soon() -> float:
    return time.monotonic() + ENOUGH


# meeting


def meeting(
    made: Path, caller: str, expected: str, callee: str, called: str, seconds: float = 2.0
) -> tuple[str, str]:
    """What both sides say; `caller` calls `called` where `callee` waits for `expected`."""
    [address] = free_addresses(1)
    place = Reception(address, expected, tls_of(made, callee).server)
    deadline = time.monotonic() + seconds

    def outcome(future: Future[ssl.SSLSocket]) -> str:
        try:
            future.result(ENOUGH).close()
        except Failed as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(place.wait, deadline)
        calling = pool.submit(call, address, called, tls_of(made, caller).client, deadline)
        return outcome(waiting), outcome(calling)


def test_neighbours_meet(made: Path) -> None:
    said = meeting(made, caller="n0", expected="n0", callee="n1", called="n1", seconds=ENOUGH)
    assert said == ("", "")


def test_another_node_is_refused_by_either_side(made: Path) -> None:
    waited, called = meeting(made, caller="n2", expected="n0", callee="n1", called="n1")
    assert "n0 has not called" in waited
    assert "a caller was refused: it is node n2" in waited
    assert "it hung up" in called
    waited, called = meeting(made, caller="n0", expected="n0", callee="n2", called="n1")
    assert "n1 at " in called
    assert "its certificate is refused" in called
    assert "n0 has not called" in waited


def test_who_says_nothing_holds_nobody_up(made: Path, stack: ExitStack) -> None:
    [address] = free_addresses(1)
    place = Reception(address, "n0", tls_of(made, "n1").server)
    host, port = address.split(":")
    silent = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(10)]
    for sock in silent[5:]:
        sock.sendall(b"\x16\x03\x01 this is no hello of TLS" * 10)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(place.wait, soon())
        call(address, "n1", tls_of(made, "n0").client, soon()).close()
        waiting.result(ENOUGH).close()


def greet_once(made: Path, place: Reception, stack: ExitStack) -> bytes:
    """What the neighbour n0 hears when it calls `place`; empty if it is hung up on."""
    listener = stack.enter_context(socket.create_server((LOCAL, 0)))
    with ThreadPoolExecutor(1) as pool:
        plain = socket.create_connection(listener.getsockname(), timeout=ENOUGH)
        accepted, _ = listener.accept()
        place._places.acquire()
        greeting = pool.submit(place._greet, accepted)
        secure = stack.enter_context(tls_of(made, "n0").call(plain, "n1"))
        heard = b""
        with suppress(OSError):
            heard = secure.recv(1)
        greeting.result(ENOUGH)  # raises what its thread would have ended with
        return heard


def test_a_neighbour_that_calls_twice_is_welcomed_once(made: Path, stack: ExitStack) -> None:
    [address] = free_addresses(1)
    place = Reception(address, "n0", tls_of(made, "n1").server)
    assert greet_once(made, place, stack) == WELCOME
    assert greet_once(made, place, stack) == b""
    with place.wait(soon()) as found:
        assert found.fileno() >= 0


def test_who_calls_when_nobody_waits_any_more_is_not_welcomed(made: Path, stack: ExitStack) -> None:
    [address] = free_addresses(1)
    place = Reception(address, "n0", tls_of(made, "n1").server)
    with pytest.raises(Failed, match="n0 has not called"):
        place.wait(time.monotonic())
    assert greet_once(made, place, stack) == b""


# carrying


@pytest.fixture
def carried(made: Path, stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """The ranks' ends of two pumps with TLS between them."""
    one, other = tls_of(made, "n0"), tls_of(made, "n1")
    served, called = shake_hands(one.serve, lambda sock: other.call(sock, "n0"))
    ends = []
    for secure in (served, called):
        near, far = socket.socketpair()
        ends.append(stack.enter_context(near))
        near.settimeout(ENOUGH)

        def run(far: socket.socket = far, secure: ssl.SSLSocket = secure) -> None:
            Pump(far, secure).run()
            far.close()
            secure.close()

        threading.Thread(target=run, daemon=True).start()
    return ends[0], ends[1]


def receive(sock: socket.socket, count: int, pause: float = 0.0) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = sock.recv(1 << 16)
        assert piece, "ended early"
        data += piece
        time.sleep(pause)
    return bytes(data)


def test_all_bytes_arrive_both_ways_at_once_and_nothing_waits_for_more(
    carried: tuple[socket.socket, socket.socket],
) -> None:
    rng = random.Random(1)
    for size in (1, 2, 255, 16384, 16385, 1 << 18, (1 << 20) + 7, 5_000_000):
        there, back = rng.randbytes(size), rng.randbytes(size)
        with ThreadPoolExecutor(4) as pool:
            sending = [
                pool.submit(carried[i].sendall, data) for i, data in enumerate((there, back))
            ]
            reading = [pool.submit(receive, carried[i], size) for i in (1, 0)]
            assert [one.result(ENOUGH) for one in reading] == [there, back]
            for one in sending:
                one.result(ENOUGH)


def test_who_reads_slowly_loses_nothing(carried: tuple[socket.socket, socket.socket]) -> None:
    data = random.Random(2).randbytes(3_000_000)
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(carried[0].sendall, data)
        assert receive(carried[1], len(data), pause=0.005) == data
        sending.result(ENOUGH)


def test_the_last_bytes_come_before_the_end(carried: tuple[socket.socket, socket.socket]) -> None:
    data = random.Random(3).randbytes(100_000)
    carried[0].sendall(data)
    carried[0].close()
    assert receive(carried[1], len(data)) == data
    assert carried[1].recv(1) == b""


# a rank and its tunnel


class FakeMlx:
    """Joins as MLX's ring does: by the addresses of a file, once, with sockets that it keeps."""

    def __init__(self, hostfile: Path, rank: int, size: int) -> None:
        entries = json.loads(hostfile.read_text())
        self._own = int(entries[rank][0].split(":")[1])
        self._next = int(entries[(rank + 1) % size][0].split(":")[1])
        self.right = socket.create_connection((LOCAL, self._next))
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind((LOCAL, self._own))
            listener.listen(0)
            listener.settimeout(ENOUGH)
            self.left, _ = listener.accept()
        for sock in (self.left, self.right):
            sock.setblocking(False)

    def close(self) -> None:
        self.left.close()
        self.right.close()


def test_ranks_join_through_their_tunnels(made: Path, stack: ExitStack) -> None:
    addresses = [[address] for address in free_addresses(3)]
    names = ["n0", "n1", "n2"]
    tunnels = [
        Tunnel(tls_of(made, name), addresses, rank, names, ENOUGH)
        for rank, name in enumerate(names)
    ]
    for tunnel in tunnels:
        stack.callback(tunnel.close)
    joined = [FakeMlx(tunnel.hostfile, rank, 3) for rank, tunnel in enumerate(tunnels)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(Tunnel.take_over, tunnels))
    assert not any(tunnel.hostfile.exists() for tunnel in tunnels)
    for rank, mlx in enumerate(joined):
        assert mlx.right.family == socket.AF_INET  # Python does not know; the descriptor is another
        os.write(mlx.right.fileno(), b"from %d" % rank)
        os.write(mlx.left.fileno(), b"back from %d" % rank)
    for rank, mlx in enumerate(joined):
        assert read_now(mlx.left.fileno()) == b"from %d" % ((rank - 1) % 3)
        assert read_now(mlx.right.fileno()) == b"back from %d" % ((rank + 1) % 3)

    # A rank that ends is missed by both neighbours.
    joined[1].close()
    tunnels[1].close()
    for rank in (0, 2):
        with pytest.raises(LinkClosed, match="n1 closed the TLS connection of the hidden states"):
            asyncio.run(asyncio.wait_for(tunnels[rank].watch(), ENOUGH))
        side = joined[rank].right if rank == 0 else joined[rank].left
        assert read_now(side.fileno()) == b""
        joined[rank].close()


def read_now(descriptor: int) -> bytes:
    assert select.select([descriptor], [], [], ENOUGH)[0]
    return os.read(descriptor, 100)


def test_a_neighbour_that_does_not_come_is_named(made: Path, stack: ExitStack) -> None:
    addresses = [[address] for address in free_addresses(2)]
    tunnel = Tunnel(tls_of(made, "n0"), addresses, 0, ["n0", "n1"], SHORT)
    stack.callback(tunnel.close)
    mlx = FakeMlx(tunnel.hostfile, 0, 2)
    stack.callback(mlx.close)
    with pytest.raises(
        LinkClosed, match=rf"tls\.tensors: n1 at {addresses[1][0]} can't be reached"
    ):
        tunnel.take_over()


def test_an_address_that_is_taken_is_told(made: Path, stack: ExitStack) -> None:
    taken = stack.enter_context(socket.create_server((LOCAL, 0)))
    own = f"{LOCAL}:{taken.getsockname()[1]}"
    tunnel = Tunnel(tls_of(made, "n0"), [[own], free_addresses(1)], 0, ["n0", "n1"], ENOUGH)
    stack.callback(tunnel.close)
    mlx = FakeMlx(tunnel.hostfile, 0, 2)
    stack.callback(mlx.close)
    with pytest.raises(StartFailed, match=rf"tls\.tensors: {own}: .*in use"):
        tunnel.take_over()


def test_a_tunnel_that_dies_is_told(made: Path, stack: ExitStack) -> None:
    addresses = [[address] for address in free_addresses(2)]
    tunnel = Tunnel(tls_of(made, "n0"), addresses, 0, ["n0", "n1"], ENOUGH)
    stack.callback(tunnel.close)
    mlx = FakeMlx(tunnel.hostfile, 0, 2)
    stack.callback(mlx.close)
    os.kill(tunnel.pid, 9)
    with pytest.raises(LinkClosed, match=rf"rank 0 \(process {tunnel.pid}\) has ended"):
        tunnel.take_over()


# whether there is one


def config(made: Path, tensors: bool = True) -> Config:
    return Config(tls=TlsConfig.model_validate(cluster_config(made, tensors=tensors)))


def test_other_backends_are_refused_and_one_rank_needs_none(made: Path, tmp_path: Path) -> None:
    def tls_of_node(name: str) -> None:
        raise AssertionError("nothing to protect")

    mpi = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}
    with pytest.raises(
        StartFailed, match=r"tls\.tensors = true: only the connections of MLX's ring"
    ):
        open_tunnel(config(made), mpi, tls_of_node)
    assert open_tunnel(config(made), {}, tls_of_node) is None
    assert open_tunnel(config(made, tensors=False), mpi, tls_of_node) is None
    empty = tmp_path / "hostfile"
    empty.write_text("")
    alone = {"MLX_HOSTFILE": str(empty), "MLX_RANK": "0"}
    assert open_tunnel(config(made), alone, tls_of_node) is None


def test_the_plan_survives_the_wire() -> None:
    plan = Plan("c", "k", "a", "n0", "n2", ("h:1", "h:2"), ("i:1",), (3, 4), (5,), (6,), 1.5)
    assert read_plan(json.dumps(plan.__dict__).encode()) == plan
