"""Which changes of the configuration end those who wait."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from config import Config, load
from launcher.hostfile import local_hostfile
from launcher.job import JobSpec
from launcher.nodes import Cluster
from launcher.standby_grounds import Grounds, why_outdated


def grounds(folder: Path, *settings: str, hosts: str = "", nodes: int = 3) -> Grounds:
    config = read(*settings)
    hostfile = folder / "hostfile.json"
    hostfile.write_text(hosts or local_hostfile(nodes))
    return Grounds(JobSpec(("standby",), hostfile), Cluster.of(config, hostfile), config.model)


def read(*settings: str) -> Config:
    return load(None, {}, settings).config


@pytest.mark.parametrize(
    "setting",
    [
        "scheduler.max_batch_size=3",
        "launcher.backoff_max=7",
        "coordinator.health_check_interval=2",
        "observe.log_level=debug",
        "network.step_timeout=9",
        "tls.tensors=false",
        f"models.{read().model.name}.max_model_len=77",
    ],
)
def test_what_a_rank_reads_once_it_has_its_place_ends_nobody(tmp_path: Path, setting: str) -> None:
    assert why_outdated(grounds(tmp_path), grounds(tmp_path, setting)) == ""


def test_nodes_that_come_or_go_end_nobody(tmp_path: Path) -> None:
    two, three = grounds(tmp_path, nodes=2), grounds(tmp_path)
    assert why_outdated(three, two) == ""
    assert why_outdated(two, three) == ""


@pytest.mark.parametrize(
    ("field", "value"), [("source", "a/b"), ("revision", "v2"), ("trust_remote_code", "true")]
)
def test_another_model_ends_those_who_have_read_this_one(
    tmp_path: Path, field: str, value: str
) -> None:
    name = read().model.name
    own = f"models.{name}.source=c/d"
    now = grounds(tmp_path, own, f"models.{name}.{field}={value}")
    assert why_outdated(grounds(tmp_path, own), now) == f"the model is {name} now"


def test_a_node_on_another_host_and_another_environment_end_them(tmp_path: Path) -> None:
    entries = json.loads(local_hostfile(3))
    begun = grounds(tmp_path, hosts=json.dumps({"envs": [], "hosts": entries}))
    other = grounds(tmp_path, hosts=json.dumps({"envs": ["A=b"], "hosts": entries}))
    assert why_outdated(begun, other) == "the hostfile has other envs now"
    entries[1]["ssh"] = "elsewhere"
    moved = grounds(tmp_path, hosts=json.dumps({"envs": [], "hosts": entries}))
    assert "another entry for" in why_outdated(begun, moved)


def test_another_command_and_the_wish_for_none_end_them(tmp_path: Path) -> None:
    begun = grounds(tmp_path)
    other = replace(begun, spec=replace(begun.spec, starting_port=1))
    assert why_outdated(begun, other) == "they are started by another command now"
    assert why_outdated(begun, None) == "nobody is to wait any more"
