"""Prompts prefilled side by side, over real models: every request gets the tokens that it gets alone."""

from __future__ import annotations

import asyncio
import threading
from functools import cache
from typing import Any

import msgspec
import pytest
from mlx_lm.models.cache import make_prompt_cache

from pipeline.engine import Engine
from pipeline.errors import FrameError, RequestCancelled
from pipeline.frames import Admission, Prefill, Result, Step
from pipeline.pacing import Pacing
from pipeline.request import GenerationRequest, SamplingParams, TokenEvent
from pipeline.ring import Ring
from pipeline.scheduler import Scheduler
from pipeline.split import Stage, can_pad, cut_limit, probe
from pipeline.split.caches import kind_of
from pipeline.worker import Worker
from tests.pipeline.split.tiny import CONFIGS
from tests.pipeline.test_engine import DEADLINE, collect, drained, request, running, tokens_of
from tests.pipeline.tiny_models import make_model

PADDED = (  # llama to afmoe have sliding windows of 4 tokens, deepseek_v32 has caches in lists
    "llama", "gemma3_text", "gpt_oss", "afmoe", "qwen3", "qwen3_moe", "deepseek_v3", "deepseek_v32", "gemma3n",
)  # fmt: skip
EQUAL = ("mamba2", "lfm2", "falcon_h1", "recurrent_gemma")  # states: only prompts of one length
ONE_BY_ONE = ("llama4",)  # can't batch
LENGTHS = (9, 9, 7, 12, 2, 9, 1, 6)
PROMPTS = [
    tuple((7 * row + 5 * i * i) % 97 for i in range(length)) for row, length in enumerate(LENGTHS)
]
SEEDED = SamplingParams(seed=11, temperature=1.3)


