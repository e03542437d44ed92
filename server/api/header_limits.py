"""Requests with more headers than any client sends are refused before any other work."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.errors import HeadersTooLarge, respond

MAX_HEADERS = 100
MAX_TARGET_BYTES = 8 << 10  # path and query


class HeaderLimitMiddleware:
    """Answers 431.  Below it must be nothing that reads headers, above it the request id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = _problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await self._app(scope, receive, send)
            return
        response = await respond(Request(scope), HeadersTooLarge(problem))
        await response(scope, receive, send)


def _problem(scope: Scope) -> str | None:
    if len(scope["headers"]) > MAX_HEADERS:
        return f"A request may have at most {MAX_HEADERS} headers."
    if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_TARGET_BYTES:
        return f"Path and query may have at most {MAX_TARGET_BYTES} bytes."
    return None
