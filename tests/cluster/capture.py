"""What can be read on the loopback interface, as a stranger with the rights to listen there reads it."""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
import time
from collections import defaultdict
from dataclasses import dataclass

import pytest

ETH_P_ALL = 3
PACKET_OUTGOING = 4  # on the loopback interface each packet is seen once more as it comes in
SOL_PACKET, PACKET_STATISTICS = 263, 6
SO_RCVBUFFORCE = 33
BUFFER = 256 << 20
LOOK_SECONDS = 0.2
DRAIN_SECONDS = 3.0  # for what is in the buffer when the capture ends
ETHERNET, TCP = 14, 6


def require_capture() -> None:
    """Skip a test where nobody may listen."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux reads packets of the loopback interface")


@dataclass(frozen=True)
class Flow:
    """One direction of a connection, by ports."""

    source: int
    target: int


class Capture:
    """Everything that goes over the loopback interface by TCP, from `start` to `stop`."""

    def __init__(self) -> None:
        self._flows: dict[Flow, bytearray] = defaultdict(bytearray)
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        self._sock.bind(("lo", 0))
        self._sock.settimeout(LOOK_SECONDS)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def stop(self) -> dict[Flow, bytes]:
        """The bytes of each flow in the order in which they came.  Fails if packets were lost."""
        self._over.set()  # what has been sent by now is in the buffer
        self._thread.join()
        counts = self._sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        self._sock.close()
        _, dropped = struct.unpack("II", counts)
        assert not dropped, f"{dropped} packets were not seen"
        return {flow: bytes(data) for flow, data in self._flows.items()}

    def _read(self) -> None:
        end: float | None = None
        while True:
            if self._over.is_set() and end is None:
                end = time.monotonic() + DRAIN_SECONDS  # others may go on sending for ever
            if end is not None and time.monotonic() > end:
                return
            try:
                packet, address = self._sock.recvfrom(1 << 17)
            except TimeoutError:
                if end is not None:
                    return
                continue
            if address[2] != PACKET_OUTGOING:
                self._take(packet[ETHERNET:])

    def _take(self, packet: bytes) -> None:
        if packet[0] >> 4 != 4 or packet[9] != TCP:
            return
        start = 4 * (packet[0] & 15)
        segment = packet[start : int.from_bytes(packet[2:4], "big") or None]
        source, target = struct.unpack_from("!HH", segment)
        self._flows[Flow(source, target)] += segment[4 * (segment[12] >> 4) :]


def where(flows: dict[Flow, bytes], secret: bytes) -> list[Flow]:
    """The flows in which it can be read."""
    assert len(secret) >= 8, "shorter ones may be there by chance"
    return [flow for flow, data in flows.items() if secret in data]
