"""Listening sockets, bound before anything starts, so that a taken port is one clear error."""

from __future__ import annotations

import socket

from server.rpc.errors import BindError


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one.

    Raises PortInUse, or BindError when `host` is not an address of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as cause:
        raise BindError.of(host, port, cause) from cause
    # With the protocol named, since only then asyncio lets connections send at once what is written: without,
    # the second part of an answer waits some 40 ms for the client to acknowledge the first.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # Takes a port whose last connections linger in TIME_WAIT; never one listened on.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Linux lets two sockets bind with SO_REUSEADDR until one of them listens.
        listener.listen()
    except OSError as cause:
        listener.close()
        raise BindError.of(host, port, cause) from cause
    return listener


def join(host: str, port: int) -> str:
    """host:port as addresses are written, with brackets around IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
