"""Requests in flight, their latencies, and their end by somebody else."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from pipeline.errors import RequestCancelled
from pipeline.request import GenerationRequest, SamplingParams, TokenEvent
from server.access.principal import Principal, Role
from server.api.app import create_app
from server.observe.latency import Latencies
from server.observe.picture import requests_body
from server.observe.requests import Observed, RequestBook, TokenRate
from server.observe.routes import cancel_route
from tests.server.api.fakes import FakeEngine, Script, ids, make_service


def principal(name: str, role: str) -> Principal:
    return Principal(f"key-{name}", name, Role.of(role))


pytestmark = pytest.mark.anyio

DEADLINE = 60.0  # seconds


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class CancellableEngine(FakeEngine):
    """Hangs after its tokens until it is cancelled by id, as the real one may be."""

    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self._asked: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def cancel(self, request: str) -> None:
        self._asked[request].set()

    async def _play(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        async for event in super()._play(request):
            yield event
        await self._asked[request.id].wait()
        raise RequestCancelled("The request was cancelled.")


class Api:
    """The API over an engine, with the book and the route."""

    def __init__(self, script: Script, principal: Any = None) -> None:
        self.registry, self.clock = CollectorRegistry(), Clock()
        self.book = RequestBook(Latencies("tiny", self.registry), self.clock)
        self.engine = CancellableEngine(script)
        service = make_service(self.engine)
        service.generator = Observed(self.engine, self.book)
        service.on_finish = self.book.finished
        self.principal = principal
        app = create_app(service, [cancel_route(self.book, self.engine.cancel)])

        async def with_principal(scope: Any, receive: Any, send: Any) -> None:
            if self.principal is not None:
                scope["state"] = {"principal": self.principal}
            await app(scope, receive, send)

        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(with_principal), base_url="http://test"
        )

    async def chat(self, request_id: str = "mine", **fields: Any) -> httpx.Response:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], **fields}
        headers = {"x-request-id": request_id}
        return await self.client.post("/v1/chat/completions", json=body, headers=headers)

    async def until_tokens(self, count: int) -> None:
        async def poll() -> None:
            while sum(flight.tokens for flight in self.book.flights) < count:
                await asyncio.sleep(0.001)

        await asyncio.wait_for(poll(), DEADLINE)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"mlxc_{name}", {"model_name": "tiny", **labels})


async def test_latencies_and_ends_are_counted_and_the_book_is_empty_afterwards() -> None:
    api = Api(Script(ids("hello world"), end=False))
    answer = await api.chat(stop=["world"])
    assert answer.json()["choices"][0]["finish_reason"] == "stop"
    assert api.book.flights == ()
    tokens = api.value("request_generation_tokens_sum")
    assert tokens
    assert api.value("inter_token_latency_seconds_count") == tokens - 1
    for name in ("time_to_first_token", "e2e_request_latency", "request_decode_time"):
        assert api.value(f"{name}_seconds_count") == 1
    assert api.value("request_success_total", finished_reason="stop") == 1
    assert api.value("request_success_total", finished_reason="abort") == 0


async def test_a_request_that_goes_on_has_had_its_first_token() -> None:
    api = Api(Script(ids("hello"), end=False))
    [token, *_] = ids("hello")
    request = GenerationRequest(
        id="x", prompt=(1,), params=SamplingParams(), max_tokens=2, emitted=(token,)
    )
    flight = api.book.open(request)
    api.book.token(flight, TokenEvent(token, "length", queued=0.5))
    api.book.close(flight)
    assert api.value("time_to_first_token_seconds_count") == 0
    assert api.value("e2e_request_latency_seconds_count") == 0
    assert api.value("request_queue_time_seconds_sum") == 0.5
    assert api.value("request_success_total", finished_reason="length") == 1


async def test_a_client_that_goes_away_is_an_abort() -> None:
    api = Api(Script(ids("hello"), end=False))
    chat = asyncio.create_task(api.chat())
    await api.until_tokens(1)
    chat.cancel()
    await asyncio.wait({chat}, timeout=DEADLINE)
    assert api.book.flights == ()
    assert api.value("request_success_total", finished_reason="abort") == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_somebody_ends_a_request(stream: bool) -> None:
    api = Api(Script(ids("hello"), end=False))
    chats = [asyncio.create_task(api.chat(name, stream=stream)) for name in ("a/b", "other")]
    await api.until_tokens(2)
    ended = await api.client.delete("/v1/requests/a%2Fb")
    assert ended.json() == {"id": "a/b", "object": "request", "cancelled": True, "sequences": 1}
    answer = await asyncio.wait_for(chats[0], DEADLINE)
    if stream:
        error = json.loads(answer.text.split("\n\n")[-3].removeprefix("data: "))["error"]
    else:
        assert answer.status_code == 499
        error = answer.json()["error"]
    assert error["code"] == "request_cancelled"
    assert [flight.group for flight in api.book.flights] == ["other"]
    assert (await api.client.delete("/v1/requests/a%2Fb")).status_code == 404
    await api.client.delete("/v1/requests/other")
    await asyncio.wait_for(chats[1], DEADLINE)
    assert api.book.flights == ()


@pytest.mark.parametrize(
    ("name", "role", "status"),
    [("ann", "user", 200), ("bob", "user", 404), ("bob", "operator", 200), ("bob", "admin", 200)],
)
async def test_who_may_end_it(name: str, role: str, status: int) -> None:
    api = Api(Script(ids("hello"), end=False), principal("ann", "user"))
    chat = asyncio.create_task(api.chat())
    await api.until_tokens(1)
    [shown] = requests_body(api.book.flights, frozenset(), api.clock.now)
    assert shown["principal"] == "ann"
    api.principal = principal(name, role)
    answer = await api.client.delete("/v1/requests/mine")
    assert answer.status_code == status
    if status != 200:
        assert answer.json()["error"]["code"] == "request_not_found"
        api.principal = principal("ann", "user")
        await api.client.delete("/v1/requests/mine")
    await asyncio.wait_for(chat, DEADLINE)


async def test_what_is_shown_of_requests_in_flight() -> None:
    api = Api(Script(ids("hello"), end=False))
    chats = [asyncio.create_task(api.chat("first", max_tokens=7))]
    await api.until_tokens(1)
    [flight] = api.book.flights
    api.clock.now += 2
    [shown] = requests_body(api.book.flights, frozenset(), api.clock.now)
    assert shown == {
        "id": "first",
        "principal": "anybody",
        "state": "decode",
        "sequences": 1,
        "prompt_tokens": len(flight.request.prompt),
        "output_tokens": 1,
        "max_tokens": 7,
        "age_s": 2.0,
    }
    flight.tokens = 0
    states = [
        requests_body([flight], admitted, 0.0)[0]["state"]
        for admitted in (frozenset(), frozenset([flight.request.id]))
    ]
    assert states == ["queued", "prefill"]
    await api.client.delete("/v1/requests/first")
    await asyncio.gather(*chats)


async def test_token_rates_are_of_whole_seconds() -> None:
    rate = TokenRate(seconds=2)
    for now in (9.0, 10.1, 10.9, 11.5, 12.0):
        rate.add(now)
    assert rate.per_second(12.4) == 1.5  # three tokens from 10 to 12
    assert rate.per_second(13.0) == 1.0
    assert rate.per_second(60.0) == 0.0
