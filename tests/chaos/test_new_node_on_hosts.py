"""A node that only some of the Macs know: the ring goes on without it, and says whose file lacks it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from chaoslib.cluster import RECOVERY_DEADLINE
from chaoslib.on_hosts import HostCluster
from tests.chaos.conftest import on_three_hosts

pytestmark = [pytest.mark.chaos, pytest.mark.ranks]


@pytest.fixture
def cluster(model: Path, tmp_path: Path) -> Iterator[HostCluster]:
    settings = ("launcher.idle_before_change=0.5", "launcher.standby=false")
    with on_three_hosts(model, tmp_path, *settings) as made:
        yield made


def wait_for(cluster: HostCluster, nodes: int) -> None:
    cluster.wait(
        lambda: cluster.is_ready() and len(cluster.layers()) == nodes,
        f"not {nodes} nodes",
        RECOVERY_DEADLINE,
    )


def refusal(cluster: HostCluster, name: str) -> str:
    found = [node["refused"] for node in cluster.status()["nodes"] if node["name"] == name]
    return str(found[0] or "") if found else ""


def test_a_node_that_one_mac_does_not_know_is_left_out(cluster: HostCluster) -> None:
    hostfile, nodes = cluster.folder / "hostfile.json", cluster.folder / "config" / "nodes.yaml"
    three = hostfile.read_text(), nodes.read_text()
    fields, known = json.loads(three[0]), yaml.safe_load(three[1])
    fields["hosts"].pop()
    del known["nodes"]["master"]
    two = json.dumps(fields), yaml.safe_dump(known)

    def write(texts: tuple[str, str]) -> None:
        hostfile.write_text(texts[0])
        nodes.write_text(texts[1])

    write(two)
    wait_for(cluster, 2)
    with cluster.hosts["mini2"].sees(nodes, two[1]):
        write(three)
        cluster.wait(
            lambda: "not a node of nodes.yaml" in refusal(cluster, "master"),
            "it is not left out",
            RECOVERY_DEADLINE,
        )
        assert "on mini2: " in refusal(cluster, "master")
        wait_for(cluster, 2)
        assert all(node["failures"] == 0 for node in cluster.status()["nodes"])
    cluster.make_whole()
    cluster.stop()
