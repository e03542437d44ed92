"""Frame links over TLS: what holds without it holds with it, and strangers stay outside."""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from pipeline import frames
from pipeline.errors import LinkClosed, LinkTimeout
from pipeline.frames import Frame, Goodbye, Hello, Prefill, Ready, Step
from pipeline.joining import join, listen
from pipeline.link import Connection, Links, Peer
from server.tls.contexts import ClusterTls
from tests.certificates import ENOUGH, make_folder, tls_of

SHORT = 0.2
EPOCH = 7


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("certificates") / "tls", ("n0", "n1", "n2"))


def shaken(connection: Connection) -> None:
    end = time.monotonic() + ENOUGH
    while not connection.shake_hands():
        assert time.monotonic() < end
        select.select([connection], [], [], SHORT)


@pytest.fixture
def pair(made: Path) -> Iterator[tuple[Connection, Connection]]:
    one, other = socket.socketpair()
    served = Connection(tls_of(made, "n0").serve(one), "the other end")
    called = Connection(tls_of(made, "n1").call(other, "n0"), "the other end")
    with ThreadPoolExecutor(1) as pool:
        shaking = pool.submit(shaken, served)
        shaken(called)
        shaking.result(ENOUGH)
    yield called, served
    called.close()
    served.close()


def send_all(connection: Connection, steps: int) -> None:
    for step in range(steps):
        connection.send(Ready(step), ENOUGH)


# one connection


def test_frames_of_all_sizes_arrive_in_order(pair: tuple[Connection, Connection]) -> None:
    one, other = pair
    sent: list[Frame] = [Ready(step) for step in range(100)]
    sent.insert(50, Step(0, work=Prefill((0,), (tuple(range(1_000_000)),))))  # hundreds of records
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(lambda: [one.send(frame, ENOUGH) for frame in sent])
        assert [other.receive(ENOUGH) for _ in sent] == sent
        sending.result(ENOUGH)
    assert other.poll() is None


def test_what_select_does_not_show_is_not_held_back(pair: tuple[Connection, Connection]) -> None:
    """Whoever polls until there is nothing, and then selects, misses no frame in TLS's own buffer."""
    one, other = pair
    with ThreadPoolExecutor(1) as pool:
        for size in (1, 3, 200, 5000):
            sending = pool.submit(send_all, one, size)
            for step in range(size):
                while (frame := other.poll()) is None:
                    assert select.select([other], [], [], ENOUGH)[0], f"{step} of {size}"
                assert frame == Ready(step)
            sending.result(ENOUGH)


def test_silence_and_a_peer_that_takes_nothing(pair: tuple[Connection, Connection]) -> None:
    one, other = pair
    with pytest.raises(LinkTimeout, match=r"no frame from the other end within 0\.2 s"):
        other.receive(SHORT)
    one.send(Goodbye(), ENOUGH)
    assert other.receive(ENOUGH) == Goodbye()  # a timeout loses nothing
    started = time.monotonic()
    with pytest.raises(LinkTimeout, match=r"the other end took no frame within 0\.2 s"):
        one.send(Step(0, work=Prefill((0,), ((1 << 17,) * 2_000_000,))), SHORT)
    assert time.monotonic() < started + ENOUGH


def test_a_peer_that_closes(pair: tuple[Connection, Connection]) -> None:
    one, other = pair
    one.send(Goodbye(), ENOUGH)
    one.close()
    assert other.receive(ENOUGH) == Goodbye()
    with pytest.raises(LinkClosed):
        other.receive(ENOUGH)
    with pytest.raises(LinkClosed):
        other.poll()


def test_closing_wakes_a_thread_that_receives(pair: tuple[Connection, Connection]) -> None:
    one, _ = pair
    with ThreadPoolExecutor(1) as pool:
        waiting: Future[Frame] = pool.submit(one.receive, None)
        threading.Event().wait(SHORT)  # most likely it blocks in the read by now; right either way
        one.close()
        with pytest.raises(LinkClosed):
            waiting.result(ENOUGH)
    with pytest.raises(LinkClosed):
        one.poll()
    with pytest.raises(LinkClosed):
        one.send(Goodbye(), ENOUGH)


def test_bytes_that_were_changed_on_their_way_end_the_connection(made: Path) -> None:
    one, middle_one = socket.socketpair()
    other, middle_other = socket.socketpair()
    served = Connection(tls_of(made, "n0").serve(one), "the peer")
    called = Connection(tls_of(made, "n1").call(other, "n0"), "the peer")
    end = time.monotonic() + ENOUGH
    while not all([called.shake_hands(), served.shake_hands()]):
        assert time.monotonic() < end
        for source, target in ((middle_one, middle_other), (middle_other, middle_one)):
            source.setblocking(False)
            with suppress(BlockingIOError):
                target.sendall(source.recv(1 << 16))
    called.send(Goodbye(), ENOUGH)
    record = bytearray(middle_other.recv(1 << 16))
    record[-1] ^= 1
    middle_one.sendall(record)
    with pytest.raises(LinkClosed, match="is lost"):
        served.receive(ENOUGH)
    for sock in (middle_one, middle_other):
        sock.close()
    served.close()
    called.close()


