"""The frame link: one persistent TCP connection from each rank to the next, closed into a ring.

A rank without work blocks in a socket read here and uses no CPU.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from pipeline import frames
from pipeline.errors import FrameError, LinkClosed, LinkTimeout
from pipeline.frames import Frame, Hello, Welcome

log = structlog.get_logger()

RECEIVE_BYTES = 1 << 16
RETRY_SECONDS = 0.1
MAX_CALLERS = 32
"""Connections that have not yet said who they are; beyond it the oldest is dropped."""


@dataclass(frozen=True)
class KeepAlive:
    """TCP probes of an idle connection: a peer that vanished without closing it is found by them alone."""

    interval: float = 5.0  # seconds; whole ones, at least one
    probes: int = 3  # unanswered in a row

    def apply(self, sock: socket.socket) -> None:
        """Set the options of a socket."""
        seconds = max(1, round(self.interval))
        if sys.platform == "darwin":
            idle = socket.TCP_KEEPALIVE
        else:
            idle = socket.TCP_KEEPIDLE
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, idle, seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, self.probes)


class Connection:
    """Frames over one connected socket.  Used by one thread, except `close`, which any thread may call.

    Raises OSError, and closes `sock`, if it is not connected any more.
    """

    def __init__(self, sock: socket.socket, peer: str, keepalive: KeepAlive | None = None) -> None:
        self._socket, self.peer = sock, peer
        self._buffer = bytearray()
        self.sent_frames = self.sent_bytes = 0
        self.received_frames = self.received_bytes = 0
        try:
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if keepalive is not None:
                keepalive.apply(sock)
        except OSError:
            sock.close()
            raise

    def fileno(self) -> int:
        """The socket's descriptor, for select.  Raises LinkClosed after `close`."""
        descriptor = self._socket.fileno()
        if descriptor < 0:
            raise LinkClosed(f"the connection to {self.peer} was closed on this side")
        return descriptor

    def send(self, frame: Frame, timeout: float) -> None:
        """Write one frame.

        Raises LinkClosed if the peer is gone, LinkTimeout if it has not taken the frame in `timeout` seconds.
        """
        data = frames.encode(frame)
        try:
            self._socket.settimeout(timeout)
            self._socket.sendall(data)
        except OSError as error:
            if _waited_in_vain(error):
                raise LinkTimeout(f"{self.peer} took no frame within {timeout:g} s") from error
            raise LinkClosed(f"the connection to {self.peer} is lost: {error}") from error
        self.sent_frames += 1
        self.sent_bytes += len(data)

    def receive(self, timeout: float | None) -> Frame:
        """Wait for the next whole frame; `timeout` in seconds, None while being idle is normal.

        Raises LinkClosed, LinkTimeout, or FrameError if the bytes are no frame.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (frame := self._take()) is None:
            left = None if deadline is None else deadline - time.monotonic()
            if (left is not None and left <= 0) or not self._fill(left):
                raise LinkTimeout(f"no frame from {self.peer} within {timeout:g} s")
        return frame

    def poll(self) -> Frame | None:
        """The next frame if it has arrived already.  Never blocks; raises as `receive` does."""
        while (frame := self._take()) is None:
            if not self._fill(0.0):
                return None
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
        self.received_frames += 1
        return frame

    def _fill(self, wait: float | None) -> bool:
        """Take over what has arrived, after waiting for it up to `wait` seconds; False if nothing has."""
        try:
            self._socket.settimeout(wait)
            data = self._socket.recv(RECEIVE_BYTES)
        except OSError as error:
            if _waited_in_vain(error):
                return False
            raise LinkClosed(f"the connection to {self.peer} is lost: {error}") from error
        if not data:
            raise LinkClosed(f"{self.peer} closed the connection")
        self._buffer += data
        self.received_bytes += len(data)
        return True


def _waited_in_vain(error: OSError) -> bool:
    """Our own wait has ended.  With an errno, a TimeoutError is TCP's verdict that the peer is gone."""
    return isinstance(error, BlockingIOError) or (
        isinstance(error, TimeoutError) and error.errno is None
    )


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
        listener.listen(MAX_CALLERS)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"frame port {port} on {host}: {error.strerror}") from error
    return listener


