"""The inference port of every rank but 0: each request goes to rank 0, and its answer comes back as it is.

Written against ASGI instead of with a streaming response, because a client that goes away must cancel the
request upstream also while nothing is being sent: in the queue, or in a long prefill.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from server.api.errors import ApiError, BodyTooLarge, InvalidRequest, NotReady, Overloaded, respond
from server.api.request_id import HEADER
from server.node.app import node_app
from server.node.relay import end_to_end, relay
from server.node.upload import ClientGone, Upload, until_gone

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ForwardLimits:
    """Bounds of one forwarding port; seconds and bytes."""

    max_body_bytes: int
    max_connections: int = 1000  # requests under way together
    connect_timeout_s: float = 2.0
    write_timeout_s: float = 30.0  # rank 0 takes no bytes
    upload_timeout_s: float = 30.0  # the client sends no bytes


def forward_app(host: str, port: int, limits: ForwardLimits) -> Starlette:
    """An application that forwards everything to http://host:port, rank 0's inference address."""
    forwarder = Forwarder(httpx.URL(scheme="http", host=host, port=port), limits)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await forwarder.close()

    return node_app([Mount("/", app=forwarder)], lifespan)


class Forwarder:
    """An ASGI application; below it must be RequestIdMiddleware, and `close` ends its use."""

    def __init__(self, upstream: httpx.URL, limits: ForwardLimits) -> None:
        self._upstream = upstream
        self._limits = limits
        self._client = _client(limits)

    async def close(self) -> None:
        await self._client.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        upload = Upload(receive, self._limits.max_body_bytes, self._limits.upload_timeout_s)
        try:
            response = await self._ask(scope, upload)
            try:
                await until_gone(relay(response, send), receive)
            finally:
                await response.aclose()
        except ApiError as error:
            refusal = await respond(Request(scope), error)
            # What is left of the body is not read, so the connection can't be used again.
            refusal.headers["connection"] = "close"
            await refusal(scope, receive, send)
        except ClientGone:
            return

    async def _ask(self, scope: Scope, upload: Upload) -> httpx.Response:
        """Rank 0's response with its body still to come.  Raises ApiError and ClientGone."""
        try:
            request = self._request(scope, upload)
            return await until_gone(self._client.send(request, stream=True), upload.receive_after)
        except BodyTooLarge:
            await upload.discard()
            raise
        except httpx.InvalidURL as error:
            raise InvalidRequest("The request target is not a path.") from error
        except httpx.PoolTimeout as error:
            limit = self._limits.max_connections
            raise Overloaded(f"{limit} requests are under way on this node.") from error
        except httpx.TransportError as error:
            log.warning("rank 0 unreachable", error=repr(error))
            address = f"{self._upstream.host}:{self._upstream.port}"
            reason = type(error).__name__
            raise NotReady(f"Rank 0 at {address} does not answer ({reason}).") from error

    def _request(self, scope: Scope, upload: Upload) -> httpx.Request:
        target: bytes = scope["raw_path"]
        if scope["query_string"]:
            target += b"?" + scope["query_string"]
        given = dict(scope["headers"])
        has_body = b"content-length" in given or b"transfer-encoding" in given
        if has_body:
            upload.check_announced(
                0 if b"transfer-encoding" in given else int(given.get(b"content-length", 0))
            )
        else:
            upload.skip()
        own = {b"host", HEADER.encode()}
        if b"transfer-encoding" in given:  # it overrides content-length (RFC 9112, 6.3)
            own.add(b"content-length")
        headers = [header for header in end_to_end(scope["headers"]) if header[0] not in own]
        headers.append((HEADER.encode(), scope["state"]["request_id"].encode()))
        # Not through the client, which would add headers of its own, like accept-encoding.
        return httpx.Request(
            scope["method"],
            self._upstream.copy_with(raw_path=target),
            headers=headers,
            content=upload.chunks() if has_body else None,
        )


def _client(limits: ForwardLimits) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(
        limits=httpx.Limits(max_connections=limits.max_connections),
        socket_options=_keepalive_options(),
    )
    timeout = httpx.Timeout(
        connect=limits.connect_timeout_s,
        # A long prefill sends nothing for as long as it takes; a dead peer is noticed by TCP.
        read=None,
        write=limits.write_timeout_s,
        pool=limits.connect_timeout_s,
    )
    # No proxy from the environment can reach a neighbour.
    return httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False)


def _keepalive_options() -> list[tuple[int, int, int]]:
    """Socket options that break a connection whose peer has been silent for about 30 s."""
    # Linux and macOS have different names for the idle time.
    idle = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE", None)
    options = [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    ]
    return options if idle is None else [*options, (socket.IPPROTO_TCP, idle, 15)]
