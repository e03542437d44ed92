from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from config import Config, ConfigError, load


def node(node_id, host="localhost", first=None):
    first = first or 8100 + 100 * node_id
    return {"node_id": node_id, "host": host, "ports": [first, first + 1, first + 2]}


def config(nodes, **sections):
    return Config.model_validate({"nodes": nodes, **sections})


THREE = {"c": node(2), "a": node(0), "b": node(1)}


def names(config, size):
    return [config.node_of_rank(rank, size).name for rank in range(size)]


def test_ranks_follow_node_ids():
    assert names(config(THREE), 3) == ["a", "b", "c"]
    assert names(config(THREE), 2) == ["a", "b"]


def test_ranks_of_the_cluster_come_first():
    assert names(config(THREE, cluster={"ranks": ["c", "a", "b"]}), 3) == ["c", "a", "b"]
    assert names(config(THREE, cluster={"ranks": ["c"]}), 4) == ["c", "a", "b", "node3"]


def test_unnamed_ranks_skip_the_coordinators_block():
    unnamed = [config(THREE).node_of_rank(rank, 5) for rank in (3, 4)]
    assert [(n.name, n.node_id, n.ports.inference) for n in unnamed] == [
        ("node3", 3, 8500),  # 8400 is the coordinator's
        ("node4", 4, 8600),
    ]


def test_without_named_nodes_all_are_by_rule():
    assert [n.ports[0] for n in Config().nodes_of(4)] == [8100, 8200, 8300, 8500]
    assert names(Config(), 2) == ["node0", "node1"]


def test_rule_avoids_names_and_ids_in_use():
    taken = config({"node2": node(5), "x": node(3, first=9000)})
    assert [(n.name, n.node_id) for n in taken.nodes_of(4)] == [
        ("x", 3),
        ("node2", 5),
        ("node4", 4),
        ("node6", 6),
    ]


@pytest.mark.parametrize("rank", [-1, 3])
def test_a_rank_outside_the_ring(rank):
    with pytest.raises(IndexError):
        config(THREE).node_of_rank(rank, 3)


@given(
    firsts=st.lists(st.integers(1024, 65000), max_size=5),
    gateway=st.integers(1, 65535),
    coordinator=st.integers(1, 65535),
    size=st.integers(1, 12),
)
def test_nodes_by_rule_never_collide(firsts, gateway, coordinator, size):
    nodes = {f"n{i}": node(i, host=f"h{i}", first=first) for i, first in enumerate(firsts)}
    sections = {"api_gateway": {"port": gateway}, "coordinator": {"port": coordinator}}
    try:
        made = config(nodes, **sections)
    except ValidationError:
        return  # the drawn ports themselves collide
    ring = made.nodes_of(size)
    assert len({n.name for n in ring}) == len({n.node_id for n in ring}) == size
    ruled = [port for n in ring if n.name not in nodes for port in n.ports]
    named = {port for n in made.nodes.values() for port in n.ports}
    assert len(set(ruled)) == len(ruled)
    assert not {*ruled} & {*named, gateway, coordinator}


def test_ports_run_out():
    with pytest.raises(ConfigError, match="No block of 100 ports is left for node"):
        Config().nodes_of(600)


@pytest.mark.parametrize(
    ("nodes", "sections", "reason"),
    [
        ({"a": node(0), "b": node(0, first=9000)}, {}, "a has this node_id already"),
        ({"a": node(0), "b": node(1, first=8102)}, {}, "nodes.a.ports has port 8102 already"),
        ({"a": node(0), "b": node(1, "127.0.0.1", 8102)}, {}, "nodes.a.ports has port 8102"),
        ({"a": node(0, "M.local"), "b": node(1, "m.local.", 8102)}, {}, "has port 8102 already"),
        ({"a": {**node(0), "ports": [1, 1, 2]}}, {}, "nodes.a.ports has port 1 already"),
        ({"a": node(0, "far", 8400)}, {}, "nodes.a.ports has port 8400 already"),
        ({"a": node(0, "far", 7998)}, {}, "nodes.a.ports has port 8000 already"),
        ({}, {"coordinator": {"port": 8000}}, "coordinator.port has this port already"),
        (THREE, {"cluster": {"ranks": ["a", "d"]}}, "d is not a node of nodes.yaml"),
        (THREE, {"cluster": {"ranks": ["a", "a"]}}, "a is named twice"),
    ],
)
def test_refused(nodes, sections, reason):
    with pytest.raises(ValidationError, match=reason):
        config(nodes, **sections)


def test_one_port_on_two_hosts_is_fine_until_they_are_one():
    shared = config({"a": node(0, "one", 9000), "b": node(1, "two", 9000)})
    shared.check_one_host(1)
    with pytest.raises(ConfigError, match=r"nodes\.b\.ports: port 9000 is also one of a"):
        shared.check_one_host(2)


def sharded(sharding, nodes=THREE, **sections):
    models = {"m": {"source": "a/b", "sharding": sharding}}
    return config(nodes, models=models, default_model="m", **sections)


BY_ID = {"node_0": {"layers": [0, 4]}, "node_1": {"layers": [5, 7]}, "c": {"layers": [8, 9]}}


def test_layer_ranges_in_rank_order():
    assert sharded(BY_ID).layer_ranges(3) == ((0, 4), (5, 7), (8, 9))
    assert sharded("auto").layer_ranges(3) is None


def test_layer_ranges_reach_nodes_by_rule():
    sharding = {f"node_{i}": {"layers": [i, i]} for i in range(5)}
    assert sharded(sharding).layer_ranges(5) == tuple((i, i) for i in range(5))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_layer_ranges_of_another_number_of_ranks(size):
    with pytest.raises(
        ConfigError, match=r"models\.m\.sharding names node_0, node_1, c, but the ranks"
    ):
        sharded(BY_ID).layer_ranges(size)


def test_layer_ranges_against_the_order_of_the_ranks():
    with pytest.raises(ConfigError, match="not in the order of the ranks, b, a, c"):
        sharded(BY_ID, cluster={"ranks": ["b", "a", "c"]}).layer_ranges(3)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("d", "d is not a node of nodes.yaml"),
        ("node_x", "node_x is not a node"),
        ("a", "a is the same node as node_0"),
    ],
)
def test_sharding_names_a_strange_node(key, reason):
    with pytest.raises(ValidationError, match=reason):
        sharded({"node_0": {"layers": [0, 4]}, key: {"layers": [5, 7]}})


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("auto", "mini1.local"),
        ("0.0.0.0", "mini1.local"),
        ("'::'", "mini1.local"),
        ("'[::]'", "mini1.local"),
        ("10.0.0.7", "10.0.0.7"),
        ("leader.local", "leader.local"),
    ],
)
def test_nobody_dials_a_wildcard_address(host: str, expected: str) -> None:
    coordinator = load(None, {}, [f"coordinator.host={host}"]).config.coordinator
    assert coordinator.reached_at("mini1.local") == expected