@pytest.fixture(autouse=True)
def steps_take_what_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who goes with whom must not depend on how fast this machine is at the moment."""
    monkeypatch.setattr(Pacing, "observe_prefill", lambda *_: None)


@cache
def kinds(architecture: str) -> tuple[Any, ...]:
    return tuple(kind_of(c) for c in make_prompt_cache(make_model(CONFIGS[architecture])))


def settings(architecture: str, **changes: Any) -> dict[str, Any]:
    base = {
        "architecture": architecture,
        "batchable": architecture not in ONE_BY_ONE,
        "paddable": can_pad(kinds(architecture)),
        "cut_limit": cut_limit(kinds(architecture)),
        "prefill_chunk": 128,
        "context": 256,
    }
    return {**base, **changes}


def prefills(worker: Worker) -> list[tuple[int, ...]]:
    """Lengths of the rows of every prefill step from now on."""
    seen: list[tuple[int, ...]] = []
    run = worker.run

    def watched(step: Step) -> Result | None:
        if isinstance(step.work, Prefill):
            seen.append(tuple(map(len, step.work.tokens)))
        return run(step)

    worker.run = watched  # type: ignore[method-assign]
    return seen


async def submitted(
    engine: Engine, requests: list[GenerationRequest]
) -> list[asyncio.Task[list[TokenEvent]]]:
    """All are in the queue before the first one begins."""
    entered, gate = threading.Event(), threading.Event()

    def hold(_: Scheduler) -> None:
        entered.set()
        gate.wait(DEADLINE)

    engine.configure(hold)
    assert await asyncio.to_thread(entered.wait, DEADLINE)
    jobs = [asyncio.ensure_future(collect(engine.generate(r))) for r in requests]
    while len(engine._commands) < len(requests):
        await asyncio.sleep(0.001)
    gate.set()
    return jobs


async def together(engine: Engine, requests: list[GenerationRequest]) -> list[list[int]]:
    jobs = await submitted(engine, requests)
    return [tokens_of(events) for events in await asyncio.gather(*jobs)]


async def one_by_one(engine: Engine, requests: list[GenerationRequest]) -> list[list[int]]:
    return [tokens_of(await collect(engine.generate(r))) for r in requests]


@pytest.mark.parametrize("architecture", [*PADDED, *EQUAL, *ONE_BY_ONE])
def test_together_as_alone(architecture: str) -> None:
    requests = [request(p, 6, params=SEEDED) for p in PROMPTS]
    with running(**settings(architecture)) as (engine, worker):
        alone = asyncio.run(one_by_one(engine, requests))
        rows = prefills(worker)
        assert asyncio.run(together(engine, requests)) == alone
        asyncio.run(drained(engine, worker))
    most = max(map(len, rows))
    assert most == (7 if architecture in PADDED else 3 if architecture in EQUAL else 1)
    if architecture in EQUAL:
        assert all(len(set(lengths)) == 1 for lengths in rows)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "mamba2", "falcon_h1"])
def test_short_rests_behind_a_prefix(architecture: str) -> None:
    """The rows begin at copies, some of them of different lengths; all is as if nothing was ever kept."""
    stem = tuple((7 * i * i + 3) % 90 for i in range(41))
    first = request(stem, 3)
    more = [request((*stem, *PROMPTS[row][:5]), 6) for row in range(4)]
    more += [request((*stem[:20], *PROMPTS[row][:6]), 6, params=SEEDED) for row in range(3)]
    with running(**settings(architecture)) as (engine, _):
        alone = asyncio.run(one_by_one(engine, [first, *more]))

    async def scenario(engine: Engine) -> list[list[int]]:
        before = await one_by_one(engine, [first])
        return before + await together(engine, more)

    with running(**settings(architecture, prefix_tokens=10_000)) as (engine, worker):
        rows = prefills(worker)
        assert asyncio.run(scenario(engine)) == alone
        assert engine.stats().prefixes.hits >= 4
    assert max(map(len, rows)) > 1


def test_last_chunks_of_longer_prompts_go_with_short_ones() -> None:
    lengths = (30, 5, 27, 9, 30, 3, 22, 5)
    prompts = [tuple((7 * row + 5 * i * i) % 97 for i in range(n)) for row, n in enumerate(lengths)]
    requests = [request(p, 6, params=SEEDED) for p in prompts]
    with running(**settings("llama")) as (engine, _):
        alone = asyncio.run(one_by_one(engine, requests))
    with running(**settings("llama", prefill_chunk=8)) as (engine, worker):
        rows = prefills(worker)
        assert asyncio.run(together(engine, requests)) == alone
        asyncio.run(drained(engine, worker))
    assert max(map(len, rows)) > 1
    assert max(len(step) * max(step) for step in rows) <= 8


@pytest.mark.parametrize("architecture", ["llama", "gpt_oss"])
def test_histories_beyond_the_window_and_unequal(architecture: str) -> None:
    """Windows of 4 tokens; rows that hold 0, 20 and 32 tokens of a prefix."""
    stem = tuple((7 * i * i + 3) % 90 for i in range(41))
    kept = [request(stem[: held + 1], 3) for held in (20, 32)]
    more = [
        request((*stem[:held], 91 + row, 5, 8), 8, params=SEEDED)
        for row, held in enumerate((0, 20, 32, 0, 20))
    ]
    with running(**settings(architecture)) as (engine, _):
        alone = asyncio.run(one_by_one(engine, [*kept, *more]))
    with running(**settings(architecture, prefix_tokens=10_000)) as (engine, worker):
        starts: list[set[int]] = []
        join = worker.sequences.join

        def watched(sequences: Any, lengths: Any) -> Any:
            starts.append({worker.sequences._tokens[sequence] for sequence in sequences})
            return join(sequences, lengths)

        worker.sequences.join = watched  # type: ignore[method-assign]
        before = asyncio.run(one_by_one(engine, kept))
        assert before + asyncio.run(together(engine, more)) == alone
    assert starts == [{0, 20, 32}]


def test_rows_are_preempted_between_two_joint_chunks() -> None:
    """Memory has run short: the latest go, while others of their steps go on."""
    prompts = [*PROMPTS, *(tuple(96 - token for token in prompt) for prompt in PROMPTS)]
    requests = [request(p, 6, id=str(row), params=SEEDED) for row, p in enumerate(prompts)]
    with running(**settings("llama")) as (engine, _):
        alone = asyncio.run(one_by_one(engine, requests))
    with running(**settings("llama", prefill_chunk=24)) as (engine, worker):
        rows = prefills(worker)
        run = worker.run

        def short_of_memory(step: Step) -> Result | None:
            result = run(step)
            full = len(rows) <= 3 and result is not None
            return msgspec.structs.replace(result, memory=1.5) if full and result else result

        worker.run = short_of_memory  # type: ignore[method-assign]
        assert asyncio.run(together(engine, requests)) == alone
        asyncio.run(drained(engine, worker))
        assert [len(step) > 1 for step in rows[:3]] == [True] * 3
        assert any(len(step) > 1 for step in rows[3:])
        assert engine.stats().memory.preempted > 0


def test_one_of_several_is_cancelled_while_they_are_prefilled() -> None:
    requests = [request(p, 6, id=str(row)) for row, p in enumerate(PROMPTS)]

    async def scenario(engine: Engine, worker: Worker) -> list[list[int]]:
        run = worker.run

        def cancelling(step: Step) -> Result | None:
            if isinstance(step.work, Prefill):
                assert len(step.work.sequences) > 1
                engine.cancel("2")
            return run(step)

        worker.run = cancelling  # type: ignore[method-assign]
        jobs = await submitted(engine, requests)
        results = await asyncio.gather(*jobs, return_exceptions=True)
        assert isinstance(results.pop(2), RequestCancelled)
        await drained(engine, worker)
        return [tokens_of(events) for events in results if isinstance(events, list)]

    with running(**settings("llama")) as (engine, _):
        alone = asyncio.run(one_by_one(engine, [r for r in requests if r.id != "2"]))
    with running(**settings("llama")) as (engine, worker):
        assert asyncio.run(scenario(engine, worker)) == alone


def test_what_no_scheduler_asks_for_is_refused() -> None:
    model = make_model(CONFIGS["llama"])
    blueprint = probe(make_model(CONFIGS["llama"]))
    stage = Stage(model, blueprint, 0, blueprint.num_layers)
    worker = Worker(stage, 2, Ring(), None, None, DEADLINE)
    admitted = (Admission(0, SamplingParams()), Admission(1, SamplingParams()))
    with pytest.raises(FrameError, match="the model loops"):
        worker.run(Step(0, admitted=admitted, work=Prefill((0, 1), ((1, 2), (3,)))))
    with pytest.raises(FrameError, match="twice"):
        worker.sequences.join((0, 0), (2, 2))
    with pytest.raises(FrameError, match="sequence 7 is not held"):
        worker.sequences.join((0, 7), (2, 2))
