"""Frame links over real sockets."""

from __future__ import annotations

import errno
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

from config.keepalive import KeepAlive
from pipeline import frames
from pipeline.errors import FrameError, LinkClosed, LinkTimeout
from pipeline.frames import Frame, Goodbye, Hello, Prefill, Ready, Step, Welcome
from pipeline.joining import MAX_CALLERS, join, listen
from pipeline.link import Connection, Links, Peer

EPOCH = 7
ENOUGH = 20.0  # seconds; a test that waits so long has failed
SHORT = 0.2


@pytest.fixture
def pair() -> Iterator[tuple[Connection, Connection]]:
    """The two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = Connection(socket.create_connection(listener.getsockname()), "the other end")
        other = Connection(listener.accept()[0], "the other end")
    yield one, other
    one.close()
    other.close()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Connection]]:
    """A bare socket, to send any bytes, and a connection that receives them."""
    one, other = socket.socketpair()
    connection = Connection(other, "the peer")
    yield one, connection
    one.close()
    connection.close()


# one connection


def test_frames_arrive_in_order(pair: tuple[Connection, Connection]) -> None:
    one, other = pair
    sent: list[Frame] = [Ready(step, (0.5,)) for step in range(100)]
    for frame in sent:
        one.send(frame, ENOUGH)
    assert [other.receive(ENOUGH) for _ in sent] == sent
    assert other.poll() is None
    assert one.sent_frames == other.received_frames == 100
    assert one.sent_bytes == other.received_bytes == sum(len(frames.encode(f)) for f in sent)


def test_many_frames_in_one_segment_and_one_in_many(ends: tuple[socket.socket, Connection]) -> None:
    sender, connection = ends
    data = b"".join(frames.encode(Ready(step)) for step in range(50))
    sender.sendall(data)
    assert [connection.receive(ENOUGH) for _ in range(50)] == [Ready(step) for step in range(50)]
    whole = frames.encode(Ready(50))
    for byte in whole[:-1]:
        sender.sendall(bytes([byte]))
        assert connection.poll() is None
    sender.sendall(whole[-1:])
    assert connection.receive(ENOUGH) == Ready(50)


def test_a_large_frame(pair: tuple[Connection, Connection]) -> None:
    one, other = pair
    large = Step(0, work=Prefill((0,), (tuple(range(1_000_000)),)))
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(one.send, large, ENOUGH)
        assert other.receive(ENOUGH) == large
        sending.result(ENOUGH)


def test_poll_takes_what_is_there_and_never_waits(ends: tuple[socket.socket, Connection]) -> None:
    sender, connection = ends
    assert connection.poll() is None
    sender.sendall(b"".join(frames.encode(Ready(step)) for step in range(3)))
    assert list(iter(connection.poll, None)) == [Ready(0), Ready(1), Ready(2)]


def test_silence_is_a_timeout_that_names_the_peer(ends: tuple[socket.socket, Connection]) -> None:
    sender, connection = ends
    with pytest.raises(LinkTimeout, match=r"no frame from the peer within 0\.2 s"):
        connection.receive(SHORT)
    sender.sendall(frames.encode(Goodbye())[:5])
    with pytest.raises(LinkTimeout, match="the peer"):
        connection.receive(SHORT)
    sender.sendall(frames.encode(Goodbye())[5:])
    assert connection.receive(ENOUGH) == Goodbye()  # a timeout loses nothing


def test_a_trickle_of_bytes_is_no_frame() -> None:
    """Bytes that keep coming do not move the deadline."""

    class Trickle(socket.socket):
        def recv(self, *_: int) -> bytes:
            assert time.monotonic() < started + ENOUGH, "the deadline has passed long ago"
            return b"\1"  # a length of 16 MiB, and then its bytes, one by one

    with Trickle() as sock:
        started = time.monotonic()
        with pytest.raises(LinkTimeout, match="no frame from the peer"):
            Connection(sock, "the peer").receive(SHORT)


def test_a_peer_that_takes_nothing(ends: tuple[socket.socket, Connection]) -> None:
    _, connection = ends
    with pytest.raises(LinkTimeout, match=r"the peer took no frame within 0\.2 s"):
        connection.send(Step(0, work=Prefill((0,), ((1 << 17,) * 2_000_000,))), SHORT)


def test_a_peer_that_closes(pair: tuple[Connection, Connection]) -> None:
    one, other = pair
    one.send(Goodbye(), ENOUGH)
    one.close()
    assert other.receive(ENOUGH) == Goodbye()  # what it said before is heard
    for wait in (other.poll, lambda: other.receive(ENOUGH)):
        with pytest.raises(LinkClosed, match="the other end closed the connection"):
            wait()


def test_a_peer_that_is_gone(pair: tuple[Connection, Connection]) -> None:
    one, other = pair
    one._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one._socket.close()  # as a killed process with unread data: reset
    with pytest.raises(LinkClosed, match="connection to the other end is lost"):
        other.receive(ENOUGH)
    with pytest.raises(LinkClosed):
        other.send(Goodbye(), ENOUGH)


def test_a_peer_that_vanished_without_closing() -> None:
    """TCP's own verdict, from keep-alive probes, is a TimeoutError too; it is not our deadline."""

    class Vanished(socket.socket):
        def recv(self, *_: int) -> bytes:
            raise OSError(errno.ETIMEDOUT, "Operation timed out")

    with Vanished() as sock:
        connection = Connection(sock, "the peer")
        for wait in (connection.poll, lambda: connection.receive(None)):
            with pytest.raises(LinkClosed, match="connection to the peer is lost"):
                wait()


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\0", b"\0\0\0\1\xc1"])
def test_bytes_that_are_no_frame(ends: tuple[socket.socket, Connection], data: bytes) -> None:
    sender, connection = ends
    sender.sendall(data)
    with pytest.raises(FrameError):
        connection.receive(ENOUGH)


