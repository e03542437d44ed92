"""What the engine shows of itself to other threads."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.limits import Limits
from pipeline.memory import MemoryState
from pipeline.pacing import Choice
from pipeline.prefixes import PrefixStats
from pipeline.turns import Postponed


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
