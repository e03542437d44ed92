"""What a scheduler plans: one step for every stage.  pipeline.frames.Step is its form on the wire."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.chunks import pairs


@dataclass(frozen=True)
class PrefillChunk:
    """Tokens [start, end) of the prompt of one sequence."""

    sequence: int
    start: int
    end: int

    @property
    def tokens(self) -> int:
        """How many."""
        return self.end - self.start


@dataclass(frozen=True)
class PrefillBatch:
    """Chunks of different prompts side by side; the stages pad them to the longest."""

    chunks: tuple[PrefillChunk, ...]

    @property
    def sequences(self) -> tuple[int, ...]:
        """Whose prompts."""
        return tuple(chunk.sequence for chunk in self.chunks)

    @property
    def tokens(self) -> int:
        """What the stages compute, padding included."""
        return len(self.chunks) * max(chunk.tokens for chunk in self.chunks)

    @property
    def attended(self) -> float:
        """Pairs of tokens of which one attends to the other, padding included."""
        longest = max(chunk.tokens for chunk in self.chunks)
        return len(self.chunks) * pairs(max(chunk.start for chunk in self.chunks), longest)


@dataclass(frozen=True)
class DecodeBatch:
    """One token for each of `sequences`, in this order."""

    group: int
    sequences: tuple[int, ...]


@dataclass(frozen=True)
class Admitted:
    """A sequence that gets caches: empty ones, or a copy of the first `length` tokens of `source`."""

    sequence: int
    source: int | None = None
    length: int = 0


@dataclass(frozen=True)
class StepPlan:
    """What every stage does next, in the order of the fields.

    A sequence may start from one that is released by the same step.  One that is admitted and retained by the
    same step is a snapshot: a copy that never runs.
    """

    id: int
    admitted: tuple[Admitted, ...] = ()
    retained: tuple[int, ...] = ()  # finished; their caches stay, to start others from
    released: tuple[int, ...] = ()
    work: PrefillBatch | DecodeBatch | None = None
