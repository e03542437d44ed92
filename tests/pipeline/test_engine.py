"""The engine over one real stage: what goes in as a request comes out as its tokens, whatever else goes on."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import aclosing, contextmanager
from functools import cache
from typing import Any

import mlx.core as mx
import msgspec
import pytest
from mlx_lm.models.cache import make_prompt_cache

from pipeline.engine import Engine
from pipeline.errors import (
    BrokenOutput,
    ConstraintRefused,
    ContextTooLong,
    EngineFault,
    EngineStopped,
    QueueFull,
)
from pipeline.memory import Budget, MemoryState
from pipeline.request import Constraint, GenerationRequest, SamplingParams, TokenEvent
from pipeline.ring import Ring
from pipeline.sampler import Sampler
from pipeline.scheduler import Limits, Scheduler
from pipeline.split import Stage, probe
from pipeline.worker import Worker
from tests.pipeline.split.tiny import CONFIGS
from tests.pipeline.tiny_models import make_model
from tests.pipeline.vocabularies import END, grammars, text_of

VOCABULARY = 97
GREEDY = SamplingParams(temperature=0.0)
DEADLINE = 60.0


def limits(**changes: Any) -> Limits:
    values: dict[str, Any] = {
        "stages": 1,
        "max_requests": 16,
        "max_running": 16,
        "max_group": 8,
        "prefill_chunk": 4,
        "context": 64,
    }
    return Limits(**{**values, **changes})


@contextmanager
def running(architecture: str = "llama", **changes: Any) -> Iterator[tuple[Engine, Worker]]:
    """An engine in a thread of its own, as a rank runs it; the loop must have ended in order afterwards."""
    made: Future[tuple[Engine, Worker]] = Future()
    ended: Future[None] = Future()

    def live() -> None:
        model = make_model(CONFIGS[architecture])
        blueprint = probe(make_model(CONFIGS[architecture]))
        stage = Stage(model, blueprint, 0, blueprint.num_layers)
        worker = Worker(
            stage, blueprint.passes, Ring(), None, Sampler(VOCABULARY, grammars()), DEADLINE
        )
        engine = Engine(Scheduler(limits(**changes)), worker, None, DEADLINE)
        made.set_result((engine, worker))
        try:
            engine.run()
        except RuntimeError as error:
            ended.set_exception(error)
        else:
            ended.set_result(None)

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    engine, worker = made.result(DEADLINE)
    try:
        yield engine, worker
    finally:
        engine.stop()
        thread.join(DEADLINE)
    assert not thread.is_alive()


@cache
def lone_tokens(prompt: tuple[int, ...], count: int, architecture: str = "llama") -> list[int]:
    """Greedy continuation by the whole model, without any of our code."""
    model = make_model(CONFIGS[architecture])
    caches = make_prompt_cache(model)
    logits = model(mx.array([prompt]), cache=caches)
    tokens: list[int] = []
    for _ in range(count):
        tokens.append(int(mx.argmax(logits[0, -1]).item()))  # type: ignore[arg-type]
        logits = model(mx.array([tokens[-1:]]), cache=caches)
    return tokens


def request(prompt: tuple[int, ...], count: int = 8, **more: Any) -> GenerationRequest:
    fields: dict[str, Any] = {"id": "r", "params": GREEDY, "max_tokens": count, **more}
    return GenerationRequest(prompt=prompt, **fields)


async def collect(events: AsyncIterator[TokenEvent]) -> list[TokenEvent]:
    return await asyncio.wait_for(_collect(events), DEADLINE)


async def _collect(events: AsyncIterator[TokenEvent]) -> list[TokenEvent]:
    return [event async for event in events]


def tokens_of(events: list[TokenEvent]) -> list[int]:
    return [event.token for event in events]


async def drained(engine: Engine, worker: Worker) -> None:
    """Wait until the engine has nothing to do and holds nothing."""
    for _ in range(int(DEADLINE * 100)):
        stats = engine.stats()
        if stats.running == stats.waiting == stats.in_flight == 0 and len(worker.sequences) == 0:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{engine.stats()} and {len(worker.sequences)} sequences are left")


@pytest.mark.parametrize("architecture", ["llama", "mamba2", "gpt_oss", "llama4"])
@pytest.mark.parametrize("length", [1, 2, 4, 5, 13])
def test_tokens_are_those_of_the_whole_model(architecture: str, length: int) -> None:
    prompt = tuple(range(3, 3 + length))
    with running(architecture) as (engine, _):
        events = asyncio.run(collect(engine.generate(request(prompt))))
    assert tokens_of(events) == lone_tokens(prompt, 8, architecture)
    assert [event.finish for event in events] == [None] * 7 + ["length"]


def regex(text: str) -> Constraint:
    return Constraint(kind="regex", text=text, ends=(END,))


def test_a_constraint_that_can_not_go_on_ends_its_request_alone() -> None:
    held = SamplingParams(temperature=0.0, constraint=regex("[0-9]{8}"), end_tokens=(END,))
    broken = SamplingParams(temperature=0.0, constraint=regex("a("))

    async def both(engine: Engine) -> list[TokenEvent]:
        jobs = [collect(engine.generate(request((3, 4), 20, params=p))) for p in (held, broken)]
        good, bad = await asyncio.gather(*jobs, return_exceptions=True)
        assert isinstance(bad, ConstraintRefused)
        assert isinstance(good, list)
        return good

    with running() as (engine, _):
        events = asyncio.run(both(engine))
    assert text_of(tokens_of(events)).isdigit()
    assert [event.finish for event in events] == [None] * 8 + ["stop"]


@pytest.mark.parametrize("architecture", ["llama", "mamba2"])
def test_sequences_that_lose_their_place_go_on_as_if_they_had_not(architecture: str) -> None:
    """When all run, memory becomes too little: the batch shrinks to one, and everybody is served."""
    sampled = SamplingParams(
        temperature=1.0, seed=11, repetition_penalty=1.3, frequency_penalty=0.5, min_tokens=9
    )
    jobs = [request(tuple(range(i, i + 3 + 4 * i)), 40 + i) for i in range(1, 5)]
    jobs += [request(tuple(range(i, i + 20)), 44, params=sampled) for i in range(3)]
    held = msgspec.structs.replace(sampled, constraint=regex("(ab|cd){4,9}x{50}"))
    jobs += [request(tuple(range(i, i + 9)), 40, params=held) for i in range(2)]

    async def all_at_once(
        engine: Engine, worker: Worker, memory_bytes: int
    ) -> list[list[TokenEvent]]:
        begun: set[int] = set()

        async def one(number: int) -> list[TokenEvent]:
            events = []
            async for event in engine.generate(jobs[number]):
                events.append(event)
                begun.add(number)
                if len(begun) == len(jobs):
                    engine.configure(lambda _: setattr(worker, "memory_bytes", memory_bytes))
            return events

        running = asyncio.gather(*(one(number) for number in range(len(jobs))))
        results = await asyncio.wait_for(running, DEADLINE)
        await drained(engine, worker)
        return results

    with running(architecture) as (engine, worker):
        expected = asyncio.run(all_at_once(engine, worker, 0))
        assert engine.stats().memory == MemoryState()
    with running(architecture, prefix_tokens=1000) as (engine, worker):
        results = asyncio.run(all_at_once(engine, worker, 1))
        memory = engine.stats().memory
    assert memory.used > 1
    assert memory.preempted >= 3
    assert memory.budget == Budget(prefix_tokens=0, running=1)
    for events, wanted in zip(results, expected, strict=True):
        assert tokens_of(events) == tokens_of(wanted)
        assert [event.finish for event in events] == [event.finish for event in wanted]
        assert not any(event.cached for event in events[1:])
    for events in results[-2:]:
        assert re.fullmatch("(ab|cd){4,9}x*", text_of(tokens_of(events)))


def test_together_as_alone() -> None:
    prompts = [tuple(range(i, i + 2 + 3 * i)) for i in range(1, 7)]

    async def all_at_once(engine: Engine, worker: Worker) -> list[list[TokenEvent]]:
        jobs = [collect(engine.generate(request(p, 4 + 3 * i))) for i, p in enumerate(prompts)]
        results = await asyncio.gather(*jobs)
        await drained(engine, worker)
        return results

    with running(max_running=4) as (engine, worker):
        results = asyncio.run(all_at_once(engine, worker))
    for i, (prompt, events) in enumerate(zip(prompts, results, strict=True)):
        assert tokens_of(events) == lone_tokens(prompt, 4 + 3 * i)


def test_sampling_is_the_same_alone_and_together_and_resumed() -> None:
    params = SamplingParams(seed=42, temperature=1.5)
    prompt = (5, 6, 7, 8, 9, 10)

    async def scenario(engine: Engine) -> tuple[list[int], list[int], list[int]]:
        alone = tokens_of(await collect(engine.generate(request(prompt, 12, params=params))))
        others = [
            collect(engine.generate(request((i, i + 1), 9, params=SamplingParams(seed=i))))
            for i in range(1, 6)
        ]
        both = await asyncio.gather(
            collect(engine.generate(request(prompt, 12, params=params))), *others
        )
        resumed = request(prompt, 12, params=params, emitted=tuple(alone[:5]))
        return alone, tokens_of(both[0]), tokens_of(await collect(engine.generate(resumed)))

    with running() as (engine, _):
        alone, together, resumed = asyncio.run(scenario(engine))
    assert together == alone
    assert resumed == alone[5:]
    assert alone != lone_tokens(prompt, 12)


def test_an_end_token_is_delivered_and_ends() -> None:
    prompt = (5, 6, 7)
    expected = lone_tokens(prompt, 8)
    end = expected[3]
    params = SamplingParams(temperature=0.0, end_tokens=(end,))
    with running() as (engine, _):
        events = asyncio.run(collect(engine.generate(request(prompt, params=params))))
    assert tokens_of(events) == expected[: expected.index(end) + 1]
    assert events[-1].finish == "stop"


def test_closing_the_iterator_frees_the_sequence() -> None:
    async def leave_early(engine: Engine, worker: Worker) -> list[int]:
        async with aclosing(engine.generate(request((1, 2, 3), 50))) as events:
            async for _ in events:
                break
        await drained(engine, worker)
        return tokens_of(await collect(engine.generate(request((4, 5, 6)))))

    with running() as (engine, worker):
        assert asyncio.run(leave_early(engine, worker)) == lone_tokens((4, 5, 6), 8)


def test_what_can_never_run_is_refused_and_the_rest_goes_on() -> None:
    async def scenario(engine: Engine) -> list[int]:
        with pytest.raises(ContextTooLong, match="maximum context length is 64 tokens"):
            await collect(engine.generate(request((1,) * 60, 5)))
        return tokens_of(await collect(engine.generate(request((4, 5, 6)))))

    with running() as (engine, _):
        assert asyncio.run(scenario(engine)) == lone_tokens((4, 5, 6), 8)


def test_a_full_queue_refuses() -> None:
    async def scenario(engine: Engine) -> None:
        jobs = [asyncio.create_task(collect(engine.generate(request((i,), 40)))) for i in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await collect(engine.generate(request((3,), 40)))
        await asyncio.gather(*jobs)

    with running(max_requests=2) as (engine, _):
        asyncio.run(scenario(engine))


def test_stop_tells_those_who_run_and_those_who_come_later() -> None:
    async def scenario(engine: Engine) -> None:
        events = engine.generate(request((1, 2, 3), 60))
        await anext(events)
        engine.stop()
        with pytest.raises(EngineStopped):
            await collect(events)
        with pytest.raises(EngineStopped):
            await collect(engine.generate(request((1, 2, 3))))

    with running() as (engine, _):
        asyncio.run(scenario(engine))


def test_a_broken_stage_tells_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(engine: Engine, worker: Worker) -> None:
        events = engine.generate(request((1, 2, 3), 60))
        await anext(events)

        def broken(step: object) -> None:
            raise RuntimeError("[METAL] the device is gone")

        monkeypatch.setattr(worker, "run", broken)
        with pytest.raises(EngineFault, match="the device is gone"):
            await collect(events)
        with pytest.raises(EngineFault, match="the device is gone"):
            await collect(engine.generate(request((1, 2, 3))))

    with running() as (engine, worker):
        asyncio.run(scenario(engine, worker))


def test_output_that_is_no_number_ends_its_request_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poison = 13
    forward = Stage.__call__

    def poisoned(self: Stage, inputs: Any, cache: list[Any], pass_index: int = 0) -> Any:
        logits = forward(self, inputs, cache, pass_index)
        return mx.where((inputs[:, -1:] == poison)[..., None], mx.nan, logits)  # type: ignore[arg-type]

    monkeypatch.setattr(Stage, "__call__", poisoned)
    healthy, ill = (1, 2, 3), (4, 5, poison)

    async def work(engine: Engine, worker: Worker) -> None:
        events = [collect(engine.generate(request(prompt))) for prompt in (healthy, ill, ill)]
        first, *others = await asyncio.gather(*events, return_exceptions=True)
        assert not isinstance(first, BaseException)
        assert tokens_of(first) == lone_tokens(healthy, 8)
        assert [type(other) for other in others] == [BrokenOutput, BrokenOutput]
        assert tokens_of(await collect(engine.generate(request(healthy)))) == tokens_of(first)
        await drained(engine, worker)

    with running() as (engine, worker):
        asyncio.run(work(engine, worker))