def test_close_in_another_thread_ends_a_wait(pair: tuple[Connection, Connection]) -> None:
    one, other = pair
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(other.receive, None)
        one.send(Goodbye(), ENOUGH)
        assert waiting.result(ENOUGH) == Goodbye()
        waiting = pool.submit(other.receive, None)
        other.close()
        with pytest.raises(LinkClosed):
            waiting.result(ENOUGH)


def test_after_close_everything_is_link_closed(pair: tuple[Connection, Connection]) -> None:
    """The engine's thread meets a link that a signal handler's thread has closed, wherever it is."""
    one, _ = pair
    one.close()
    one.close()
    for use in (one.poll, one.fileno, lambda: one.receive(None), lambda: one.send(Goodbye(), 1.0)):
        with pytest.raises(LinkClosed, match="the other end"):
            use()


def test_keep_alive_is_set() -> None:
    with socket.socket() as sock:
        Connection(sock, "the peer", KeepAlive(interval=7.0, probes=4))
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 7
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 4


# the ring


class Ring:
    """Ranks of this process, each in a thread, on ports of their own."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.listeners = [listen("127.0.0.1", 0) for _ in range(size)]
        self.peers = [
            Peer(rank, f"node{rank}", "127.0.0.1", listener.getsockname()[1])
            for rank, listener in enumerate(self.listeners)
        ]
        self.pool = ThreadPoolExecutor(size)
        self.stopping = threading.Event()
        self.links: list[Future[Links]] = []

    def join(self, rank: int, epoch: int = EPOCH, timeout: float = ENOUGH) -> Future[Links]:
        future = self.pool.submit(
            join, self.listeners[rank], rank, self.peers, epoch, timeout, self.stopping.is_set
        )
        self.links.append(future)
        return future

    def call(self, rank: int) -> socket.socket:
        """A stranger's connection to a rank."""
        return socket.create_connection((self.peers[rank].host, self.peers[rank].port), ENOUGH)

    def close(self) -> None:
        self.stopping.set()
        for listener in self.listeners:
            with suppress(OSError):
                listener.close()
        for future in self.links:
            if future.exception(ENOUGH) is None:
                future.result().close()
        self.pool.shutdown()


@pytest.fixture
def ring_of() -> Iterator[Callable[[int], Ring]]:
    with ExitStack() as stack:

        def make(size: int) -> Ring:
            ring = Ring(size)
            stack.callback(ring.close)
            return ring

        yield make


def assert_goes_round(links: list[Links]) -> None:
    """A frame from each rank arrives at the next one."""
    for rank, link in enumerate(links):
        link.outbound.send(Ready(rank), ENOUGH)
    for rank, link in enumerate(links):
        assert link.inbound.receive(ENOUGH) == Ready((rank - 1) % len(links))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_ring_joins_whoever_comes_first(ring_of: Callable[[int], Ring], size: int) -> None:
    ring = ring_of(size)
    joining = [ring.join(rank) for rank in reversed(range(size))]
    links = [future.result(ENOUGH) for future in reversed(joining)]
    assert_goes_round(links)
    assert links[0].outbound.peer == str(ring.peers[1 % size])
    assert links[0].inbound.peer == str(ring.peers[-1])


def test_a_rank_that_starts_later_is_waited_for(ring_of: Callable[[int], Ring]) -> None:
    ring = ring_of(2)
    port = ring.peers[1].port
    ring.listeners[1].close()
    first = ring.join(0)
    ring.listeners[1] = listen("127.0.0.1", port)
    links = [first, ring.join(1)]
    assert_goes_round([future.result(ENOUGH) for future in links])


def hello(
    protocol: int = frames.PROTOCOL, epoch: int = EPOCH, rank: int = 1, size: int = 2
) -> bytes:
    return frames.encode(Hello(protocol, epoch, rank, size))


