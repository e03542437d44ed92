"""What the engine shows of itself to other threads."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pipeline.limits import Limits
from pipeline.memory import MemoryState
from pipeline.pacing import Choice
from pipeline.prefixes import PrefixStats
from pipeline.scheduler import Scheduler
from pipeline.turns import Postponed
from pipeline.worker_stats import WorkerStats


@dataclass(frozen=True)
class EngineStats:
    """What /health and /v1/cluster show of the engine."""

    running: int
    waiting: int
    in_flight: int
    groups: tuple[tuple[int, ...], ...]
    steps: int
    last_step_age: float | None  # seconds; None before the first step
    busy: float  # seconds since there last was nothing to do
    generated_tokens: int
    prompt_tokens: int  # prefilled
    prefixes: PrefixStats
    memory: MemoryState
    choice: Choice  # of the number of micro-batches
    limits: Limits
    postponed: Postponed  # decode steps, behind prefill
    kv_tokens: int  # reserved by running sequences and held for prefixes


def look(
    scheduler: Scheduler,
    worker: WorkerStats,
    busy_since: float | None,
    generated: int,
    prompted: int,
) -> EngineStats:
    """A momentary view; the numbers may be one step apart.  `busy_since`: of time.monotonic()."""
    now = time.monotonic()
    return EngineStats(
        running=scheduler.running,
        waiting=scheduler.waiting,
        in_flight=scheduler.in_flight,
        groups=scheduler.groups,
        steps=worker.steps,
        last_step_age=None if worker.last_step is None else now - worker.last_step,
        busy=0.0 if busy_since is None else now - busy_since,
        generated_tokens=generated,
        prompt_tokens=prompted,
        prefixes=scheduler.prefixes.stats,
        memory=scheduler.memory_state,
        choice=scheduler.pacing.choice,
        limits=scheduler.limits,
        postponed=scheduler.postponed,
        kv_tokens=scheduler.kv_tokens,
    )
