"""Single prompts on an idle, simulated ring: as the scheduler cuts them, and in chunks of one size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchlib.simulation import Load, Network, Phase, Simulation, Stages, StageTimes
from pipeline.chunks import MULTIPLE
from pipeline.scheduler import Limits, Scheduler

PROMPTS = 10  # one after the other; what the first half takes is learnt from, and not counted


@dataclass(frozen=True)
class Ring:
    """What is simulated."""

    times: Sequence[StageTimes]
    network: Network
    noise: float
    seed: int

    def first_token(self, limits: Limits, prompt: int) -> float:
        """Seconds to the first token of a prompt, mean."""
        stages = Stages(self.times, self.network, self.noise, self.seed)
        load = Load((Phase(1, PROMPTS),), prompt, output=1, stagger=False, warm_up=0.5)
        (measured,) = Simulation(Scheduler(limits), stages, load).run()
        return measured.seconds / measured.tokens

    def best_size(self, limits: Limits, prompt: int) -> tuple[float, int]:
        """Seconds to the first token with the best size of chunk, and that size."""
        sizes = range(MULTIPLE, min(limits.prefill_chunk, prompt + MULTIPLE) + 1, MULTIPLE)
        return min(
            (
                self.first_token(replace(limits, prefill_chunk=size, fixed_chunk=True), prompt),
                size,
            )
            for size in sizes
        )

    def divided(self, limits: Limits, prompt: int) -> float:
        """Seconds if a stage with all layers took the prompt in the largest chunks, over the stages."""
        total = 0.0
        for start in range(0, prompt - 1, limits.prefill_chunk):
            tokens = min(limits.prefill_chunk, prompt - 1 - start)
            total += sum(stage.chunk(start, tokens) for stage in self.times)
        return total / len(self.times)
