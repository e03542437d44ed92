"""The frame link: one persistent TCP connection from each rank to the next, closed into a ring.

A rank without work blocks in a socket read here and uses no CPU.  Where the cluster has certificates, the
connection is TLS and each side knows the other by its certificate.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from dataclasses import dataclass
from functools import partial

from config.keepalive import KeepAlive
from pipeline import frames
from pipeline.alertness import Alertness
from pipeline.errors import LinkClosed, LinkTimeout
from pipeline.frames import Frame
from pipeline.security import LinkSecurity

RECEIVE_BYTES = (
    1 << 16
)  # more than a record of TLS, so that none is left in its buffer, unseen by select


class Connection:
    """Frames over one connected socket.  Used by one thread, except `close`, which any thread may call.

    Raises OSError, and closes `sock`, if it is not connected any more.
    """

    def __init__(self, sock: socket.socket, peer: str, keepalive: KeepAlive | None = None) -> None:
        self._socket, self.peer = sock, peer
        self._buffer = bytearray()
        self.alertness = Alertness()  # of who waits for frames; another one may be set
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
            self._send_all(data, time.monotonic() + timeout)
        except (OSError, ValueError) as error:
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
            fill = partial(self._fill, left)
            if (left is not None and left <= 0) or not self.alertness.wait(self.arrived, fill):
                raise LinkTimeout(f"no frame from {self.peer} within {timeout:g} s")
        return frame

    def poll(self) -> Frame | None:
        """The next frame if it has arrived already.  Never blocks; raises as `receive` does."""
        while (frame := self._take()) is None:
            if not self._fill(0.0):
                return None
        return frame

    def arrived(self) -> bool:
        """Whether more has come, if only a part of a frame.  Never blocks; raises LinkClosed."""
        return self._fill(0.0)

    def shake_hands(self) -> bool:
        """Go on with the handshake of TLS, without waiting; whether it is over.

        Raises LinkClosed, with the reason, if it fails.
        """
        if not isinstance(self._socket, ssl.SSLSocket):
            return True
        try:
            self._socket.settimeout(0.0)
            self._socket.do_handshake()
        except ssl.SSLCertVerificationError as error:
            reason = f"its certificate is refused: {error.verify_message}"
            raise LinkClosed(f"{self.peer}: {reason}") from error
        except (OSError, ValueError) as error:
            if _waited_in_vain(error):
                return False
            raise LinkClosed(f"the TLS handshake with {self.peer} failed: {error}") from error
        return True

    def problem(self, security: LinkSecurity | None, name: str) -> str:
        """Why the peer is not the node `name`, as its certificate says; nothing without TLS."""
        if security is None:
            return ""
        assert isinstance(self._socket, ssl.SSLSocket), "made by it"
        return security.problem(self._socket, name)

    def close(self) -> None:
        """End the connection; a thread blocked in `receive` gets LinkClosed."""
        with contextlib.suppress(OSError):
            # Not SSLSocket's, which would let a thread that is just reading go on without TLS.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        self._socket.close()

    def _send_all(self, data: bytes, deadline: float) -> None:
        """Not socket.sendall: on TLS each record has the whole time anew."""
        left = memoryview(data)
        while left:
            self._socket.settimeout(max(deadline - time.monotonic(), 1e-3))
            left = left[self._socket.send(left) :]

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
        except (OSError, ValueError) as error:  # SSLSocket's word for "closed" is a ValueError
            if _waited_in_vain(error):
                return False
            raise LinkClosed(f"the connection to {self.peer} is lost: {error}") from error
        if not data:
            raise LinkClosed(f"{self.peer} closed the connection")
        self._buffer += data
        self.received_bytes += len(data)
        return True


def _waited_in_vain(error: Exception) -> bool:
    """Our own wait has ended.  With an errno, a TimeoutError is TCP's verdict that the peer is gone."""
    if isinstance(error, TimeoutError):
        return error.errno is None
    return isinstance(error, (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError))


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