@pytest.mark.parametrize(
    "said",
    [
        hello(protocol=frames.PROTOCOL + 1),
        hello(epoch=EPOCH - 1),
        hello(rank=0),
        hello(size=3),
        frames.encode(Welcome(1)),
        frames.encode(Goodbye()),
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"\0\0\0\x01\xc1",
    ],
)
def test_strangers_are_turned_away(ring_of: Callable[[int], Ring], said: bytes) -> None:
    ring = ring_of(2)
    with ring.call(0) as stranger:
        stranger.sendall(said)
        first = ring.join(0)
        with suppress(ConnectionResetError):  # bytes that were not read reset it
            assert stranger.recv(1) == b""
        links = [first, ring.join(1)]
        assert_goes_round([future.result(ENOUGH) for future in links])


def test_silent_callers_hold_nobody_up(ring_of: Callable[[int], Ring]) -> None:
    ring = ring_of(2)
    with ExitStack() as stack:
        first = ring.join(0)
        silent = [stack.enter_context(ring.call(0)) for _ in range(MAX_CALLERS + 3)]
        silent[-1].sendall(hello()[:6])  # half a word
        assert silent[0].recv(1) == b""  # too many: the oldest has to go
        links = [first, ring.join(1)]
        assert_goes_round([future.result(ENOUGH) for future in links])
        for caller in silent[:-1]:
            assert caller.recv(1) == b""


def test_callers_that_hang_up_are_forgotten(ring_of: Callable[[int], Ring]) -> None:
    ring = ring_of(2)
    for _ in range(3):
        with ring.call(0) as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ring.call(0).close()
    assert_goes_round([f.result(ENOUGH) for f in (ring.join(0), ring.join(1))])


def test_a_rank_of_another_launch_does_not_join(ring_of: Callable[[int], Ring]) -> None:
    ring = ring_of(2)
    for future in [ring.join(0, timeout=1.0), ring.join(1, epoch=EPOCH + 1, timeout=1.0)]:
        assert isinstance(future.exception(ENOUGH), LinkTimeout)


def test_a_missing_previous_rank_is_named(ring_of: Callable[[int], Ring]) -> None:
    ring = ring_of(3)
    with pytest.raises(LinkTimeout, match=r"rank 2 \(node2, .*\) has not connected"):
        ring.join(0, timeout=SHORT).result(ENOUGH)
    with ring.listeners[1].accept()[0] as next_rank:
        next_rank.settimeout(ENOUGH)
        assert next_rank.recv(1 << 10) == hello(rank=0, size=3)
        assert next_rank.recv(1) == b"", "a rank that gave up has left the next one connected"


def test_an_unreachable_next_rank_is_named(ring_of: Callable[[int], Ring]) -> None:
    ring = ring_of(3)
    ring.listeners[1].close()
    with pytest.raises(LinkTimeout, match=r"rank 1 \(node1, .*\) can't be reached: .*refused"):
        ring.join(0, timeout=SHORT).result(ENOUGH)


def test_a_next_rank_that_never_answers_is_named(ring_of: Callable[[int], Ring]) -> None:
    ring = ring_of(2)
    joining = ring.join(0, timeout=SHORT)
    with ring.call(0) as previous:
        previous.sendall(hello())
        with pytest.raises(LinkTimeout, match="no frame from rank 1"):
            joining.result(ENOUGH)
        assert previous.recv(1 << 10)  # it was welcome
        assert previous.recv(1) == b""


def test_a_next_rank_that_is_someone_else(ring_of: Callable[[int], Ring]) -> None:
    ring = ring_of(2)
    joining = ring.join(0)
    with ring.call(0) as previous, ring.listeners[1].accept()[0] as answering:
        previous.sendall(hello())
        answering.sendall(frames.encode(Welcome(5)))
        with pytest.raises(FrameError, match=r"rank 1 \(.*\) answered Welcome\(rank=5\) to Hello"):
            joining.result(ENOUGH)


@pytest.mark.parametrize("next_is_there", [True, False])
def test_stopping_ends_the_wait(ring_of: Callable[[int], Ring], next_is_there: bool) -> None:
    ring = ring_of(2)
    if not next_is_there:
        ring.listeners[1].close()
    ring.stopping.set()
    with pytest.raises(LinkClosed, match="stopped while"):
        ring.join(0).result(ENOUGH)


def test_the_listener_is_closed_after_joining(ring_of: Callable[[int], Ring]) -> None:
    ring = ring_of(2)
    for future in [ring.join(0), ring.join(1)]:
        future.result(ENOUGH)
    assert [listener.fileno() for listener in ring.listeners] == [-1, -1]


def test_a_port_that_is_taken_is_named() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"frame port {port} on 127.0.0.1: Address already"):
            listen("127.0.0.1", port)
