"""Thresholds, alerts, and what becomes of them in /health and in metrics."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from config.observe import AlertsConfig
from server.observe.alerts import Alert, alerts_of
from server.observe.rank_metrics import AlertMetrics
from server.rpc.records import HealthPolicy, Memory, RankState, Resources
from server.rpc.registry import ClusterRegistry
from tests.server.rpc.samples import heartbeat, registration

POLICY = HealthPolicy(5.0, 3)
CALM = Resources(cores=8, cpu_percent=99.0, memory_used=50, memory_total=100)
ALL = AlertsConfig(cpu_percent=90.0)


def alerts(now: float = 1.0, thresholds: AlertsConfig = ALL, **report: Any) -> list[Alert]:
    registry = ClusterRegistry(7, 3, POLICY)
    for rank in range(3):
        registry.register(registration(rank), now=0.0)
        registry.heartbeat(heartbeat(rank), now=1.0 if rank == 1 else now)
    registry.heartbeat(heartbeat(1, **report), now=1.0)
    return list(alerts_of(registry.snapshot(now), thresholds, POLICY))


@pytest.mark.parametrize(
    ("report", "name"),
    [
        ({"resources": Resources(cpu_percent=90.0)}, "cpu_percent"),
        ({"resources": Resources(memory_used=95, memory_total=100)}, "memory_percent"),
        ({"resources": Resources(disk_used=96, disk_total=100)}, "disk_percent"),
        ({"resources": Resources(temperature_c=100.0)}, "temperature"),
        ({"memory": Memory(active=99, limit=100)}, "gpu_memory_percent"),
    ],
)
def test_each_threshold(report: Any, name: str) -> None:
    [alert] = alerts(**report)
    assert (alert.name, alert.rank, alert.node) == (name, 1, "mini2")
    assert f"{name} of mini2 (rank 1) is" in alert.message
    assert alerts(thresholds=AlertsConfig(**{name: None}), **report) == []


def test_what_is_below_or_not_known_is_no_alert() -> None:
    assert alerts(thresholds=AlertsConfig(), resources=CALM) == []
    assert alerts(memory=Memory(active=99, limit=0)) == []


def test_late_heartbeats_are_an_alert_and_a_dead_rank_is_none() -> None:
    assert alerts(now=10.9) == []
    [late] = alerts(now=11.0)
    assert (late.name, late.value, late.rank) == ("heartbeats", 2.0, 1)
    assert alerts(now=17.0) == []  # dead: told as a fault


def test_a_failed_rank_is_no_alert() -> None:
    assert alerts(state=RankState.FAILED, memory=Memory(active=99, limit=100)) == []


def test_metrics_show_each_alert_while_it_lasts() -> None:
    raised = [Alert("temperature", 1, "mini2", 101.0, 100.0)]
    registry = CollectorRegistry()
    registry.register(AlertMetrics("demo", lambda: raised))
    labels = {"model_name": "demo", "rank": "1", "node": "mini2", "alert": "temperature"}
    assert registry.get_sample_value("mlxc_alert_value", labels) == 101.0
    assert registry.get_sample_value("mlxc_alerts", {"model_name": "demo"}) == 1
    raised.clear()
    assert registry.get_sample_value("mlxc_alert_value", labels) is None
    assert registry.get_sample_value("mlxc_alerts", {"model_name": "demo"}) == 0
