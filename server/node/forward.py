"""The inference port of every rank but 0: each request goes to rank 0, and its answer comes back as it is.

Written against ASGI instead of with a streaming response, because a client that goes away must cancel the
request upstream also while nothing is being sent: in the queue, or in a long prefill.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import httpx
import structlog
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from config.keepalive import KeepAlive
from server.api.body import BodyReader
from server.api.disconnect import unless_disconnected
from server.api.errors import ApiError, InvalidRequest, NotReady, Overloaded, respond
from server.api.request_id import HEADER
from server.node.app import node_app
from server.node.relay import end_to_end, relay
from server.replay.records import HEADER as JOURNAL_HEADER
from server.replay.records import KEPT_HEADER

log = structlog.get_logger(__name__)

# Made anew: the whole body is sent at once, so its length is known.  No client asks for a journal: rank 0
# believes what its neighbours tell of one.  Host stays what it was: by it and by Origin rank 0 knows whose page
# it is that asks.
_REPLACED = frozenset(
    name.encode() for name in ("content-length", HEADER, JOURNAL_HEADER, KEPT_HEADER)
)


DOTS = frozenset((b".", b".."))  # segments of a path


@dataclass(frozen=True)
class ForwardLimits:
    """Bounds of one forwarding port; seconds and bytes."""

    max_body_bytes: int
    # Under way at rank 0 together.  Uploads don't count: they are bounded as connections and in bytes.
    max_requests: int = 256
    connect_timeout_s: float = 2.0
    write_timeout_s: float = 30.0  # rank 0 takes no bytes
    body_patience_s: float = 30.0  # see BodyReader
    keepalive: KeepAlive = field(default_factory=KeepAlive)


@dataclass(frozen=True)
class UpstreamTls:
    """How rank 0 is called where it wants a certificate: `name` is the one that its own must have."""

    context: ssl.SSLContext
    name: str


def forward_app(
    host: str, port: int, limits: ForwardLimits, tls: UpstreamTls | None = None
) -> Starlette:
    """An application that forwards everything to rank 0's inference address."""
    scheme = "http" if tls is None else "https"
    forwarder = Forwarder(httpx.URL(scheme=scheme, host=host, port=port), limits, tls)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await forwarder.close()

    return node_app([Mount("/", app=forwarder)], lifespan)


class Unanswered(NotReady):
    """Rank 0 has not answered, and may have got the request."""


class Forwarder:
    """An ASGI application; below it must be RequestIdMiddleware, and `close` ends its use."""

    def __init__(
        self,
        upstream: httpx.URL,
        limits: ForwardLimits,
        tls: UpstreamTls | None = None,
        withheld: frozenset[bytes] = frozenset(),
    ) -> None:
        """`withheld`: names of headers that are not passed on."""
        self._left_out = _REPLACED | withheld
        self._upstream = upstream
        self._extensions = {} if tls is None else {"sni_hostname": tls.name}
        self._max_requests = limits.max_requests
        self._under_way = 0
        self._bodies = BodyReader(limits.max_body_bytes, limits.body_patience_s)
        self._client = new_client(limits, None if tls is None else tls.context)

    async def close(self) -> None:
        await self._client.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        try:
            self._check_place()
            # Rank 0 is asked once the whole body is here: a slow client holds no place and no connection.
            await self.forward(scope, await body_of(self._bodies, scope, receive), receive, send)
        except ApiError as error:
            refusal = await respond(Request(scope), error)
            await refusal(scope, receive, send)
        except ClientDisconnect:
            return

    def _check_place(self) -> None:
        if self._under_way >= self._max_requests:
            raise Overloaded(f"{self._max_requests} requests are under way on this node.")

    @contextmanager
    def _place(self) -> Iterator[None]:
        """One of the places for requests under way."""
        self._check_place()
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    async def forward(self, scope: Scope, body: bytes | None, receive: Receive, send: Send) -> None:
        """Pass on a request of which all is here.

        Raises ClientDisconnect; and before anything is sent Unanswered, Overloaded and InvalidRequest.
        """
        with self._place():
            response = await unless_disconnected(receive, self._ask(scope, body))
            try:
                await unless_disconnected(receive, relay(response, send))
            finally:
                await response.aclose()

    async def _ask(self, scope: Scope, body: bytes | None) -> httpx.Response:
        """Rank 0's response with its body still to come."""
        try:
            return await self._client.send(self._request(scope, body), stream=True)
        except httpx.InvalidURL as error:
            raise InvalidRequest("The request target is not a path.") from error
        except httpx.PoolTimeout as error:
            raise Overloaded("All connections of this node to rank 0 are in use.") from error
        except httpx.TransportError as error:
            log.warning("rank 0 unreachable", error=repr(error))
            address = f"{self._upstream.host}:{self._upstream.port}"
            reason = type(error).__name__
            raise Unanswered(f"Rank 0 at {address} does not answer ({reason}).") from error

    def _request(self, scope: Scope, body: bytes | None) -> httpx.Request:
        target: bytes = scope["raw_path"]
        if not DOTS.isdisjoint(target.split(b"/")):
            # httpx resolves them: what arrives would be another path than the one that was looked at here.
            raise InvalidRequest("No path here has the segments . or ..")
        if scope["query_string"]:
            target += b"?" + scope["query_string"]
        headers = [
            header for header in end_to_end(scope["headers"]) if header[0] not in self._left_out
        ]
        headers.append((HEADER.encode(), scope["state"]["request_id"].encode()))
        if scope.get("client"):  # rank 0 believes it of its neighbours, and decides by it
            headers.append((b"x-forwarded-for", scope["client"][0].encode()))
        # Not through the client, which would add headers of its own, like accept-encoding.
        return httpx.Request(
            scope["method"],
            self._upstream.copy_with(raw_path=target),
            headers=headers,
            content=body,
            extensions=self._extensions,
        )


async def body_of(bodies: BodyReader, scope: Scope, receive: Receive) -> bytes | None:
    """The whole body; None where there is none, not even an empty one."""
    headers = Headers(scope=scope)
    if "content-length" in headers or "transfer-encoding" in headers:
        return await bodies.read(headers, receive)
    return None


def new_client(
    limits: ForwardLimits, context: ssl.SSLContext | None, *, bounded: bool = True
) -> httpx.AsyncClient:
    """`bounded`: by `max_requests`; else by those who ask, each of whom has a connection of its own."""
    transport = httpx.AsyncHTTPTransport(
        verify=False if context is None else context,  # False: nothing to verify, it is plain HTTP
        limits=httpx.Limits(max_connections=limits.max_requests if bounded else None),
        socket_options=limits.keepalive.options,
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
