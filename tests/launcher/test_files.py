"""What the launcher makes of files that change while it runs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from config import ConfigError, Settings, load
from config.sources import FILES
from launcher.files import Files, Found
from launcher.hostfile import HostfileError
from launcher.nodes import Cluster

PORTS = (8100, 8200, 8300, 8500)


class Disk:
    """Files in a folder, and the launcher's view of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.hostfile = folder, folder / "hostfile.json"
        (folder / "config").mkdir()
        self.write(["a", "b"])
        config = self.load(()).config
        cluster = Cluster.of(config, self.hostfile)
        self.files = Files(config, cluster, self.load, self.hostfile, folder / "config")

    def load(self, more: Sequence[str]) -> Settings:
        return load(self.folder / "config", {}, more)

    def write(self, names: Sequence[str], **cluster: object) -> None:
        """Each time with another time of its own, however coarse the file system's clock is."""
        nodes = {
            name: {
                "node_id": n,
                "host": "127.0.0.1",
                "ports": [PORTS[n], PORTS[n] + 1, PORTS[n] + 2],
            }
            for n, name in enumerate(names)
        }
        hosts = [{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]} for _ in names]
        self.put(self.hostfile, json.dumps(hosts))
        self.put(self.folder / "config" / "nodes.yaml", yaml.safe_dump({"nodes": nodes}))
        self.put(self.folder / "config" / "cluster.yaml", yaml.safe_dump(cluster))

    def put(self, path: Path, text: str) -> None:
        later = path.stat().st_mtime + 1 if path.exists() else None
        path.write_text(text)
        if later is not None:
            os.utime(path, (later, later))

    def names(self, found: Found | None) -> list[str]:
        assert found is not None
        return [member.name for member in found.cluster.members]


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def test_a_node_that_is_added_is_found_once(disk: Disk) -> None:
    assert disk.files.changed() is None
    disk.write(["a", "b", "c"])
    assert disk.names(disk.files.changed()) == ["a", "b", "c"]
    assert disk.files.changed() is None
    assert disk.files.read() is None


def test_a_file_that_is_written_again_as_it_was_changes_nothing(disk: Disk) -> None:
    disk.write(["a", "b"])
    assert disk.files.changed() is None


@pytest.mark.parametrize(
    ("broken", "kind"), [("hostfile.json", HostfileError), ("config/nodes.yaml", ConfigError)]
)
def test_what_can_not_be_used_is_told_once_and_then_waited_for(
    disk: Disk, broken: str, kind: type[Exception]
) -> None:
    path = disk.folder / broken
    disk.put(path, "{")
    with pytest.raises(kind, match=path.name):
        disk.files.changed()
    assert disk.files.changed() is None
    with pytest.raises(kind, match=path.name):
        disk.files.read()
    disk.write(["a"])
    assert disk.names(disk.files.changed()) == ["a"]


def test_a_file_that_is_gone_is_as_good_as_a_broken_one(disk: Disk) -> None:
    disk.hostfile.unlink()
    with pytest.raises(HostfileError, match=r"hostfile\.json"):
        disk.files.changed()


def test_what_the_launcher_has_used_up_is_named(disk: Disk) -> None:
    disk.write(
        ["a", "b"],
        api_gateway={"port": 9000},
        coordinator={"health_check_interval": 2},
        launcher={"log_folder": "none", "standby": False},
    )
    found = disk.files.changed()
    assert found is not None
    assert found.kept == ("api_gateway", "launcher.log_folder")
    assert found.config.coordinator.health_check_interval == 2


def test_all_files_count(disk: Disk) -> None:
    for name in FILES:
        path = disk.folder / "config" / name
        path.touch()
        disk.put(path, "nonsense: 1")
        with pytest.raises(ConfigError):
            disk.files.changed()
        path.unlink()
