"""Carries bytes between a socket of the rank and one of TLS, both ways, until one of them ends."""

from __future__ import annotations

import select
import socket
import ssl

CHUNK = 1 << 18  # bytes in one go; of TLS at most a record, 16 KiB


class Pump:
    """One connection.  A thread of its own runs it: OpenSSL lets only one use it at a time."""

    def __init__(self, plain: socket.socket, secure: ssl.SSLSocket) -> None:
        self._plain, self._secure = plain, secure
        plain.setblocking(False)
        secure.setblocking(False)
        self._space_out, self._space_in = bytearray(CHUNK), bytearray(CHUNK)
        self._out = memoryview(b"")  # on its way to the peer
        self._in = memoryview(b"")  # on its way to the rank

    def run(self) -> str:
        """Returns why it ended: whoever of `rank` and `peer` closed or broke the connection."""
        poll = select.poll()
        while True:
            try:
                moved = self._outwards()
            except _Ended as end:
                return str(end)
            try:
                moved = self._inwards() or moved
            except _Ended as end:
                return str(end)
            if not moved:
                poll.register(self._plain, self._plain_events())
                poll.register(self._secure, self._secure_events())
                poll.poll()

    def _plain_events(self) -> int:
        return (0 if self._out else select.POLLIN) | (select.POLLOUT if self._in else 0)

    def _secure_events(self) -> int:
        return (0 if self._in else select.POLLIN) | (select.POLLOUT if self._out else 0)

    def _outwards(self) -> bool:
        """From the rank to its peer, without waiting; whether anything moved."""
        moved = False
        if not self._out:
            self._out = self._read(self._plain, self._space_out, "rank")
            moved = bool(self._out)
        if self._out:
            sent = self._write(self._secure, self._out, "peer")
            self._out = self._out[sent:]
            moved = moved or bool(sent)
        return moved

    def _inwards(self) -> bool:
        """The other way."""
        moved = False
        if not self._in:
            self._in = self._read(self._secure, self._space_in, "peer")
            moved = bool(self._in)
        if self._in:
            sent = self._write(self._plain, self._in, "rank")
            self._in = self._in[sent:]
            moved = moved or bool(sent)
        return moved

    def _read(self, sock: socket.socket, space: bytearray, who: str) -> memoryview:
        try:
            count = sock.recv_into(space)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return memoryview(b"")
        except OSError as error:
            raise _Ended(who) from error
        if not count:
            raise _Ended(who)
        return memoryview(space)[:count]

    def _write(self, sock: socket.socket, data: memoryview, who: str) -> int:
        try:
            return sock.send(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except OSError as error:
            raise _Ended(who) from error


class _Ended(Exception):
    """One side is gone; the argument says which."""
