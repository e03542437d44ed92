"""What the stages hold, as far as the order of steps is concerned: the rules of StageSequences, without MLX."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.scheduler import DecodeBatch, Limits, PrefillBatch, StepPlan
from pipeline.steps import Admitted, PrefillChunk


@dataclass
class StagesModel:
    """Applies plans in the order chosen and asserts that each one is possible.

    A stage applies steps in that order too, so it does not matter how many of them are still in flight.
    """

    limits: Limits
    prompts: dict[int, int] = field(default_factory=dict)  # every sequence ever added
    texts: dict[int, list[int]] = field(default_factory=dict)  # prompt and output
    held: dict[int, int] = field(default_factory=dict)  # prompt tokens fed
    contents: dict[int, list[int]] = field(default_factory=dict)  # what has been fed
    retained: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)
    groups: dict[int, list[int]] = field(default_factory=dict)
    awaited: set[int] = field(default_factory=set)  # their next token is still in flight
    decoded: dict[int, int] = field(default_factory=dict)  # steps
    copied: dict[int, int] = field(default_factory=dict)  # tokens that a sequence began with

    def apply(self, plan: StepPlan) -> None:
        for admitted in plan.admitted:
            self._admit(admitted, snapshot=admitted.sequence in plan.retained)
        for sequence in plan.retained:
            assert sequence in self.held, f"{sequence} is retained but not held"
            assert sequence not in self.retained
            self.retained.add(sequence)
            self._leave(sequence)
        for sequence in plan.released:
            assert sequence in self.held, f"{sequence} is released but not held"
            del self.held[sequence], self.contents[sequence]
            self.retained.discard(sequence)
            self.gone.add(sequence)
            self._leave(sequence)
        if isinstance(plan.work, PrefillBatch):
            self._prefill(plan.work)
        elif isinstance(plan.work, DecodeBatch):
            self._decode(plan.work)
        else:
            assert plan.released or plan.retained, "a step without any effect"

    def absorb(self, plan: StepPlan) -> None:
        if isinstance(plan.work, DecodeBatch):
            self.awaited.difference_update(plan.work.sequences)

    def _admit(self, admitted: Admitted, snapshot: bool) -> None:
        sequence, source, length = admitted.sequence, admitted.source, admitted.length
        assert sequence not in self.held
        assert sequence not in self.gone
        content: list[int] = []
        if source is not None:
            assert source in self.held, f"{sequence} starts from {source}, which is not held"
            held = self.contents[source]
            assert 0 < length <= len(held)
            cut = self.limits.cut_limit
            assert length == len(held) or cut is None or len(held) <= cut, "it can't be cut"
            content = held[:length]
        if snapshot:
            assert source not in self.retained
            self.prompts[sequence], self.texts[sequence] = length + 1, list(content)
        assert content == self.texts[sequence][:length], "a prefix of another text"
        assert length < self.prompts[sequence]
        self.held[sequence] = self.copied[sequence] = length
        self.contents[sequence] = list(content)

    def _leave(self, sequence: int) -> None:
        for members in self.groups.values():
            if sequence in members:
                members.remove(sequence)

    def _prefill(self, batch: PrefillBatch) -> None:
        limits, chunks = self.limits, batch.chunks
        assert 0 < len(set(batch.sequences)) == len(chunks) <= limits.prefill_rows
        assert batch.tokens <= limits.prefill_chunk
        if len(chunks) > 1:
            whole = [chunk.end == self.prompts[chunk.sequence] - 1 for chunk in chunks]
            assert all(whole), "a prompt is held up beside others"
            assert limits.paddable or len({chunk.tokens for chunk in chunks}) == 1
        for chunk in chunks:
            self._feed(chunk)

    def _feed(self, chunk: PrefillChunk) -> None:
        assert chunk.sequence not in self.retained
        assert chunk.sequence not in self.decoded
        assert chunk.start == self.held[chunk.sequence]
        assert chunk.tokens > 0
        assert chunk.end <= self.prompts[chunk.sequence] - 1
        self.held[chunk.sequence] = chunk.end
        self.contents[chunk.sequence] += self.texts[chunk.sequence][chunk.start : chunk.end]

    def _decode(self, batch: DecodeBatch) -> None:
        assert batch.sequences
        assert len(set(batch.sequences)) == len(batch.sequences)
        for sequence in batch.sequences:
            assert sequence not in self.retained
            assert self.held[sequence] == self.prompts[sequence] - 1
            assert sequence not in self.awaited, f"{sequence} is decoded before its token is known"
            content = self.contents[sequence]
            content.append(self.texts[sequence][len(content)])
            self.decoded[sequence] = self.decoded.get(sequence, 0) + 1
        self.awaited.update(batch.sequences)
        kept = [s for s in self.groups.get(batch.group, []) if s in batch.sequences]
        assert list(batch.sequences[: len(kept)]) == kept, "members do not keep their order"
        for members in self.groups.values():
            members[:] = [s for s in members if s not in batch.sequences]
        self.groups[batch.group] = list(batch.sequences)
