"""Sources, their order, provenance and changes, with real files."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config import ConfigError, load
from config.yaml_text import write_value
from tests.config.folder import MODELS, NODES, write_folder

# Keys and the values that the sources below may give them.
CHOICES = {
    "api_gateway.port": st.integers(9000, 9009),
    "api_gateway.timeout": st.sampled_from([1.5, 20, 300.0]),
    "cluster.name": st.sampled_from(["a", "no", "7", "ünï"]),
    "scheduler.groups": st.sampled_from(["auto", 1, 2]),
    "network.rpc_timeout": st.floats(0.001, 1e9),
    "api_gateway.max_body_bytes": st.sampled_from(["16GB", "3MiB", 1001]),
}
GIVEN = st.fixed_dictionaries({}, optional=CHOICES)
DYNAMIC = st.fixed_dictionaries(
    {},
    optional={
        "scheduler.prefill_chunk_tokens": st.just("auto") | st.integers(1, 99),
        "api_gateway.timeout": st.floats(0.1, 1e6),
        "coordinator.failure_threshold": st.integers(1, 9),
    },
)
ON_DISK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)


def variable(key):
    return "MLXC_" + key.upper().replace(".", "__")


def arguments(values):
    return [f"{key}={write_value(value)}" for key, value in values.items()]


def as_file(values, section):
    keys = [key for key in values if key.startswith(f"{section}.")]
    return "".join(
        f"{section}: {{{k.split('.')[1]}: {write_value(values[k])}}}\n" for k in keys[:1]
    )


def value_of(loaded, key):
    return {row.key: row.value for row in loaded.describe()}[key]


@ON_DISK
@given(
    in_files=GIVEN, in_environ=GIVEN, in_overrides=GIVEN, port=st.none() | st.integers(9000, 9009)
)
def test_any_combination_of_sources(tmp_path, in_files, in_environ, in_overrides, port):
    in_files = {k: v for k, v in in_files.items() if k in ("network.rpc_timeout", "cluster.name")}
    folder = write_folder(
        tmp_path / "c", cluster=as_file(in_files, "cluster"), network=as_file(in_files, "network")
    )
    environ = {variable(key): write_value(value) for key, value in in_environ.items()}
    loaded = load(folder, {**environ, "HOME": "x"}, arguments(in_overrides), {"port": port})
    default = load(write_folder(tmp_path / "d"), {})
    for key in CHOICES:
        file = "network" if key.startswith("network") else "cluster"
        ranked = [
            ("--port", {} if port is None else {"api_gateway.port": port}),
            ("--set", in_overrides),
            (f"env {variable(key)}", in_environ),
            (str(folder / f"{file}.yaml"), in_files),
        ]
        origin, values = next(((o, v) for o, v in ranked if key in v), ("default", None))
        assert loaded.origin(key) == origin
        if values is None:
            assert value_of(loaded, key) == value_of(default, key)
        else:
            only = load(tmp_path / "d", {}, arguments({key: values[key]}))
            assert value_of(loaded, key) == value_of(only, key)


@ON_DISK
@given(GIVEN, DYNAMIC)
def test_describe_can_be_given_back(tmp_path, overrides, changes):
    full = write_folder(tmp_path / "full", nodes=NODES, models=MODELS)
    loaded = load(full, {}, arguments(overrides)).change(changes)
    rows = [f"{row.key}={row.value}" for row in loaded.describe()]
    again = load(write_folder(tmp_path / "empty"), {}, rows)
    assert again.config == loaded.config
    assert [(r.key, r.value) for r in again.describe()] == [
        (r.key, r.value) for r in loaded.describe()
    ]
    assert {r.origin for r in again.describe()} == {"--set"}


@ON_DISK
@given(st.lists(DYNAMIC, min_size=1, max_size=4))
def test_changes_add_up_and_repeat_without_effect(tmp_path, changes):
    started = load(write_folder(tmp_path / "c"), {}, ["api_gateway.timeout=7"])
    changed = started
    for change in changes:
        changed = changed.change(change)
        assert changed.change(change) == changed
    together = {key: value for change in changes for key, value in change.items()}
    assert changed.config == started.change(together).config
    for row in changed.describe():
        assert row.origin == ("runtime" if row.key in together else started.origin(row.key))
    assert started.config.api_gateway.timeout == 7


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "c", nodes=NODES, models=MODELS)


def test_environment_reaches_named_entries(folder):
    environ = {
        "MLXC_NODES__LEFT__HOST": "10.0.0.1",
        "MLXC_NODES__LEFT__PORTS": "[8500, 8501, 8502]",
        "MLXC_MODELS__BIG_1_5B__SHARDING__NODE_0__ESTIMATED_MEMORY": "3GB",
        "MLXC_MODELS__BIG_1_5B__REVISION": "null",
        "MLXC_CACHE_DIR": "/somewhere",
        "PATH": "/bin",
    }
    loaded = load(folder, environ)
    config = loaded.config
    assert (config.nodes["left"].host, config.nodes["left"].ports.health) == ("10.0.0.1", 8502)
    assert config.model.sharding["node_0"].estimated_memory == 3 * 10**9
    assert loaded.origin('models."big-1.5b".revision') == "env MLXC_MODELS__BIG_1_5B__REVISION"


def test_a_value_replaces_a_mapping_and_back(folder):
    auto = load(folder, {}, ['models."big-1.5b".sharding=auto'])
    assert auto.config.model.sharding is None
    assert load(folder, {}, ["nodes={}", 'models."big-1.5b".sharding=auto']).config.nodes == {}
    mapping = "models.m={source: demo, sharding: {left: {layers: [0, 3]}}}"
    loaded = load(folder, {}, ["models.m={source: demo}", mapping], {"model": "m"})
    assert loaded.config.model.sharding["left"].layers == (0, 3)


def test_origin_of_parts(folder):
    loaded = load(folder, {}, ["cluster.ranks=[right, left]"], {"model": "demo"})
    assert loaded.origin("nodes.left.host") == str(folder / "nodes.yaml")
    assert loaded.origin("nodes.left.speed") == "default"
    assert loaded.origin("cluster.ranks") == "--set"
    assert loaded.origin("default_model") == "--model"
    with pytest.raises(
        ConfigError, match=r"no setting cluster.rank \(did you mean cluster.ranks\?\)"
    ):
        loaded.origin("cluster.rank")


def test_missing_files_mean_defaults(tmp_path):
    loaded = load(write_folder(tmp_path / "c"), {})
    assert loaded.config.nodes == {}
    assert loaded.config.model.source == "demo"
    assert {row.origin for row in loaded.describe()} == {"default"}


def test_lookup_of_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = load(None, {})
    assert set(shipped.config.nodes) == {"mini1", "mini2", "master"}
    (tmp_path / "config").mkdir()
    assert load(None, {}).config == shipped.config  # a folder without cluster.yaml is not ours
    write_folder(tmp_path / "config", cluster="cluster: {name: local}")
    assert load(None, {}).origin("cluster.name") == "config/cluster.yaml"
    asked = write_folder(tmp_path / "asked", cluster="cluster: {name: asked}")
    assert load(asked, {}).config.cluster.name == "asked"


def test_sizes_and_seconds_may_have_an_exponent():
    settings = load(None, {}, ["nodes.mini1.memory=16e9", "network.step_timeout=6e1"])
    assert settings.config.nodes["mini1"].memory == 16 * 10**9
    assert settings.config.network.step_timeout == 60
    with pytest.raises(ConfigError, match=r"memory = 0\.15: should be a number of bytes"):
        load(None, {}, ["nodes.mini1.memory=1.5e-1"])
