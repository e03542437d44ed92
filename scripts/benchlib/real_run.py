"""A ring of real ranks, without HTTP, under closed loops: what each step took, and how many tokens came.

Runs under launcher.job.  Rank 0 notes the step times that reach its Pacing.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchlib.jobs import print_result, run_job
from benchlib.ports import free_ports
from benchlib.stage_times import MeasuredStage, Measurement, means
from benchlib.targets import Setup, local_job, write_config
from config import load
from pipeline.engine import Engine
from pipeline.pacing import Pacing
from pipeline.rank import Rank
from pipeline.request import GenerationRequest, SamplingParams
from pipeline.scheduler import Scheduler

DEADLINE = 1800.0  # seconds for all loads
START = 300.0  # seconds for a rank to load
PLAIN_IDS = 1000, 20_000  # token ids that every vocabulary here has, and that are not special


class RealLoad(msgspec.Struct, frozen=True):
    """`requests` of `prompt` and `output` tokens, `streams` at a time."""

    streams: int
    requests: int
    prompt: int
    output: int


class RealResult(msgspec.Struct, frozen=True):
    """One load.  `decode`, `prefill`: size and seconds per stage of every step."""

    load: RealLoad
    seconds: float
    tokens: int
    gap: float  # seconds between two tokens of a stream, mean
    decode: tuple[tuple[int, tuple[float, ...]], ...]
    prefill: tuple[tuple[int, tuple[float, ...]], ...]


class NotingPacing(Pacing):
    """Keeps all that it is told."""

    def __init__(self, stages: int) -> None:
        super().__init__(stages)
        self.decode: list[tuple[int, tuple[float, ...]]] = []
        self.prefill: list[tuple[int, tuple[float, ...]]] = []

    def observe(self, batch: int, seconds: tuple[float, ...]) -> None:
        self.decode.append((batch, seconds))
        super().observe(batch, seconds)

    def observe_prefill(
        self, tokens: int, seconds: tuple[float, ...], attended: float = 0.0
    ) -> None:
        self.prefill.append((tokens, seconds))
        super().observe_prefill(tokens, seconds, attended)


def measure(
    setup: Setup, program: Path, ranks: int, loads: Sequence[RealLoad], scratch: Path
) -> list[RealResult]:
    """Start the ranks, put all loads on them one after the other.

    `program`: calls `serve_rank` with the two arguments that follow --rank.  Raises ServerFailed.
    """
    ports = free_ports(2 + 4 * ranks)
    folder = Path(tempfile.mkdtemp(dir=scratch))
    gateway, coordinator, *rest = ports
    write_config(folder, setup.model, gateway, coordinator, rest[: 3 * ranks])
    told = msgspec.json.encode(loads).decode()
    command = [
        *local_job(ranks, rest[3 * ranks]),
        sys.executable,
        str(program),
        "--rank",
        str(folder),
        told,
    ]
    for setting in setup.settings:
        command += ["--set", setting]
    return run_job(command, setup.environment(), list[RealResult], DEADLINE)


def measurement_of(results: Sequence[RealResult], latency: float) -> Measurement:
    """Mean times, and what a token of a single stream takes beside them, once hops are taken off."""
    ranks = len(results[0].decode[0][1])
    stages = [
        MeasuredStage(
            means((size, seconds[rank]) for r in results for size, seconds in r.decode),
            means((size, seconds[rank]) for r in results for size, seconds in r.prefill),
        )
        for rank in range(ranks)
    ]
    alone = min(results, key=lambda r: r.load.streams)
    batch = max(size for size, _ in alone.decode)
    compute = sum(dict(means(_of_stage(alone, rank)))[batch] for rank in range(ranks))
    # Later stages build their graphs while the first one computes.
    overhead = max(0.0, alone.gap - compute - ranks * latency) if batch == 1 else 0.0
    return Measurement(
        tuple(msgspec.structs.replace(stage, overhead=overhead) for stage in stages), latency
    )


def _of_stage(result: RealResult, rank: int) -> list[tuple[int, float]]:
    return [(size, seconds[rank]) for size, seconds in result.decode]


def serve_rank(folder: str, told: str, settings: Sequence[str]) -> None:
    """What each rank of the job does.  Raises what the rank ends with."""
    rank = Rank(load(Path(folder), os.environ, settings).config)
    rank.start()
    rank.placed.result(START)
    rank.ports_opened()
    engine = rank.loaded.result(START)
    if engine is not None:
        loads = msgspec.json.decode(told, type=list[RealLoad])
        results = [asyncio.run(_run(engine, one, seed)) for seed, one in enumerate(loads)]
        print_result(results)
        rank.stop()
    rank.ended.result(DEADLINE)


async def _run(engine: Engine, load: RealLoad, seed: int) -> RealResult:
    pacing = await _install(engine)
    chosen = random.Random(seed)
    prompts = [
        tuple(chosen.randint(*PLAIN_IDS) for _ in range(load.prompt)) for _ in range(load.requests)
    ]
    waiting = iter(enumerate(prompts))
    gaps: list[float] = []
    tokens = 0

    async def work() -> None:
        nonlocal tokens
        for number, prompt in waiting:
            request = GenerationRequest(
                id=str(number),
                prompt=prompt,
                params=SamplingParams(temperature=0.0),
                max_tokens=load.output,
            )
            last = None
            async for _ in engine.generate(request):
                now = time.perf_counter()
                tokens += 1
                gaps.extend([] if last is None else [now - last])
                last = now

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(load.streams)))
    seconds = time.perf_counter() - started
    gap = sum(gaps) / len(gaps) if gaps else 0.0
    return RealResult(load, seconds, tokens, gap, tuple(pacing.decode), tuple(pacing.prefill))


async def _install(engine: Engine) -> NotingPacing:
    """A pacing of its own for each load: what one was like is not known to the next."""
    installed = asyncio.Event()
    loop = asyncio.get_running_loop()
    made: list[NotingPacing] = []

    def change(scheduler: Scheduler) -> None:
        scheduler.pacing = pacing = NotingPacing(scheduler.limits.stages)
        made.append(pacing)
        loop.call_soon_threadsafe(installed.set)

    engine.configure(change)
    await asyncio.wait_for(installed.wait(), START)
    return made[0]
