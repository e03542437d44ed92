"""Over real sockets: what clients are told while nobody leads, and what is answered here."""

from __future__ import annotations

import asyncio
import random

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from launcher.door import Door, LeaderAddress
from server.node.serve import Listener, start_servers
from tests.launcher.frontdoor.doors import DEADLINE_S, client_of, opened, soon
from tests.launcher.frontdoor.rank0 import Rank0, Steered
from tests.launcher.frontdoor.test_restart import CHAT, SEEDED, at, expected, first_chunk, text_of

pytestmark = pytest.mark.anyio


async def test_new_requests_wait_for_a_leader() -> None:
    rank0 = Rank0()
    async with opened() as door, client_of(door) as client:
        asked = asyncio.create_task(client.post(CHAT, json={**SEEDED, "stream": True}))
        await soon(lambda: door.stats()["waiting"] == 1)
        door.leader_changed(await rank0.start())
        answer = await asyncio.wait_for(asked, DEADLINE_S)
        assert text_of(answer.content) == expected()
        await rank0.stop()


async def test_a_leader_that_is_not_ready_yet_is_asked_again() -> None:
    rank0 = Rank0(readiness="the model is still loading")
    async with opened() as door, client_of(door) as client:
        door.leader_changed(await rank0.start())
        asked = asyncio.create_task(client.post(CHAT, json={**SEEDED, "stream": True}))
        await soon(lambda: door.in_flight() == 1)
        rank0.readiness = None
        answer = await asyncio.wait_for(asked, DEADLINE_S)
        assert text_of(answer.content) == expected()
        await rank0.stop()


async def test_waiting_ends_in_503_with_the_reason() -> None:
    async with opened("api_gateway.timeout=0.05") as door, client_of(door) as client:
        door.leader_changed(None, "electing")
        answer = await client.post(CHAT, json=SEEDED)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "not_ready"
        assert "electing" in answer.json()["error"]["message"]
        assert answer.headers["retry-after"]


async def test_what_is_permanent_is_told_at_once() -> None:
    async with opened() as door, client_of(door) as client:
        asked = asyncio.create_task(client.post(CHAT, json=SEEDED))
        await soon(lambda: door.stats()["waiting"] == 1)
        door.leader_changed(None, "no node has the memory", permanent=True)
        for answer in (
            await asyncio.wait_for(asked, DEADLINE_S),
            await client.post(CHAT, json=SEEDED),
        ):
            assert answer.status_code == 503
            assert "no node has the memory" in answer.json()["error"]["message"]


async def test_what_rank_0_refuses_is_refused_alike_here() -> None:
    deep = b'{"a": ' * 100_000
    rank0 = Rank0()
    async with opened() as door, client_of(door) as client:
        leader = await rank0.start()
        door.leader_changed(leader)
        direct = await client.post(f"http://{leader.host}:{leader.port}{CHAT}", content=deep)
        answer = await client.post(CHAT, content=deep)
        assert answer.status_code == direct.status_code == 400
        assert answer.json() == direct.json()
        await rank0.stop()


async def test_a_target_that_is_no_path_is_the_clients_fault() -> None:
    rank0 = Rank0()
    async with opened() as door:
        door.leader_changed(await rank0.start())
        reader, writer = await asyncio.open_connection(*door.address)
        writer.write(
            b"POST /v1/chat/completions?# HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            b"content-length: 2\r\n\r\n{}"
        )
        answer = await asyncio.wait_for(reader.read(), DEADLINE_S)
        assert answer.startswith(b"HTTP/1.1 400 ")
        writer.close()
        await rank0.stop()


async def test_the_waiting_room_is_bounded() -> None:
    async with opened("api_gateway.max_concurrent_requests=2") as door, client_of(door) as client:
        waiting = [asyncio.create_task(client.post(CHAT, json=SEEDED)) for _ in range(2)]
        await soon(lambda: door.stats()["waiting"] == 2)
        answer = await client.post(CHAT, json=SEEDED)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
        for task in waiting:
            task.cancel()


async def test_draining_refuses_new_requests_and_lets_others_end() -> None:
    rank0 = Rank0(Steered(random.Random(1), stops_at=at(3)))
    async with opened() as door, client_of(door) as client:
        door.leader_changed(await rank0.start())
        asked = asyncio.create_task(client.post(CHAT, json={**SEEDED, "stream": True}))
        await asyncio.wait_for(rank0.engine.reached.wait(), DEADLINE_S)
        door.drain(True)
        refused = await client.post(CHAT, json=SEEDED)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        rank0.engine.gate.set()
        assert text_of((await asyncio.wait_for(asked, DEADLINE_S)).content) == expected()
        door.drain(False)
        assert (await client.post(CHAT, json=SEEDED)).status_code == 200
        await rank0.stop()


