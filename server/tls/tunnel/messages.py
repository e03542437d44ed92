"""What a rank and its tunnel tell each other: lines of JSON over the control socket.

The end of the control socket is a message too: each side ends when the other one does.
"""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass

MAX_LINE = 1 << 20


@dataclass(frozen=True)
class Plan:
    """What the tunnel is to do; addresses are host:port, one for each connection to a neighbour."""

    certificate: str
    key: str
    ca: str
    before: str  # name of the node that calls
    after: str  # name of the node to call
    listen: tuple[str, ...]  # own addresses in the ring
    call: tuple[str, ...]  # those of the next rank
    inbound: tuple[int, ...]  # descriptors: the rank's traffic with the one before, by address
    outbound: tuple[int, ...]  # and with the next one
    local: tuple[int, ...]  # ports on 127.0.0.1 on which MLX waits for one connection each
    timeout: float  # seconds for everybody to be there


def write_plan(control: socket.socket, plan: Plan) -> None:
    """The first line, to the tunnel."""
    control.sendall(json.dumps(asdict(plan)).encode() + b"\n")


def read_plan(line: bytes) -> Plan:
    """The same."""
    fields = json.loads(line)
    listed = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return Plan(**{**fields, **listed})


def write_word(control: socket.socket, what: str, why: str = "") -> None:
    """To the rank: `joined`; before that `unusable` or `absent`, after it `lost`, with a sentence."""
    control.sendall(json.dumps([what, why]).encode() + b"\n")


class Lines:
    """Reads the other side's lines."""

    def __init__(self, control: socket.socket) -> None:
        self._control, self._buffer = control, b""

    def next(self, timeout: float | None) -> bytes:
        """The next line; empty at the end.  Raises TimeoutError, after `timeout` seconds without any byte."""
        while b"\n" not in self._buffer and len(self._buffer) < MAX_LINE:
            self._control.settimeout(timeout)
            data = self._control.recv(1 << 16)
            if not data:
                return b""
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def rest(self) -> bytes:
        """What has been read beyond the lines."""
        return self._buffer


def read_word(line: bytes) -> tuple[str, str]:
    """What the tunnel says, and why."""
    what, why = json.loads(line)
    return str(what), str(why)
