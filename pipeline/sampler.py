"""The sampler of the last stage: logits of a batch in, one token per sequence out.

Per row, in this order: repetition penalty, presence and frequency penalties, logit bias, mask of
end tokens (sampling/history.py, edits.py); the constraint's mask (sampling/constraints.py);
temperature; top_k, top_p, min_p (sampling/filters.py);
Gumbel-max with noise keyed by (seed, position) (sampling/noise.py).  Temperature 0 takes the best
logit after the edits.  Log probabilities are those of the raw logits.

A call only builds a graph; `Sampled.record` evaluates it.  In between, the arrays may be handed to
mx.async_eval.  One thread uses a sampler.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from pipeline.errors import EngineFault, RequestRejected
from pipeline.request import Constraint, SamplingParams, TokenLogprobs
from pipeline.sampling.constraints import Masks, Matcher
from pipeline.sampling.edits import Edits
from pipeline.sampling.filters import Filters, RowSelection, column
from pipeline.sampling.grammar import Grammars
from pipeline.sampling.history import History
from pipeline.sampling.logprobs import LogprobArrays, Logprobs
from pipeline.sampling.noise import GumbelNoise, mix, row_keys

GREEDY_BELOW = 1.0e-5  # by vLLM's convention, lower temperatures are greedy: float32 has no 1e-46
HIGHEST_TEMPERATURE = 1.0e4  # uniform but for masked tokens

MATCHING_THREADS = min(4, os.cpu_count() or 1)

_CACHED_BATCHES = 64  # at least the number of micro-batches in flight

_FLOAT_FIELDS = ("temperature", "repetition_penalty", "presence_penalty", "frequency_penalty")


def _refuse_non_finite(params: SamplingParams) -> None:
    for name in _FLOAT_FIELDS:
        value = getattr(params, name)
        if not math.isfinite(value):
            raise RequestRejected(f"{name} must be a finite number, not {value}.")
    for token, bias in params.logit_bias.items():
        if not math.isfinite(bias):
            raise RequestRejected(f"logit_bias of token {token} must be finite, not {bias}.")


@dataclass(frozen=True)
class Sampled:
    """The unevaluated outcome of one step for B sequences.

    `tokens`: int32 [B].  `peaks`: float32 [B], the best edited logit of each row, which is finite
    unless the row holds NaN or +inf, or nothing but -inf.
    """

    tokens: mx.array
    peaks: mx.array
    logprobs: LogprobArrays | None
    refused: dict[
        int, str
    ]  # sequences whose constraint can't go on, and why; `broken` names them too
    _sequences: tuple[int, ...]
    _histories: tuple[History, ...]
    _matchers: tuple[Matcher | None, ...]
    _positions: tuple[int, ...]

    def arrays(self) -> list[mx.array]:
        """List what `record` evaluates, for mx.async_eval."""
        more = self.logprobs.arrays() if self.logprobs else []
        return [self.tokens, self.peaks, *more]

    def broken(self) -> tuple[int, ...]:
        """Evaluate, and name the sequences that can't be sampled: no finite maximum, or refused."""
        peaks: list[float] = np.array(self.peaks).tolist()
        return tuple(
            s
            for s, peak in zip(self._sequences, peaks, strict=True)
            if not math.isfinite(peak) or s in self.refused
        )

    def record(self) -> tuple[list[int], list[TokenLogprobs | None]]:
        """Evaluate, add each token to its sequence's history, and give tokens and log probabilities.

        Nothing is recorded for a `broken` sequence, whose token means nothing.  A sequence removed since
        the call is harmless.  Raises EngineFault, and records nothing, when a token of this step was
        recorded before.
        """
        mx.eval(self.arrays())
        self._check_positions()
        broken = set(self.broken())
        tokens: list[int] = np.array(self.tokens).tolist()
        size = len(tokens)
        logprobs: list[TokenLogprobs | None]
        logprobs = self.logprobs.records(size) if self.logprobs else [None] * size
        for row, (sequence, history) in enumerate(
            zip(self._sequences, self._histories, strict=True)
        ):
            if sequence in broken:
                logprobs[row] = None
            else:
                history.record(tokens[row])
                if (matcher := self._matchers[row]) is not None:
                    matcher.advance(tokens[row])
        return tokens, logprobs

    def _check_positions(self) -> None:
        for sequence, history, position in zip(
            self._sequences, self._histories, self._positions, strict=True
        ):
            if history.emitted != position:
                raise EngineFault(
                    f"Sequence {sequence} was sampled for output position {position}, "
                    f"but has {history.emitted} tokens."
                )


class _Batch:
    """One list of sequences, with their parameters laid out per row once."""

    def __init__(
        self,
        sequences: tuple[int, ...],
        histories: tuple[History, ...],
        matchers: tuple[Matcher | None, ...],
        size: int,
    ):
        self.sequences, self.histories, self.matchers = sequences, histories, matchers
        params = [history.params for history in histories]
        self.edit = Edits(histories, size)
        self.mask = Masks(matchers, size)
        self.logprobs = Logprobs(params, size)
        random = [row for row, p in enumerate(params) if p.temperature >= GREEDY_BELOW]
        self.any_random, self.all_random = bool(random), len(random) == len(params)
        self._selection = RowSelection(random, len(params))
        drawn = [params[row] for row in random]
        self._drawn = [histories[row] for row in random]
        self._temperature = column([min(p.temperature, HIGHEST_TEMPERATURE) for p in drawn])
        self._seeds = mix(np.array([p.seed for p in drawn], np.uint64))
        self._filters = Filters(drawn, size)

    def draw(self, logits: mx.array, peaks: mx.array, noise: GumbelNoise) -> mx.array:
        """Sample the rows that are not greedy: int32 [random rows]."""
        positions = np.array([history.emitted for history in self._drawn], np.uint64)
        best = self._selection.take(peaks)[:, None]
        scaled = (self._selection.take(logits) - best) / self._temperature
        scores = self._filters(scaled) + noise(row_keys(self._seeds, positions))
        return mx.argmax(scores, axis=-1).astype(mx.int32)

    def choose(self, logits: mx.array, peaks: mx.array, noise: GumbelNoise) -> mx.array:
        """Choose a token for every row: int32 [B]."""
        if self.all_random:
            return self.draw(logits, peaks, noise)
        greedy = mx.argmax(logits, axis=-1).astype(mx.int32)
        if not self.any_random:
            return greedy
        return self._selection.put(greedy, self.draw(logits, peaks, noise))