async def test_a_stream_is_kept_alive_during_a_failover() -> None:
    first, second = Rank0(Steered(stops_at=at(3))), Rank0()
    async with opened() as door, client_of(door) as client:
        door.gate.limits = door.gate.limits.__class__(60.0, 100, 0.01, 0.05, keep_alive=0.02)
        door.leader_changed(await first.start())
        async with client.stream("POST", CHAT, json={**SEEDED, "stream": True}) as response:
            chunks = response.aiter_raw()
            got = await first_chunk(chunks)
            await asyncio.wait_for(first.engine.reached.wait(), DEADLINE_S)
            door.leader_changed(None, "electing")
            await first.kill()
            comments = got.count(b": keep-alive\n\n")
            while got.count(b": keep-alive\n\n") < comments + 3:
                got += await first_chunk(chunks)
            door.leader_changed(await second.start())
            async for chunk in chunks:
                got += chunk
        assert text_of(got) == expected()
        await second.stop()


async def test_a_stream_begins_before_a_long_prefill_ends() -> None:
    rank0 = Rank0(Steered(stops_at=at(0)))
    async with opened() as door, client_of(door) as client:
        door.gate.limits = door.gate.limits.__class__(60.0, 100, 0.01, 0.05, keep_alive=0.02)
        door.leader_changed(await rank0.start())
        async with client.stream("POST", CHAT, json={**SEEDED, "stream": True}) as response:
            chunks = response.aiter_raw()
            got = await first_chunk(chunks)
            assert got == b": keep-alive\n\n"
            rank0.engine.gate.set()
            async for chunk in chunks:
                got += chunk
        assert response.headers["content-type"].startswith("text/event-stream")
        assert text_of(got) == expected()
        await rank0.stop()


async def test_other_requests_are_passed_on() -> None:
    rank0 = Rank0()
    async with opened() as door, client_of(door) as client:
        assert (await client.get("/v1/models")).status_code == 503
        door.leader_changed(await rank0.start())
        assert (await client.get("/v1/models")).json()["data"][0]["id"] == "tiny"
        assert (await client.get("/nowhere")).status_code == 404
        assert (await client.post("/tokenize", json={"prompt": "hi"})).status_code == 200
        await rank0.stop()


async def test_what_only_asks_waits_out_a_failover() -> None:
    """Whether it came when nobody led, or its rank 0 went away over it, by its end or without a word."""
    reached, second = asyncio.Event(), Rank0()

    async def silence(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        reached.set()
        await asyncio.Event().wait()

    silent = Starlette(routes=[Mount("/", app=silence)])
    servers = await start_servers([Listener("inference", silent, "127.0.0.1", 0)])
    async with opened() as door, client_of(door) as client:
        door.leader_changed(LeaderAddress(*servers.addresses["inference"], 1))
        asked = asyncio.create_task(client.get("/v1/models"))
        await asyncio.wait_for(reached.wait(), DEADLINE_S)
        reached.clear()
        deleted = asyncio.create_task(client.delete("/v1/requests/x"))
        await asyncio.wait_for(reached.wait(), DEADLINE_S)
        door.leader_changed(None, "its host has no power")
        refused = await asyncio.wait_for(deleted, DEADLINE_S)  # it may have had its effect
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        late = asyncio.create_task(client.get("/v1/models"))
        await soon(lambda: door.passing.waiting == 2)
        door.leader_changed(await second.start(2))
        for answer in await asyncio.wait_for(asyncio.gather(asked, late), DEADLINE_S):
            assert answer.json()["data"][0]["id"] == "tiny"
        await second.stop()
    await servers.stop(0)


async def test_what_only_asks_does_not_wait_for_long() -> None:
    rank0 = Rank0()
    async with (
        opened("api_gateway.timeout=0.05", "api_gateway.max_concurrent_requests=1") as door,
        client_of(door) as client,
    ):
        door.leader_changed(await rank0.start())
        door.leader_changed(None, "a rank has died")
        answer = await client.get("/v1/models")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert "a rank has died" in answer.json()["error"]["message"]
        assert door.passing.waiting == 0
        door.leader_changed(None, "no node has the memory", permanent=True)
        assert "no node has" in (await client.get("/v1/models")).json()["error"]["message"]
        await rank0.stop()


async def test_health_says_what_the_launcher_knows() -> None:
    async with opened(status=lambda: {"epoch": 3}) as door, client_of(door) as client:
        door.leader_changed(None, "electing")
        for path, status in (("/health", "failing"), ("/ready", "not_ready")):
            answer = await client.get(path)
            assert answer.status_code == 503
            assert answer.json() == {
                "status": status,
                "reason": "electing",
                "launcher": {"epoch": 3},
            }
        metrics = await client.get("/metrics")
        assert metrics.status_code == 200
        assert "mlxc_frontdoor_requests_in_flight" in metrics.text


async def test_admin_routes_are_answered_here() -> None:
    async def drain(request: Request) -> Response:
        return PlainTextResponse("drained")

    routes = [Route("/admin/models/switch", drain, methods=["POST"])]
    async with opened(admin_routes=routes) as door, client_of(door) as client:
        assert (await client.post("/admin/models/switch")).text == "drained"


async def test_a_large_body_is_refused_before_anything_else() -> None:
    async with opened("api_gateway.max_body_bytes=1000") as door, client_of(door) as client:
        answer = await client.post(CHAT, content=b"x" * 2000)
        assert answer.status_code == 413


async def test_it_is_what_the_supervisor_expects() -> None:
    async with opened() as door:
        expected_door: Door = door
        assert expected_door.in_flight() == 0
