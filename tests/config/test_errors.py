"""The words of every refusal: one sentence with the place, the key and the value."""

from __future__ import annotations

import pytest

from config import ConfigError, load
from tests.config.folder import MODELS, NODES, write_folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "c", nodes=NODES, models=MODELS)


def sentence(folder, environ=(), overrides=(), **short):
    with pytest.raises(ConfigError) as raised:
        load(folder, dict(environ), overrides, short)
    text = str(raised.value)
    assert "\n" not in text
    return text.replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        (
            "cluster",
            "api_gateway:\n  prot: 8000\n",
            "cluster.yaml line 2: there is no setting api_gateway.prot "
            "(did you mean api_gateway.port?), so 8000 is refused.",
        ),
        (
            "cluster",
            "apigateway:\n  port: 8000\n",
            "cluster.yaml line 2: there is no setting apigateway (did you mean api_gateway?), "
            "so {port: 8000} is refused.",
        ),
        (
            "network",
            "network:\n  zebra: 1\n",
            "network.yaml line 2: there is no setting network.zebra, so 1 is refused.",
        ),
        (
            "cluster",
            "\napi_gateway: {port: 99999}\n",
            "cluster.yaml line 2: api_gateway.port = 99999: should be less than or equal to 65535.",
        ),
        (
            "cluster",
            "api_gateway:\n  port: yes\n",
            "cluster.yaml line 2: api_gateway.port = true: should be a valid integer.",
        ),
        (
            "cluster",
            "cluster: {name: 7}\n",
            "cluster.yaml line 1: cluster.name = 7: should be a valid string; put it in quotes.",
        ),
        (
            "cluster",
            "cluster: {ranks: left}\n",
            "cluster.yaml line 1: cluster.ranks = left: should be a list.",
        ),
        (
            "cluster",
            "cluster: {ranks: [left, 3]}\n",
            "cluster.yaml line 1: cluster.ranks[1] = 3: should be a valid string; put it in quotes.",
        ),
        (
            "cluster",
            "cluster: {ranks: [left, wright]}\n",
            "cluster.yaml line 1: cluster.ranks = [left, wright]: "
            "wright is not a node of nodes.yaml (did you mean right?).",
        ),
        (
            "cluster",
            "cluster: {prefill_share: 50}\n",
            "cluster.yaml line 1: cluster.prefill_share = 50: should be less than or equal to 1.",
        ),
        (
            "cluster",
            "coordinator: {election_strategy: best}\n",
            "cluster.yaml line 1: coordinator.election_strategy = best: "
            "should be 'health_based', 'load_based', 'round_robin' or 'manual'.",
        ),
        (
            "cluster",
            "coordinator: {leader: wright}\n",
            "cluster.yaml line 1: coordinator.leader = wright: "
            "wright is not a node of nodes.yaml (did you mean right?).",
        ),
        (
            "models",
            "models: {m: {source: ./folder, revision: main}}\n",
            "models.yaml line 1: models.m.revision = main: "
            "only models on the hub (owner/name) have revisions; the source is ./folder.",
        ),
        (
            "cluster",
            "scheduler: {groups: aut}\n",
            "cluster.yaml line 1: scheduler.groups = aut: should be a valid integer or auto.",
        ),
        (
            "cluster",
            "scheduler: 3\n",
            "cluster.yaml line 1: scheduler = 3: should be a mapping of keys to values.",
        ),
        (
            "network",
            "network: {retry_initial: 3, retry_max: 2}\n",
            "network.yaml line 1: network.retry_max = 2: should not be less than retry_initial, 3.0.",
        ),
        (
            "nodes",
            "nodes:\n  a:\n    node_id: 0\n    host: a.local\n",
            "nodes.yaml line 3: nodes.a.ports is missing.",
        ),
        (
            "nodes",
            "nodes:\n  a:\n    node_id: 0\n    host: x\n    ports: [1, 2]\n",
            "nodes.yaml line 5: nodes.a.ports[2] is missing.",
        ),
        (
            "nodes",
            "nodes:\n  a:\n    node_id: 0\n    host: x\n    ports: [1, 2, 3]\n    memory: 16 apples\n",
            "nodes.yaml line 6: nodes.a.memory = 16 apples: "
            'should be a number of bytes, or a size such as "16GB" or "512MiB" or auto.',
        ),
        (
            "nodes",
            "nodes:\n  a b: {node_id: 0, host: x, ports: [1, 2, 3]}\n",
            'nodes.yaml line 2: nodes."a b" = a b: should be a name of letters, digits, dots, - and _.',
        ),
        (
            "models",
            "models:\n  m:\n    source: a/b\n    sharding:\n      node_0: {layers: [1, 2]}\n",
            "models.yaml line 5: models.m.sharding.node_0.layers = [1, 2]: "
            "should start at layer 0, without gap or overlap.",
        ),
        (
            "cluster",
            "models: {}\n",
            "cluster.yaml line 1: models belongs into models.yaml.",
        ),
        (
            "node",
            "nodes: {}\n",
            "node.yaml: no file of this name is read (did you mean nodes.yaml?).",
        ),
    ],
)
def test_words_for_files(tmp_path, file, text, expected):
    written = write_folder(tmp_path / "c", **{"nodes": NODES, file: text})
    assert sentence(written) == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (
            "MLXC_API_GATEWAY__PROT",
            "1",
            "env MLXC_API_GATEWAY__PROT = 1: there is no such setting "
            "(did you mean MLXC_API_GATEWAY__PORT?).",
        ),
        ("MLXC_X", "1", "env MLXC_X = 1: there is no such setting."),
        ("MLXC_", "1", "env MLXC_ = 1: there is no such setting."),
        (
            "MLXC_NODES__LEFTY__HOST",
            "x",
            "env MLXC_NODES__LEFTY__HOST = x: there is no such setting (did you mean MLXC_NODES__LEFT__HOST?).",
        ),
        (
            "MLXC_API_GATEWAY__PORT__X",
            "1",
            "env MLXC_API_GATEWAY__PORT__X = 1: there is no such setting.",
        ),
        (
            "MLXC_API_GATEWAY__PORT",
            "many",
            "env MLXC_API_GATEWAY__PORT: api_gateway.port = many: should be a valid integer.",
        ),
        (
            "MLXC_API_GATEWAY__PORT",
            "",
            "env MLXC_API_GATEWAY__PORT: the value is empty; write null if that is meant.",
        ),
        (
            "MLXC_CLUSTER__RANKS",
            "[left",
            "env MLXC_CLUSTER__RANKS: not valid YAML: expected ',' or ']', but got '<stream end>'.",
        ),
    ],
)
def test_words_for_the_environment(folder, name, value, expected):
    assert sentence(folder, {name: value}) == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("api_gateway.port", "--set api_gateway.port: should be key=value."),
        ("a b=1", "--set a b=1: 'a b' is not a dotted key such as api_gateway.port."),
        (
            "scheduler.max_batch=1",
            "--set: there is no setting scheduler.max_batch (did you mean scheduler.max_batch_size?), "
            "so 1 is refused.",
        ),
        ("models.m.max_model_len=1", "--set: models.m.source is missing."),
        (
            "models.m.sourc=demo",  # and so the source is missing too
            "--set: there is no setting models.m.sourc (did you mean models.m.source?), "
            "so demo is refused.",
        ),
        (
            "nodes.left.node_id=1",
            "nodes.yaml line 7: nodes.right.node_id = 1: left has this node_id already.",
        ),
        ("cluster.name=", "--set cluster.name: the value is empty; write null if that is meant."),
    ],
)
def test_words_for_overrides(folder, override, expected):
    assert sentence(folder, overrides=[override]) == expected


