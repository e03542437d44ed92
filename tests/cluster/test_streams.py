"""Many streams at once over three ranks: each as if alone, none starved, none left behind."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from tests.cluster.harness import ANSWER_DEADLINE, Cluster, wait_until
from tests.cluster.prompts import names, prompt
from tests.cluster.reference import Reference

T = TypeVar("T")

# Prompt and output lengths of simultaneous requests: single tokens, chunk borders, short and long ones.
SIZES = ((1, 16), (2, 1), (128, 3), (129, 5), (130, 2), (257, 3), (20, 20), (5, 12), (64, 7))
SHORT = tuple((length, 3) for length in (4, 6, 6, 5, 9, 6, 7, 4, 8, 6, 3, 6))  # go side by side
ENDLESS = 4000  # tokens: more than any machine makes before its test has seen what it waits for


@dataclass
class Stream:
    """One streaming completion of a test."""

    cluster: Cluster
    client: httpx.AsyncClient
    finish: str | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)  # a token has come

    async def run(
        self, ids: list[int], max_tokens: int, stop_after: int | None = None
    ) -> list[str]:
        """Names of the tokens, in order; leaves after `stop_after` chunks."""
        tokens: list[str] = []
        body = self.cluster.body(ids, max_tokens, stream=True, logprobs=0)
        async with self.client.stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    [choice] = json.loads(line[6:])["choices"]
                    tokens += (choice["logprobs"] or {"tokens": []})["tokens"]
                    self.begun.set()
                    self.finish = choice["finish_reason"] or self.finish
                if stop_after is not None and len(tokens) >= stop_after:
                    break
        return tokens


def in_client(cluster: Cluster, work: Any) -> Any:
    """Run `work(client)` in an event loop of its own."""

    async def call() -> Any:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=cluster.url, timeout=ANSWER_DEADLINE, limits=limits
        ) as client:
            return await work(client)

    return asyncio.run(call())


async def until(condition: Callable[[], bool], what: str) -> None:
    """Like wait_until, in the midst of other requests, and quick: what is waited for may be short."""
    end = time.monotonic() + ANSWER_DEADLINE
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < end, f"{what}: not within {ANSWER_DEADLINE:g} s"
        await asyncio.sleep(0.01)


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Hang up: the connection of a cancelled request is closed."""
    task.cancel()
    await asyncio.wait({task}, timeout=ANSWER_DEADLINE)
    assert task.cancelled(), "it had ended before"


def idle(cluster: Cluster) -> bool:
    shown = cluster.http.get("/health").json()
    counts = {shown["running"], shown["waiting"], *cluster.sequences()}
    return counts == {0}


async def together(*work: Coroutine[Any, Any, T]) -> list[T]:
    return list(await asyncio.gather(*work))


@pytest.mark.parametrize("sizes", [SIZES, SHORT], ids=["of all sizes", "short"])
def test_simultaneous_streams_are_as_if_alone(
    three: Cluster, reference: Reference, demo_model: Path, sizes: tuple[tuple[int, int], ...]
) -> None:
    prompts = [prompt(demo_model, length, seed) for seed, (length, _) in enumerate(sizes)]
    made = reference.generate(prompts, [count for _, count in sizes])
    expected = [names(demo_model, each.tokens) for each in made]

    async def all_streams(client: httpx.AsyncClient) -> list[list[str]]:
        streams = [Stream(three, client) for _ in sizes]
        tokens = await together(
            *(
                stream.run(ids, count)
                for stream, ids, (_, count) in zip(streams, prompts, sizes, strict=True)
            )
        )
        assert {stream.finish for stream in streams} == {"length"}
        return tokens

    assert in_client(three, all_streams) == expected
    wait_until(lambda: idle(three), "every stage has released all sequences")


