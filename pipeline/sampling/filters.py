"""top_k, top_p and min_p as one lowest kept logit per row.

The filters apply in the order of Hugging Face's `generate`: top_k, then top_p over the mass that is
left, then min_p.  Each keeps the tokens above a limit, so together they keep what lies above the
highest limit, and no row has to be put back into vocabulary order after a sort.  Tokens that tie
with the last kept one are kept too.

Only rows that use a filter pay for it, and a row is filtered in the same way whatever its
batch-mates are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import mlx.core as mx
import numpy as np

from pipeline.request import SamplingParams


def column(values: Sequence[float]) -> mx.array:
    """Put one parameter per row on the device: float32 [rows, 1]."""
    return mx.array(np.array(values, np.float32).reshape(-1, 1))


class RowSelection:
    """Some rows of a batch of `size`; costs nothing where it is all of them."""

    def __init__(self, rows: Sequence[int], size: int) -> None:
        self.rows = tuple(rows)
        self._index = None if len(rows) == size else mx.array(np.array(rows, np.int32))

    def take(self, batch: mx.array) -> mx.array:
        """Select: [size, ...] -> [rows, ...]."""
        return batch if self._index is None else mx.take(batch, self._index, axis=0)

    def put(self, batch: mx.array, values: mx.array) -> mx.array:
        """Replace the selected rows: [size, ...] and [rows, ...] -> [size, ...]."""
        if self._index is None:
            return values
        index = self._index.reshape(-1, *[1] * (batch.ndim - 1))
        return mx.put_along_axis(batch, mx.broadcast_to(index, values.shape), values, axis=0)


def _smallest_kept(values: mx.array, mass: mx.array, wanted: mx.array) -> mx.array:
    """Find the last value, from the best on, before the mass of the better ones reaches `wanted`.

    values and mass are [rows, n], sorted upwards; wanted and the result [rows, 1].  A row that
    keeps nothing (top_p = 0) gives infinity.
    """
    mass_above = mx.cumsum(mass, axis=-1, reverse=True, inclusive=False)
    return mx.min(mx.where(mass_above < wanted, values, mx.inf), axis=-1, keepdims=True)


class _Filter(Protocol):
    selection: RowSelection

    def limits(self, logits: mx.array) -> mx.array:
        """Give the lowest kept logit [rows, 1] of the selected rows' logits [rows, V]."""
        ...


class _TopK:
    """Rows with a top_k, and their top_p within it: only the k best are sorted."""

    def __init__(self, params: Sequence[SamplingParams], rows: Sequence[int]) -> None:
        self.selection = RowSelection(rows, len(params))
        chosen = [params[row] for row in rows]
        self._widest = max(p.top_k for p in chosen)
        start = np.array([[self._widest - p.top_k] for p in chosen], np.int32)
        self._start = mx.array(start)
        self._inside = mx.array(np.arange(self._widest, dtype=np.int32) >= start)
        self._nucleus = any(p.top_p < 1 for p in chosen)
        # An infinite share keeps all k: rounding must not cut a row that has no top_p.
        self._top_p = column([p.top_p if p.top_p < 1 else math.inf for p in chosen])

    def limits(self, logits: mx.array) -> mx.array:
        best = mx.sort(mx.topk(logits, self._widest, axis=-1), axis=-1)
        kth = mx.take_along_axis(best, self._start, axis=-1)
        if not self._nucleus:
            return kth
        mass = mx.where(self._inside, mx.exp(best), 0.0)
        # Summed in the order of the sort, so that the widest top_k of the batch does not change it.
        total = mx.cumsum(mass, axis=-1, reverse=True)[:, :1]
        return mx.maximum(kth, _smallest_kept(best, mass, self._top_p * total))


class _TopP:
    """Rows with a top_p alone: the whole vocabulary is sorted."""

    def __init__(
        self, params: Sequence[SamplingParams], rows: Sequence[int], vocab_size: int
    ) -> None:
        self.selection = RowSelection(rows, len(params))
        shares = [params[row].top_p for row in rows]
        self._top_p = column(shares)
        # Tokens below (1 - top_p) / V hold less than 1 - top_p together, so none is in the nucleus
        # (the total is at least 1; halved for rounding).  Equal zeros in their place sort three
        # times as fast on the CPU backend.
        self._floor = column([(1 - share) / (2 * vocab_size) for share in shares])

    def limits(self, logits: mx.array) -> mx.array:
        mass = mx.exp(logits)
        total = mx.sum(mass, axis=-1, keepdims=True)
        heavy = mx.sort(mx.where(mass < self._floor * total, 0.0, mass), axis=-1)
        lightest = _smallest_kept(heavy, heavy, self._top_p * total)
        return mx.min(mx.where(mass >= lightest, logits, mx.inf), axis=-1, keepdims=True)


class Filters:
    """The filters of a fixed list of rows, with their parameters on the device."""

    def __init__(self, params: Sequence[SamplingParams], vocab_size: int) -> None:
        self._min_p = None
        if any(p.min_p > 0 for p in params):
            self._min_p = column([math.log(p.min_p) if p.min_p else -math.inf for p in params])
        self._open = column([-math.inf] * len(params))
        self._filters: list[_Filter] = []
        top_k = [row for row, p in enumerate(params) if 0 < p.top_k < vocab_size]
        top_p = [row for row, p in enumerate(params) if p.top_p < 1 and row not in top_k]
        if top_k:
            self._filters.append(_TopK(params, top_k))
        if top_p:
            self._filters.append(_TopP(params, top_p, vocab_size))

    def __call__(self, logits: mx.array) -> mx.array:
        """Set the logits that are filtered out to -inf.

        `logits`: float32 [rows, V] after temperature, less the maximum of their row, so that the
        best is 0.  The best token is always kept.
        """
        if self._min_p is None and not self._filters:
            return logits
        limits = self._open
        for each in self._filters:
            limits = each.selection.put(limits, each.limits(each.selection.take(logits)))
        if self._min_p is not None:
            limits = mx.maximum(limits, self._min_p)
        return mx.where(logits >= mx.minimum(limits, 0.0), logits, -mx.inf)
