"""TCP probes of idle connections between nodes, the same on all of them."""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class KeepAlive:
    """A peer that vanished without closing an idle connection is found by these alone."""

    interval: float = 5.0  # seconds; whole ones, at least one
    probes: int = 3  # unanswered in a row

    @property
    def options(self) -> list[tuple[int, int, int]]:
        """What to set on a socket: level, option, value."""
        seconds = max(1, round(self.interval))
        if sys.platform == "darwin":
            idle = socket.TCP_KEEPALIVE
        else:
            idle = socket.TCP_KEEPIDLE
        return [
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, idle, seconds),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, seconds),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, self.probes),
        ]

    def apply(self, sock: socket.socket) -> None:
        """Set the options of a socket."""
        for option in self.options:
            sock.setsockopt(*option)
