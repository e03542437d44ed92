"""Free ports on this machine."""

from __future__ import annotations

import random
import socket

HOST = "127.0.0.1"

# Below the ports that Linux and macOS give to outgoing connections, which come and go during a run.
_BLOCKS = range(10_000, 32_000, 50)


def free_ports(count: int) -> list[int]:
    """Consecutive ports on which nobody listens, as MLX's ring takes them.  Raises OSError if none are."""
    for first in random.sample(_BLOCKS, len(_BLOCKS)):
        ports = list(range(first, first + count))
        if all(map(is_free, ports)):
            return ports
    raise OSError(f"no {count} consecutive ports are free on {HOST}")


def is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except OSError:
            return False
    return True
