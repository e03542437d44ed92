"""What has to be configured alike on all nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from config import load, settings_digests


def digests(*overrides: str, model: str | None = None) -> dict[str, str]:
    return settings_digests(load(None, {}, overrides, {"model": model}).config)


@pytest.mark.parametrize(
    ("override", "section"),
    [
        ("cluster.ranks=[master]", "cluster"),
        ("cluster.prefill_share=0", "cluster"),
        ("coordinator.port=8500", "coordinator"),
        ("coordinator.host=10.0.0.1", "coordinator"),
        ("api_gateway.port=8001", "api_gateway"),
        ("api_gateway.max_body_bytes=1MiB", "api_gateway"),
        ("scheduler.max_batch_size=3", "scheduler"),
        ("network.step_timeout=7", "network"),
        ("nodes.mini2.memory=16GB", "nodes"),
        ("models.smollm2-135m.max_model_len=100", "models"),
        ("models.smollm2-135m.total_layers=30", "models"),
    ],
)
def test_a_change_shows_in_its_section_only(override: str, section: str) -> None:
    before, after = digests(), digests(override)
    assert [name for name in before if before[name] != after[name]] == [section]
    assert before.keys() == after.keys()


def test_of_the_nodes_only_those_that_a_launcher_starts_count() -> None:
    mini3 = "nodes.mini3={node_id: 3, host: mini3.local, ports: [8600, 8601, 8602]}"
    started = ("launcher.supervised=true", "cluster.ranks=[mini2, mini1]")
    assert digests(mini3, *started) == digests(*started)
    assert digests("nodes.mini1.memory=16GB", *started) != digests(*started)
    assert digests(mini3) != digests()


def test_where_the_model_lies_is_each_nodes_own_matter(tmp_path: Path) -> None:
    assert digests(model=str(tmp_path / "a")) == digests(model=str(tmp_path / "elsewhere" / "b"))
    assert digests() == digests("models.smollm2-135m.source=/models/smollm2")


@pytest.mark.parametrize(
    "override",
    [
        "api_gateway.host=0.0.0.0",
        "models.other.source=demo",  # not served
        'models."qwen2.5-7b".total_layers=28',
        "network.step_timeout=120",  # the default is 120.0
    ],
)
def test_what_makes_no_difference_to_the_others(override: str) -> None:
    assert digests(override) == digests()


def test_the_order_of_nodes_in_the_file_makes_no_difference(tmp_path: Path) -> None:
    node = "  {0}: {{node_id: {1}, host: {0}, ports: [{2}, {3}, {4}]}}\n"
    entries = [node.format(f"n{i}", i, 8100 + i, 8200 + i, 8300 + i) for i in range(2)]
    found = []
    for name, order in (("one", entries), ("other", entries[::-1])):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "nodes.yaml").write_text("nodes:\n" + "".join(order))
        found.append(settings_digests(load(folder, {}).config))
    assert found[0] == found[1]