def join(
    listener: socket.socket,
    rank: int,
    peers: Sequence[Peer],
    epoch: int,
    timeout: float,
    stopped: Callable[[], bool] = lambda: False,
    keepalive: KeepAlive | None = None,
) -> Links:
    """Connect this rank to its neighbours; returns when both sides have agreed.  Closes `listener`.

    Hello goes out before the own listener is served, so that a ring of any size joins without a leader.
    Raises LinkTimeout naming the neighbour that did not come within `timeout` seconds, LinkClosed if `stopped`
    or turned away by the next rank, FrameError if something else than a rank answers there.
    """
    keepalive = keepalive or KeepAlive()
    deadline = time.monotonic() + timeout
    size = len(peers)
    after, before = peers[(rank + 1) % size], peers[(rank - 1) % size]
    expected = Hello(frames.PROTOCOL, epoch, before.rank, size)
    with contextlib.ExitStack() as undo, listener:
        outbound = _connect(after, deadline, stopped, keepalive)
        undo.callback(outbound.close)
        outbound.send(Hello(frames.PROTOCOL, epoch, rank, size), timeout)
        inbound = _accept(listener, before, expected, deadline, stopped, keepalive)
        undo.callback(inbound.close)
        inbound.send(Welcome(rank), timeout)
        answer = outbound.receive(max(deadline - time.monotonic(), 1e-3))
        if answer != Welcome(after.rank):
            raise FrameError(f"{after} answered {answer!r} to Hello")
        undo.pop_all()
    return Links(inbound, outbound)


def _connect(
    peer: Peer, deadline: float, stopped: Callable[[], bool], keepalive: KeepAlive
) -> Connection:
    while True:
        left = deadline - time.monotonic()
        try:
            sock = socket.create_connection(
                (peer.host, peer.port), timeout=min(max(left, 1e-3), 5.0)
            )
            return Connection(sock, str(peer), keepalive)
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
    keepalive: KeepAlive,
) -> Connection:
    """Wait for `peer`.

    Whoever says anything else than the expected Hello is turned away; whoever says nothing holds nobody up.
    """
    listener.settimeout(0.0)
    callers: list[Connection] = []
    try:
        while (left := deadline - time.monotonic()) > 0:
            if stopped():
                raise LinkClosed(f"stopped while waiting for {peer}")
            sources: list[socket.socket | Connection] = [listener, *callers]
            ready = select.select(sources, [], [], min(left, 0.5))[0]
            if (found := _find(expected, callers, ready)) is not None:
                found.peer = str(peer)
                return found
            if listener in ready:
                callers += _answer(listener, keepalive)
                if len(callers) > MAX_CALLERS:
                    callers.pop(0).close()
    finally:
        for caller in callers:
            caller.close()
    raise LinkTimeout(f"{peer} has not connected")


def _answer(listener: socket.socket, keepalive: KeepAlive) -> list[Connection]:
    """The next caller; none if it has hung up already."""
    try:
        sock, address = listener.accept()
    except (BlockingIOError, ConnectionError):
        return []
    try:
        return [Connection(sock, f"the caller at {address[0]}", keepalive)]
    except OSError:
        return []


def _find(
    expected: Hello, callers: list[Connection], ready: Sequence[socket.socket | Connection]
) -> Connection | None:
    """Take out of `callers` the one that said the expected Hello; whoever said anything else is closed."""
    for caller in [caller for caller in callers if caller in ready]:
        right = _is_expected(caller, expected)
        if right is None:
            continue
        callers.remove(caller)
        if right:
            return caller
        caller.close()
    return None


def _is_expected(caller: Connection, expected: Hello) -> bool | None:
    """Whether it said the expected Hello; None while it has not said anything whole."""
    try:
        hello = caller.poll()
    except (FrameError, LinkClosed) as error:
        log.warning("frame link refused", caller=caller.peer, reason=str(error))
        return False
    if hello is not None and hello != expected:
        log.warning(
            "frame link refused", caller=caller.peer, got=repr(hello), expected=repr(expected)
        )
    return None if hello is None else hello == expected
