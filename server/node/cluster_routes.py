"""/health, /ready and /v1/cluster of rank 0: the cluster as the coordinator sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from server.api.errors import RETRY_AFTER_S
from server.observe.alerts import Alert
from server.rpc.records import LEADER, ClusterSnapshot, Memory, RankReport, RankSnapshot

Body = dict[str, object]

_REPORTED = (
    "load_progress",
    "parameter_bytes",
    "memory",
    "sequences",
    "last_step_age_s",
    "counters",
    "stage",
    "resources",
)


@dataclass(frozen=True)
class EngineStats:
    """The engine at one moment."""

    running: int = 0
    waiting: int = 0
    last_step_age_s: float | None = None  # None before the first step
    busy_s: float = 0.0  # since there last was no request at all; 0 when idle

    @property
    def stalled_s(self) -> float:
        """Seconds with work but without a step.  An idle engine's old last step does not count."""
        if self.running + self.waiting == 0:
            return 0.0
        return (
            self.busy_s if self.last_step_age_s is None else min(self.busy_s, self.last_step_age_s)
        )


@dataclass(frozen=True)
class ClusterView:
    """What the routes need to know, read anew for every request."""

    name: str
    model: str
    version: str
    hang_after_s: float  # a step that takes longer counts as hung
    snapshot: Callable[[], ClusterSnapshot]
    engine_stats: Callable[[], EngineStats]
    scheduling: Callable[[], Body | None]  # None until the engine is there
    uptime_s: Callable[[], float]
    alerts: Callable[[ClusterSnapshot], Sequence[Alert]] = lambda snapshot: ()


def cluster_routes(view: ClusterView) -> list[Route]:
    """The routes for rank 0's application; all of them cheap and without side effects."""

    async def health(request: Request) -> JSONResponse:
        snapshot, stats = view.snapshot(), view.engine_stats()
        alerts = view.alerts(snapshot)
        status, reason = status_of(view, snapshot, stats, alerts)
        body = _summary(view, snapshot, stats, alerts, status, reason)
        return JSONResponse(body, 503 if status == "failing" else 200)

    async def ready(request: Request) -> JSONResponse:
        snapshot, stats = view.snapshot(), view.engine_stats()
        reason = fault_of(snapshot, stats, view.hang_after_s) or snapshot.reason
        alerts, status = view.alerts(snapshot), "not_ready" if reason else "ready"
        body = _summary(view, snapshot, stats, alerts, status, reason)
        if reason:
            return JSONResponse(body, 503, {"retry-after": str(RETRY_AFTER_S)})
        return JSONResponse(body)

    async def cluster(request: Request) -> JSONResponse:
        return JSONResponse(_cluster(view, view.snapshot()))

    return [
        Route("/health", health, methods=["GET"]),
        Route("/ready", ready, methods=["GET"]),
        Route("/v1/cluster", cluster, methods=["GET"]),
    ]


def fault_of(snapshot: ClusterSnapshot, stats: EngineStats, hang_after_s: float) -> str:
    """Why the cluster can't work any more, in one sentence; empty while it starts or works."""
    if snapshot.broken:
        return snapshot.reason
    if stats.stalled_s > hang_after_s:
        return (
            f"no step for {stats.stalled_s:.0f} s with {stats.running} requests running "
            f"and {stats.waiting} waiting"
        )
    return ""


def status_of(
    view: ClusterView, snapshot: ClusterSnapshot, stats: EngineStats, alerts: Sequence[Alert]
) -> tuple[str, str]:
    """In one word, and why, in one sentence; a degraded cluster serves."""
    fault = fault_of(snapshot, stats, view.hang_after_s)
    if fault:
        return "failing", fault
    if not snapshot.ready:
        return "starting", snapshot.reason
    if alerts:
        return "degraded", alerts[0].message
    return "ok", ""


def _summary(
    view: ClusterView,
    snapshot: ClusterSnapshot,
    stats: EngineStats,
    alerts: Sequence[Alert],
    status: str,
    reason: str,
) -> Body:
    return {
        "status": status,
        "reason": reason,
        "model": view.model,
        "version": view.version,
        "uptime_s": view.uptime_s(),
        "running": stats.running,
        "waiting": stats.waiting,
        "last_step_age_s": stats.last_step_age_s,
        "alerts": [alert.message for alert in alerts],
        "ranks": [_rank_summary(rank) for rank in snapshot.ranks],
        "wishes": asdict(snapshot.wishes),
    }


def _rank_summary(rank: RankSnapshot) -> Body:
    return {
        "rank": rank.rank,
        "node": rank.node,
        "layers": list(rank.registration.layers),
        "state": rank.state.value,
        "heartbeat_age_s": rank.heartbeat_age_s,
        "memory_bytes": rank.report.memory.active if rank.report else None,
    }


def _cluster(view: ClusterView, snapshot: ClusterSnapshot) -> Body:
    leader = next((rank.node for rank in snapshot.ranks if rank.rank == LEADER), None)
    return {
        "object": "cluster",
        "name": view.name,
        "model": view.model,
        "version": view.version,
        "epoch": snapshot.epoch,
        "size": snapshot.size,
        "ready": snapshot.ready,
        "reason": snapshot.reason,
        "leader": {"rank": LEADER, "node": leader},
        "config_revision": snapshot.config_revision,
        "missing_ranks": list(snapshot.missing),
        "scheduling": view.scheduling(),
        "ranks": [_rank_detail(rank) for rank in snapshot.ranks],
    }


def _rank_detail(rank: RankSnapshot) -> Body:
    registration = rank.registration
    first, last = registration.layers
    return {
        "rank": registration.rank,
        "node": registration.node,
        "host": registration.host,
        "pid": registration.pid,
        "ports": asdict(registration.ports),
        "layers": {"range": [first, last], "count": last - first + 1},
        "fingerprint": registration.fingerprint,
        "versions": asdict(registration.versions),
        "state": rank.state.value,
        "reason": rank.reason,
        "heartbeat_age_s": rank.heartbeat_age_s,
        "config_revision": rank.config_revision,
        **_reported(rank.report),
    }


def _reported(report: RankReport | None) -> Body:
    """What only the rank itself knows; null before its first heartbeat, and what it has not loaded."""
    if report is None:
        return dict.fromkeys(_REPORTED)
    values = (
        report.load_progress,
        report.parameter_bytes or None,
        memory_body(report.memory),
        report.sequences,
        report.last_step_age_s,
        report.counters and asdict(report.counters),
        report.stage and asdict(report.stage),
        report.resources and asdict(report.resources),
    )
    return dict(zip(_REPORTED, values, strict=True))


def memory_body(memory: Memory) -> Body:
    """Bytes by MLX's own counters."""
    return {
        "active_bytes": memory.active,
        "peak_bytes": memory.peak,
        "cache_bytes": memory.cache,
        "limit_bytes": memory.limit or None,
    }
