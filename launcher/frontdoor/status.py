"""/health, /ready and /metrics of the front door: what the launcher knows, with what rank 0 says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from launcher.frontdoor.leadership import Leadership
from launcher.frontdoor.metrics import REGISTRY
from server.api.errors import RETRY_AFTER_S
from server.api.wire import to_json

Ask = Callable[[str, dict[str, str]], Awaitable[httpx.Response | None]]
_CREDENTIALS = ("authorization", "x-api-key")


class StatusRoutes:
    """`ask` gets a path of rank 0 and headers; `status` is what the launcher adds."""

    def __init__(
        self, leadership: Leadership, ask: Ask, status: Callable[[], dict[str, object]]
    ) -> None:
        self._leadership, self._ask, self._status = leadership, ask, status

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/health", self._health, methods=["GET"]),
            Route("/ready", self._ready, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
        ]

    async def _health(self, request: Request) -> Response:
        return await self._told(request, "/health", "failing")

    async def _ready(self, request: Request) -> Response:
        return await self._told(request, "/ready", "not_ready")

    async def _told(self, request: Request, path: str, absent: str) -> Response:
        answer = await self._ask(path, _passed_on(request))
        body = None if answer is None else _object(answer.content)
        if answer is None or body is None:
            reason = self._leadership.reason if self._leadership.address is None else ""
            body = {"status": absent, "reason": reason or "rank 0 does not answer"}
            status = 503
        else:
            status = answer.status_code
        headers = {"retry-after": str(RETRY_AFTER_S)} if status == 503 else {}
        shown = to_json({**body, "launcher": self._status()})
        return Response(shown, status, headers, media_type="application/json")

    async def _metrics(self, request: Request) -> Response:
        text = generate_latest(REGISTRY)
        answer = await self._ask("/metrics", _passed_on(request))
        if answer is not None and answer.status_code == 200:
            text += answer.content
        return Response(text, media_type=CONTENT_TYPE_LATEST)


def _passed_on(request: Request) -> dict[str, str]:
    """Rank 0 asks for the same key."""
    headers = {name: request.headers[name] for name in _CREDENTIALS if name in request.headers}
    if request.client is not None:
        before = request.headers.getlist("x-forwarded-for")  # of a proxy that rank 0 may trust
        headers["x-forwarded-for"] = ", ".join([*before, request.client.host])
    return headers


def _object(content: bytes) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except msgspec.MsgspecError:
        return None
