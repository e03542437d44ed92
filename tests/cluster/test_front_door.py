"""A front door before real ranks: one is killed, others are started, and no client sees it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from config import load
from launcher.door import LeaderAddress
from launcher.frontdoor import FrontDoor
from tests.cluster.conftest import Start
from tests.cluster.harness import ANSWER_DEADLINE, HOST, Cluster, Spec, folder_model
from tests.cluster.tiny import make_folder

TOKENS = 120
BEGUN = 3  # events of a stream after which it is in the middle
PROMPTS = [[5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15, 16]]


@pytest.fixture
def tiny(tmp_path: Path) -> Spec:
    folder = make_folder(tmp_path / "llama", "llama")
    believed = [f"access.front_door={HOST}"]  # as the launcher tells its ranks
    return Spec(ranks=2, models=folder_model(folder), settings=believed)


@asynccontextmanager
async def opened() -> AsyncIterator[FrontDoor]:
    config = load(None, {}, ["access.enabled=false"]).config
    gateway = config.api_gateway.model_copy(update={"port": 0})
    door = FrontDoor(config.model_copy(update={"api_gateway": gateway}))
    await door.start()
    try:
        yield door
    finally:
        await door.stop(0)


def leader(cluster: Cluster, epoch: int) -> LeaderAddress:
    return LeaderAddress(HOST, cluster.ports.nodes[0][0], epoch)


def bodies(cluster: Cluster) -> list[dict[str, Any]]:
    """Greedy and seeded, streams and whole answers, several prompts, log probabilities."""
    seeded = {"temperature": 1.0, "seed": 11}
    return [
        cluster.body(PROMPTS[0], TOKENS, stream=True),
        cluster.body(PROMPTS[1], TOKENS),
        cluster.body(PROMPTS[0], TOKENS, stream=True, **seeded),
        cluster.body(PROMPTS[2], TOKENS, **seeded),
        cluster.body(PROMPTS[2], TOKENS, logprobs=1, n=2, **seeded),
        {**cluster.body([], TOKENS, stream=True, **seeded), "prompt": PROMPTS, "n": 2},
    ]


def texts(answer: httpx.Response) -> dict[int, str]:
    """By choice."""
    assert answer.status_code == 200, answer.text
    found: dict[int, str] = {}
    documents = [answer.json()] if answer.text.startswith("{") else stream_of(answer.text)
    for document in documents:
        assert "error" not in document, document
        for choice in document["choices"]:
            found[choice["index"]] = found.get(choice["index"], "") + choice["text"]
    return found


def stream_of(text: str) -> list[Any]:
    lines = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]", lines[-1]
    return [httpx.Response(200, content=line).json() for line in lines[:-1]]


@pytest.mark.parametrize("victim", [0, 1], ids=["rank 0", "the last rank"])
def test_a_killed_rank_is_not_seen(tiny: Spec, start: Start, victim: int) -> None:
    first = start(tiny).wait_ready()
    asked = bodies(first)
    expected = [texts(first.http.post("/v1/completions", json=body)) for body in asked]
    second = start(tiny)  # the one that takes over is ready at once: how it comes is not shown here
    second.wait_ready()

    async def run() -> tuple[list[httpx.Response], dict[str, object]]:
        async with opened() as door:
            door.leader_changed(leader(first, 1))
            url = "http://{}:{}".format(*door.address)
            async with httpx.AsyncClient(base_url=url, timeout=ANSWER_DEADLINE) as client:
                begun = asyncio.Event()
                answers = [asyncio.create_task(streamed(client, asked[0], begun))]
                answers += [
                    asyncio.create_task(client.post("/v1/completions", json=body))
                    for body in asked[1:]
                ]
                await begun.wait()
                os.kill(first.pids[victim], signal.SIGKILL)
                door.leader_changed(None, "a rank has died")
                door.leader_changed(leader(second, 2))
                return await asyncio.gather(*answers), door.stats()

    async def streamed(
        client: httpx.AsyncClient, body: dict[str, Any], begun: asyncio.Event
    ) -> httpx.Response:
        """The whole answer to `body`, a stream; `begun` is set when some of its tokens are here."""
        lines = []
        async with client.stream("POST", "/v1/completions", json=body) as stream:
            async for line in stream.aiter_lines():
                lines.append(line)
                if len(lines) >= 2 * BEGUN:  # each event and an empty line
                    begun.set()
        return httpx.Response(stream.status_code, text="\n".join(lines))

    answers, stats = asyncio.run(asyncio.wait_for(run(), ANSWER_DEADLINE))
    assert [texts(answer) for answer in answers] == expected
    assert stats["resumed"], "the kill came in the middle of them"
    whole = answers[1].json()["usage"]
    assert (whole["prompt_tokens"], whole["completion_tokens"]) == (len(PROMPTS[1]), TOKENS)
    second.stop()
