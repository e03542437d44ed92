"""The graph of one step on one stage, made from the model and the caches of sequences; it computes nothing."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from pipeline.errors import FrameError
from pipeline.frames import Decode, Prefill, Step
from pipeline.sequences import Caches, StageSequences
from pipeline.split import Message, Stage, unflatten, unpack


@dataclass(frozen=True)
class Built:
    """What a stage has to compute."""

    output: Message | mx.array
    caches: Caches
    seconds: float = 0.0  # that building it took, if that was before the step began


class Builder:
    """Of a stage that its model passes `loops` times; `alone`: it is the only one."""

    def __init__(self, stage: Stage, sequences: StageSequences, loops: int, alone: bool) -> None:
        self._stage, self._sequences = stage, sequences
        self._loops, self._alone = loops, alone

    def build(self, step: Step, lengths: list[int], received: list[mx.array] | None) -> Built:
        """`lengths`: tokens of each sequence.  `received`: what the stage before has sent."""
        work = step.work
        if isinstance(work, Decode):
            caches = self._sequences.batch(work.group, work.sequences)
            tokens = mx.array(work.tokens, mx.int32)[:, None]
        else:
            assert work is not None, "there is nothing to build"
            caches = self._side_by_side(work, lengths)
            tokens = _padded(work.tokens)
        inputs: mx.array | Message = tokens
        if received is not None:
            inputs = unflatten(tokens, *unpack(step.tensors, received))
        output = self._stage(inputs, caches, step.loop)
        loop = step.loop
        if self._alone:
            while isinstance(output, Message):
                loop += 1
                output = self._stage(output, caches, loop)
        return Built(output, caches)

    def _side_by_side(self, work: Prefill, lengths: list[int]) -> Caches:
        """Caches for chunks of one prompt, or of several."""
        if len(work.sequences) == 1:
            return self._sequences.single(work.sequences[0])
        # A chunk of a model that loops is in some of the caches after the first loop, in others later.
        if self._loops > 1:
            raise FrameError(f"{work.sequences} are to be prefilled together, but the model loops")
        return self._sequences.join(work.sequences, lengths)


def _padded(rows: tuple[tuple[int, ...], ...]) -> mx.array:
    """Token ids [B, L]; what is behind the end of a row has no effect on it."""
    longest = max(map(len, rows))
    return mx.array([[*row, *[0] * (longest - len(row))] for row in rows], mx.int32)
