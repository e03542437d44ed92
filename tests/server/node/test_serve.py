from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from server.node.serve import Listener, StartupFailed, start_servers
from server.rpc.errors import PortInUse
from server.rpc.listen import bind

pytestmark = pytest.mark.anyio


class App:
    """Answers with its name, streams for ever, and notes what happens to it."""

    def __init__(self, name: str, fails: bool = False) -> None:
        self.name = name
        self.fails = fails
        self.events: list[str] = []
        self.asgi = Starlette(
            routes=[Route("/", self.hello), Route("/stream", self.stream)], lifespan=self.lifespan
        )

    def listener(self, name: str = "", port: int = 0) -> Listener:
        return Listener(name or self.name, self.asgi, "127.0.0.1", port)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        if self.fails:
            raise RuntimeError("no")
        self.events.append("up")
        yield
        self.events.append("down")

    async def hello(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse(self.name)

    async def stream(self, request: Request) -> StreamingResponse:
        async def forever() -> AsyncIterator[bytes]:
            try:
                yield b"first"
                await asyncio.Event().wait()
            finally:
                self.events.append("cancelled")

        return StreamingResponse(forever())


def url(address: tuple[str, int], path: str = "/") -> str:
    return f"http://{address[0]}:{address[1]}{path}"


async def test_several_apps_and_ports_in_one_loop_and_each_app_starts_once() -> None:
    one, two = App("one"), App("two")
    handler = signal.getsignal(signal.SIGTERM)
    servers = await start_servers([one.listener(), one.listener("again"), two.listener()])
    assert signal.getsignal(signal.SIGTERM) is handler
    async with httpx.AsyncClient(trust_env=False) as client:
        answers = {name: await client.get(url(at)) for name, at in servers.addresses.items()}
    assert {name: answer.text for name, answer in answers.items()} == {
        "one": "one",
        "again": "one",
        "two": "two",
    }
    await servers.stop(1)
    await servers.wait()
    assert one.events == two.events == ["up", "down"]
    for host, port in servers.addresses.values():
        bind(host, port).close()


async def test_a_taken_port_is_an_error_before_anything_starts() -> None:
    one, two = App("one"), App("two")
    with bind("127.0.0.1", 0) as free:
        first = free.getsockname()[1]
    with bind("127.0.0.1", 0) as holder:
        taken = holder.getsockname()[1]
        with pytest.raises(PortInUse, match=f"^port {taken} is already in use on 127.0.0.1$"):
            await start_servers([one.listener(port=first), two.listener(port=taken)])
    assert one.events == two.events == []
    bind("127.0.0.1", first).close()


async def test_an_app_that_does_not_start_stops_the_others() -> None:
    good, bad = App("good"), App("bad", fails=True)
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    with pytest.raises(StartupFailed, match="bad could not start"):
        await start_servers([good.listener(port=port), bad.listener()])
    assert good.events == ["up", "down"]
    bind("127.0.0.1", port).close()


async def test_stopping_cancels_streams_that_do_not_end() -> None:
    app = App("app")
    servers = await start_servers([app.listener()])
    stream = url(servers.addresses["app"], "/stream")
    async with (
        httpx.AsyncClient(trust_env=False) as client,
        client.stream("GET", stream) as response,
    ):
        pieces = response.aiter_raw()
        assert await anext(pieces) == b"first"
        await asyncio.wait_for(servers.stop(0), 30)
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(pieces)
    assert sorted(app.events) == ["cancelled", "down", "up"]
