"""What can befall a cluster.  A fault is prepared, done, and undone once the cluster has got over it."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import psutil

from chaoslib.cluster import Cluster
from chaoslib.on_hosts import HostCluster
from hostlib.host import Host

ON_ONE_MACHINE = ("kill", "stop", "launch")
ON_HOSTS = (*ON_ONE_MACHINE, "link", "partition", "apart", "power", "freeze")


Pairs = Sequence[tuple[list[Host], list[Host]]]


def nothing() -> None:
    """What has ended needs no undoing."""


@dataclass(frozen=True)
class Fault:
    """What is done, in words and indeed."""

    kind: str
    what: str
    do: Callable[[], None]
    undo: Callable[[], None] = nothing


def kill_rank(cluster: Cluster, rank: int) -> Fault:
    """kill -9: its connections are closed at once."""
    return Fault("kill", f"kill -9 of rank {rank}", cluster.ranks()[rank].kill)


def stop_rank(cluster: Cluster, rank: int) -> Fault:
    """SIGSTOP: it is silent, and nothing is closed."""
    process = cluster.ranks()[rank]
    return Fault("stop", f"SIGSTOP of rank {rank}", process.suspend, lambda: _resume(process))


def _resume(process: psutil.Process) -> None:
    """A rank that was given up has been killed meanwhile."""
    if process.is_running():
        process.send_signal(signal.SIGCONT)


def kill_launch(cluster: Cluster) -> Fault:
    """kill -9 of mlx.launch, whose ranks then have nobody who would stop them."""
    process = cluster.mlx_launch()
    assert process, "mlx.launch does not run"
    return Fault("launch", "kill -9 of mlx.launch", process.kill)


def pull_cable(cluster: HostCluster, name: str) -> Fault:
    """A host is cut off from everybody."""
    hosts, host = cluster.hosts, cluster.hosts[name]
    return Fault(
        "link",
        f"link of {name} down",
        lambda: hosts.set_link(host, up=False),
        lambda: hosts.set_link(host, up=True),
    )


def part(cluster: HostCluster, name: str) -> Fault:
    """A host and the others hear nothing of each other, though their links are up."""
    hosts, alone = cluster.hosts, [cluster.hosts[name]]
    others = [host for host in hosts.hosts if host.name != name]
    return Fault(
        "partition",
        f"{name} parted from the others",
        lambda: hosts.part(alone, others),
        lambda: hosts.join(alone, others),
    )


def part_all(cluster: HostCluster) -> Fault:
    """No host hears of any other: the launcher is left with its own."""
    hosts = cluster.hosts
    pairs = [([one], [other]) for one, other in combinations(hosts.hosts, 2)]
    return Fault(
        "apart",
        "all hosts parted from each other",
        lambda: _each(hosts.part, pairs),
        lambda: _each(hosts.join, pairs),
    )


def _each(do: Callable[[list[Host], list[Host]], None], pairs: Pairs) -> None:
    for some, others in pairs:
        do(some, others)


def cut_power(cluster: HostCluster, name: str) -> Fault:
    """A host is off, until somebody switches it on again."""
    hosts = cluster.hosts
    return Fault(
        "power",
        f"power of {name} cut",
        lambda: hosts.cut_power(name),
        lambda: hosts.boot(name),
    )


def freeze(cluster: HostCluster, name: str) -> Fault:
    """A host that does nothing any more, and whose kernel still takes connections for it."""
    host = cluster.hosts[name]
    return Fault("freeze", f"{name} frozen", host.freeze, host.thaw)


def choose_fault(cluster: Cluster, kind: str, choose: random.Random) -> Fault:
    """A fault of this kind for somebody who takes part; a rank is killed where no host can be harmed."""
    ranks = sorted(cluster.ranks())
    if kind == "launch":
        return kill_launch(cluster)
    if kind == "stop":
        return stop_rank(cluster, choose.choice(ranks))
    if kind == "apart":
        assert isinstance(cluster, HostCluster), f"{kind} needs hosts"
        return part_all(cluster)
    of_hosts = {"link": pull_cable, "partition": part, "power": cut_power, "freeze": freeze}
    if kind in of_hosts:
        assert isinstance(cluster, HostCluster), f"{kind} needs hosts"
        # Not the first host: the launcher runs there, and has to be reached by clients.
        names = [host.name for host in cluster.hosts.hosts[1:] if host.ranks]
        if names:
            return of_hosts[kind](cluster, choose.choice(names))
    return kill_rank(cluster, choose.choice(ranks))


def kinds(count: int, possible: Sequence[str], choose: random.Random) -> list[str]:
    """`count` kinds in random order; each occurs about as often as any other."""
    wanted = [possible[i % len(possible)] for i in range(count)]
    choose.shuffle(wanted)
    return wanted
