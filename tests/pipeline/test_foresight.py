"""Steps that rank 0 builds before they come: whatever comes instead, the output is as without them."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from pipeline.building import Builder, Built
from pipeline.engine import Engine
from pipeline.foresight import Foresight
from pipeline.frames import Decode, Prefill, Step
from pipeline.scheduler import Scheduler
from pipeline.sequences import StageSequences
from pipeline.split import Message, Stage, probe
from pipeline.steps import DecodeBatch
from pipeline.timeline import Timeline
from pipeline.worker import Worker
from tests.pipeline.split.tiny import CONFIGS
from tests.pipeline.test_engine import collect, limits, lone_tokens, request, tokens_of
from tests.pipeline.test_sequences import CACHES
from tests.pipeline.tiny_models import make_model
from tests.pipeline.two_stages import DEADLINE, VOCABULARY, NoRing, two_links, worker_of


class FirstStage:
    """Half a model with two sequences, which decode alone or together."""

    def __init__(self, architecture: str) -> None:
        model = make_model(CONFIGS[architecture])
        blueprint = probe(make_model(CONFIGS[architecture]))
        stage = Stage(model, blueprint, 0, blueprint.num_layers // 2)
        self.sequences = StageSequences(stage.make_cache)
        self.foresight = Foresight(stage, self.sequences)
        self._builder = Builder(stage, self.sequences, 1, alone=False)
        self._steps = 0

    def prefill(self, sequence: int, tokens: tuple[int, ...]) -> list[mx.array]:
        self.sequences.admit(sequence)
        return self.run(Prefill((sequence,), (tokens,)))

    def run(self, work: Prefill | Decode, **changes: Any) -> list[mx.array]:
        step = Step(self._steps, work=work, **changes)
        self._steps += 1
        built = self.foresight.take(step)
        if built is None:
            lengths = (
                [1] * len(work.sequences) if isinstance(work, Decode) else [len(work.tokens[0])]
            )
            built = self._builder.build(step, lengths, None)
        assert isinstance(built.output, Message)
        return [array for _, array in tree_flatten(built.output.tree)]


@pytest.mark.parametrize("architecture", CACHES)
def test_right_or_wrong_the_output_is_the_same(architecture: str) -> None:
    """With every kind of cache, across the ends of windows, alone and together."""
    r = random.Random(1)
    plain, ahead = FirstStage(architecture), FirstStage(architecture)
    for stage in (plain, ahead):
        stage.prefill(0, (3, 1, 4, 1))
        stage.prefill(1, (5, 9, 2, 6))
    group: tuple[int, ...] = (0,)
    foreseen = 0
    for number in range(24):
        if number == 12:
            group = (0, 1)
        work = Decode(0, group, tuple(r.randrange(VOCABULARY) for _ in group))
        if number % 12:  # else the group is a new one
            foreseen += ahead.foresight.foresee(0, group)
            if r.random() < 0.4:  # and something else comes: others that end, or nothing at all
                gone = Step(99, released=(7,), work=work)
                assert ahead.foresight.take(gone) is None
        expected, found = plain.run(work), ahead.run(work)
        assert all(map(mx.array_equal, expected, found)), f"step {number}"
    assert foreseen == 22


def test_it_is_built_once() -> None:
    stage = FirstStage("llama")
    stage.prefill(0, (3, 1, 4))
    assert stage.foresight.foresee(0, (0,))
    assert not stage.foresight.foresee(0, (0,))
    assert stage.foresight.take(Step(0, work=Decode(0, (0,), (1,)))) is not None
    assert stage.foresight.take(Step(1, work=Decode(0, (0,), (1,)))) is None


def test_a_stage_that_hangs_meanwhile_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a timeline that somebody takes away meanwhile is nobody's fault."""
    model, blueprint = make_model(CONFIGS["llama"]), probe(make_model(CONFIGS["llama"]))
    ring: Any = NoRing(0)
    worker = Worker(Stage(model, blueprint, 0, 1), 1, ring, None, None, DEADLINE, parcels=True)
    deadlines: list[float | None] = []

    def foresee(self: Foresight, group: int, sequences: tuple[int, ...]) -> bool:
        deadlines.append(worker.stats.hung_at)
        worker.timeline = None
        return True

    monkeypatch.setattr(Foresight, "foresee", foresee)
    worker.timeline = Timeline()
    worker.foresee(1, DecodeBatch(0, (0,)))
    assert deadlines[0] is not None
    assert worker.stats.hung_at is None


@contextmanager
def two_ranks(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Engine, list[bool]]]:
    """An engine over two stages in threads, and for each step of the first whether it had been foreseen."""
    links = two_links()
    foreseen: list[bool] = []
    take = Foresight.take

    def noting(self: Foresight, step: Step) -> Built | None:
        built = take(self, step)
        foreseen.append(built is not None)
        return built

    monkeypatch.setattr(Foresight, "take", noting)
    engines: list[Engine] = []

    def lead(ready: threading.Event) -> None:
        first = worker_of(architecture, 0, links[0])
        engines.append(Engine(Scheduler(limits(stages=2)), first, links[0], DEADLINE))
        ready.set()
        engines[0].run()

    with ThreadPoolExecutor(2) as pool:
        ready = threading.Event()

        def follow() -> None:  # what a stage computes belongs to the thread that has made it
            worker_of(architecture, 1, links[1]).serve()

        done = [pool.submit(lead, ready), pool.submit(follow)]
        assert ready.wait(DEADLINE)
        try:
            yield engines[0], foreseen
        finally:
            engines[0].stop()
            for future in done:
                future.result(DEADLINE)
            for link in links:
                link.close()


@pytest.mark.parametrize("architecture", ["llama", "lfm2"])
def test_requests_that_come_and_go_get_their_own_tokens(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def some(engine: Engine) -> list[list[int]]:
        first = collect(engine.generate(request((4, 5, 6), 12, id="first")))
        alone = tokens_of(await first)
        both = await asyncio.gather(
            collect(engine.generate(request((7, 8), 6, id="short"))),
            collect(engine.generate(request((9, 10, 11), 14, id="long"))),
        )
        return [alone, *map(tokens_of, both)]

    with two_ranks(architecture, monkeypatch) as (engine, foreseen):
        found = asyncio.run(some(engine))
    assert found == [
        lone_tokens((4, 5, 6), 12, architecture),
        lone_tokens((7, 8), 6, architecture),
        lone_tokens((9, 10, 11), 14, architecture),
    ]
    assert any(foreseen)
    assert not all(foreseen)
