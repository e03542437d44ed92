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
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.limits import Limits, Sequence
from pipeline.steps import PrefillBatch, PrefillChunk

# Of caches, at most so much is copied for a step: so many of the largest chunks, and this share of the memory
# for caches that no running sequence has reserved and no kept one holds.
COPIED_CHUNKS = 64
COPIED_SHARE = 0.25


@dataclass(frozen=True)
class Room:
    """What one step may take."""

    tokens: int  # the padding included
    rows: int  # prompts
    padding: float  # tokens of padding for which another prompt may come along
    copied: float  # tokens in the caches of prompts that go together, the padding of these included


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

    def _rows(self, room: Room) -> list[Sequence]:
        """Whose turn it is; if it ends with this step, then those that are to come along too."""
        first, *others = self._turns
        rows, width = [first], first.to_prefill
        if width > room.tokens or room.rows == 1:
            return rows
        for other in sorted(others, key=lambda s: _distance(s, first)):
            rest = other.to_prefill
            wider, more = max(width, rest), len(rows) + 1
            padding = more * wider - len(rows) * width - rest
            fits = more * wider <= room.tokens and padding <= room.padding
            if fits and _copied([*rows, other]) <= room.copied:
                rows.append(other)
                width = wider
            if len(rows) == room.rows:
                break
        return rows


def _distance(one: Sequence, other: Sequence) -> tuple[int, int]:
    return abs(one.to_prefill - other.to_prefill), abs(one.prefilled - other.prefilled)


def _copied(rows: list[Sequence]) -> int:
    """Tokens in the caches of `rows` before the step, merged."""
    return len(rows) * max(row.prefilled for row in rows)


def copied_at_most(limits: Limits, taken: int) -> float:
    """For `Room.copied`; `taken`: tokens of running sequences, and of those that are kept."""
    most = COPIED_CHUNKS * limits.prefill_chunk
    if limits.kv_tokens is None:
        return most
    return min(most, COPIED_SHARE * (limits.kv_tokens - taken))
