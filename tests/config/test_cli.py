from __future__ import annotations

import argparse

import pytest

from config import ConfigError, add_arguments, from_arguments, render
from tests.config.folder import NODES, write_folder


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "c", nodes=NODES)


def test_all_flags(folder):
    arguments = parsed(
        "--model=./mine", "--port=9000", "--config", str(folder), "--set", "cluster.name=x", "--set",
        "api_gateway.port=1", "--print-config",
    )  # fmt: skip
    settings = from_arguments(arguments, {"MLXC_CLUSTER__NAME": "y"})
    assert arguments.print_config
    assert settings.config.model.source == "./mine"
    assert settings.config.api_gateway.port == 9000  # a short form outranks --set
    assert settings.config.cluster.name == "x"
    assert settings.origin("api_gateway.port") == "--port"


def test_no_flags_mean_no_overrides(folder):
    settings = from_arguments(parsed("--config", str(folder)), {})
    assert settings.origin("api_gateway.port") == "default"
    assert settings.origin("default_model") == "default"


def test_a_model_is_never_read_as_yaml(folder):
    settings = from_arguments(parsed("--config", str(folder), "--model", "./{a: 1}"), {})
    assert settings.config.model.source == "./{a: 1}"


def test_bad_values_are_config_errors(folder):
    with pytest.raises(ConfigError, match=r"^--port: api_gateway.port = 70000"):
        from_arguments(parsed("--config", str(folder), "--port", "70000"), {})


def test_table_is_aligned(folder):
    settings = from_arguments(parsed("--config", str(folder), "--port", "9000"), {})
    lines = render(settings).splitlines()
    assert len(lines) == 1 + len(settings.describe())
    assert lines[0].split() == ["key", "value", "origin"]
    value_column, origin_column = lines[0].index("value"), lines[0].index("origin")
    for line, row in zip(lines[1:], settings.describe(), strict=True):
        assert line[:value_column].strip() == row.key
        assert line[value_column:origin_column].strip() == row.value
        assert line[origin_column:] == row.origin
    assert f"{'api_gateway.port':<{value_column}}9000" in render(settings)
