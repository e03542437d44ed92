"""What links need to be TLS: the certificates belong to whoever starts the rank."""

from __future__ import annotations

import socket
import ssl
from typing import Protocol


class LinkSecurity(Protocol):
    """This node's side of connections to other nodes.  Handshakes are left to whoever owns the connection."""

    def serve(self, sock: socket.socket) -> ssl.SSLSocket:
        """The server's end of a connection."""
        ...

    def call(self, sock: socket.socket, name: str) -> ssl.SSLSocket:
        """The client's end of a connection to the node `name`: with anybody else the handshake fails."""
        ...

    def problem(self, sock: ssl.SSLSocket, name: str) -> str:
        """After the handshake: why the caller is not the node `name`, or nothing."""
        ...
