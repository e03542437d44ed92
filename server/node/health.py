"""The health port of a node: how this rank is, answered by the rank itself, whatever the others do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from server.access.middleware import Guard
from server.api.errors import RETRY_AFTER_S
from server.node.app import node_app
from server.observe.rank_metrics import RankMetrics, RankSample
from server.observe.registry import metrics_route
from server.rpc.records import RankReport, RankState


@dataclass(frozen=True)
class NodeView:
    """What the health port needs to know; `report` is called for every request."""

    rank: int
    node: str
    size: int  # ranks in the ring
    model: str
    version: str
    layers: Callable[[], tuple[int, int] | None]  # inclusive; None until planned
    report: Callable[[], RankReport]
    uptime_s: Callable[[], float]


def health_app(view: NodeView, guard: Guard | None = None) -> Starlette:
    """GET /health: 503 when this rank has failed.  GET /ready: 503 unless it is ready.  GET /metrics."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RankMetrics(view.model, lambda: [_sample(view)]))

    async def health(request: Request) -> JSONResponse:
        report = view.report()
        return _respond(view, report, healthy=report.state is not RankState.FAILED)

    async def ready(request: Request) -> JSONResponse:
        report = view.report()
        return _respond(view, report, healthy=report.state is RankState.READY)

    return node_app(
        [
            Route("/health", health, methods=["GET"]),
            Route("/ready", ready, methods=["GET"]),
            metrics_route(registry),
        ],
        guard=guard,
    )


def _sample(view: NodeView) -> RankSample:
    report = view.report()
    return RankSample(view.rank, view.node, view.size, report.state, report)


def _respond(view: NodeView, report: RankReport, *, healthy: bool) -> JSONResponse:
    layers = view.layers()
    body = {
        "status": report.state.value,
        "reason": report.reason,
        "model": view.model,
        "version": view.version,
        "uptime_s": view.uptime_s(),
        "rank": view.rank,
        "node": view.node,
        "layers": None if layers is None else list(layers),
        "state": report.state.value,
        "load_progress": report.load_progress,
        "memory_bytes": report.memory.active,
        "sequences": report.sequences,
        "last_step_age_s": report.last_step_age_s,
    }
    if healthy:
        return JSONResponse(body)
    return JSONResponse(body, 503, {"retry-after": str(RETRY_AFTER_S)})
