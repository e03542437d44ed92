from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from config import Config, LayerRange, ModelConfig, NodeConfig, Ports, Shard
from config.lookup import ROOT, find, is_dynamic
from config.values import format_size

NODE = {"node_id": 0, "host": "left.local", "ports": [9100, 9101, 9102]}
ENTRIES = {"nodes": {"left": NODE}, "models": {"m": {"source": "a/b"}}}


def places(place=ROOT, path=()):
    """Every place of the schema; a mapping is entered once, as `*`."""
    yield path, place
    for name in ("*",) if place.keys is None else place.keys:
        yield from places(place.child(name), (*path, name))


FIELDS = {path: place for path, place in places() if place.field is not None}
VALUES = [path for path, place in FIELDS.items() if place.keys == ()]


ROOT_FOLDER = Path(__file__).parents[2]
SOURCES = "".join(
    file.read_text(encoding="utf-8")
    for package in ("config", "launcher", "pipeline", "server")
    for file in (ROOT_FOLDER / package).rglob("*.py")
)


def concrete(path):
    names = {"nodes": "left", "models": "m", "sharding": "left"}
    pairs = zip(("", *path), path, strict=False)
    return tuple(names[before] if part == "*" else part for before, part in pairs)


def with_value(path, value):
    """Valid data, but for `value` at `path`."""
    shard = {"layers": [0, 1]} if "sharding" in path else {}
    data: dict[str, Any] = {"nodes": {"left": dict(NODE)}, "models": {"m": {"source": "a/b"}}}
    if shard:
        data["models"]["m"]["sharding"] = {"left": shard}
    inner = data
    for part in path[:-1]:
        inner = inner.setdefault(part, {})
    inner[path[-1]] = value
    return data


def error_at(path, data):
    with pytest.raises(ValidationError) as raised:
        Config.model_validate(data)
    places = [error["loc"] for error in raised.value.errors()]
    assert any(place[: len(path)] == path for place in places), places


@pytest.mark.parametrize("path", FIELDS, ids=".".join)
def test_every_field_says_what_it_is(path):
    description = FIELDS[path].field.description
    assert description
    assert description.endswith(".")


@pytest.mark.parametrize("path", VALUES, ids=".".join)
def test_every_key_is_read_by_some_code(path):
    """By its name only, which finds a key that nobody thinks of."""
    assert re.search(rf"\.{path[-1]}\b(?!\()", SOURCES) is not None


@pytest.mark.parametrize("path", VALUES, ids=".".join)
@pytest.mark.parametrize("value", [{"a": 1}, [["x"]], "", float("nan"), -1], ids=repr)
def test_nothing_takes_just_any_value(path, value):
    error_at(concrete(path), with_value(concrete(path), value))


@pytest.mark.parametrize("path", VALUES, ids=".".join)
def test_yes_is_no_number_and_no_text(path):
    kind = str(FIELDS[path].field.annotation)
    if "bool" in kind:
        error_at(concrete(path), with_value(concrete(path), "true"))
        error_at(concrete(path), with_value(concrete(path), 1))
    else:
        error_at(concrete(path), with_value(concrete(path), True))


@pytest.mark.parametrize("path", [p for p, place in FIELDS.items() if place.keys], ids=".".join)
def test_unknown_keys_are_refused_everywhere(path):
    error_at((*concrete(path), "unheard_of"), with_value((*concrete(path), "unheard_of"), 1))


def test_configuration_is_frozen():
    config = Config.model_validate(ENTRIES)
    for section, key in [
        (config, "network"),
        (config.api_gateway, "port"),
        (config.model, "source"),
    ]:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, None)


def test_dynamic_keys():
    assert {".".join(path) for path in FIELDS if is_dynamic(path)} == {
        "scheduler.prefill_chunk_tokens",
        "scheduler.max_batch_size",
        "scheduler.inter_token_bound",
        "api_gateway.timeout",
        "api_gateway.max_concurrent_requests",
        "coordinator.health_check_interval",
        "coordinator.failure_threshold",
        "observe.log_level",
        "observe.alerts.cpu_percent",
        "observe.alerts.memory_percent",
        "observe.alerts.gpu_memory_percent",
        "observe.alerts.disk_percent",
        "observe.alerts.temperature",
        "observe.alerts.heartbeats",
    }


