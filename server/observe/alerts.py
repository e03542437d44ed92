"""When the state of a node is worth a warning: a pure function of its report and the thresholds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from config.observe import AlertsConfig
from server.rpc.records import ClusterSnapshot, HealthPolicy, RankReport, RankSnapshot, RankState


@dataclass(frozen=True)
class Alert:
    """Something of a node beyond its threshold."""

    name: str
    rank: int
    node: str
    value: float
    threshold: float

    @property
    def message(self) -> str:
        """One sentence."""
        return (
            f"{self.name} of {self.node} (rank {self.rank}) is {self.value:.4g},"
            f" the threshold is {self.threshold:g}"
        )


def alerts_of(
    snapshot: ClusterSnapshot, thresholds: AlertsConfig, policy: HealthPolicy
) -> tuple[Alert, ...]:
    """All alerts of a cluster.  A dead or failed rank is no alert: it is a fault, and told as one."""
    return tuple(
        alert
        for rank in snapshot.ranks
        if rank.state not in (RankState.DEAD, RankState.FAILED)
        for alert in _of_rank(rank, thresholds, policy)
    )


def _of_rank(rank: RankSnapshot, thresholds: AlertsConfig, policy: HealthPolicy) -> Iterator[Alert]:
    measured = [] if rank.report is None else _measured(rank.report, thresholds)
    late = rank.heartbeat_age_s / policy.interval_s
    for name, value, threshold in (*measured, ("heartbeats", late, thresholds.heartbeats)):
        if value is not None and threshold is not None and value >= threshold:
            yield Alert(name, rank.rank, rank.node, value, threshold)


def _measured(
    report: RankReport, thresholds: AlertsConfig
) -> list[tuple[str, float | None, float | None]]:
    """Name, value, threshold; a value is None where it is not known."""
    resources, memory = report.resources, report.memory
    found: list[tuple[str, float | None, float | None]] = [
        ("gpu_memory_percent", _percent(memory.active, memory.limit), thresholds.gpu_memory_percent)
    ]
    if resources is None:
        return found
    in_use = _percent(resources.memory_used, resources.memory_total)
    disk = _percent(resources.disk_used, resources.disk_total)
    return [
        *found,
        ("cpu_percent", resources.cpu_percent, thresholds.cpu_percent),
        ("memory_percent", in_use, thresholds.memory_percent),
        ("disk_percent", disk, thresholds.disk_percent),
        ("temperature", resources.temperature_c, thresholds.temperature),
    ]


def _percent(used: float, total: float) -> float | None:
    return 100 * used / total if total else None
