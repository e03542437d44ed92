"""One client's connection: how long it may keep a place, and who gives way when places run out.

A connection is *waiting* while it is the client's turn: before a request, between two, and until a body is
whole.  Beyond the limit, the one that has waited longest makes room for a new one.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from starlette.requests import Request
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from server.api.errors import Failure, Overloaded, respond
from server.api.request_id import RequestIdMiddleware
from server.api.wire import to_json

_NOT_HTTP = Failure(400, "This is not a valid HTTP/1.1 request.", "invalid_request_error")

MAX_HEADER_BYTES = 32 << 10  # request line and headers together
_HEADER_TOO_LARGE = Failure(
    431,
    f"The header of a request may have at most {MAX_HEADER_BYTES} bytes.",
    "invalid_request_error",
    code="request_too_large",
)


@dataclass(frozen=True)
class ConnectionLimits:
    """Bounds of the connections of one application."""

    connections: int = 2048  # open together; less where the process may have few descriptors
    spare: int = 64  # more, so that each beyond the limit can be told so
    # Seconds from the beginning of a connection, or the first byte of a later request, to the end of its
    # header; also for the rest of a body that was refused.
    header_s: float = 20.0
    write_s: float = 60.0  # seconds in which a client that lets data pile up must take some
    evict_after_s: float = 1.0  # seconds that a connection may wait undisturbed
    # Seconds between two requests.  Above the idle time of most clients and load balancers, so that it is they
    # who close an idle connection and no request meets one that is just being closed.
    keep_alive_s: int = 75


class LimitedConfig(uvicorn.Config):
    """uvicorn's settings with the limits of the connections."""

    limits: ConnectionLimits


class Connection(H11Protocol):
    """uvicorn's connection, with deadlines, a place among a bounded number, and errors in JSON."""

    def __init__(
        self,
        config: LimitedConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = config.limits
        self._since = self.loop.time()
        self._refused = False
        self._header_deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None

    @property
    def waiting_since(self) -> float | None:
        """Loop time since when it is the client's turn; None while a whole request is being answered."""
        cycle = self.cycle
        answering = cycle is not None and not (cycle.response_complete or cycle.more_body)
        return None if answering else self._since

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_header()
        if len(self.connections) > self._limits.connections and not self._make_room():
            if len(self.connections) > self._limits.connections + self._limits.spare:
                transport.abort()
            self._refused, self.app = True, REFUSAL

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch_header()
        self._unwatch_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused and len(self.connections) <= self._limits.connections:
            self._refused, self.app = False, self.config.loaded_app
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._since = self.loop.time()
        if self.cycle is None or self.cycle.response_complete:
            self._watch_header()
        else:
            self._unwatch_header()

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_deadline is None:
            self._write_deadline = self.loop.call_later(self._limits.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._unwatch_writing()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP.  `msg` is uvicorn's text, which is not JSON."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # in the middle of an answer to what was HTTP
            return
        refusal = _NOT_HTTP
        if getattr(sys.exc_info()[1], "error_status_hint", None) == _HEADER_TOO_LARGE.status:
            refusal = _HEADER_TOO_LARGE  # h11 says so while uvicorn handles its error
        reason = HTTPStatus(refusal.status).phrase.encode()
        body = to_json(refusal.body())
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        reply = h11.Response(status_code=refusal.status, headers=headers, reason=reason)
        for event in (reply, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _make_room(self) -> bool:
        """Close the connection that has waited longest; False if none has waited for long."""
        latest = self.loop.time() - self._limits.evict_after_s
        waiting = [
            (since, id(other), other)
            for other in self.connections
            if isinstance(other, Connection)
            and (since := other.waiting_since) is not None
            and since <= latest
        ]
        if not waiting:
            return False
        _, _, longest = min(waiting)
        self.connections.discard(longest)  # it is lost only in the next turn of the loop
        longest.transport.abort()
        return True

    def _watch_header(self) -> None:
        if self._header_deadline is None:
            close = self.transport.close
            self._header_deadline = self.loop.call_later(self._limits.header_s, close)

    def _unwatch_header(self) -> None:
        if self._header_deadline is not None:
            self._header_deadline.cancel()
            self._header_deadline = None

    def _unwatch_writing(self) -> None:
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    overloaded = Overloaded("Too many connections are open on this port.")
    response = await respond(Request(scope), overloaded)
    await response(scope, receive, send)


REFUSAL = RequestIdMiddleware(_refuse)