def test_find_enters_mappings_and_optional_mappings():
    assert find(("nodes", "any", "host")) is not None
    assert find(("models", "any", "sharding", "any", "layers")) is not None
    assert find(("nodes", "any", "hosts")) is None
    assert find(("nodes", "any", "name")) is None  # given by the key of the entry
    assert find(("api_gateway", "port", "x")) is None


def test_names_are_the_keys_of_the_entries():
    config = Config.model_validate(ENTRIES)
    assert config.nodes["left"].name == "left"
    assert config.models["m"].name == "m"
    error_at((), {"nodes": {"left": {**NODE, "name": "right"}}})


def test_auto_is_none():
    assert Config.model_validate({"scheduler": {"groups": "auto"}}).scheduler.groups is None
    assert NodeConfig.model_validate({**NODE, "memory": "auto"}).memory is None
    assert ModelConfig.model_validate({"source": "a/b", "sharding": "auto"}).sharding is None


@pytest.mark.parametrize(
    ("text", "size"),
    [("16GB", 16 * 10**9), ("16GiB", 16 * 2**30), ("2.5GB", 2_500_000_000), (4096, 4096)],
)
def test_sizes(text, size):
    assert NodeConfig.model_validate({**NODE, "memory": text}).memory == size


@pytest.mark.parametrize("text", ["16 apples", "GB", "-1GB", 0, -1, 1.5, True, []])
def test_sizes_that_are_none(text):
    with pytest.raises(ValidationError):
        NodeConfig.model_validate({**NODE, "memory": text})


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (16 * 10**9, "16GB"),
        (2**34, "16GiB"),
        (2_500_000_000, "2500MB"),
        (2**22, "4MiB"),
        (1001, 1001),
    ],
)
def test_sizes_are_written_exactly(size, text):
    assert format_size(size) == text
    assert NodeConfig.model_validate({**NODE, "memory": text}).memory == size


def test_ports_have_names():
    assert NodeConfig.model_validate(NODE).ports == Ports(
        inference=9100, communication=9101, health=9102
    )


def test_retries_are_ordered():
    error_at(("network",), {"network": {"retry_initial": 2, "retry_max": 1}})


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("demo", "demo"),
        ("owner/name", "owner/name"),
        ("./folder", "folder"),
        ("/models/folder/", "folder"),
        ("models/big/folder", "folder"),
        ("../m", "../m"),  # `m` is the name of a listed one
    ],
)
def test_a_source_stands_for_a_model_that_is_not_listed(source, name):
    config = Config.model_validate({**ENTRIES, "default_model": source})
    assert (config.model.name, config.model.source) == (name, source)


def test_a_listed_name_stands_for_its_entry():
    config = Config.model_validate({**ENTRIES, "default_model": "m"})
    assert config.model is config.models["m"]


def test_home_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert ModelConfig(source="~/m").source == "/home/somebody/m"


def shards(*ranges, **options):
    return {f"node_{i}": {"layers": list(r), **options} for i, r in enumerate(ranges)}


@pytest.mark.parametrize(
    ("sharding", "total", "reason"),
    [
        ({}, None, "names no node"),
        (shards((0, 3), (5, 9)), None, "should start at layer 4"),
        (shards((0, 3), (3, 9)), None, "should start at layer 4"),
        (shards((1, 3)), None, "should start at layer 0"),
        (shards((0, 3), (4, 3)), None, "lies before the first"),
        (shards((0, 3), (4, 9)), 11, "should end at layer 10"),
        (shards((0, 3), (4, 9)), 9, "should end at layer 8"),
        (
            shards((0, 3), (4, 9), includes_output_head=True),
            10,
            "belongs to the last shard, node_1",
        ),
        (shards((0, 3), includes_output_head=False), 4, "belongs to the last shard, node_0"),
    ],
)
def test_sharding_refused(sharding, total, reason):
    with pytest.raises(ValidationError, match=reason):
        ModelConfig(source="a/b", sharding=sharding, total_layers=total)


def test_sharding_may_name_nodes_in_any_order():
    sharding = {
        "right": Shard(layers=LayerRange(4, 9), includes_output_head=True),
        "left": Shard(layers=LayerRange(0, 3)),
    }
    assert ModelConfig(source="a/b", sharding=sharding, total_layers=10).sharding == sharding
