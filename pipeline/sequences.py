"""The caches of one stage: which sequence's keys, values and states are where.

A sequence starts with caches of its own (batch size 1), in which its prompt is prefilled.  Decoding in a group
of two or more, they are merged into the batched caches of mlx-lm; a group of one keeps the single caches, which
are faster (no padding, no mask) and exist for architectures that can't be batched.  Every stage makes the same
moves in the same order, because the frames say so.

A finished sequence may be retained: it is by itself, takes what its tokens take, and others start from copies
of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from pipeline.errors import FrameError
from pipeline.split.forking import compact, fork

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
        self._tokens: dict[int, int] = {}  # fed to each sequence
        self._retained: dict[int, int] = {}  # bytes of each, which no longer change

    def __len__(self) -> int:
        return len(self._single) + len(self._group_of)

    def __contains__(self, sequence: int) -> bool:
        return sequence in self._single or sequence in self._group_of

    @property
    def live(self) -> int:
        """Sequences that are not just retained."""
        return len(self) - len(self._retained)

    def is_retained(self, sequence: int) -> bool:
        """Whether a sequence has finished and is held to be copied."""
        return sequence in self._retained

    @property
    def nbytes(self) -> int:
        """Bytes that all caches hold, unused capacity included; what a copy still shares counts for each."""
        batched = [group.caches for group in self._groups.values() if group.caches is not None]
        single = [caches for s, caches in self._single.items() if s not in self._retained]
        return sum(self._retained.values()) + sum(map(_nbytes, [*single, *batched]))

    def admit(self, sequence: int, source: int | None = None, length: int = 0) -> None:
        """Caches for a sequence: empty ones, or copies of the first `length` tokens of `source`."""
        if sequence in self:
            raise FrameError(f"sequence {sequence} is admitted twice")
        self._single[sequence] = (
            self._make_cache() if source is None else self._copy(source, length)
        )
        self._tokens[sequence] = length

    def _copy(self, source: int, length: int) -> Caches:
        if source not in self:
            raise FrameError(
                f"{length} tokens of sequence {source} are asked for, but it is not held"
            )
        held = self._tokens[source]
        if not 0 < length <= held:
            raise FrameError(f"{length} tokens of sequence {source} are asked for; it has {held}")
        caches = self._single.get(source)
        if caches is None:
            group = self._groups[self._group_of[source]]
            assert group.caches is not None
            caches = [cache.extract(group.order.index(source)) for cache in group.caches]
        try:
            copies = fork(caches, held - length)
        except ValueError as error:
            raise FrameError(f"{length} of {held} tokens of sequence {source}: {error}") from error
        # A lazy copy would keep all of the source in memory until it is used.
        mx.async_eval(states(copies))  # type: ignore[no-untyped-call]
        return copies

    def advance(self, sequences: Sequence[int], tokens: Sequence[int]) -> None:
        """Note that so many `tokens` more are fed to each of `sequences`."""
        for sequence, more in zip(sequences, tokens, strict=True):
            self._tokens[sequence] += more

    def retain(self, sequences: Sequence[int]) -> None:
        """The sequences have finished: set them aside, with no more memory than their tokens need."""
        for sequence in sequences:
            if sequence not in self or sequence in self._retained:
                raise FrameError(f"sequence {sequence} is retained, but not one that runs")
        self._set_aside(list(sequences))
        for sequence in sequences:
            compact(self._single[sequence])
            mx.async_eval(states(self._single[sequence]))  # type: ignore[no-untyped-call]
            self._retained[sequence] = _nbytes(self._single[sequence])

    def release(self, sequence: int) -> None:
        """Drop the caches of a sequence."""
        if sequence in self._single:
            del self._single[sequence]
        elif (group := self._group_of.get(sequence)) is not None:
            self._shrink(self._groups[group], [sequence], keep=False)
        else:
            raise FrameError(f"sequence {sequence} is released but not held")
        del self._tokens[sequence]
        self._retained.pop(sequence, None)

    def single(self, sequence: int) -> Caches:
        """The caches of a sequence that is in no batch, for its prefill."""
        caches = self._single.get(sequence)
        if caches is None:
            raise FrameError(f"sequence {sequence} is not held by itself")
        if sequence in self._retained:
            raise FrameError(f"sequence {sequence} has finished")
        return caches

    def join(self, sequences: Sequence[int], lengths: Sequence[int]) -> Caches:
        """Caches for chunks of several prompts side by side, each padded behind its end to the longest.

        The forward pass is to be followed by `part`.
        """
        if len(set(sequences)) < len(sequences):
            raise FrameError(f"a sequence is twice in {tuple(sequences)}, to be prefilled")
        joined = _merge([self.single(sequence) for sequence in sequences])
        padding = [max(lengths) - length for length in lengths]
        if any(padding):
            for cache in joined:
                cache.prepare(lengths=list(lengths), right_padding=padding)
        return joined

    def part(self, sequences: Sequence[int], joined: Caches) -> Caches:
        """Each sequence has caches of its own again, without any padding; returns all of these."""
        for cache in joined:
            cache.finalize()
        for row, sequence in enumerate(sequences):
            self._single[sequence] = [cache.extract(row) for cache in joined]
        return [cache for sequence in sequences for cache in self._single[sequence]]

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
        merged = _merge([self.single(sequence) for sequence in newcomers])
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


def _merge(singles: list[Caches]) -> Caches:
    return [column[0].merge(list(column)) for column in zip(*singles, strict=True)]


def _nbytes(caches: Caches) -> int:
    leaves = tree_flatten(states(caches))
    return sum(leaf.nbytes for _, leaf in leaves if isinstance(leaf, mx.array))


def states(caches: Caches) -> list[Any]:
    """What has to be evaluated so that no graph hangs on the caches: a tree of arrays and plain values."""
    return [cache.state for cache in caches]
