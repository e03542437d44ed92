"""Apply the sparse edits of a batch's histories to its logits.

The cost follows the number of edited logits, not the vocabulary: no [B, V] array of counts exists.
Edits that come from prompts stay on the device for as long as the batch does; only those of tokens
emitted, biased or masked are handed over at each step.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from pipeline.sampling.history import History


def _penalized(logits: mx.array, divisors: mx.array) -> mx.array:
    return mx.where(logits > 0, logits / divisors, logits * divisors)


class Edits:
    """The edits of a fixed list of rows, whose histories may grow."""

    def __init__(self, histories: Sequence[History], vocab_size: int) -> None:
        self._histories = histories
        self._vocab_size = vocab_size
        prompts = [(row, h) for row, h in enumerate(histories) if len(h.prompt_ids)]
        self._has_prompts = bool(prompts)
        if prompts:
            self._prompt_places = mx.array(
                np.concatenate([h.prompt_ids + row * vocab_size for row, h in prompts])
            )
            self._prompt_divisors = mx.array(
                np.concatenate([np.full(len(h.prompt_ids), h.divisor) for _, h in prompts]),
                mx.float32,
            )

    def __call__(self, logits: mx.array) -> mx.array:
        """Edit logits, float32 [B, V], by the histories as they are."""
        raw = edited = logits.reshape(-1)
        if self._has_prompts:
            values = _penalized(raw[self._prompt_places], self._prompt_divisors)
            edited = mx.put_along_axis(edited, self._prompt_places, values, axis=0)
        tables = [(row, history.edits()) for row, history in enumerate(self._histories)]
        used = [(row, table) for row, table in tables if table is not None]
        if used:
            places = mx.array(np.concatenate([t.ids + row * self._vocab_size for row, t in used]))
            divisors = mx.array(np.concatenate([table.divisors for _, table in used]))
            addends = mx.array(np.concatenate([table.addends for _, table in used]))
            # Starts from the raw logits: these entries replace those of the prompts.
            values = _penalized(raw[places], divisors) + addends
            edited = mx.put_along_axis(edited, places, values, axis=0)
        return logits if edited is raw else edited.reshape(logits.shape)
