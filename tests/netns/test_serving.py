"""One model over three hosts by mlx.launch over ssh, and what happens to it when a host goes missing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostlib.hosts import NAMES, Hosts
from tests.cluster.conftest import require_mpi
from tests.cluster.harness import Cluster, Spec, folder_model, wait_until
from tests.netns.conftest import Start

PROMPT, LENGTH = [5, 6, 7, 8], 40
LOSS_DEADLINE = 90.0  # seconds until a host that is silent is given up by all others


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What one rank answers."""
    spec = Spec(ranks=1, models=folder_model(model))
    cluster = Cluster(spec, tmp_path_factory.mktemp("alone")).start().wait_ready()
    yield cluster.complete(PROMPT, LENGTH)["text"]
    cluster.stop()


@pytest.mark.parametrize("backend", ["ring", "mpi"])
def test_three_hosts_answer_as_one_rank_does(start: Start, alone: str, backend: str) -> None:
    if backend == "mpi":
        require_mpi()
    cluster = start(backend=backend).wait_ready()
    assert cluster.complete(PROMPT, LENGTH)["text"] == alone
    ranks = cluster.cluster()["ranks"]
    assert [rank["node"] for rank in ranks] == list(NAMES)
    assert [rank["host"] for rank in ranks] == [host.address for host in cluster.hosts.hosts]
    assert [len(host.ranks) for host in cluster.hosts.hosts] == [1, 1, 1]
    cluster.stop()


def test_a_host_whose_cable_is_pulled_is_given_up_and_gives_up(start: Start) -> None:
    """No connection is closed: both sides only hear nothing more."""
    settings = ("network.keepalive_interval=1", "network.keepalive_probes=2")
    cluster = start(settings=settings).wait_ready()
    lost = cluster.hosts["mini2"]
    cluster.hosts.set_link(lost, up=False)
    try:
        assert cluster.wait_ended(LOSS_DEADLINE) != 0
        wait_until(lambda: not lost.ranks, "the lost rank has ended", LOSS_DEADLINE)
    finally:
        cluster.hosts.set_link(lost, up=True)
    assert re.search(rf"error: .*\(mini2, {lost.address}:8201\).* lost", cluster.log), cluster.log
    cluster.assert_nothing_left()


def test_a_host_without_power_is_given_up_and_may_come_back(start: Start, hosts: Hosts) -> None:
    settings = ("network.keepalive_interval=1", "network.keepalive_probes=2")
    cluster = start(settings=settings).wait_ready()
    hosts.cut_power("master")
    try:
        assert cluster.wait_ended(LOSS_DEADLINE) != 0
        assert hosts["master"].processes == []
    finally:
        hosts.boot("master")
    assert hosts["mini1"].run("ssh", "master", "hostname") == "master\n"
    cluster.assert_nothing_left()


@pytest.mark.parametrize("backend", ["ring", "mpi"])
def test_a_host_that_lets_nobody_in_is_told(start: Start, hosts: Hosts, backend: str) -> None:
    if backend == "mpi":
        require_mpi()
    hosts.refuse_login(hosts["master"], True)
    try:
        cluster = start(backend=backend)
        assert cluster.wait_ended() == 1
    finally:
        hosts.refuse_login(hosts["master"], False)
    [error] = [line for line in cluster.log.splitlines() if line.startswith("error: ")]
    assert re.search(r"ssh to master fails: .*Permission denied \(publickey\)", error), cluster.log
    cluster.assert_nothing_left()


@pytest.mark.parametrize("backend", ["ring", "mpi"])
def test_ranks_on_other_hosts_do_not_outlive_a_killed_launcher(start: Start, backend: str) -> None:
    if backend == "mpi":
        require_mpi()
    cluster = start(backend=backend).wait_ready()
    first = cluster.hosts.hosts[0]
    [launcher] = [
        p for p in first.processes if "launcher.job" in p.cmdline() and p.ppid() != first.init
    ]
    launcher.kill()
    assert cluster.wait_ended() != 0
    cluster.assert_nothing_left()
