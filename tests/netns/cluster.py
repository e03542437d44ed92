"""The cluster of tests/cluster with a rank on each test host; the launcher runs on the first of them."""

from __future__ import annotations

import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil

from hostlib.host import Host
from hostlib.hosts import NAMES, Hosts
from tests.cluster.harness import Cluster, Ports, Spec, wait_until

RING_PORT = 32323
# On hosts of their own, ports need not be looked for.
PORTS = Ports(
    8000, 8400, ((8100, 8101, 8102), (8200, 8201, 8202), (8300, 8301, 8302)), (RING_PORT,)
)
STATUS_DEADLINE = 30.0  # seconds for a session of ssh to be closed


class HostCluster(Cluster):
    """Three ranks: `ssh` starts every one of them, on mini1, too."""

    def __init__(self, spec: Spec, folder: Path, hosts: Hosts) -> None:
        self.hosts = hosts
        gateway = f"api_gateway.host={hosts.hosts[0].address}"
        # These hosts have the same files, and so no keys of their own; a test of keys says so itself.
        settings = ("access.enabled=false", *spec.settings, gateway)
        super().__init__(replace(spec, settings=settings), folder, PORTS)

    def address(self, rank: int) -> str:
        return self.hosts.hosts[rank].address

    def node_name(self, rank: int) -> str:
        return NAMES[rank]

    def host(self, name: str) -> Host:
        return self.hosts[name]

    def interrupt(self) -> None:
        """Ctrl-C for the launcher: what stands before it takes no signals for others."""
        assert self.process
        for child in psutil.Process(self.process.pid).children():
            child.send_signal(signal.SIGINT)

    def assert_nothing_left(self) -> None:
        """On no host does anything run or listen, nor is a temporary file of a rank there."""
        for host in self.hosts.hosts:
            wait_until(partial(_is_idle, host), f"{host.name} is idle", STATUS_DEADLINE)
            # The kernel may close the sockets of a process that was killed a moment after it has ended.
            wait_until(
                partial(_is_silent, host),
                f"{host.name} listens no more",
                STATUS_DEADLINE,
            )
            assert host.left_files() == [], host.name

    def place_arguments(self) -> list[str]:
        """The launcher's arguments that say where the ranks run."""
        hostfile = self.folder / "hostfile.json"
        hostfile.write_text(self.hosts.hostfile(self.spec.backend))
        return ["--hostfile", str(hostfile)]

    def _command(self) -> list[str]:
        first = self.hosts.hosts[0]
        return first.command("env", f"TMPDIR={first.temporary}", *super()._command())


def _is_idle(host: Host) -> bool:
    return not host.processes


def _is_silent(host: Host) -> bool:
    return not host.listening
