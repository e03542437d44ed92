"""The first stage builds the graph of the next decode step while the others are at work on this one.

With a single micro-batch it has nothing else to do until the result is back, and then everybody waits for it:
until its graph is built, which on a GPU takes a good part of the time of a step.  All but the values of the
tokens is known before, if nobody ends, joins or leaves: the graph is built on a blank.  If something else comes
next, the caches are put back to how they were.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import numpy as np

from pipeline.building import Built
from pipeline.frames import Decode, Step
from pipeline.parcel import Blank, parcel_of
from pipeline.sequences import Caches, StageSequences
from pipeline.split import Stage, TensorSpec


@dataclass(frozen=True)
class _Foreseen:
    """A step that is expected."""

    group: int
    sequences: tuple[int, ...]
    blank: Blank  # of its tokens
    built: Built
    before: Caches  # copies

    def is_what(self, step: Step) -> bool:
        """Whether it is this step."""
        work = step.work
        changes = step.admitted or step.retained or step.released
        return (
            isinstance(work, Decode)
            and (work.group, work.sequences) == (self.group, self.sequences)
            and not changes
            and step.loop == 0
        )

    def undo(self) -> None:
        """Put the caches back.  What has been built on them is never computed."""
        for cache, before in zip(self.built.caches, self.before, strict=True):
            cache.__dict__ = before.__dict__


class Foresight:
    """Of the first of several stages, for a model that is lazy and does not loop.

    Whatever else changes caches must come after `take`.
    """

    def __init__(self, stage: Stage, sequences: StageSequences) -> None:
        self._stage, self._sequences = stage, sequences
        self._foreseen: _Foreseen | None = None

    def foresee(self, group: int, sequences: tuple[int, ...]) -> bool:
        """Build the next decode step of a group that has these members; False if that is done already."""
        if self._foreseen is not None:
            return False
        began = time.monotonic()
        caches = self._sequences.batch(group, sequences)
        before = copy.deepcopy(caches)
        blank = Blank([TensorSpec("", (len(sequences), 1), "int32")])
        output = self._stage(blank.arrays[0], caches)
        seconds = time.monotonic() - began
        self._foreseen = _Foreseen(group, sequences, blank, Built(output, caches, seconds), before)
        return True

    def take(self, step: Step) -> Built | None:
        """The graph of `step`, with its tokens in it; None if it has to be built."""
        foreseen, self._foreseen = self._foreseen, None
        if foreseen is None:
            return None
        if not foreseen.is_what(step):
            foreseen.undo()
            return None
        assert isinstance(step.work, Decode)
        foreseen.blank.fill(parcel_of(np.array(step.work.tokens, np.int32)))
        # The copies end here: as long as there are any, computing would copy the caches instead of writing.
        return foreseen.built
