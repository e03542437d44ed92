"""Those who wait to be ranks on other hosts: ssh has started them with a terminal.  More in tests/chaos."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchlib.targets import Setup
from chaoslib.cluster import RECOVERY_DEADLINE
from chaoslib.on_hosts import HostCluster
from hostlib.hosts import Hosts


@pytest.fixture
def cluster(hosts: Hosts, model: Path, tmp_path: Path) -> Iterator[HostCluster]:
    environment = Setup(model).environment()
    settings = ("launcher.standby_after=0.1",)
    made = HostCluster(hosts, tmp_path / "cluster", model, environment, settings)
    yield made
    made.kill()
    for host in hosts.hosts:
        host.kill_processes()


def test_they_take_over_and_leave_nothing(cluster: HostCluster) -> None:
    cluster.start()
    cluster.wait(cluster.is_settled, "nobody waits", RECOVERY_DEADLINE)
    cluster.ranks()[1].kill()
    cluster.wait(lambda: cluster.recoveries() == 1, "not recovered", RECOVERY_DEADLINE)
    [recovery] = cluster.status()["recoveries"]
    assert (recovery["standby"], recovery["nodes"]) == (True, 3)
    cluster.stop()