class Sampler:
    """Chooses tokens for the sequences it has been told of.

    Sequence ids are the caller's.  Naming an unknown one, or one twice, is a fault of the engine:
    EngineFault.
    """

    def __init__(self, vocab_size: int, grammars: Grammars | None = None) -> None:
        """`vocab_size`: entries per row of logits, which may exceed the tokenizer's vocabulary.

        `grammars`: for sequences with a constraint.
        """
        self._vocab_size = vocab_size
        self._grammars = grammars
        self._pool = ThreadPoolExecutor(MATCHING_THREADS, thread_name_prefix="grammar")
        self._matchers: dict[int, Matcher] = {}
        self._noise = GumbelNoise(vocab_size)
        self._histories: dict[int, History] = {}
        self._batches: OrderedDict[tuple[int, ...], _Batch] = OrderedDict()

    def add(
        self,
        sequence: int,
        params: SamplingParams,
        prompt: Sequence[int],
        emitted: Sequence[int] = (),
    ) -> None:
        """Admit a sequence.

        `prompt` is read only for the repetition penalty.  `emitted` are the tokens generated before
        a resume.  Raises RequestRejected for a parameter that is not a finite number, EngineFault
        for an id in use, and for a constraint where there are no grammars.  A constraint that can't
        be followed shows when the sequence is sampled.
        """
        if sequence in self._histories:
            raise EngineFault(f"Sequence {sequence} is already known to the sampler.")
        _refuse_non_finite(params)
        if params.constraint is not None:
            self._matchers[sequence] = self._matcher(params.constraint, emitted)
        self._histories[sequence] = History(params, self._vocab_size, prompt, emitted)

    def _matcher(self, constraint: Constraint, emitted: Sequence[int]) -> Matcher:
        if self._grammars is None:
            raise EngineFault("a sequence has a constraint, and this stage no grammars")
        return Matcher(constraint, emitted, self._vocab_size, self._grammars, self._pool)

    def remove(self, sequence: int) -> None:
        """Forget a sequence.  Raises EngineFault for an unknown id."""
        if self._histories.pop(sequence, None) is None:
            raise EngineFault(f"Sequence {sequence} is not known to the sampler.")
        self._matchers.pop(sequence, None)
        for stale in [key for key in self._batches if sequence in key]:
            del self._batches[stale]

    def constrains(self, sequences: Sequence[int]) -> bool:
        """Whether any of these has a constraint."""
        return any(sequence in self._matchers for sequence in sequences)

    def __call__(self, logits: mx.array, sequences: Sequence[int]) -> Sampled:
        """Choose one token per sequence.

        `logits`: [B, V] of any float dtype, row b belonging to sequences[b].  Each sequence must
        have its previous token recorded.  Raises EngineFault for a wrong shape, and for unknown or
        repeated ids.
        """
        if logits.shape != (len(sequences), self._vocab_size):
            raise EngineFault(
                f"Logits of shape {logits.shape} don't fit {len(sequences)} sequences "
                f"of {self._vocab_size} tokens."
            )
        batch = self._batch(tuple(sequences))
        raw = logits.astype(mx.float32)
        edited, failures = batch.mask(batch.edit(raw))
        peaks = mx.max(edited, axis=-1)
        tokens = batch.choose(edited, peaks, self._noise)
        return Sampled(
            tokens=tokens,
            peaks=peaks,
            logprobs=batch.logprobs(raw, tokens),
            refused={batch.sequences[row]: reason for row, reason in failures.items()},
            _sequences=batch.sequences,
            _histories=batch.histories,
            _matchers=batch.matchers,
            _positions=tuple(history.emitted for history in batch.histories),
        )

    def _batch(self, sequences: tuple[int, ...]) -> _Batch:
        batch = self._batches.get(sequences)
        if batch is None:
            batch = self._lay_out(sequences)
            self._batches[sequences] = batch
            if len(self._batches) > _CACHED_BATCHES:
                self._batches.popitem(last=False)
        self._batches.move_to_end(sequences)
        return batch

    def _lay_out(self, sequences: tuple[int, ...]) -> _Batch:
        unknown = [sequence for sequence in sequences if sequence not in self._histories]
        if unknown:
            raise EngineFault(f"Sequences {unknown} are not known to the sampler.")
        if not sequences or len(set(sequences)) != len(sequences):
            raise EngineFault(f"A batch needs sequences that differ, not {list(sequences)}.")
        histories = tuple(self._histories[sequence] for sequence in sequences)
        matchers = tuple(self._matchers.get(sequence) for sequence in sequences)
        return _Batch(sequences, histories, matchers, self._vocab_size)