def test_words_for_short_forms(folder):
    assert sentence(folder, port=0) == (
        "--port: api_gateway.port = 0: should be greater than or equal to 1."
    )
    assert sentence(folder, model="big-1b") == (
        "--model: default_model = big-1b: big-1b is not a model of models.yaml (did you mean big-1.5b?); "
        "for a folder write ./big-1b."
    )


def test_a_long_value_is_cut_short(folder):
    assert len(sentence(folder, overrides=["api_gateway.port=" + "x" * 10_000])) < 200


def test_a_folder_without_any_of_the_files(tmp_path):
    names = "cluster.yaml, nodes.yaml, models.yaml, network.yaml, observe.yaml"
    expected = f"{tmp_path} is not a folder with {names}."
    assert sentence(tmp_path) == expected


def test_a_file_that_is_not_text(folder):
    (folder / "network.yaml").write_bytes(b"network: \xff\n")
    assert sentence(folder).startswith("network.yaml: can't be read: 'utf-8' codec can't decode")


def test_what_has_the_name_of_a_file_and_is_none(folder):
    (folder / "observe.yaml").mkdir()
    assert sentence(folder).startswith("observe.yaml: can't be read: [Errno ")
    (folder / "observe.yaml").rmdir()
    (folder / "observe.yaml").symlink_to(folder / "nowhere")
    assert sentence(folder).startswith("observe.yaml: can't be read: [Errno ")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"api_gateway.port": 9}, "api_gateway.port = 9: can't be changed while running."),
        (
            {"api_gateway": {"timeout": 9}},
            "api_gateway = {timeout: 9}: can't be changed while running.",
        ),
        (
            {"api_gateway.timeot": 9},
            "There is no setting api_gateway.timeot (did you mean api_gateway.timeout?).",
        ),
        ({"": 9}, "'' is not a dotted key such as api_gateway.port."),
        (
            {"scheduler.max_batch_size": 4, "api_gateway.timeout": -1},
            "runtime: api_gateway.timeout = -1: should be greater than or equal to 0.001.",
        ),
    ],
)
def test_changes_that_are_refused(folder, changes, expected):
    started = load(folder, {})
    with pytest.raises(ConfigError) as raised:
        started.change(changes)
    assert str(raised.value) == expected
    assert started == load(folder, {})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("coordinator.health_check_interval=1e-9", "greater than or equal to 0.001"),
        ("coordinator.health_check_interval=.inf", "less than or equal to 1000000000"),
        ("coordinator.failure_threshold=99999999999", "less than or equal to 2147483647"),
        ("cluster.ranks=" + "[" * 5000, "nested too deeply"),
    ],
)
def test_values_that_no_loop_or_message_can_have_are_refused(folder, change, reason):
    assert reason in sentence(folder, overrides=[change])
