"""Hosts for all tests of this folder; where none can be made, they are skipped with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hostlib.hosts import Hosts, obstacle
from tests.cluster.harness import Spec, folder_model
from tests.cluster.tiny import make_folder
from tests.netns.cluster import HostCluster

Start = Callable[..., HostCluster]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ranks)
            item.add_marker(pytest.mark.hosts)


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    reason = obstacle()
    if reason:
        pytest.skip(reason)
    with Hosts(tmp_path_factory.mktemp("hosts")) as made:
        yield made


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("models") / "tiny", "llama")


@pytest.fixture
def start(hosts: Hosts, model: Path, tmp_path: Path) -> Iterator[Start]:
    """Start a cluster for one test. What the test has not ended is killed, wherever it runs."""
    started: list[HostCluster] = []

    def run(**fields: Any) -> HostCluster:
        spec = Spec(models=folder_model(model), **fields)
        started.append(HostCluster(spec, tmp_path / f"cluster{len(started)}", hosts))
        return started[-1].start()

    yield run
    for cluster in started:
        cluster.kill()
    for host in hosts.hosts:
        host.kill_processes()
