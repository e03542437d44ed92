"""One id per HTTP request: taken from the client or made here, logged and sent back."""

from __future__ import annotations

import re
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.observe.context import request_state

HEADER = "x-request-id"
MAX_TRACEPARENT = 128  # characters; version 0 has 55
_ACCEPTABLE = re.compile(
    r"[\x21-\x7e]{1,128}"
)  # printable ASCII without spaces: safe in a log line


class RequestIdMiddleware:
    """Sets `request.state.request_id` and the header of the response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _id_for(headers.get(HEADER, ""))
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["traceparent"] = headers.get("traceparent", "")[:MAX_TRACEPARENT]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        bound = structlog.contextvars.bound_contextvars(request_id=request_id)
        with bound, request_state(state):
            await self._app(scope, receive, send_with_id)


def _id_for(given: str) -> str:
    return given if _ACCEPTABLE.fullmatch(given) else f"req_{uuid.uuid4().hex}"
