"""The inference port of every rank but 0: each request goes to rank 0, and its answer comes back as it is.

Written against ASGI instead of with a streaming response, because a client that goes away must cancel the
request upstream also while nothing is being sent: in the queue, or in a long prefill.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

import httpx
import structlog
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount
from starlette.types import Message, Receive, Scope, Send

from server.node.responses import (
    EXCEPTION_HANDLERS,
    REQUEST_ID,
    error_body,
    error_response,
    not_ready,
)

log = structlog.get_logger()

Header = tuple[bytes, bytes]
T = TypeVar("T")

# RFC 9110, 7.6.1: meant for one connection only.  `expect` is answered by this server.
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade expect".split()
)
# This server sets its own.
OWN_HEADERS = frozenset((b"date", b"server"))

# The rest of a refused body is not read, so the connection can't be used again.
_CLOSE = {"connection": "close"}
_DISCARD_S = 2.0

_EVENT_STREAM = b"text/event-stream"


@dataclass(frozen=True)
class ForwardLimits:
    """Bounds of one forwarding port; seconds and bytes."""

    max_body_bytes: int
    max_connections: int = 1000  # requests under way together
    connect_timeout_s: float = 2.0
    write_timeout_s: float = 30.0  # rank 0 takes no bytes
    upload_timeout_s: float = 30.0  # the client sends no bytes


class BodyTooLarge(Exception):
    """The body is longer than allowed."""


class UploadStalled(Exception):
    """The client stopped sending in the middle of its body."""


class ClientGone(Exception):
    """The client closed the connection."""


def forward_app(host: str, port: int, limits: ForwardLimits) -> Starlette:
    """An application that forwards everything to http://host:port, rank 0's inference address."""
    forwarder = Forwarder(httpx.URL(scheme="http", host=host, port=port), limits)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with forwarder:
            yield

    return Starlette(
        routes=[Mount("/", app=forwarder)],
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=lifespan,
    )


class Forwarder:
    """An ASGI application; an open async context while it serves."""

    def __init__(self, upstream: httpx.URL, limits: ForwardLimits) -> None:
        self._upstream = upstream
        self._limits = limits
        self._client = _client(limits)

    async def __aenter__(self) -> Forwarder:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._client.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        request_id = _request_id(scope)
        body = _RequestBody(receive, self._limits)
        try:
            response = await self._ask(scope, body, request_id)
        except ClientGone:
            return
        if isinstance(response, JSONResponse):
            response.headers[REQUEST_ID] = request_id
            await response(scope, receive, send)
            return
        try:
            await _until_gone(_relay(response, send), receive)
        except ClientGone:
            return
        finally:
            await response.aclose()

    async def _ask(
        self, scope: Scope, body: _RequestBody, request_id: str
    ) -> httpx.Response | JSONResponse:
        """Rank 0's response with its body still to come, or this node's refusal."""
        try:
            request = self._request(scope, body, request_id)
            return await body.send_with(self._client, request)
        except BodyTooLarge as error:
            await body.discard()
            return error_response(413, str(error), code="request_too_large", headers=_CLOSE)
        except UploadStalled as error:
            return error_response(408, str(error), headers=_CLOSE)
        except httpx.InvalidURL:
            return error_response(400, "the request target is not a path")
        except httpx.PoolTimeout:
            message = f"{self._limits.max_connections} requests are under way on this node"
            return not_ready(message, code="overloaded")
        except httpx.TransportError as error:
            log.warning("rank 0 unreachable", request_id=request_id, error=repr(error))
            address = f"{self._upstream.host}:{self._upstream.port}"
            return not_ready(f"rank 0 at {address} does not answer ({type(error).__name__})")

    def _request(self, scope: Scope, body: _RequestBody, request_id: str) -> httpx.Request:
        target: bytes = scope["raw_path"]
        if scope["query_string"]:
            target += b"?" + scope["query_string"]
        headers = [
            (name, value)
            for name, value in end_to_end(scope["headers"])
            if name not in (b"host", REQUEST_ID.encode())
        ]
        headers.append((REQUEST_ID.encode(), request_id.encode("latin-1")))
        names = {name for name, _ in scope["headers"]}
        has_body = bool(names & {b"content-length", b"transfer-encoding"})
        body.check_announced(dict(headers).get(b"content-length"))
        # Not through the client, which would add headers of its own, like accept-encoding.
        return httpx.Request(
            scope["method"],
            self._upstream.copy_with(raw_path=target),
            headers=headers,
            content=body.chunks() if has_body else None,
        )


