"""Where metrics meet: what is defined with `registry=REGISTRY` is in /metrics of the gateway."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PREFIX = "mlxc_"  # of every name

REGISTRY = CollectorRegistry(auto_describe=False)


def metrics_route(*registries: CollectorRegistry) -> Route:
    """/metrics in Prometheus's text format; no name may be in two of the registries."""

    async def answer(request: Request) -> Response:
        text = b"".join(generate_latest(registry) for registry in registries)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return Route("/metrics", answer, methods=["GET"])
