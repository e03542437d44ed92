"""The caches of one stage: which sequence's keys, values and states are where.

A sequence starts with caches of its own (batch size 1), in which its prompt is prefilled.  Decoding in a group
of two or more, they are merged into the batched caches of mlx-lm; a group of one keeps the single caches, which
are faster (no padding, no mask) and exist for architectures that can't be batched.  Every stage makes the same
moves in the same order, because the frames say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from pipeline.errors import FrameError

Caches = list[Any]
"""One mlx-lm cache object per cache slot of the stage."""


@dataclass
class _Group:
    order: list[int] = field(default_factory=list)
    caches: Caches | None = None  # None with fewer than two members: the single caches are used


class StageSequences:
    """Caches by sequence id and by group id.

    Raises FrameError wherever a frame contradicts what this stage holds.
    """

    def __init__(self, make_cache: Callable[[], Caches]) -> None:
        self._make_cache = make_cache
        self._single: dict[int, Caches] = {}
        self._groups: dict[int, _Group] = {}
        self._group_of: dict[int, int] = {}  # only members of groups of two or more

    def __len__(self) -> int:
        return len(self._single) + len(self._group_of)

    def __contains__(self, sequence: int) -> bool:
        return sequence in self._single or sequence in self._group_of

    @property
    def nbytes(self) -> int:
        """Bytes that all caches hold, unused capacity included."""
        batched = [group.caches for group in self._groups.values() if group.caches is not None]
        leaves = tree_flatten([states(caches) for caches in [*self._single.values(), *batched]])
        return sum(leaf.nbytes for _, leaf in leaves if isinstance(leaf, mx.array))

    def admit(self, sequence: int) -> None:
        """Empty caches for a sequence."""
        if sequence in self:
            raise FrameError(f"sequence {sequence} is admitted twice")
        self._single[sequence] = self._make_cache()

    def release(self, sequence: int) -> None:
        """Drop the caches of a sequence."""
        if sequence in self._single:
            del self._single[sequence]
        elif (group := self._group_of.get(sequence)) is not None:
            self._shrink(self._groups[group], [sequence], keep=False)
        else:
            raise FrameError(f"sequence {sequence} is released but not held")

    def single(self, sequence: int) -> Caches:
        """The caches of a sequence that is in no batch, for its prefill."""
        caches = self._single.get(sequence)
        if caches is None:
            raise FrameError(f"sequence {sequence} is not held by itself")
        return caches

    def batch(self, group_id: int, sequences: Sequence[int]) -> Caches:
        """The caches of a micro-batch whose members are `sequences`, in this order.

        Members that are not named are set aside, newcomers are fetched from where they are and appended.
        """
        group = self._groups.setdefault(group_id, _Group())
        wanted = set(sequences)
        if len(wanted) < len(sequences):
            raise FrameError(f"group {group_id}: a sequence is twice in {tuple(sequences)}")
        self._shrink(group, [s for s in group.order if s not in wanted], keep=True)
        kept = len(group.order)
        if list(sequences[:kept]) != group.order:
            raise FrameError(
                f"group {group_id} holds {group.order}, the frame says {tuple(sequences)}"
            )
        newcomers = list(sequences[kept:])
        self._set_aside(newcomers)
        if len(sequences) == 1:
            self._shrink(group, list(group.order), keep=True)
            return self.single(sequences[0])
        self._grow(group_id, group, newcomers)
        assert group.caches is not None
        return group.caches

    def _set_aside(self, sequences: list[int]) -> None:
        """Take sequences out of the groups that they are in; one copy per group, however many leave it."""
        for other in dict.fromkeys(self._group_of[s] for s in sequences if s in self._group_of):
            leaving = [s for s in sequences if self._group_of.get(s) == other]
            self._shrink(self._groups[other], leaving, keep=True)

    def _grow(self, group_id: int, group: _Group, newcomers: list[int]) -> None:
        if not newcomers:
            return
        singles = [self.single(sequence) for sequence in newcomers]
        merged = [column[0].merge(list(column)) for column in zip(*singles, strict=True)]
        if group.caches is None:
            group.caches = merged
        else:
            for mine, more in zip(group.caches, merged, strict=True):
                mine.extend(more)
        for sequence in newcomers:
            del self._single[sequence]
            self._group_of[sequence] = group_id
        group.order.extend(newcomers)

    def _shrink(self, group: _Group, leaving: list[int], keep: bool) -> None:
        if not leaving or group.caches is None:
            return
        rows = {sequence: row for row, sequence in enumerate(group.order)}
        if keep:
            for sequence in leaving:
                self._single[sequence] = [cache.extract(rows[sequence]) for cache in group.caches]
                # Lazy copies would keep the whole batch in memory until the sequence decodes again.
                mx.async_eval(states(self._single[sequence]))  # type: ignore[no-untyped-call]
        for sequence in leaving:
            del self._group_of[sequence]
        gone = set(leaving)
        group.order = [sequence for sequence in group.order if sequence not in gone]
        if group.order:
            staying = mx.array([rows[sequence] for sequence in group.order])
            for cache in group.caches:
                cache.filter(staying)
        else:
            group.caches = None


def states(caches: Caches) -> list[Any]:
    """What has to be evaluated so that no graph hangs on the caches: a tree of arrays and plain values."""
    return [cache.state for cache in caches]