# a ring


class Ring:
    """Ranks of one process, as nodes n0, n1, ..."""

    def __init__(self, tls: Sequence[ClusterTls], stack: ExitStack) -> None:
        self.tls = tls
        self.listeners = [stack.enter_context(listen("127.0.0.1", 0)) for _ in tls]
        self.peers = [
            Peer(rank, f"n{rank}", "127.0.0.1", listener.getsockname()[1])
            for rank, listener in enumerate(self.listeners)
        ]
        self._pool = stack.enter_context(ThreadPoolExecutor(len(tls)))
        self._stack = stack

    def join(self, rank: int, timeout: float = ENOUGH) -> Future[Links]:
        future = self._pool.submit(
            join,
            self.listeners[rank],
            rank,
            self.peers,
            EPOCH,
            timeout,
            security=self.tls[rank],
        )
        future.add_done_callback(self._close_later)
        return future

    def _close_later(self, future: Future[Links]) -> None:
        if future.exception() is None:
            self._stack.callback(future.result().close)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_ring_joins_whoever_comes_first(made: Path, stack: ExitStack, size: int) -> None:
    ring = Ring([tls_of(made, f"n{rank}") for rank in range(size)], stack)
    joining = [ring.join(rank) for rank in reversed(range(size))]
    links = [future.result(ENOUGH) for future in reversed(joining)]
    for rank, link in enumerate(links):
        link.outbound.send(Ready(rank), ENOUGH)
    for rank, link in enumerate(links):
        assert link.inbound.receive(ENOUGH) == Ready((rank - 1) % size)


def test_a_node_in_the_place_of_another_is_refused(
    made: Path, stack: ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    """n2 says that it is rank 1: it may know all that Hello says, but not the key of n1."""
    ring = Ring([tls_of(made, "n0"), tls_of(made, "n2")], stack)
    first, second = ring.join(0, 2.0), ring.join(1, 2.0)
    with pytest.raises(LinkClosed, match=r"rank 1 \(n1, .*its certificate is refused: Hostname"):
        first.result(ENOUGH)
    with pytest.raises((LinkClosed, LinkTimeout)):
        second.result(ENOUGH)


def test_a_caller_with_anothers_name_is_refused(
    made: Path, stack: ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    ring = Ring([tls_of(made, "n0"), tls_of(made, "n1")], stack)
    first = ring.join(0)
    impostor = Connection(
        tls_of(made, "n2").call(
            stack.enter_context(socket.create_connection(ring.listeners[0].getsockname())), "n0"
        ),
        "rank 0",
    )
    stack.callback(impostor.close)
    shaken(impostor)
    impostor.send(Hello(frames.PROTOCOL, EPOCH, 1, 2), ENOUGH)
    with pytest.raises(LinkClosed):
        impostor.receive(ENOUGH)
    second = ring.join(1)
    first.result(ENOUGH)
    second.result(ENOUGH)
    assert "its certificate is of node n2, not of node n1" in capsys.readouterr().out


@pytest.mark.parametrize("said", [b"", b"\0\0\0\x05hello", b"\x16\x03\x01\x00\x05junk!", b"GET / "])
def test_who_speaks_no_tls_holds_nobody_up(made: Path, stack: ExitStack, said: bytes) -> None:
    ring = Ring([tls_of(made, "n0"), tls_of(made, "n1")], stack)
    stranger = stack.enter_context(socket.create_connection(ring.listeners[0].getsockname()))
    stranger.sendall(said)
    futures = [ring.join(rank) for rank in (0, 1)]
    for future in futures:
        future.result(ENOUGH)
    stranger.settimeout(ENOUGH)
    with suppress(ConnectionResetError):
        while stranger.recv(4096):  # alerts of TLS, then the end
            pass


def test_a_peer_without_tls(made: Path, stack: ExitStack) -> None:
    tls = tls_of(made, "n0")
    ring = Ring([tls, tls], stack)
    first = ring.join(0, 2.0)
    plain = ring.listeners[1]
    plain.settimeout(ENOUGH)
    caller = stack.enter_context(plain.accept()[0])
    caller.sendall(frames.encode(Goodbye()))
    with pytest.raises(LinkClosed, match=r"TLS handshake with rank 1 \(n1"):
        first.result(ENOUGH)


def test_a_peer_that_does_not_answer_the_handshake(made: Path, stack: ExitStack) -> None:
    ring = Ring([tls_of(made, "n0"), tls_of(made, "n1")], stack)
    with pytest.raises(LinkTimeout, match="has not connected"):
        ring.join(0, SHORT).result(ENOUGH)  # rank 1 listens, and never comes


def test_ssl_errors_are_errors_of_sockets() -> None:
    """What link.py relies on."""
    assert issubclass(ssl.SSLError, OSError)
    assert issubclass(ssl.SSLWantReadError, OSError)