def test_prompts_of_one_request_are_as_if_alone(three: Cluster, demo_model: Path) -> None:
    prompts = [prompt(demo_model, length, seed=9) for length in (3, 140, 40)]
    alone = [three.complete(ids, 6)["text"] for ids in prompts]
    body = {**three.body([], 6), "prompt": prompts}
    choices = three.http.post("/v1/completions", json=body).json()["choices"]
    assert [(choice["index"], choice["text"]) for choice in choices] == list(enumerate(alone))


@pytest.mark.parametrize("tokens_seen", [1, 8])
def test_a_closed_stream_is_released_on_every_stage(
    three: Cluster, demo_model: Path, tokens_seen: int
) -> None:
    ids = prompt(demo_model, 50)

    async def leave(client: httpx.AsyncClient) -> None:
        await Stream(three, client).run(ids, ENDLESS, stop_after=tokens_seen)

    in_client(three, leave)
    wait_until(lambda: idle(three), "released on every stage")


def test_a_client_that_leaves_does_not_disturb_its_batch(
    three: Cluster, reference: Reference, demo_model: Path
) -> None:
    ids = prompt(demo_model, 140, seed=30)
    [made] = reference.generate([ids], 16)
    expected = names(demo_model, made.tokens)

    async def some_leave(client: httpx.AsyncClient) -> list[str]:
        leaving = [
            Stream(three, client).run(prompt(demo_model, 10 * n, n), ENDLESS, stop_after=3 * n)
            for n in range(1, 4)
        ]
        return (await together(Stream(three, client).run(ids, 16), *leaving))[0]

    assert in_client(three, some_leave) == expected
    wait_until(lambda: idle(three), "released on every stage")


@pytest.mark.parametrize(
    ("seed", "length", "stream"), [(41, 20, False), (42, 1500, False), (43, 1500, True)]
)
def test_a_client_that_hangs_up_before_any_answer_is_noticed(
    three: Cluster, demo_model: Path, seed: int, length: int, stream: bool
) -> None:
    """While it decodes, which a request that does not stream tells nobody, and in the middle of the prefill.

    Each has a prompt of its own: the cache of prefixes would make a prefill short.
    """
    body = three.body(prompt(demo_model, length, seed), ENDLESS, stream=stream)

    def taken_up() -> bool:
        """By rank 0; where it is to decode, its only chunk has also reached the last stage."""
        return three.sequences() == [1, 1, 1] if length < 128 else three.health(0)["sequences"] == 1

    async def hang_up(client: httpx.AsyncClient) -> None:
        request = asyncio.create_task(client.post("/v1/completions", json=body))
        await until(taken_up, "the request is worked on")
        await cancelled(request)

    wait_until(lambda: idle(three), "idle")
    in_client(three, hang_up)
    wait_until(lambda: idle(three), "released on every stage")


def test_a_short_request_is_not_starved(three: Cluster, demo_model: Path) -> None:
    """It comes last, among streams without end and a long prompt, and is answered before that prompt is."""
    long_prompt, short = prompt(demo_model, 1500, seed=53), prompt(demo_model, 10, seed=54)

    async def crowd(client: httpx.AsyncClient) -> None:
        streams = [Stream(three, client) for _ in range(2)]
        endless = [
            asyncio.create_task(stream.run(prompt(demo_model, 20, seed=n), ENDLESS))
            for n, stream in enumerate(streams, start=50)
        ]
        for stream in streams:
            await asyncio.wait_for(stream.begun.wait(), ANSWER_DEADLINE)
        prefill = asyncio.create_task(Stream(three, client).run(long_prompt, 1))
        await until(
            lambda: three.health(0)["sequences"] == 3 or prefill.done(), "the long prompt's turn"
        )
        assert len(await Stream(three, client).run(short, 3)) == 3
        assert not prefill.done()
        assert len(await prefill) == 1
        for task in endless:
            await cancelled(task)

    wait_until(lambda: idle(three), "idle")
    in_client(three, crowd)
    wait_until(lambda: idle(three), "released on every stage")