class _RequestBody:
    """The client's body, on its way upstream: counted, and each wait for more of it bounded."""

    def __init__(self, receive: Receive, limits: ForwardLimits) -> None:
        self._receive = receive
        self._limits = limits
        self._sent = asyncio.Event()

    def check_announced(self, length: bytes | None) -> None:
        """Raises BodyTooLarge."""
        if length is not None and int(length) > self._limits.max_body_bytes:
            raise BodyTooLarge(self._too_large())

    async def chunks(self) -> AsyncIterator[bytes]:
        """Raises BodyTooLarge, UploadStalled and ClientGone."""
        total, more = 0, True
        while more:
            message = await self._next()
            chunk: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            total += len(chunk)
            if total > self._limits.max_body_bytes:
                raise BodyTooLarge(self._too_large())
            yield chunk
        self._sent.set()

    async def discard(self) -> None:
        """Read on for a moment: closing on a client that still sends makes it miss the answer."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._read_on(), _DISCARD_S)

    async def _read_on(self) -> None:
        left, more = self._limits.max_body_bytes, True
        while more and left > 0:
            message = await self._receive()
            left -= len(message.get("body", b""))
            more = message.get("more_body", False)

    async def send_with(self, client: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
        """Send; while the response is awaited, a client that goes away raises ClientGone."""
        if "content-length" not in request.headers and "transfer-encoding" not in request.headers:
            self._sent.set()
        return await _until_gone(client.send(request, stream=True), self._after_body)

    async def _after_body(self) -> Message:
        # The body's messages belong to `chunks`; only what follows it says that the client is gone.
        await self._sent.wait()
        return await self._receive()

    async def _next(self) -> Message:
        limit = self._limits.upload_timeout_s
        try:
            message = await asyncio.wait_for(self._receive(), limit)
        except asyncio.TimeoutError:
            raise UploadStalled(f"no more of the body came for {limit:g} s") from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message

    def _too_large(self) -> str:
        return f"the request body is larger than {self._limits.max_body_bytes} bytes"


def end_to_end(headers: Iterable[Header]) -> list[Header]:
    """Headers without those that concern one connection; names in lower case."""
    lowered = [(name.lower(), value) for name, value in headers]
    named = {
        token.strip().lower()
        for name, value in lowered
        if name == b"connection"
        for token in value.split(b",")
    }
    return [(name, value) for name, value in lowered if name not in HOP_BY_HOP | named]


async def _relay(response: httpx.Response, send: Send) -> None:
    """Send the response on, each piece as it comes.

    When rank 0 breaks off, an event stream ends with an error event; other bodies stay incomplete,
    which makes the server cut the connection, so that no client takes half an answer for a whole one.
    """
    headers = [h for h in end_to_end(response.headers.raw) if h[0] not in OWN_HEADERS]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    last = b"\n\n"
    try:
        async for chunk in response.aiter_raw():
            last = (last + chunk)[-4:]
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except httpx.TransportError as error:
        log.warning("rank 0 broke off", error=repr(error))
        between_events = last.endswith((b"\n\n", b"\r\n\r\n"))
        if not (_is_event_stream(headers) and between_events):
            return
        await send({"type": "http.response.body", "body": _broken_off(), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _broken_off() -> bytes:
    body = error_body("the connection to rank 0 was lost", "server_error", "internal_error")
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def _is_event_stream(headers: Iterable[Header]) -> bool:
    return any(
        name == b"content-type" and value.startswith(_EVENT_STREAM) for name, value in headers
    )


async def _until_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """The result of `work`; cancels it and raises ClientGone when the client goes away first."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        gone.cancel()
        task.cancel()
        # Upstream must be let go before the connection of the client is.
        await asyncio.wait({task})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


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
    idle = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE", None)
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if idle is not None:  # Linux and macOS have different names for it
        options.append((socket.IPPROTO_TCP, idle, 15))
    return [
        *options,
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    ]


def _request_id(scope: Scope) -> str:
    """The client's own id if it is fit for a log line, else a fresh one."""
    given = dict(scope["headers"]).get(REQUEST_ID.encode(), b"").decode("latin-1")
    fit = 0 < len(given) <= 128 and given.isascii() and given.isprintable()
    return given if fit else f"req-{uuid4().hex}"
