"""Those who wait to be ranks, on hosts of their own: they take over there, too, and nothing of them is left."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from chaoslib.cluster import STOP_DEADLINE, role
from chaoslib.faults import Fault, cut_power, freeze, kill_launch, kill_rank, pull_cable
from chaoslib.on_hosts import HostCluster
from tests.chaos.conftest import on_three_hosts, prepared

pytestmark = [pytest.mark.chaos, pytest.mark.ranks]


@pytest.fixture
def cluster(model: Path, tmp_path: Path) -> Iterator[HostCluster]:
    with on_three_hosts(model, tmp_path, "launcher.standby_after=0.5") as made:
        yield made


FAULTS: dict[str, Callable[[HostCluster], Fault]] = {
    "rank 0": lambda cluster: kill_rank(cluster, 0),
    "the middle rank": lambda cluster: kill_rank(cluster, 1),
    "the last rank": lambda cluster: kill_rank(cluster, 2),
    "mlx.launch": kill_launch,
    "link": lambda cluster: pull_cable(cluster, "mini2"),
    "freeze": lambda cluster: freeze(cluster, "mini2"),
    "power": lambda cluster: cut_power(cluster, "master"),
}


def test_whatever_happens_to_the_ranks_those_who_wait_take_over(cluster: HostCluster) -> None:
    """Also where one of them is lost with its host."""
    trial = prepared(cluster)
    faults = (partial(make, cluster) for make in FAULTS.values())
    result = asyncio.run(trial.each(faults))
    assert (result.wrong, result.leaks) == ([], [])
    assert len(result.events) == len(FAULTS)
    firsts = []
    for event in result.events:
        later = [r for r in result.recoveries if r["noticed_at"] >= event.wall]
        firsts.append((event.what, later[0]["standby"]))
    assert [what for what, standby in firsts if not standby] == []
    cluster.stop()


@pytest.mark.parametrize("state", ["warming", "warm"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nobody_waits_for_a_launcher_that_has_ended(
    cluster: HostCluster, state: str, number: signal.Signals
) -> None:
    def waits() -> bool:
        hosts = [[role(process) for process in host.processes] for host in cluster.hosts.hosts]
        return all("standby" in roles for roles in hosts) and (
            state == "warming" or cluster.is_settled()
        )

    cluster.wait(waits, f"none is {state}", STOP_DEADLINE)
    cluster.launcher.send_signal(number)
    cluster.wait(
        lambda: not any(host.processes for host in cluster.hosts.hosts),
        "processes are left",
        STOP_DEADLINE,
        ended=True,
    )
    # The kernel may close the sockets of a process that was killed a moment after it has ended.
    cluster.wait(lambda: not cluster.taken_ports(), "ports are taken", STOP_DEADLINE, ended=True)
    if state == "warm":  # who is ended before it runs leaves its files to the next start
        assert cluster.left_files() == []
