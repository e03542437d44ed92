"""The frame link: one persistent TCP connection from each rank to the next, closed into a ring.

A rank without work blocks in a socket read here and uses no CPU.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from pipeline import frames
from pipeline.errors import FrameError, LinkClosed, LinkTimeout
from pipeline.frames import Frame, Hello, Welcome

log = structlog.get_logger()

RECEIVE_BYTES = 1 << 16
RETRY_SECONDS = 0.1


class Connection:
    """Frames over one connected socket.  Used by one thread, except `close`, which any thread may call."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self._socket, self.peer = sock, peer
        self._buffer = bytearray()
        sock.settimeout(None)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.sent_frames = self.sent_bytes = 0

    def fileno(self) -> int:
        """The socket's descriptor, for select."""
        return self._socket.fileno()

    def send(self, frame: Frame, timeout: float) -> None:
        """Write one frame.

        Raises LinkClosed if the peer is gone, LinkTimeout if it takes no bytes for `timeout` seconds.
        """
        data = frames.encode(frame)
        try:
            self._socket.settimeout(timeout)
            self._socket.sendall(data)
        except TimeoutError as error:
            raise LinkTimeout(f"{self.peer} takes no frames since {timeout:g} s") from error
        except OSError as error:
            raise LinkClosed(f"the connection to {self.peer} is lost: {error}") from error
        self.sent_frames += 1
        self.sent_bytes += len(data)

    def receive(self, timeout: float | None) -> Frame:
        """Wait for the next frame; `timeout` in seconds, None while being idle is normal.

        Raises LinkClosed, LinkTimeout, or FrameError if the bytes are no frame.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (frame := self._take()) is None:
            self._fill(deadline, timeout)
        return frame

    def poll(self) -> Frame | None:
        """The next frame if it has arrived already.  Never blocks; raises as `receive` does."""
        while (frame := self._take()) is None:
            if not select.select([self._socket], [], [], 0)[0]:
                return None
            self._fill(None, None)
        return frame

    def close(self) -> None:
        """End the connection; a thread blocked in `receive` gets LinkClosed."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _take(self) -> Frame | None:
        header = frames.HEADER_BYTES
        if len(self._buffer) < header:
            return None
        end = header + frames.body_length(bytes(self._buffer[:header]))
        if len(self._buffer) < end:
            return None
        frame = frames.decode(bytes(self._buffer[header:end]))
        del self._buffer[:end]
        return frame

    def _fill(self, deadline: float | None, timeout: float | None) -> None:
        try:
            left = None if deadline is None else max(deadline - time.monotonic(), 1e-3)
            self._socket.settimeout(left)
            data = self._socket.recv(RECEIVE_BYTES)
        except TimeoutError as error:
            raise LinkTimeout(f"no frame from {self.peer} for {timeout:g} s") from error
        except OSError as error:
            raise LinkClosed(f"the connection to {self.peer} is lost: {error}") from error
        if not data:
            raise LinkClosed(f"{self.peer} closed the connection")
        self._buffer += data


@dataclass(frozen=True)
class Peer:
    """Where a rank listens for frames."""

    rank: int
    name: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.name}, {self.host}:{self.port})"


@dataclass(frozen=True)
class Links:
    """The two neighbours of a rank.  For a ring of one rank there are none."""

    inbound: Connection  # from the previous rank
    outbound: Connection  # to the next rank

    def close(self) -> None:
        """Close both connections."""
        self.inbound.close()
        self.outbound.close()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket for the previous rank.

    Raises OSError, with address and reason, if the port can't be taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(4)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"frame port {port} on {host}: {error.strerror}") from error
    return listener


def join(
    listener: socket.socket,
    rank: int,
    peers: list[Peer],
    epoch: str,
    timeout: float,
    stopped: Callable[[], bool] = lambda: False,
) -> Links:
    """Connect this rank to its neighbours; returns when both sides have agreed.  Closes `listener`.

    Hello goes out before the own listener is served, so that a ring of any size joins without a leader.
    Raises LinkTimeout naming the neighbour that did not come within `timeout` seconds, LinkClosed if `stopped`.
    """
    deadline = time.monotonic() + timeout
    size = len(peers)
    after, before = peers[(rank + 1) % size], peers[(rank - 1) % size]
    with contextlib.ExitStack() as undo, listener:
        outbound = _connect(after, deadline, stopped)
        undo.callback(outbound.close)
        outbound.send(Hello(frames.PROTOCOL, epoch, rank, size), timeout)
        inbound = _accept(
            listener, before, Hello(frames.PROTOCOL, epoch, before.rank, size), deadline, stopped
        )
        undo.callback(inbound.close)
        inbound.send(Welcome(rank), timeout)
        answer = outbound.receive(max(deadline - time.monotonic(), 1e-3))
        if answer != Welcome(after.rank):
            raise FrameError(f"{after} answered {answer!r} to Hello")
        undo.pop_all()
    return Links(inbound, outbound)


def _connect(peer: Peer, deadline: float, stopped: Callable[[], bool]) -> Connection:
    while True:
        left = deadline - time.monotonic()
        try:
            sock = socket.create_connection(
                (peer.host, peer.port), timeout=min(max(left, 1e-3), 5.0)
            )
            return Connection(sock, str(peer))
        except OSError as error:
            if left <= RETRY_SECONDS:
                raise LinkTimeout(f"{peer} can't be reached: {error}") from error
        if stopped():
            raise LinkClosed(f"stopped while connecting to {peer}")
        time.sleep(RETRY_SECONDS)


def _accept(
    listener: socket.socket,
    peer: Peer,
    expected: Hello,
    deadline: float,
    stopped: Callable[[], bool],
) -> Connection:
    """Wait for `peer`; whoever says anything else than the expected Hello is turned away."""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise LinkTimeout(f"{peer} has not connected")
        if stopped():
            raise LinkClosed(f"stopped while waiting for {peer}")
        listener.settimeout(min(left, 0.5))
        try:
            sock, address = listener.accept()
        except TimeoutError:
            continue
        connection = Connection(sock, str(peer))
        try:
            hello = connection.receive(min(left, 2.0))
        except (FrameError, LinkClosed, LinkTimeout) as error:
            hello = None
            log.warning("frame link refused", address=address[0], reason=str(error))
        if hello == expected:
            return connection
        if hello is not None:
            log.warning(
                "frame link refused", address=address[0], got=repr(hello), expected=repr(expected)
            )
        connection.close()
