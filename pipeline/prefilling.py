"""Prompts that are being prefilled: whose turn it is, and which of them go through the stages side by side.

Prompts take turns, a chunk each, so that a short one overtakes a long one.  A step costs something beside its
tokens (f of pipeline.chunks), which short chunks pay together: the last chunk of a prompt takes along last
chunks of others.  They are padded to one length, and one comes along as long as the padding that it brings
takes less time than a step of its own would have.  Their caches, too, are copied into one and padded to the
longest, for as long as the step takes and beyond what admission has counted.  So that is bounded, too: a prompt
that goes on from a very long prefix goes alone.  Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import inf

from pipeline.chunks import ChunkSizes, Cost, pairs
from pipeline.limits import Limits, Sequence
from pipeline.steps import PrefillBatch, PrefillChunk

# Of caches, at most so much is copied for a step: so many of the largest chunks, and this share of the memory
# for caches that no running sequence has reserved and no kept one holds.
COPIED_CHUNKS = 64
COPIED_SHARE = 0.25

COMING_CHUNKS = 4  # of the largest size: so much of the prompts that wait counts for chunk sizes


@dataclass(frozen=True)
class Room:
    """What one step may take."""

    tokens: int  # the padding included
    rows: int  # prompts
    padding: float  # tokens of padding for which another prompt may come along
    copied: float  # tokens in the caches of prompts that go together, the padding of these included
    attention: float = (
        0.0  # what a pair of tokens takes, of which one attends to the other, in tokens
    )


@dataclass(frozen=True)
class Chunk:
    """What could go next, and what it leads to.  Predicted seconds of the slowest stage.

    Infinite as long as no chunk was measured.
    """

    seconds: float  # of this step
    until: float  # until prompts end: of this step, or of all that is left of a long one
    joining: tuple[int, ...]  # tokens that each of these is to make


class Prefilling:
    """See the module's text."""

    def __init__(self) -> None:
        self._turns: deque[Sequence] = deque()

    def __len__(self) -> int:
        return len(self._turns)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._turns)

    @property
    def tokens(self) -> int:
        """Still to be handed out."""
        return sum(sequence.to_prefill for sequence in self._turns)

    @property
    def first(self) -> Sequence:
        """Whose turn it is.  Raises IndexError if there is nobody."""
        return self._turns[0]

    def work_beside_first(self, cost: Cost) -> float:
        """Of all prompts here, what is done included, but not what is left of the first."""
        every = sum(cost.work(s.copied, s.prompt - 1 - s.copied) for s in self._turns)
        return every - cost.work(self.first.prefilled, self.first.to_prefill)

    def append(self, sequence: Sequence) -> None:
        """It has its turn after all others."""
        self._turns.append(sequence)

    def remove(self, sequence: int) -> None:
        """Unknown ones are ignored."""
        self._turns = deque(s for s in self._turns if s.id != sequence)

    def has_room(self, limits: Limits, tokens: int) -> bool:
        """Whether a prompt with `tokens` to prefill may begin: few take turns, but many may share a step."""
        if len(self._turns) < limits.max_prefilling:
            return True
        return limits.prefill_rows > 1 and self.tokens + tokens <= limits.prefill_chunk

    def take(self, room: Room) -> tuple[PrefillBatch, list[Sequence]]:
        """The next step's chunks, and the prompts that are handed out whole with them.

        Raises IndexError if there are none.
        """
        rows = self._rows(room)
        chunks, done = [], []
        for sequence in rows:
            start = sequence.prefilled
            sequence.prefilled += min(room.tokens, sequence.to_prefill)
            chunks.append(PrefillChunk(sequence.id, start, sequence.prefilled))
            if not sequence.to_prefill:
                done.append(sequence)
        taken = {sequence.id for sequence in rows}
        later = [sequence for sequence in rows if sequence.to_prefill]
        self._turns = deque([s for s in self._turns if s.id not in taken] + later)
        return PrefillBatch(tuple(chunks)), done

    def coming(self, room: Room, sizes: ChunkSizes) -> Chunk:
        """What `take` would hand out, and what comes of it.  Raises IndexError if there is nothing."""
        rows, cost = self._rows(room), sizes.cost
        first = rows[0]
        if first.to_prefill <= room.tokens:
            now = until = cost.fixed + cost.token * _work(rows, cost.attention)
        else:
            chunks = -(-first.to_prefill // room.tokens)
            now = cost.fixed + cost.work(first.prefilled, room.tokens)
            until = chunks * cost.fixed + cost.work(first.prefilled, first.to_prefill)
        if not sizes.measured:
            now = until = inf
        return Chunk(now, until, tuple(row.max_tokens for row in rows))

    def _rows(self, room: Room) -> list[Sequence]:
        """Whose turn it is; if it ends with this step, then those that are to come along too."""
        first, *others = self._turns
        rows = [first]
        if first.to_prefill > room.tokens or room.rows == 1:
            return rows
        work = _work([first], room.attention)
        most = room.tokens + room.attention * pairs(first.prefilled, room.tokens)
        for other in sorted(others, key=lambda s: _distance(s, first)):
            together = [*rows, other]
            more = _work(together, room.attention)
            padding = more - work - _work([other], room.attention)
            fits = more <= most and padding <= room.padding
            if fits and _copied(together) <= room.copied:
                rows, work = together, more
            if len(rows) == room.rows:
                break
        return rows


def _distance(one: Sequence, other: Sequence) -> tuple[int, int]:
    return abs(one.to_prefill - other.to_prefill), abs(one.prefilled - other.prefilled)


def _work(rows: list[Sequence], attention: float) -> float:
    """Of a step that ends the prefill of `rows`, padding included, in tokens."""
    width = max(row.to_prefill for row in rows)
    attended = pairs(max(row.prefilled for row in rows), width)
    return len(rows) * (width + attention * attended)


def _copied(rows: list[Sequence]) -> int:
    """Tokens in the caches of `rows` before the step, merged."""
    return len(rows) * max(row.prefilled for row in rows)


def copied_at_most(limits: Limits, taken: int) -> float:
    """For `Room.copied`; `taken`: tokens of running sequences, and of those that are kept."""
    most = COPIED_CHUNKS * limits.prefill_chunk
    if limits.kv_tokens is None:
        return most
    return min(most, COPIED_SHARE * (limits.kv_tokens - taken))


def coming_work(limits: Limits, cost: Cost, waiting: Iterable[Sequence]) -> float:
    """Of the prompts that may go with the next ones.

    Bounded: how much of them is kept as a prefix is seen when they begin.
    """
    work, left = 0.0, COMING_CHUNKS * limits.prefill_chunk
    for sequence in islice(waiting, limits.prefill_rows):
        tokens = min(sequence.to_prefill, left)
        work += cost.work(0, tokens)
        left -= tokens
    return work
