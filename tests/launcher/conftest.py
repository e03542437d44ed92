"""A supervisor of three nodes that starts nothing."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from config import Settings, load
from launcher.admin import admin_routes
from launcher.door import LeaderAddress
from launcher.hostfile import local_hostfile
from launcher.logs import LogStream
from launcher.nodes import Cluster
from launcher.starter import Launch
from launcher.supervisor import Supervisor
from server.node.app import node_app


@dataclass
class Door:
    """Remembers what it was told."""

    drained: list[bool] = field(default_factory=list)
    leaders: list[LeaderAddress | None] = field(default_factory=list)

    async def start(self) -> None: ...

    async def stop(self, grace: float) -> None: ...

    def leader_changed(
        self, address: LeaderAddress | None, reason: str = "", permanent: bool = False
    ) -> None:
        self.leaders.append(address)

    def drain(self, on: bool) -> None:
        self.drained.append(on)

    def in_flight(self) -> int:
        return 0

    def stats(self) -> dict[str, object]:
        return {"in_flight": 0}


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    hostfile = tmp_path / "hostfile.json"
    hostfile.write_text(local_hostfile(3))
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "cluster.yaml").touch()
    (folder / "nodes.yaml").write_text(Path("config/nodes.yaml").read_text())
    (folder / "models.yaml").write_text(Path("config/models.yaml").read_text())

    def read(more: Sequence[str]) -> Settings:
        return load(folder, {}, ["launcher.log_folder=none", *more])

    settings = read(())
    launch = Launch(hostfile, "ring", 32323, 1.0, ("true",), read, folder)
    logs = LogStream(out=io.StringIO(), error=io.StringIO())
    made = Supervisor(launch, settings, Cluster.of(settings.config, hostfile), logs)
    made.door = Door()
    yield made
    logs.close()


@pytest.fixture
def client(supervisor: Supervisor) -> TestClient:
    return TestClient(node_app(admin_routes(supervisor)))
