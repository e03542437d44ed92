"""Requests that share prefixes, over real models: the same tokens as without a prefix cache, and less work."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from typing import Any

import pytest
from mlx_lm.models.cache import make_prompt_cache

from pipeline.engine import Engine
from pipeline.frames import Result, Step
from pipeline.request import SamplingParams, TokenEvent
from pipeline.split import cut_limit
from pipeline.split.caches import kind_of
from pipeline.worker import Worker
from tests.pipeline.split.tiny import CONFIGS
from tests.pipeline.test_engine import DEADLINE, collect, request, running, tokens_of
from tests.pipeline.tiny_models import make_model

ARCHITECTURES = (
    "qwen3",
    "llama",  # some layers with a sliding window
    "gemma3_text",
    "gpt_oss",
    "mamba2",
    "lfm2",
    "falcon_h1",
    "llama4",  # can't batch
)
KEPT = 10_000
PROMPT = tuple((7 * i * i + 3) % 90 for i in range(41))
SEEDED = SamplingParams(seed=11, temperature=1.3)


def settings(architecture: str, **changes: Any) -> dict[str, Any]:
    kinds = [kind_of(c) for c in make_prompt_cache(make_model(CONFIGS[architecture]))]
    batch = 1 if architecture == "llama4" else 8
    base = {"context": 256, "prefix_tokens": KEPT, "cut_limit": cut_limit(kinds)}
    return {"architecture": architecture, "max_group": batch, **base, **changes}


async def settled(engine: Engine, worker: Worker) -> None:
    """Wait until nothing runs; then every stage holds what is kept, and nothing else."""
    for _ in range(int(DEADLINE * 100)):
        stats = engine.stats()
        idle = stats.running == stats.waiting == stats.in_flight == 0
        if idle and worker.sequences.live == worker.stats.sequences == 0:
            assert len(worker.sequences) == stats.prefixes.sequences
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{engine.stats()} and {len(worker.sequences)} sequences are left")


async def ask(
    engine: Engine, prompt: tuple[int, ...], count: int = 6, **more: Any
) -> list[TokenEvent]:
    return await collect(engine.generate(request(prompt, count, **more)))


async def everything(engine: Engine, worker: Worker) -> tuple[list[list[int]], list[int]]:
    """Tokens of all requests of a scenario with turns, twins, branches, cancellations and resumes; and what
    each was spared."""
    answers: list[list[TokenEvent]] = []
    for params in (SamplingParams(temperature=0.0), SEEDED):
        first = await ask(engine, PROMPT, params=params)
        said = PROMPT + tuple(tokens_of(first))
        second = await ask(engine, (*said, 5, 6), params=params)
        answers += [first, second]
        answers.append(await ask(engine, PROMPT, params=params))
        answers.append(await ask(engine, (*PROMPT[:30], 1, 2, 3), params=params))
        fresh = tuple(reversed(said))
        answers += await asyncio.gather(
            *(ask(engine, fresh, 5 + i, params=params) for i in range(3))
        )
        async with aclosing(engine.generate(request((8, *PROMPT), 50, params=params))) as events:
            async for _ in events:
                break
        answers.append(await ask(engine, (8, *PROMPT, 4), params=params))
        emitted = tuple(tokens_of(first)[:3])
        answers.append(await ask(engine, PROMPT, params=params, emitted=emitted))
        assert tokens_of(answers[-1]) == tokens_of(first)[3:]
    await settled(engine, worker)
    return [tokens_of(a) for a in answers], [a[0].cached for a in answers]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_hit_changes_no_token(architecture: str) -> None:
    with running(**settings(architecture, prefix_tokens=0)) as (engine, worker):
        plain, nothing = asyncio.run(everything(engine, worker))
        assert engine.stats().prefixes.queries == len(worker.sequences) == 0
    with running(**settings(architecture)) as (engine, worker):
        cached, spared = asyncio.run(everything(engine, worker))
        stats = engine.stats()
    assert cached == plain
    assert not any(nothing)
    turn, again, branch, *twins = spared[1:7]
    assert (turn, again) == (len(PROMPT) + 5, len(PROMPT) - 1)
    assert branch == (30 if architecture == "qwen3" else 0)
    assert twins == [0, 46, 46]
    assert spared[7] >= len(PROMPT)  # what the cancelled one had been fed
    assert spared[8] == len(PROMPT) - (architecture != "qwen3")  # a resume
    hits = sum(1 for tokens in spared if tokens) + 1  # the second one that was cancelled
    assert (stats.prefixes.hits, stats.prefixes.queries) == (hits, 20)


@pytest.mark.parametrize("architecture", ["qwen3", "lfm2"])
def test_little_memory_evicts_but_changes_nothing(architecture: str) -> None:
    async def scenario(engine: Engine, worker: Worker) -> list[list[int]]:
        prompts = [(i,) * 3 + PROMPT for i in (1, 2, 3, 1, 2, 3, 3)]
        answers = [tokens_of(await ask(engine, prompt)) for prompt in prompts]
        answers += map(tokens_of, await asyncio.gather(*(ask(engine, p) for p in prompts)))
        await settled(engine, worker)
        return answers

    outcomes = []
    for kept in (0, KEPT):
        small = settings(architecture, kv_tokens=120, prefix_tokens=kept)
        with running(**small) as (engine, worker):
            outcomes.append(asyncio.run(scenario(engine, worker)))
            assert engine.stats().prefixes.tokens <= 120
            assert bool(engine.stats().prefixes.hits) == bool(kept)
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3_text", "lfm2"])
def test_choices_of_one_prompt_that_come_together_prefill_it_once(architecture: str) -> None:
    async def scenario(engine: Engine) -> list[list[TokenEvent]]:
        seeds = (SamplingParams(seed=seed, temperature=1.3) for seed in range(5))
        return await asyncio.gather(*(ask(engine, PROMPT, params=params) for params in seeds))

    with running(**settings(architecture)) as (engine, _):
        answers = asyncio.run(scenario(engine))
        prefilled = engine.stats().prompt_tokens
    assert prefilled == len(PROMPT) - 1
    assert [events[0].cached for events in answers] == [0] + 4 * [len(PROMPT) - 1]
    assert len({tuple(tokens_of(events)) for events in answers}) == 5


@pytest.mark.parametrize("architecture", ["qwen3", "mamba2"])
def test_a_prompt_cancelled_half_way_is_kept_as_far_as_it_came(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caches hold exactly the tokens that were handed out."""
    prompt = tuple((5 * i + i // 7) % 90 for i in range(200))

    half_way, go_on = threading.Event(), threading.Event()

    async def scenario(engine: Engine, worker: Worker) -> TokenEvent:
        original = worker.run

        def held_up(step: Step) -> Result | None:
            result = original(step)
            if worker.stats.steps == 12:  # 48 tokens in chunks of 4
                half_way.set()
                go_on.wait(DEADLINE)
            return result

        monkeypatch.setattr(worker, "run", held_up)
        lost = asyncio.create_task(ask(engine, prompt))
        await asyncio.to_thread(half_way.wait, DEADLINE)
        lost.cancel()
        await asyncio.wait([lost])
        go_on.set()
        await settled(engine, worker)
        assert engine.stats().prefixes.tokens == 48
        return (await ask(engine, prompt))[0]

    with running(**settings(architecture)) as (engine, worker):
        event = asyncio.run(scenario(engine, worker))
    with running(**settings(architecture, prefix_tokens=0)) as (engine, _):
        assert asyncio.run(ask(engine, prompt))[0].token == event.token
    assert event.cached == 48


def test_only_the_first_token_tells_what_was_cached_and_never_more_than_the_prompt() -> None:
    async def scenario(engine: Engine) -> tuple[list[TokenEvent], list[TokenEvent]]:
        await ask(engine, PROMPT)
        again = await ask(engine, PROMPT)
        resumed = await ask(engine, PROMPT, emitted=tuple(tokens_of(again)[:5]))
        return again, resumed

    with running(**settings("qwen3")) as (engine, _):
        again, resumed = asyncio.run(scenario(engine))
    assert [event.cached for event in again] == [len(PROMPT) - 1, 0, 0, 0, 0, 0]
    assert resumed[0].cached == len(PROMPT)


def test_what_is_kept_can_be_dropped() -> None:
    async def scenario(engine: Engine, worker: Worker) -> None:
        await asyncio.gather(*(ask(engine, (i, *PROMPT)) for i in range(5)))
        await settled(engine, worker)
        assert len(worker.sequences) == 5
        engine.configure(lambda scheduler: scheduler.drop_prefixes())
        for _ in range(int(DEADLINE * 100)):
            if not len(worker.sequences):
                break
            await asyncio.sleep(0.01)
        await settled(engine, worker)
        assert (len(worker.sequences), worker.sequences.nbytes) == (0, 0)

    with running(**settings("qwen3")) as (engine, worker):
        asyncio.run(scenario(engine, worker))
