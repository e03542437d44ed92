"""Over real sockets: rank 0 is killed and another one started, and clients get one whole answer."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount
from structlog.testing import capture_logs

import launcher.frontdoor.suspects as suspects_module
from launcher.door import LeaderAddress
from launcher.frontdoor import FrontDoor
from launcher.frontdoor.blame import FEW
from launcher.frontdoor.suspects import MOST_FAULTS, SUSPICIOUS
from pipeline.errors import BrokenOutput, EngineFault, EngineStopped
from pipeline.request import GenerationRequest
from server.node.serve import Listener, start_servers
from server.replay.records import Context
from tests.launcher.frontdoor.doors import DEADLINE_S, client_of, opened, soon
from tests.launcher.frontdoor.rank0 import Rank0, Steered
from tests.server.replay.engine import PureEngine, ask, make_app

pytestmark = pytest.mark.anyio

USER = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
SEEDED = {"model": "tiny", "messages": USER, "seed": 5, "max_tokens": 12, "ignore_eos": True}


def at(position: int) -> Any:
    def stops(request: GenerationRequest, place: int) -> bool:
        return place == position

    return stops


def text_of(body: bytes) -> str:
    lines = [line for line in body.decode().split("\n") if line.startswith("data: {")]
    events = [json.loads(line[6:]) for line in lines]
    assert not [event for event in events if "error" in event], body
    return "".join(c["delta"].get("content") or "" for event in events for c in event["choices"])


def expected(**fields: Any) -> str:
    """What an uninterrupted run says."""
    records = ask(make_app(PureEngine()), CHAT, {**SEEDED, **fields, "stream": True}, Context())
    return text_of(b"".join(r.payload for r in records if r.kind.value == b"B"))


async def first_chunk(stream: Any) -> bytes:
    return bytes(await asyncio.wait_for(anext(stream), DEADLINE_S))


async def test_a_stream_goes_on_at_the_next_rank_0() -> None:
    first = Rank0(Steered(random.Random(1), stops_at=at(4)))
    second = Rank0(Steered(random.Random(2)))
    async with opened() as door, client_of(door) as client:
        door.leader_changed(await first.start())
        async with client.stream("POST", CHAT, json={**SEEDED, "stream": True}) as response:
            assert response.status_code == 200
            chunks = response.aiter_raw()
            got = await first_chunk(chunks)
            await asyncio.wait_for(first.engine.reached.wait(), DEADLINE_S)
            door.leader_changed(None, "a rank has died")
            await first.kill()
            assert door.in_flight() == 1
            door.leader_changed(await second.start(2))
            async for chunk in chunks:
                got += chunk
        assert got.endswith(b"data: [DONE]\n\n")
        assert text_of(got) == expected()
        assert door.stats()["resumed"] == 1
        [resumed] = second.engine.requests
        assert len(resumed.emitted) == 4
        await soon(lambda: door.in_flight() == 0)
        assert b"mlxc_requests_resumed_total" in (await client.get("/metrics")).content
        await second.stop()


@pytest.mark.parametrize("error", [EngineFault("the last rank is gone"), EngineStopped("stopping")])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_fault_of_the_cluster_does_not_reach_the_client(
    stream: bool, error: Exception
) -> None:
    first = Rank0(Steered(random.Random(1), stops_at=at(3), error=error))
    second = Rank0(Steered(random.Random(2)))
    async with opened() as door, client_of(door) as client:
        door.leader_changed(await first.start())
        asked = asyncio.create_task(client.post(CHAT, json={**SEEDED, "stream": stream}))
        await asyncio.wait_for(first.engine.reached.wait(), DEADLINE_S)
        leader = await second.start(2)
        first.readiness = "a rank has died"
        first.engine.gate.set()
        await soon(lambda: first.engine.running == 0)
        door.leader_changed(leader)
        answer = await asyncio.wait_for(asked, DEADLINE_S)
        assert answer.status_code == 200
        if stream:
            assert text_of(answer.content) == expected()
        else:
            assert answer.json()["choices"][0]["message"]["content"] == expected()
            assert answer.json()["usage"]["completion_tokens"] == 12
        await first.stop()
        await second.stop()


async def test_many_at_once_survive_several_kills() -> None:
    """Whatever was delivered when a kill came."""
    lives = [
        Rank0(Steered(random.Random(number), stops_at=at(4 * number + 3))) for number in range(3)
    ]
    lives[-1].engine.gate.set()
    async with opened() as door, client_of(door) as client:
        asked = [
            asyncio.create_task(
                client.post(
                    CHAT, json={**SEEDED, "seed": seed, "n": 1 + seed % 2, "stream": seed % 3 > 0}
                )
            )
            for seed in range(12)
        ]
        for number, life in enumerate(lives):
            leader = await life.start(number)
            door.leader_changed(leader)
            await asyncio.wait_for(life.engine.reached.wait(), DEADLINE_S)
            if life is not lives[-1]:
                door.leader_changed(None, "a rank has died")
                await life.kill()
        answers = await asyncio.wait_for(asyncio.gather(*asked), DEADLINE_S)
        await lives[-1].stop()
    for seed, answer in enumerate(answers):
        assert answer.status_code == 200, answer.text
        n = 1 + seed % 2
        found = texts(answer, n)
        assert found == texts(None, n, seed), seed
    assert door.in_flight() == 0


def texts(answer: httpx.Response | None, n: int, seed: int = 0) -> dict[int, str]:
    """By choice; without an answer, as an uninterrupted run has them."""
    if answer is None:
        body = {**SEEDED, "seed": seed, "n": n}
        records = ask(make_app(PureEngine()), CHAT, body, Context())
        whole = json.loads(b"".join(r.payload for r in records if r.kind.value == b"B"))
    elif answer.headers["content-type"].startswith("application/json"):
        whole = answer.json()
    else:
        found = dict.fromkeys(range(n), "")
        for line in answer.text.split("\n"):
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    found[choice["index"]] += choice["delta"].get("content") or ""
        return found
    return {c["index"]: c["message"]["content"] for c in whole["choices"]}


async def test_an_error_of_the_request_is_final() -> None:
    rank0 = Rank0(Steered(stops_at=at(2), error=BrokenOutput("not a number")))
    rank0.engine.gate.set()
    async with opened() as door, client_of(door) as client:
        door.leader_changed(await rank0.start())
        answer = await client.post(CHAT, json=SEEDED)
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal_error"
        bad = await client.post(CHAT, json={**SEEDED, "temperature": -1})
        assert (bad.status_code, bad.json()["error"]["param"]) == (400, "temperature")
        assert len(rank0.engine.requests) == 1
        await rank0.stop()


async def test_a_request_that_breaks_the_engine_again_and_again_is_given_up() -> None:
    rank0 = Rank0(Steered(stops_at=at(2), error=EngineFault("it died")))
    rank0.engine.gate.set()
    async with opened() as door, client_of(door) as client:
        door.leader_changed(await rank0.start())
        with capture_logs() as logs:
            answer = await client.post(CHAT, json=SEEDED)
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal_error"
        assert len(rank0.engine.requests) >= 1 + FEW + 1  # the first one made progress
        [line] = [line for line in logs if "without a token" in line.get("reason", "")]
        assert "exc_info" not in line
        await rank0.stop()


async def test_a_request_that_gets_one_token_and_breaks_the_engine_is_given_up_too() -> None:
    def after_one(request: GenerationRequest, position: int) -> bool:
        return position > len(request.emitted)

    rank0 = Rank0(Steered(stops_at=after_one, error=EngineFault("it died")))
    rank0.engine.gate.set()
    async with opened() as door, client_of(door) as client:
        door.leader_changed(await rank0.start())
        answer = await client.post(CHAT, json={**SEEDED, "max_tokens": 30})
        assert answer.status_code == 500
        assert len(rank0.engine.requests) == MOST_FAULTS
        await rank0.stop()


async def test_one_that_breaks_rank_0_is_given_up_and_its_company_is_not() -> None:
    """All of them are new when rank 0 breaks: each might be the cause."""
    lives: list[Rank0] = []

    def breaks(request: GenerationRequest, place: int) -> bool:
        """At first all have to wait for a token, and then only the one."""
        return place == 0 and (request.params.seed == 99 or len(lives) <= SUSPICIOUS)

    async def next_life(door: FrontDoor) -> None:
        lives.append(Rank0(Steered(random.Random(1), stops_at=breaks)))
        door.leader_changed(await lives[-1].start(len(lives)))

    async def broken(door: FrontDoor) -> None:
        door.leader_changed(None, "a rank has died")
        await lives[-1].kill()
        await next_life(door)

    async with opened() as door, client_of(door) as client:
        await next_life(door)
        bodies = [{**SEEDED, "seed": seed, "stream": seed % 2 > 0} for seed in (99, *range(4))]
        asked = [asyncio.create_task(client.post(CHAT, json=body)) for body in bodies]
        for _ in range(SUSPICIOUS):
            await soon(lambda: lives[-1].engine.running == len(bodies))
            await broken(door)
        while True:
            await soon(lambda: lives[-1].engine.reached.is_set() or asked[0].done())
            if asked[0].done():
                break
            await broken(door)
        failed, *answers = await asyncio.wait_for(asyncio.gather(*asked), DEADLINE_S)
        await lives[-1].stop()
    assert failed.status_code == 500
    assert failed.json()["error"]["code"] == "internal_error"
    assert len(lives) - 1 <= SUSPICIOUS + FEW + 3
    for seed, answer in enumerate(answers):
        assert answer.status_code == 200, answer.text
        assert texts(answer, 1) == texts(None, 1, seed)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_is_no_part_of_an_answer_that_has_begun(stream: bool) -> None:
    """As when the key has expired meanwhile."""
    first = Rank0(Steered(random.Random(1), stops_at=at(4)))
    refusing = Starlette(routes=[Mount("/", app=JSONResponse({"error": {}}, 401))])
    servers = await start_servers([Listener("inference", refusing, "127.0.0.1", 0)])
    begun = asyncio.Event()

    async def ask_for_all(client: httpx.AsyncClient) -> httpx.Response:
        async with client.stream("POST", CHAT, json={**SEEDED, "stream": stream}) as response:
            begun.set()
            await response.aread()
            return response

    async with opened() as door, client_of(door) as client:
        door.leader_changed(await first.start())
        asked = asyncio.create_task(ask_for_all(client))
        await asyncio.wait_for(first.engine.reached.wait(), DEADLINE_S)
        if stream:  # else nothing is said before the end
            await asyncio.wait_for(begun.wait(), DEADLINE_S)
        await first.kill()
        door.leader_changed(LeaderAddress(*servers.addresses["inference"], 2))
        answer = await asyncio.wait_for(asked, DEADLINE_S)
        if stream:
            last = answer.text.rstrip().split("\n\n")[-1]
            assert last.startswith("data: ")
            assert json.loads(last[6:])["error"]["code"] == "internal_error"
        else:
            assert answer.status_code == 401  # nothing had been said yet
    await servers.stop(0)


async def test_a_client_that_goes_away_cancels_at_rank_0() -> None:
    rank0 = Rank0(Steered(stops_at=at(3)))
    async with opened() as door, client_of(door) as client:
        door.leader_changed(await rank0.start())
        async with client.stream("POST", CHAT, json={**SEEDED, "stream": True}) as response:
            chunks = response.aiter_raw()  # kept: without it the response is closed
            await first_chunk(chunks)
            await asyncio.wait_for(rank0.engine.reached.wait(), DEADLINE_S)
            assert rank0.engine.running == 1
        await soon(lambda: rank0.engine.running == 0)
        await soon(lambda: door.in_flight() == 0)
        await rank0.stop()


async def test_a_client_that_goes_away_during_a_failover_is_forgotten() -> None:
    rank0 = Rank0(Steered(stops_at=at(3)))
    async with opened() as door, client_of(door) as client:
        door.leader_changed(await rank0.start())
        async with client.stream("POST", CHAT, json={**SEEDED, "stream": True}) as response:
            chunks = response.aiter_raw()  # kept: without it the response is closed
            await first_chunk(chunks)
            await asyncio.wait_for(rank0.engine.reached.wait(), DEADLINE_S)
            door.leader_changed(None, "electing")
            await rank0.kill()
            await soon(lambda: door.stats()["waiting"] == 1)
        await soon(lambda: door.in_flight() == 0)
        assert door.stats()["waiting"] == 0


async def test_a_rank_0_that_says_nothing_any_more_is_left() -> None:
    """As one whose host has lost its power: no connection is closed."""
    silent, second = Rank0(Steered(random.Random(1), stops_at=at(3))), Rank0()
    async with opened() as door, client_of(door) as client:
        door.leader_changed(await silent.start())
        asked = asyncio.create_task(client.post(CHAT, json=SEEDED))
        await asyncio.wait_for(silent.engine.reached.wait(), DEADLINE_S)
        door.leader_changed(await second.start(2))
        answer = await asyncio.wait_for(asked, DEADLINE_S)
        assert answer.json()["choices"][0]["message"]["content"] == expected()
        await silent.stop()
        await second.stop()


class SlowClient:
    """Asks for a stream over a connection that is full until `drained` is set."""

    def __init__(self) -> None:
        body = json.dumps({**SEEDED, "stream": True}).encode()
        self._arrived = [{"type": "http.request", "body": body, "more_body": False}]
        self.full, self.drained, self.got = asyncio.Event(), asyncio.Event(), b""

    async def receive(self) -> Any:
        return self._arrived.pop() if self._arrived else await asyncio.Event().wait()

    async def send(self, message: Any) -> None:
        if message.get("body"):
            self.full.set()
            await self.drained.wait()  # as uvicorn does, before it writes
            self.got += message["body"]

    def ask(self, door: FrontDoor) -> asyncio.Task[None]:
        scope = {
            "type": "http",
            "method": "POST",
            "path": CHAT,
            "raw_path": CHAT.encode(),
            "query_string": b"",
            "headers": [(b"host", b"127.0.0.1")],
            "client": ("127.0.0.1", 1),
        }
        return asyncio.create_task(door.app()(scope, self.receive, self.send))


async def test_what_a_slow_client_had_to_wait_for_is_not_lost() -> None:
    """The leader is lost while the connection to the client is full."""
    first = Rank0(Steered(random.Random(1), stops_at=at(4)))
    second, client = Rank0(Steered(random.Random(2))), SlowClient()
    async with opened() as door:
        door.leader_changed(await first.start())
        answering = client.ask(door)
        await asyncio.wait_for(client.full.wait(), DEADLINE_S)
        door.leader_changed(None, "its host has no power")
        await soon(lambda: door.stats()["waiting"] == 1)
        client.drained.set()
        door.leader_changed(await second.start(2))
        await asyncio.wait_for(answering, DEADLINE_S)
        assert b'"role":"assistant"' in client.got, "the first event, which had to wait"
        assert text_of(client.got) == expected()
        await first.stop()
        await second.stop()


async def test_a_whole_answer_needs_no_rank_0_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does who reads it slowly hold up others, after however many faults."""
    monkeypatch.setattr(suspects_module, "MOST_FAULTS", 1)
    first, second = (Rank0(Steered(random.Random(1), stops_at=at(4))), Rank0())
    slow = SlowClient()
    async with opened() as door, client_of(door) as client:
        door.leader_changed(await first.start())
        answering = slow.ask(door)
        await asyncio.wait_for(first.engine.reached.wait(), DEADLINE_S)
        await asyncio.wait_for(slow.full.wait(), DEADLINE_S)
        door.leader_changed(None, "a rank has died")
        await first.kill()
        door.leader_changed(await second.start(2))  # where it is tried alone, to its end
        other = await asyncio.wait_for(client.post(CHAT, json=SEEDED), DEADLINE_S)
        assert texts(other, 1) == {0: expected()}
        assert not answering.done()
        door.leader_changed(None, "a rank has died")
        await second.kill()
        slow.drained.set()
        await asyncio.wait_for(answering, DEADLINE_S)
        assert text_of(slow.got) == expected()
