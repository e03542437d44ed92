"""Which machine this process runs on, and by which address another one would reach it."""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
import uuid
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SYSCTL_TIMEOUT = 5.0  # seconds; it answers from memory
RANDOM_NODE = 1 << 40  # set in what uuid.getnode() makes up where it finds no network card


def machine_id() -> str:
    """Equal for processes on one machine, different on any two machines, in one launch of the ring.

    Host names don't do: Macs of one kind are named alike, and a name changes with the network.  A kernel names
    every boot by a random UUID, which containers share, as they share its memory.
    """
    boot = _boot_session() if sys.platform == "darwin" else _boot_id()
    return boot or _name_and_card()


def _boot_id() -> str:
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _boot_session() -> str:  # needs macOS: not covered by tests on Linux
    command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
    try:
        answer = subprocess.run(
            command, capture_output=True, check=True, text=True, timeout=SYSCTL_TIMEOUT
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()


def _name_and_card() -> str:
    card = uuid.getnode()
    return platform.node() if card & RANDOM_NODE else f"{platform.node()}-{card:012x}"


def address_towards(host: str) -> str:
    """This machine's address on the network by which it reaches `host`.  Nothing is sent.

    Raises OSError, also when `host` is no known name.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])
