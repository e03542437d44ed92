"""The forwarder and bodies that come slowly, in pieces, never or too large."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace

import pytest

from tests.server.node.upstream import HALF_A_REQUEST, LIMITS, WAIT_S, node

pytestmark = pytest.mark.anyio


async def test_unfinished_uploads_hold_no_place_and_no_connection_to_rank_0() -> None:
    async with node(replace(LIMITS, max_requests=1)) as (upstream, client, _):
        host, port = client.base_url.host, client.base_url.port
        assert port is not None
        slow = [await asyncio.open_connection(host, port) for _ in range(20)]
        for _, writer in slow:
            writer.write(HALF_A_REQUEST)
        assert (await client.get("/echo")).status_code == 201  # all that came before has been read
        assert len(upstream.scopes) == 1
        reader, writer = slow.pop()
        writer.write(b" more")
        answer = await asyncio.wait_for(reader.readuntil(b"}"), WAIT_S)
        assert answer.startswith(b"HTTP/1.1 201 ")
        assert upstream.body == b"half more"
        for _, other in [*slow, (reader, writer)]:
            other.close()
        assert (await client.get("/echo")).status_code == 201
        assert len(upstream.scopes) == 3


async def read_to_end(connection: socket.socket) -> bytes:
    """Until the other side has closed; a reset, which is how it closes on what it did not read, is an end."""
    answer = b""
    with suppress(ConnectionResetError):
        while chunk := await asyncio.get_running_loop().sock_recv(connection, 4096):
            answer += chunk
    return answer


@pytest.mark.parametrize("trickle", [False, True])
async def test_an_upload_that_stalls_or_trickles_is_dropped(trickle: bool) -> None:
    async with node(replace(LIMITS, body_patience_s=0.2)) as (upstream, client, _):
        host, port = client.base_url.host, client.base_url.port
        assert port is not None
        # Not through asyncio's streams: those forget what has come when a write finds the connection reset.
        with socket.create_connection((host, port), timeout=WAIT_S) as connection:
            connection.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(connection, HALF_A_REQUEST.replace(b": 9", b": 999"))
            reading = asyncio.create_task(read_to_end(connection))
            for _ in range(WAIT_S * 20):
                await asyncio.wait({reading}, timeout=0.05)
                if reading.done():
                    break
                if trickle:
                    with suppress(ConnectionResetError, BrokenPipeError):
                        await loop.sock_sendall(connection, b"x")
        answer = reading.result()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'{"error":{"message":"The body did not come in time; ' in answer
        assert upstream.scopes == []


async def test_a_client_that_still_sends_gets_the_413_and_may_go_on() -> None:
    async with node() as (upstream, client, _):
        host, port = client.base_url.host, client.base_url.port
        assert port is not None
        reader, writer = await asyncio.open_connection(host, port)
        size = 50 << 20
        writer.write(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S)
        assert head.startswith(b"HTTP/1.1 413 ")
        assert b"request_too_large" in await asyncio.wait_for(reader.readuntil(b"}}"), WAIT_S)
        for _ in range(size >> 20):
            writer.write(b"a" * (1 << 20))
            await asyncio.wait_for(writer.drain(), WAIT_S)
        writer.write(b"GET /echo HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await asyncio.wait_for(reader.readline(), WAIT_S)).startswith(b"HTTP/1.1 201 ")
        assert len(upstream.scopes) == 1
        writer.close()


async def test_a_body_above_the_limit_is_refused() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(6):
            yield b"a" * 300

    async with node() as (upstream, client, _):
        announced = await client.post("/echo", content=b"a" * 1001)
        assert upstream.scopes == []
        counted = await client.post("/echo", content=pieces())
        for response in (announced, counted):
            assert response.status_code == 413
            assert response.json()["error"] == {
                "message": "The body exceeds the limit of 1000 bytes.",
                "type": "invalid_request_error",
                "param": None,
                "code": "request_too_large",
            }
        assert (await client.post("/echo", content=b"a" * 1000)).status_code == 201
