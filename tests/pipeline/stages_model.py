"""What the stages hold, as far as the order of steps is concerned: the rules of StageSequences, without MLX."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.scheduler import DecodeBatch, Limits, PrefillChunk, StepPlan


@dataclass
class StagesModel:
    """Applies plans in the order chosen and asserts that each one is possible.

    A stage applies steps in that order too, so it does not matter how many of them are still in flight.
    """

    limits: Limits
    prompts: dict[int, int] = field(default_factory=dict)  # every sequence ever added
    held: dict[int, int] = field(default_factory=dict)  # prompt tokens fed
    gone: set[int] = field(default_factory=set)
    groups: dict[int, list[int]] = field(default_factory=dict)
    awaited: set[int] = field(default_factory=set)  # their next token is still in flight
    decoded: dict[int, int] = field(default_factory=dict)  # steps

    def apply(self, plan: StepPlan) -> None:
        for sequence in plan.released:
            assert sequence in self.held, f"{sequence} is released but not held"
            del self.held[sequence]
            self.gone.add(sequence)
            for members in self.groups.values():
                if sequence in members:
                    members.remove(sequence)
        for sequence in plan.admitted:
            assert sequence in self.prompts
            assert sequence not in self.held
            assert sequence not in self.gone
            self.held[sequence] = 0
        if isinstance(plan.work, PrefillChunk):
            self._prefill(plan.work)
        elif isinstance(plan.work, DecodeBatch):
            self._decode(plan.work)
        else:
            assert plan.released, "a step without any effect"

    def absorb(self, plan: StepPlan) -> None:
        if isinstance(plan.work, DecodeBatch):
            self.awaited.difference_update(plan.work.sequences)

    def _prefill(self, chunk: PrefillChunk) -> None:
        assert chunk.sequence not in self.decoded
        assert chunk.start == self.held[chunk.sequence]
        assert 0 < chunk.end - chunk.start <= self.limits.prefill_chunk
        assert chunk.end <= self.prompts[chunk.sequence] - 1
        self.held[chunk.sequence] = chunk.end

    def _decode(self, batch: DecodeBatch) -> None:
        assert batch.sequences
        assert len(set(batch.sequences)) == len(batch.sequences)
        for sequence in batch.sequences:
            assert self.held[sequence] == self.prompts[sequence] - 1
            assert sequence not in self.awaited, f"{sequence} is decoded before its token is known"
            self.decoded[sequence] = self.decoded.get(sequence, 0) + 1
        self.awaited.update(batch.sequences)
        kept = [s for s in self.groups.get(batch.group, []) if s in batch.sequences]
        assert list(batch.sequences[: len(kept)]) == kept, "members do not keep their order"
        for members in self.groups.values():
            members[:] = [s for s in members if s not in batch.sequences]
        self.groups[batch.group] = list(batch.sequences)
