"""The cluster that faults are done to, on three hosts of their own; the launcher runs on the first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil

from chaoslib.cluster import Cluster
from hostlib.hosts import Hosts

FIRST_PORT, RING_PORT = 20000, 32323  # hosts of their own have no other use for any port


class HostCluster(Cluster):
    def __init__(
        self,
        hosts: Hosts,
        folder: Path,
        model: Path,
        environment: dict[str, str],
        settings: Sequence[str],
        backend: str = "ring",
    ) -> None:
        self.hosts = hosts
        super().__init__(folder, model, environment, settings, backend)
        self.ring_port = RING_PORT

    def _ports(self, count: int) -> list[int]:
        return list(range(FIRST_PORT, FIRST_PORT + count))

    def address(self, node: int) -> str:
        return self.hosts.hosts[node].address

    def place_arguments(self) -> list[str]:
        hostfile = self.folder / "hostfile.json"
        hostfile.write_text(self.hosts.hostfile())
        return ["--hostfile", str(hostfile)]

    def command(self, *words: str) -> list[str]:
        first = self.hosts.hosts[0]
        return first.command("env", f"TMPDIR={first.temporary}", *words)

    @property
    def launcher(self) -> psutil.Process:
        """What stands before it on this machine has it as its only child."""
        return super().launcher.children()[0]

    def processes(self) -> list[psutil.Process]:
        return [process for host in self.hosts.hosts for process in host.processes]

    def _node_of(self, rank: psutil.Process) -> int | None:
        return next((n for n, host in enumerate(self.hosts.hosts) if rank in host.processes), None)

    def left_files(self) -> list[str]:
        return [f"{file} on {host.name}" for host in self.hosts.hosts for file in host.left_files()]

    def taken_ports(self) -> list[int]:
        return sorted(port for host in self.hosts.hosts for port in host.listening)
