from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from config import Settings, load
from launcher.hostfile import HostfileError
from launcher.nodes import Cluster

HOSTS = [
    {"ssh": "mini1.local", "ips": ["10.0.0.1"]},
    {"ssh": "127.0.0.1", "ips": ["127.0.0.1"]},
    {"ssh": "master.local", "ips": ["10.0.0.3", "10.1.0.3"]},
]
SHARDING = "models.qwen2.5-7b.sharding"


def settings(more: Sequence[str] = (), model: str | None = None) -> Settings:
    return load(None, {}, more, {"model": model})


def loader(model: str | None = None) -> Callable[[Sequence[str]], Settings]:
    return lambda more: settings(more, model)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return made(tmp_path, {"backend": "mpi", "envs": ["A=1"], "hosts": HOSTS})


def made(folder: Path, content: object) -> Cluster:
    path = folder / "hostfile.json"
    path.write_text(json.dumps(content))
    return Cluster.of(settings().config, path)


def values(arguments: Sequence[str]) -> list[str]:
    assert set(arguments[::2]) == {"--set"}
    return list(arguments[1::2])


def test_each_host_is_a_node_in_the_order_of_the_ranks(cluster: Cluster) -> None:
    assert [(m.name, m.host, m.is_local) for m in cluster.members] == [
        ("mini1", "10.0.0.1", False),
        ("mini2", "127.0.0.1", True),
        ("master", "10.0.0.3", False),
    ]


def test_the_hostfile_of_an_epoch_has_its_nodes_in_their_order_and_the_rest_as_it_was(
    cluster: Cluster,
) -> None:
    assert json.loads(cluster.hostfile(["master", "mini1"])) == {
        "backend": "mpi",
        "envs": ["A=1"],
        "hosts": [HOSTS[2], HOSTS[0]],
    }


def test_a_plain_list_of_hosts_is_a_hostfile_too(tmp_path: Path) -> None:
    assert json.loads(made(tmp_path, HOSTS).hostfile(["mini2"])) == {"hosts": [HOSTS[1]]}


def test_a_hostfile_without_hosts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostfileError, match="hosts"):
        made(tmp_path, {"hosts": []})


def test_the_ranks_are_told_their_order(cluster: Cluster) -> None:
    arguments, note = cluster.arguments(["master", "mini1"], loader())
    assert "cluster.ranks=[master, mini1]" in values(arguments)
    assert note == ""
    config = settings(values(arguments)).config
    assert [node.name for node in config.nodes_of(2)] == ["master", "mini1"]
    assert config.launcher.supervised


def test_the_last_node_is_told_where_it_is_looked_for(cluster: Cluster) -> None:
    """Without a ring, nothing else says it."""
    for member in cluster.members:
        arguments, _ = cluster.arguments([member.name], loader())
        [node] = settings(values(arguments)).config.nodes_of(1)
        assert (node.name, node.host) == (member.name, member.host)
        assert node.ports == member.node.ports


def test_layers_given_by_hand_are_kept_where_they_fit(cluster: Cluster) -> None:
    arguments, note = cluster.arguments(["mini1", "mini2", "master"], loader("qwen2.5-7b"))
    assert note == ""
    assert not any("sharding" in value for value in values(arguments))


@pytest.mark.parametrize("order", [["mini1", "mini2"], ["master", "mini1", "mini2"]])
def test_layers_given_by_hand_are_planned_where_they_do_not_fit(
    cluster: Cluster, order: list[str]
) -> None:
    arguments, note = cluster.arguments(order, loader("qwen2.5-7b"))
    assert "planned anew" in note
    config = settings(values(arguments), "qwen2.5-7b").config
    assert config.shards(len(order)) is None


def test_nodes_without_a_name_keep_their_ports_in_every_epoch(tmp_path: Path) -> None:
    cluster = made(tmp_path, [{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}] * 5)
    names = [member.name for member in cluster.members]
    assert names == ["mini1", "mini2", "master", "node3", "node4"]
    arguments, _ = cluster.arguments(["node4", "mini2", "node3"], loader())
    nodes = settings(values(arguments)).config.nodes_of(3)
    [last] = settings(values(cluster.arguments(["node4"], loader())[0])).config.nodes_of(1)
    assert (last.host, last.ports) == ("127.0.0.1", cluster.members[4].node.ports)
    assert [node.ports for node in nodes] == [
        cluster.members[4].node.ports,
        cluster.members[1].node.ports,
        cluster.members[3].node.ports,
    ]
