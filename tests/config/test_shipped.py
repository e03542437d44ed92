"""The YAML files that come with the package."""

from __future__ import annotations

import pytest

from config import Config, load
from config.lookup import ROOT
from config.sources import FILES, SHIPPED, from_files


@pytest.fixture(scope="module")
def shipped():
    return load(SHIPPED, {})


def test_every_section_has_its_file():
    assert ROOT.keys is not None
    sections = [section for found in FILES.values() for section in found]
    assert sorted(sections) == sorted(ROOT.keys)
    assert sorted(path.name for path in SHIPPED.glob("*.yaml")) == sorted(FILES)


@pytest.mark.parametrize(
    "section", ["cluster", "coordinator", "api_gateway", "scheduler", "tracing", "network"]
)
def test_sections_show_every_default(shipped, section):
    assert getattr(shipped.config, section) == getattr(Config(), section)
    shown = {leaf.path for leaf in from_files(SHIPPED) if leaf.path[0] == section}
    assert shown == {(section, key) for key in ROOT.child(section).keys}


def test_ports_of_the_original_design(shipped):
    config = shipped.config
    assert (config.api_gateway.port, config.coordinator.port) == (8000, 8400)
    assert [(n.name, n.node_id, n.host, tuple(n.ports)) for n in config.nodes_of(3)] == [
        ("mini1", 0, "mini1.local", (8100, 8101, 8102)),
        ("mini2", 1, "mini2.local", (8200, 8201, 8202)),
        ("master", 2, "master.local", (8300, 8301, 8302)),
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16])
def test_all_ranks_can_share_a_machine(shipped, size):
    shipped.config.check_one_host(size)


def test_the_demo_is_served_and_planned(shipped):
    assert (shipped.config.model.name, shipped.config.model.source) == ("smollm2-135m", "demo")
    assert shipped.config.layer_ranges(3) is None


def test_qwen_is_split_10_9_9():
    config = load(SHIPPED, {}, short={"model": "qwen2.5-7b"}).config
    assert config.model.total_layers == 28
    ranges = config.layer_ranges(3)
    assert ranges == ((0, 9), (10, 18), (19, 27))
    assert [last - first + 1 for first, last in ranges] == [10, 9, 9]
