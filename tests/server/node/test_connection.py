"""Clients that idle, stall and crowd, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from server.node.app import node_app
from server.node.connection import ConnectionLimits
from server.node.serve import Listener, affordable, start_servers

pytestmark = pytest.mark.anyio

WAIT_S = 30  # until a test gives up; never reached when it passes
LIMITS = ConnectionLimits(connections=20, spare=5, evict_after_s=0.0)
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
BUSY = GET.replace(b"/ ", b"/busy ", 1)

Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Server:
    """Three paths, and connections to them that are closed at the end."""

    def __init__(self) -> None:
        self.busy = 0
        self.stopped = asyncio.Event()
        self.go_on = asyncio.Event()
        self.address: tuple[str, int] = ("", 0)
        self.app = node_app(
            [
                Route("/", self._hello, methods=["GET", "POST"]),
                Route("/busy", self._busy),
                Route("/flood", self._flood),
            ]
        )
        self._peers: list[Peer] = []

    async def connect(self, first: bytes = b"") -> Peer:
        peer = await asyncio.open_connection(*self.address)
        peer[1].write(first)
        self._peers.append(peer)
        return peer

    async def occupy(self, count: int) -> list[Peer]:
        """`count` connections with a request that is being answered."""
        wanted = self.busy + count
        peers = [await self.connect(BUSY) for _ in range(count)]
        for _ in range(WAIT_S * 100):
            if self.busy == wanted:
                return peers
            await asyncio.sleep(0.01)
        raise AssertionError(f"{self.busy} of {wanted} requests have arrived")

    async def close(self) -> None:
        self.go_on.set()
        for _, writer in self._peers:
            writer.close()

    async def _hello(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    async def _busy(self, request: Request) -> PlainTextResponse:
        self.busy += 1
        await self.go_on.wait()
        return PlainTextResponse("done")

    async def _flood(self, request: Request) -> StreamingResponse:
        async def endless() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x" * (1 << 16)
                    await asyncio.sleep(0)
            finally:
                self.stopped.set()

        return StreamingResponse(endless())


@asynccontextmanager
async def serving(limits: ConnectionLimits) -> AsyncIterator[Server]:
    server = Server()
    http = await start_servers([Listener("one", server.app, "127.0.0.1", 0)], limits)
    server.address = http.addresses["one"]
    try:
        yield server
    finally:
        await server.close()
        await http.stop(0)


async def status(peer: Peer) -> int:
    line = await asyncio.wait_for(peer[0].readline(), WAIT_S)
    return int(line.split()[1])


async def closed(peer: Peer) -> bytes:
    """What still comes until the server closes the connection; b"" also when it is reset."""
    try:
        return await asyncio.wait_for(peer[0].read(), WAIT_S)
    except ConnectionResetError:
        return b""


async def error_of(peer: Peer) -> tuple[dict[str, str], dict[str, Any]]:
    """Headers and error body of a response whose status line was read."""
    head = await asyncio.wait_for(peer[0].readuntil(b"\r\n\r\n"), WAIT_S)
    lines = (line.split(": ", 1) for line in head.decode().splitlines() if line)
    headers = {name.lower(): value for name, value in lines}
    body = await asyncio.wait_for(peer[0].readexactly(int(headers["content-length"])), WAIT_S)
    assert headers["content-type"] == "application/json"
    error: dict[str, Any] = json.loads(body)["error"]
    return headers, error


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HT",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n",
        GET,
    ],
    ids=["silent", "half a header", "half a body", "answered"],
)
async def test_many_times_the_limit_of_waiting_clients_lock_nobody_out(sent: bytes) -> None:
    async with serving(LIMITS) as server:
        for _ in range(600):
            await server.connect(sent)
        assert await status(await server.connect(GET)) == 200


async def test_who_is_being_served_does_not_give_way() -> None:
    async with serving(LIMITS) as server:
        busy = await server.occupy(19)
        idle = [await server.connect() for _ in range(50)]
        assert await closed(idle[0]) == b""
        server.go_on.set()
        assert [await status(peer) for peer in busy] == [200] * 19


async def test_one_too_many_is_told_so_and_welcome_later() -> None:
    async with serving(replace(LIMITS, evict_after_s=WAIT_S)) as server:
        busy = await server.occupy(20)
        extra = await server.connect(GET)
        assert await status(extra) == 503
        headers, error = await error_of(extra)
        assert int(headers["retry-after"]) > 0
        assert headers["x-request-id"].startswith("req_")
        assert (error["type"], error["code"]) == ("server_error", "overloaded")
        server.go_on.set()
        for peer in busy:
            peer[1].close()
        for _ in range(WAIT_S * 100):
            extra[1].write(GET)
            if (found := await status(extra)) == 200:
                break
            await error_of(extra)
            await asyncio.sleep(0.01)
        assert found == 200


async def test_far_too_many_are_hung_up_on() -> None:
    async with serving(replace(LIMITS, evict_after_s=WAIT_S)) as server:
        await server.occupy(20)
        silent = [await server.connect() for _ in range(LIMITS.spare)]
        assert await closed(await server.connect()) == b""
        silent[0][1].write(GET)
        assert await status(silent[0]) == 503


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nx-a: b\r\n"])
async def test_a_header_has_to_come_in_time(sent: bytes) -> None:
    async with serving(replace(LIMITS, header_s=0.1)) as server:
        peer = await server.connect(sent)
        assert await closed(peer) == b""


async def test_a_header_has_to_come_in_time_on_a_kept_connection_too() -> None:
    async with serving(replace(LIMITS, header_s=0.1)) as server:
        peer = await server.connect(GET)
        assert await status(peer) == 200
        peer[1].write(b"GET /")
        assert (await closed(peer)).endswith(b"hello")


async def test_a_trickle_of_header_bytes_does_not_help() -> None:
    async with serving(replace(LIMITS, header_s=0.2)) as server:
        peer = await server.connect(b"GET / HTTP/1.1\r\nx-a: ")
        end = asyncio.create_task(closed(peer))
        for _ in range(WAIT_S * 50):
            peer[1].write(b"b")
            await asyncio.wait({end}, timeout=0.02)
            if end.done():
                break
        assert end.result() == b""


async def test_a_kept_connection_and_a_long_answer_outlast_the_header_deadline() -> None:
    async with serving(replace(LIMITS, header_s=0.05)) as server:
        kept = await server.connect(GET)
        assert await status(kept) == 200
        assert (await kept[0].readuntil(b"hello")).endswith(b"hello")
        (busy,) = await server.occupy(1)
        await asyncio.sleep(0.2)
        kept[1].write(GET)
        server.go_on.set()
        assert [await status(kept), await status(busy)] == [200, 200]


async def test_the_rest_of_a_refused_body_has_to_come_in_time() -> None:
    async with serving(replace(LIMITS, header_s=0.1)) as server:
        peer = await server.connect(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 999\r\n\r\n")
        assert await status(peer) == 200
        peer[1].write(b"a")
        assert (await closed(peer)).endswith(b"hello")


async def test_an_idle_connection_is_closed() -> None:
    async with serving(replace(LIMITS, keep_alive_s=0)) as server:
        assert (await closed(await server.connect(GET))).endswith(b"hello")


async def test_a_client_that_takes_nothing_is_dropped() -> None:
    async with serving(replace(LIMITS, write_s=0.1)) as server:
        await server.connect(GET.replace(b"/ ", b"/flood ", 1))
        await asyncio.wait_for(server.stopped.wait(), WAIT_S)


@pytest.mark.parametrize(
    "sent",
    [
        b"junk\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\n",
    ],
    ids=["junk", "TLS", "no host", "bad length"],
)
async def test_what_is_no_http_gets_an_error_body(sent: bytes) -> None:
    async with serving(LIMITS) as server:
        peer = await server.connect(sent)
        assert await status(peer) == 400
        headers, error = await error_of(peer)
        assert (error["type"], error["param"]) == ("invalid_request_error", None)
        assert headers["connection"] == "close"


async def test_a_header_that_is_too_long_is_told_so() -> None:
    async with serving(LIMITS) as server:
        peer = await server.connect(b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 100_000)
        assert await status(peer) == 431
        _, error = await error_of(peer)
        assert error["code"] == "request_too_large"


async def test_a_header_below_the_limit_is_read() -> None:
    async with serving(LIMITS) as server:
        large = b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 20_000 + b"\r\n\r\n"
        assert await status(await server.connect(large)) == 200


async def test_junk_behind_a_request_does_not_disturb_its_answer() -> None:
    async with serving(LIMITS) as server:
        peer = await server.connect(GET + b"junk\r\n\r\n")
        answer = await closed(peer)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"HTTP/1.1 400 Bad Request" in answer


def test_connections_take_half_of_the_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.descriptors.limit", lambda: 4096)
    assert affordable(2).connections == 1024
    monkeypatch.setattr("server.descriptors.limit", lambda: 1 << 20)
    assert affordable(2).connections == ConnectionLimits().connections
