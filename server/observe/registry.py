"""Where metrics meet: what is defined with `registry=REGISTRY` is in /metrics of the gateway."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PREFIX = "mlxc_"  # of every name

REGISTRY = CollectorRegistry(auto_describe=False)


def metrics_route(registry: CollectorRegistry = REGISTRY) -> Route:
    """/metrics in Prometheus's text format."""

    async def answer(request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return Route("/metrics", answer, methods=["GET"])
