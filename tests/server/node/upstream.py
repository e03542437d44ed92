"""A forwarder between a real client and a rank 0 that the test directs, on free ports of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from starlette.types import Receive, Scope, Send

from server.node.forward import ForwardLimits, forward_app
from server.node.serve import HttpServers, Listener, start_servers

LIMITS = ForwardLimits(max_body_bytes=1000)
HALF_A_REQUEST = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf"
WAIT_S = 30  # until a test gives up; never reached when it passes


class Upstream:
    """Rank 0 as the forwarder sees it: a bare ASGI application that the test directs by path."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.body = b""
        self.go_on = asyncio.Event()
        self.reached = asyncio.Event()
        self.client_gone = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        self.scopes.append(scope)
        action = scope["path"].strip("/").split("/")[0]
        await getattr(self, action, self.echo)(receive, send)

    async def echo(self, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            self.body += message.get("body", b"")
            more = message.get("more_body", False)
        await self.begin(send, 201, b"application/json", (b"x-request-id", b"abc"))
        await send({"type": "http.response.body", "body": b'{"echo": true}'})

    async def stream(self, receive: Receive, send: Send) -> None:
        await self.begin(send, 200, b"text/event-stream")
        for number in range(3):
            event = b"data: %d\n\n" % number
            await send({"type": "http.response.body", "body": event, "more_body": True})
            await self.go_on.wait()
            self.go_on.clear()
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def silent(self, receive: Receive, send: Send) -> None:
        """A long prefill: nothing is sent until the client goes away."""
        self.reached.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        self.client_gone.set()

    async def paused(self, receive: Receive, send: Send) -> None:
        """The same in the middle of a stream."""
        await self.begin(send, 200, b"text/event-stream")
        await send({"type": "http.response.body", "body": b"data: 0\n\n", "more_body": True})
        await self.silent(receive, send)

    async def breaks(self, receive: Receive, send: Send) -> None:
        """Rank 0 dies between two events."""
        await self.begin(send, 200, b"text/event-stream")
        await send({"type": "http.response.body", "body": b"data: 0\n\n", "more_body": True})

    async def breaks_inside(self, receive: Receive, send: Send) -> None:
        """Rank 0 dies in the middle of an event."""
        await self.begin(send, 200, b"text/event-stream")
        await send({"type": "http.response.body", "body": b'data: {"half', "more_body": True})

    async def begin(
        self, send: Send, status: int, content_type: bytes, *more: tuple[bytes, bytes]
    ) -> None:
        headers = [
            (b"content-type", content_type),
            (b"connection", b"x-private"),
            (b"x-private", b"1"),
            (b"set-cookie", b"a=1"),
            (b"set-cookie", b"b=2"),
            *more,
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})


@asynccontextmanager
async def node(
    limits: ForwardLimits = LIMITS,
) -> AsyncIterator[tuple[Upstream, httpx.AsyncClient, HttpServers]]:
    upstream = Upstream()
    rank0 = await start_servers([Listener("rank 0", upstream, "127.0.0.1", 0)])
    host, port = rank0.addresses["rank 0"]
    forwarder = await start_servers(
        [Listener("node", forward_app(host, port, limits), "127.0.0.1", 0)]
    )
    address = forwarder.addresses["node"]
    try:
        base = f"http://{address[0]}:{address[1]}"
        async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=WAIT_S) as client:
            yield upstream, client, rank0
    finally:
        await forwarder.stop(0)
        await rank0.stop(0)


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    return dict(scope["headers"])
