"""Many streams at once over three ranks: each as if alone, none starved, none left behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from tests.cluster.harness import ANSWER_DEADLINE, Cluster, wait_until
from tests.cluster.prompts import names, prompt
from tests.cluster.reference import Reference

T = TypeVar("T")

# Prompt and output lengths of simultaneous requests: single tokens, chunk borders, short and long ones.
SIZES = ((1, 40), (2, 1), (128, 5), (129, 12), (130, 30), (257, 3), (20, 48), (64, 24))
SIZES += ((300, 16), (5, 36), (400, 2), (33, 20))


@dataclass
class Stream:
    """One streaming completion of a test."""

    cluster: Cluster
    client: httpx.AsyncClient
    finish: str | None = None

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


async def together(*work: Coroutine[Any, Any, T]) -> list[T]:
    return list(await asyncio.gather(*work))


def test_simultaneous_streams_are_as_if_alone(
    three: Cluster, reference: Reference, demo_model: Path
) -> None:
    prompts = [prompt(demo_model, length, seed) for seed, (length, _) in enumerate(SIZES)]
    made = reference.generate(prompts, [count for _, count in SIZES])
    expected = [names(demo_model, each.tokens) for each in made]

    async def all_streams(client: httpx.AsyncClient) -> list[list[str]]:
        streams = [Stream(three, client) for _ in SIZES]
        tokens = await together(
            *(
                stream.run(ids, count)
                for stream, ids, (_, count) in zip(streams, prompts, SIZES, strict=True)
            )
        )
        assert {stream.finish for stream in streams} == {"length"}
        return tokens

    assert in_client(three, all_streams) == expected
    wait_until(lambda: three.sequences() == [0, 0, 0], "every stage has released all sequences")


def test_prompts_of_one_request_are_as_if_alone(three: Cluster, demo_model: Path) -> None:
    prompts = [prompt(demo_model, length, seed=9) for length in (3, 140, 40)]
    alone = [three.complete(ids, 12)["text"] for ids in prompts]
    body = {**three.body([], 12), "prompt": prompts}
    choices = three.http.post("/v1/completions", json=body).json()["choices"]
    assert [(choice["index"], choice["text"]) for choice in choices] == list(enumerate(alone))


@pytest.mark.parametrize("tokens_seen", [1, 20])
def test_a_closed_stream_is_released_on_every_stage(
    three: Cluster, demo_model: Path, tokens_seen: int
) -> None:
    ids = prompt(demo_model, 50)

    async def leave(client: httpx.AsyncClient) -> None:
        await Stream(three, client).run(ids, 4000, stop_after=tokens_seen)

    in_client(three, leave)
    wait_until(lambda: three.sequences() == [0, 0, 0], "released on every stage")
    shown = three.http.get("/health").json()
    assert (shown["running"], shown["waiting"]) == (0, 0)


def test_a_client_that_leaves_does_not_disturb_its_batch(
    three: Cluster, reference: Reference, demo_model: Path
) -> None:
    [made] = reference.generate([prompt(demo_model, 300)], 48)
    expected = names(demo_model, made.tokens)

    async def some_leave(client: httpx.AsyncClient) -> list[str]:
        staying = Stream(three, client).run(prompt(demo_model, 300), 48)
        leaving = [
            Stream(three, client).run(prompt(demo_model, 10 * n, seed=n), 400, stop_after=5 * n)
            for n in range(1, 5)
        ]
        return (await together(staying, *leaving))[0]

    assert in_client(three, some_leave) == expected
    wait_until(lambda: three.sequences() == [0, 0, 0], "released on every stage")


@pytest.mark.parametrize(
    ("length", "patience", "stream"),
    [(20, 2.0, False), (1500, 0.5, False), (1500, 0.5, True)],
)
def test_a_client_that_hangs_up_before_any_answer_is_noticed(
    three: Cluster, demo_model: Path, length: int, patience: float, stream: bool
) -> None:
    """While it decodes, and in the middle of the prefill."""
    body = three.body(prompt(demo_model, length), 4000, stream=stream)
    with pytest.raises(httpx.ReadTimeout):
        three.http.post("/v1/completions", json=body, timeout=patience)
    wait_until(lambda: three.sequences() == [0, 0, 0], "released on every stage")


def test_a_short_request_is_not_starved(three: Cluster, demo_model: Path) -> None:
    """It comes last, among long streams and a long prompt, and is done before any of them."""
    long_prompt, short = prompt(demo_model, 1500, seed=3), prompt(demo_model, 10, seed=4)

    async def crowd(client: httpx.AsyncClient) -> list[str]:
        done: list[str] = []

        async def one(name: str, ids: list[int], count: int) -> None:
            tokens = await Stream(three, client).run(ids, count)
            assert len(tokens) == count
            done.append(name)

        streams = [
            asyncio.create_task(one("stream", prompt(demo_model, 20, seed=n), 80)) for n in range(3)
        ]
        await asyncio.sleep(1)  # they are decoding
        prefill = asyncio.create_task(one("prefill", long_prompt, 2))
        await asyncio.sleep(0.1)
        await one("short", short, 4)
        await asyncio.gather(*streams, prefill)
        return done

    done = in_client(three, crowd)
    assert done[0] == "short"
    assert sorted(done) == ["prefill", "short", *3 * ["stream"]]
