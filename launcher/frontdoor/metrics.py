"""Metrics of the launcher: /metrics of the front door shows them before those of rank 0."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# Not the registry of rank 0's process: no name may stand twice in the joint text.
REGISTRY = CollectorRegistry(auto_describe=False)

FAILOVERS = Counter(
    "mlxc_failovers",
    "Launches of the ring that replaced one that had failed.",
    registry=REGISTRY,
)
RECOVERY_SECONDS = Histogram(
    "mlxc_recovery_seconds",
    "From when a failure was known to when the next launch was ready.",
    buckets=(1, 2, 4, 6, 8, 10, 15, 20, 30, 60, 120, 300, 600),
    registry=REGISTRY,
)
RESUMED = Counter(
    "mlxc_requests_resumed",
    "Requests that went on at another rank 0 after theirs had failed.",
    registry=REGISTRY,
)
ABANDONED = Counter(
    "mlxc_frontdoor_requests_abandoned",
    "Requests that the front door ended with an error, by reason.",
    ["reason"],
    registry=REGISTRY,
)
IN_FLIGHT = Gauge(
    "mlxc_frontdoor_requests_in_flight",
    "Requests at the front door without a whole answer.",
    registry=REGISTRY,
)
WAITING = Gauge(
    "mlxc_frontdoor_requests_waiting",
    "Requests at the front door that wait for a rank to lead.",
    registry=REGISTRY,
)
for _reason in ("faults", "diverged", "refused", "no_leader"):
    ABANDONED.labels(_reason)
