"""What one sequence has emitted, and how that edits its next logits.

Repetition, presence and frequency penalties, logit bias and the mask of `min_tokens` all change
single logits, so they are kept together as entries (id, divisor, addend) of one sparse table.  An
edited logit x becomes

    (x / divisor if x > 0 else x * divisor) + addend
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.request import SamplingParams

# A masked logit is finite: where every token is masked, the row still has a maximum and gives a
# token.  Divided by the highest temperature it is still so low that its probability is 0 in
# float32.
MASKED = -3.0e38
# Wider than any useful value, and narrow enough that an edited logit stays finite and above MASKED.
DIVISOR_LIMITS = (1.0e-4, 1.0e4)
ADDEND_LIMIT = 1.0e30

_FIRST_CAPACITY = 64


@dataclass(frozen=True)
class EditTable:
    """Edits of one row, each array of length n.  No id occurs twice."""

    ids: npt.NDArray[np.int32]
    divisors: npt.NDArray[np.float32]
    addends: npt.NDArray[np.float32]

    @classmethod
    def empty(cls, capacity: int) -> EditTable:
        """Make a table whose entries change nothing."""
        return cls(
            ids=np.zeros(capacity, np.int32),
            divisors=np.ones(capacity, np.float32),
            addends=np.zeros(capacity, np.float32),
        )

    def first(self, count: int) -> EditTable:
        """View the first `count` entries."""
        return EditTable(self.ids[:count], self.divisors[:count], self.addends[:count])

    def grown(self) -> EditTable:
        """Copy into twice the capacity."""
        used = len(self.ids)
        table = EditTable.empty(2 * used)
        table.ids[:used] = self.ids
        table.divisors[:used] = self.divisors
        table.addends[:used] = self.addends
        return table


class History:
    """Tokens of one sequence, counted as far as its parameters need them.

    Penalties and bias are those of the OpenAI API and of Hugging Face's
    RepetitionPenaltyLogitsProcessor (Keskar et al. 2019, CTRL): the repetition penalty counts
    prompt and output, presence and frequency count the output only.  Ids outside the vocabulary
    have no logit, so they are left out.

    `prompt_ids`, int32 without repeats, are the prompt's tokens under a repetition penalty.  They
    are edited by `divisor` alone, except for those that `edits` names too.
    """

    def __init__(
        self, params: SamplingParams, vocab_size: int, prompt: Iterable[int], emitted: Sequence[int]
    ) -> None:
        self.params = params
        self.emitted = len(emitted)
        self.divisor = min(max(params.repetition_penalty, DIVISOR_LIMITS[0]), DIVISOR_LIMITS[1])
        self._vocab_size = vocab_size
        self._repetition = params.repetition_penalty != 1.0
        self._counting = bool(params.presence_penalty or params.frequency_penalty)
        self._seen: set[int] = set()
        self._counts: Counter[int] = Counter()
        self._slots: dict[int, int] = {}
        self._table = EditTable.empty(_FIRST_CAPACITY)
        if self._repetition:
            self._seen.update(token for token in prompt if 0 <= token < vocab_size)
        self.prompt_ids = np.array(sorted(self._seen), np.int32)
        self._resume(emitted)

    def _resume(self, emitted: Sequence[int]) -> None:
        touched = set(self.params.logit_bias)
        if self.emitted < self.params.min_tokens:
            touched.update(self.params.end_tokens)
        touched.update(self._count(emitted))
        for token in touched:
            self._edit(token)

    def record(self, token: int) -> None:
        """Count one emitted token."""
        self.emitted += 1
        for counted in self._count((token,)):
            self._edit(counted)
        if self.emitted == self.params.min_tokens:
            for end_token in self.params.end_tokens:
                self._edit(end_token)

    def edits(self) -> EditTable | None:
        """Give the edits of the next logits, as views until the next `record`; None: no edits."""
        return self._table.first(len(self._slots)) if self._slots else None

    def _count(self, tokens: Sequence[int]) -> Sequence[int]:
        """Count emitted tokens, and give those whose edit may change by that."""
        if self._repetition:
            self._seen.update(tokens)
        if self._counting:
            self._counts.update(tokens)
        return tokens if self._repetition or self._counting else ()

    def _edit(self, token: int) -> None:
        if not 0 <= token < self._vocab_size:
            return
        slot = self._slots.setdefault(token, len(self._slots))
        if slot == len(self._table.ids):
            self._table = self._table.grown()
        self._table.ids[slot] = token
        self._table.divisors[slot] = self.divisor if token in self._seen else 1.0
        self._table.addends[slot] = self._addend(token)

    def _addend(self, token: int) -> float:
        params = self.params
        if self.emitted < params.min_tokens and token in params.end_tokens:
            return MASKED
        addend = params.logit_bias.get(token, 0.0)
        count = self._counts[token]
        if count:
            addend -= params.presence_penalty + params.frequency_penalty * count
        return min(max(addend, -ADDEND_LIMIT), ADDEND_LIMIT)
