"""The forwarder between a real client and a real upstream, all on free ports of this machine."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from server.node.forward import ForwardLimits, forward_app
from server.node.relay import end_to_end
from server.node.serve import HttpServers, Listener, start_servers
from server.rpc.listen import bind

pytestmark = pytest.mark.anyio

LIMITS = ForwardLimits(max_body_bytes=1000)
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


async def test_a_request_arrives_as_it_was_and_so_does_the_answer() -> None:
    async with node() as (upstream, client, _):
        response = await client.post(
            "/v1/chat%2Fcompletions?a=%20b&c",
            content=b'{"x": 1}',
            headers={
                "x-request-id": "abc",
                "host": "evil.test:8200",
                "authorization": "Bearer key",
                "te": "trailers",
                "connection": "keep-alive, x-hop",
                "x-hop": "1",
                "x-mlxc-journal": f"1.{'0' * 32}.0",
            },
        )
        assert (response.status_code, response.json()) == (201, {"echo": True})
        assert response.headers.get_list("x-request-id") == ["abc"]
        assert response.headers.get_list("set-cookie") == ["a=1", "b=2"]
        assert "x-private" not in response.headers
        assert len(response.headers.get_list("date")) == 1

        (scope,) = upstream.scopes
        sent = headers_of(scope)
        assert (scope["method"], scope["raw_path"]) == ("POST", b"/v1/chat%2Fcompletions")
        assert scope["query_string"] == b"a=%20b&c"
        assert upstream.body == b'{"x": 1}'
        assert sent[b"content-length"] == b"8"
        assert b"x-mlxc-journal" not in sent
        # Rank 0 is to see by which name it was called: see server.access.pages.
        assert sent[b"host"] == b"evil.test:8200"
        assert (sent[b"x-request-id"], sent[b"authorization"]) == (b"abc", b"Bearer key")
        assert not {b"te", b"x-hop", b"transfer-encoding"} & sent.keys()


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
async def test_requests_without_a_body_stay_without_one(method: str) -> None:
    async with node() as (upstream, client, _):
        response = await client.request(method, "/v1/models", headers={"accept-encoding": "br"})
        assert response.status_code == 201
        sent = headers_of(upstream.scopes[0])
        assert upstream.scopes[0]["method"] == method
        assert sent[b"accept-encoding"] == b"br"
        assert not {b"content-length", b"transfer-encoding"} & sent.keys()


async def test_a_missing_or_unfit_request_id_is_replaced() -> None:
    async with node() as (upstream, client, _):
        await client.get("/echo")
        await client.get("/echo", headers={"x-request-id": "x" * 129})
        first, second = (headers_of(scope)[b"x-request-id"] for scope in upstream.scopes)
        assert first.startswith(b"req_")
        assert second.startswith(b"req_")
        assert first != second


async def test_a_chunked_upload_arrives_with_its_length() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"a" * 10
        yield b"b" * 10

    async with node() as (upstream, client, _):
        assert (await client.post("/echo", content=pieces())).status_code == 201
        assert upstream.body == b"a" * 10 + b"b" * 10
        sent = headers_of(upstream.scopes[0])
        assert sent[b"content-length"] == b"20"
        assert b"transfer-encoding" not in sent


async def test_a_length_beside_chunks_does_not_count() -> None:
    async with node() as (upstream, client, _):
        host, port = client.base_url.host, client.base_url.port
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(
            b"POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 50\r\n"
            b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
        )
        answer = await asyncio.wait_for(reader.read(), WAIT_S)
        assert answer.startswith(b"HTTP/1.1 201 ")
        assert upstream.body == b"ab"
        assert headers_of(upstream.scopes[0])[b"content-length"] == b"2"
        writer.close()


async def test_events_pass_one_by_one() -> None:
    async with node() as (upstream, client, _), client.stream("GET", "/stream") as response:
        assert response.headers["content-type"] == "text/event-stream"
        pieces = response.aiter_raw()
        # Each event must be here before the upstream is allowed to make the next.
        for number in range(3):
            piece = await asyncio.wait_for(anext(pieces), WAIT_S)
            assert piece == b"data: %d\n\n" % number
            upstream.go_on.set()
        assert [piece async for piece in pieces] == [b"data: [DONE]\n\n"]


async def test_a_client_that_leaves_before_the_answer_cancels_upstream() -> None:
    async with node() as (upstream, client, _):
        request = asyncio.create_task(client.post("/silent", content=b"{}"))
        await asyncio.wait_for(upstream.reached.wait(), WAIT_S)
        request.cancel()
        await asyncio.wait_for(upstream.client_gone.wait(), WAIT_S)


async def test_a_client_that_leaves_a_quiet_stream_cancels_upstream() -> None:
    async with node() as (upstream, client, _):
        async with client.stream("GET", "/paused") as response:
            assert await anext(response.aiter_raw()) == b"data: 0\n\n"
        await asyncio.wait_for(upstream.client_gone.wait(), WAIT_S)


HALF_A_REQUEST = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf"


async def test_unfinished_uploads_hold_no_place_and_no_connection_to_rank_0() -> None:
    async with node(replace(LIMITS, max_requests=1)) as (upstream, client, _):
        host, port = client.base_url.host, client.base_url.port
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


def assert_not_ready(response: httpx.Response, code: str = "not_ready") -> None:
    error: dict[str, Any] = response.json()["error"]
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert (error["type"], error["param"], error["code"]) == ("server_error", None, code)
    assert response.headers["x-request-id"] == "abc"


async def test_an_unreachable_rank_0_is_503_and_it_may_come_back() -> None:
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    forwarder = await start_servers(
        [Listener("node", forward_app("127.0.0.1", port, LIMITS), "127.0.0.1", 0)]
    )
    host, own_port = forwarder.addresses["node"]
    url = f"http://{host}:{own_port}/v1/models"
    async with httpx.AsyncClient(trust_env=False, timeout=WAIT_S) as client:
        response = await client.get(url, headers={"x-request-id": "abc"})
        assert_not_ready(response)
        assert f"Rank 0 at 127.0.0.1:{port} does not answer" in response.text
        rank0 = await start_servers([Listener("rank 0", Upstream(), "127.0.0.1", port)])
        assert (await client.get(url)).status_code == 201
        await rank0.stop(0)
    await forwarder.stop(0)


async def test_a_rank_0_that_dies_before_it_answers_is_503() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    dying = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = dying.sockets[0].getsockname()[1]
    app = forward_app("127.0.0.1", port, LIMITS)
    forwarder = await start_servers([Listener("node", app, "127.0.0.1", 0)])
    host, own_port = forwarder.addresses["node"]
    async with httpx.AsyncClient(trust_env=False, timeout=WAIT_S) as client:
        url = f"http://{host}:{own_port}/v1/models"
        assert_not_ready(await client.get(url, headers={"x-request-id": "abc"}))
    await forwarder.stop(0)
    dying.close()


async def test_more_requests_than_allowed_are_refused() -> None:
    async with node(replace(LIMITS, max_requests=1)) as (upstream, client, _):
        first = asyncio.create_task(client.post("/silent", content=b"{}"))
        await asyncio.wait_for(upstream.reached.wait(), WAIT_S)
        second = await client.get("/echo", headers={"x-request-id": "abc"})
        assert_not_ready(second, code="overloaded")
        # Before anything of a body is here.
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(HALF_A_REQUEST.removesuffix(b"half"))
        assert (await asyncio.wait_for(reader.readline(), WAIT_S)).startswith(b"HTTP/1.1 503 ")
        writer.close()
        first.cancel()
        await asyncio.wait_for(upstream.client_gone.wait(), WAIT_S)
        for _ in range(WAIT_S * 100):
            if (await client.get("/echo")).status_code == 201:
                return
            await asyncio.sleep(0.01)
        pytest.fail("the place was not given back")


async def test_a_stream_that_breaks_between_events_ends_with_an_error_event() -> None:
    async with node() as (_, client, _):
        text = (await client.get("/breaks")).text
        assert text.startswith('data: 0\n\ndata: {"error":{"message":')
        assert text.endswith("}}\n\n")
        assert "[DONE]" not in text


async def test_a_stream_that_breaks_inside_an_event_is_cut_off() -> None:
    async with node() as (_, client, _):
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/breaks_inside")


@pytest.mark.parametrize("target", [b"*", b"http://other/v1/models"])
async def test_a_target_that_is_no_path_goes_nowhere_else(target: bytes) -> None:
    async with node() as (upstream, client, _):
        host, port = client.base_url.host, client.base_url.port
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"OPTIONS " + target + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), WAIT_S)
        assert answer.split()[1] in (b"400", b"404")
        assert b'{"error"' in answer
        assert upstream.scopes == []
        writer.close()


def test_hop_by_hop_headers_are_found_in_any_spelling() -> None:
    headers = [(b"Connection", b"Close, X-Mine"), (b"x-mine", b"1"), (b"TE", b"x"), (b"A", b"b")]
    assert end_to_end(headers) == [(b"a", b"b")]


async def test_rank_0_is_told_who_asked_whatever_the_client_says_of_itself() -> None:
    async with node() as (upstream, client, _):
        await client.get("/echo", headers={"x-forwarded-for": "203.0.113.7"})
    values = [v for name, v in upstream.scopes[0]["headers"] if name == b"x-forwarded-for"]
    assert values == [b"203.0.113.7", b"127.0.0.1"]  # read from the right
