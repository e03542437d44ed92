"""Log probabilities of the chosen and the best tokens, of the rows that asked for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from pipeline.request import SamplingParams, TokenLogprobs
from pipeline.sampling.filters import RowSelection


@dataclass(frozen=True)
class LogprobArrays:
    """Unevaluated answers for R rows: chosen float32 [R]; ids and values [R, K], in no order."""

    rows: tuple[int, ...]
    counts: tuple[int, ...]  # how many of the best each row asked for, at most K
    chosen: mx.array
    ids: mx.array | None
    values: mx.array | None

    def arrays(self) -> list[mx.array]:
        """List what has to be evaluated."""
        return [each for each in (self.chosen, self.ids, self.values) if each is not None]

    def records(self, size: int) -> list[TokenLogprobs | None]:
        """Evaluate, and give one record per row of the batch; None for rows that did not ask."""
        records: list[TokenLogprobs | None] = [None] * size
        nothing: list[list[int]] = [[]] * len(self.rows)
        ids = nothing if self.ids is None else np.array(self.ids).tolist()
        values = nothing if self.values is None else np.array(self.values).tolist()
        for place, chosen in enumerate(np.array(self.chosen).tolist()):
            best = sorted(zip(ids[place], values[place], strict=True), key=lambda x: (-x[1], x[0]))
            top = tuple(best[: self.counts[place]])
            records[self.rows[place]] = TokenLogprobs(chosen=chosen, top=top)
        return records


class Logprobs:
    """Which rows of a fixed list asked for log probabilities, and for how many."""

    def __init__(self, params: Sequence[SamplingParams], vocab_size: int) -> None:
        rows = [row for row, p in enumerate(params) if p.logprobs >= 0]
        self._selection = RowSelection(rows, len(params))
        self._counts = tuple(params[row].logprobs for row in rows)
        self._widest = min(max(self._counts, default=0), vocab_size)
        self._vocab_size = vocab_size

    def __call__(self, logits: mx.array, tokens: mx.array) -> LogprobArrays | None:
        """Build the log probabilities of raw logits, float32 [B, V], for the sampled tokens, int32
        [B].

        Gives None when no row asked.
        """
        if not self._counts:
            return None
        rows = self._selection.take(logits)
        total = mx.logsumexp(rows, axis=-1, keepdims=True)
        picked = self._selection.take(tokens)[:, None]
        chosen = mx.take_along_axis(rows, picked, axis=-1) - total
        ids = values = None
        if self._widest:
            order = mx.argpartition(rows, kth=self._vocab_size - self._widest, axis=-1)
            ids = order[:, self._vocab_size - self._widest :]
            values = mx.take_along_axis(rows, ids, axis=-1) - total
        return LogprobArrays(self._selection.rows, self._counts, chosen[:, 0], ids, values)
