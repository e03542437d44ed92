"""The forwarder between a real client and a real upstream, all on free ports of this machine."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from config.keepalive import KeepAlive
from server.node.forward import forward_app, new_client
from server.node.relay import end_to_end
from server.node.serve import Listener, start_servers
from server.rpc.listen import bind
from tests.server.node.upstream import HALF_A_REQUEST, LIMITS, WAIT_S, Upstream, headers_of, node

pytestmark = pytest.mark.anyio


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
                "x-mlxc-kept": "9",
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
        assert not {b"x-mlxc-journal", b"x-mlxc-kept"} & sent.keys()
        # Rank 0 is to see by which name it was called: see server.access.pages.
        assert sent[b"host"] == b"evil.test:8200"
        assert (sent[b"x-request-id"], sent[b"authorization"]) == (b"abc", b"Bearer key")
        assert not {b"te", b"x-hop", b"transfer-encoding"} & sent.keys()


@pytest.mark.parametrize("path", [b"/v1/nothing/../../health", b"/./health", b"/v1/.."])
async def test_a_path_arrives_as_it_was_or_not_at_all(path: bytes) -> None:
    async with node() as (upstream, client, _):
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(b"GET " + path + b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), WAIT_S)
        writer.close()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert upstream.scopes == []


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


async def test_an_idle_connection_to_rank_0_is_probed_as_configured() -> None:
    async with node() as (_, _, rank0):
        host, port = rank0.addresses["rank 0"]
        limits = replace(LIMITS, keepalive=KeepAlive(interval=7, probes=4))
        async with (
            new_client(limits, None) as client,
            client.stream("GET", f"http://{host}:{port}/v1/models") as response,
        ):
            sock = response.extensions["network_stream"].get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 7
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 4
