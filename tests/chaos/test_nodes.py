"""Nodes leave and come back under load: the layers go with them, and no request is lost."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack, suppress

import pytest

from benchlib.ports import HOST
from chaoslib.cluster import NAMES, RECOVERY_DEADLINE, Cluster
from tests.chaos.conftest import Start, prepared

pytestmark = [pytest.mark.chaos, pytest.mark.ranks]

LAYERS = 6  # of the small model


def covered(layers: dict[str, tuple[int, int]]) -> list[int]:
    """All layers that somebody has."""
    return sorted(layer for first, last in layers.values() for layer in range(first, last + 1))


def wait_recovered(cluster: Cluster, before: int) -> None:
    cluster.wait(lambda: cluster.recoveries() > before, "not recovered", RECOVERY_DEADLINE)


def kill_rank_of(cluster: Cluster, name: str) -> None:
    """Which rank that is changes with who leads."""
    rank = next(node["rank"] for node in cluster.status()["nodes"] if node["name"] == name)
    cluster.ranks()[rank].kill()


def test_three_nodes_become_two_and_three_again(start: Start) -> None:
    """The second failure is enough to be kept out, until an operator wants all of them."""
    cluster = start("launcher.hold_initial=600", "launcher.hold_max=600")
    trial = prepared(cluster)
    seen = [cluster.layers()]

    def lose_one_and_take_it_back() -> None:
        for _ in range(2):
            before = cluster.recoveries()
            kill_rank_of(cluster, "mini2")
            wait_recovered(cluster, before)
        seen.append(cluster.layers())
        cluster.make_whole()
        seen.append(cluster.layers())

    result = asyncio.run(trial.meanwhile(lose_one_and_take_it_back))
    assert (result.wrong, result.leaks) == ([], [])
    whole, two, again = seen
    assert set(whole) == set(again) == set(NAMES)
    assert set(two) == {"mini1", "master"}
    assert [covered(layers) for layers in seen] == [list(range(LAYERS))] * 3
    assert [recovery["nodes"] for recovery in cluster.status()["recoveries"]] == [3, 2, 3]
    cluster.stop()


def test_a_rank_that_fails_to_start_twice_is_left_out(start: Start) -> None:
    """Somebody else has its ports: the others serve without it, and later with it."""
    cluster = start(
        "launcher.failures_allowed=2", "launcher.hold_initial=600", "launcher.hold_max=600"
    )
    trial = prepared(cluster)
    seen = []

    def take_its_ports() -> None:
        before = cluster.recoveries()
        with ExitStack() as stack:
            kill_rank_of(cluster, "mini2")
            cluster.wait(lambda: take(stack, cluster), "the ports are in use", RECOVERY_DEADLINE)
            wait_recovered(cluster, before)
            seen.append(cluster.status())
        cluster.make_whole()

    result = asyncio.run(trial.meanwhile(take_its_ports))
    assert (result.wrong, result.leaks) == ([], [])
    [status] = seen
    nodes = {node["name"]: node for node in status["nodes"]}
    assert nodes["mini2"]["rank"] is None
    assert nodes["mini2"]["failures"] == 3, "it was killed, and failed to start twice"
    assert (nodes["mini1"]["failures"], nodes["master"]["failures"]) == (0, 0)
    assert set(cluster.layers()) == set(NAMES)
    cluster.stop()


def take(stack: ExitStack, cluster: Cluster) -> bool:
    """The health port of mini2, which its rank leaves as it is killed and wants for itself again."""
    with suppress(OSError):
        stack.enter_context(socket.create_server((HOST, cluster.node_ports[1][2])))
        return True
    return False
