"""Constraint masks: which tokens the grammar of each sequence allows next.

A mask is a function of the constraint and the tokens emitted, nothing else, so that a sequence that is resumed,
preempted or moved to another batch gets the same ones.  Masks are computed by a pool of threads from the
moment a token is known, while the stages compute: they are there when the next logits are.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from pipeline.errors import ConstraintRefused
from pipeline.request import Constraint
from pipeline.sampling.grammar import Grammars, reason_of

# Below every other mask and finite: where a grammar leaves only end tokens, they win even if `min_tokens` masks
# them too.
FORBIDDEN = -3.4e38

WORD_BITS = 32
MATCH_SECONDS = 10.0  # that a stage waits for a mask; the request fails, the others go on

Row = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Allowed:
    """One row: `tokens`, bool [V], or why the sequence can't go on."""

    tokens: Row
    failure: str = ""


class Matcher:
    """The masks of one sequence.  `advance` and `allowed` alternate, as one thread calls them."""

    def __init__(
        self,
        constraint: Constraint,
        emitted: Sequence[int],
        vocab_size: int,
        grammars: Grammars,
        pool: Executor,
    ) -> None:
        """`emitted`: the tokens made before, of which the grammar has to know."""
        self._constraint, self._grammars, self._pool = constraint, grammars, pool
        self._vocab_size = vocab_size
        self._ends = [token for token in constraint.ends if token < vocab_size]
        self._awaited = list(constraint.after)  # marks that have to come before the grammar applies
        self._seen: list[int] = []  # since the last mark, as far as the next one may need it
        self._first = True
        self._matcher: LLMatcher | None = None
        self._words = np.zeros(0, np.uint32)
        self._next: Future[Allowed] = pool.submit(self._follow, tuple(emitted))

    def advance(self, token: int) -> None:
        """Take note of a token; its successors are looked for at once, in another thread."""
        self._next = self._pool.submit(self._follow, (token,))

    def allowed(self) -> Allowed:
        """What may come next.  Waits for it, for a bounded time."""
        try:
            return self._next.result(MATCH_SECONDS)
        except FutureTimeout:
            return self._failed(f"no mask was computed within {MATCH_SECONDS:g} s")

    # in the pool

    def _follow(self, tokens: Sequence[int]) -> Allowed:
        try:
            matcher = self._compiled()
            for token in tokens:
                self._consume(matcher, token)
            return self._mask(matcher)
        except ConstraintRefused as error:
            return self._failed(str(error))

    def _compiled(self) -> LLMatcher:
        if self._matcher is None:
            self._matcher = self._grammars.matcher(self._constraint)
            words = -(-self._grammars.vocabulary.vocab_size // WORD_BITS)
            self._words = np.zeros(words, np.uint32)
        return self._matcher

    def _consume(self, matcher: LLMatcher, token: int) -> None:
        if token in self._ends:  # nothing comes after it
            return
        if self._first and self._constraint.opening not in (None, token):
            self._awaited = self._awaited[1:]
        self._first = False
        if self._awaited:
            self._await(token)
        elif not matcher.consume_token(token):
            raise ConstraintRefused(reason_of(matcher))

    def _await(self, token: int) -> None:
        mark = self._awaited[0]
        self._seen = [*self._seen, token][-len(mark) :]
        if tuple(self._seen) == mark:
            self._awaited, self._seen = self._awaited[1:], []

    def _mask(self, matcher: LLMatcher) -> Allowed:
        opening = self._constraint.opening if self._first else None
        if len(self._awaited) > (opening is not None):
            tokens = np.ones(self._vocab_size, np.bool_)
            tokens[self._ends] = self._constraint.optional
            return Allowed(tokens)
        tokens = np.zeros(self._vocab_size, np.bool_)
        if not matcher.is_stopped():
            matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
            bits = np.unpackbits(self._words.view(np.uint8), bitorder="little")
            known = min(len(bits), self._vocab_size)
            tokens[:known] = bits[:known]
            tokens[self._foreign_ends()] = False
        if matcher.is_error():
            raise ConstraintRefused(reason_of(matcher))
        tokens[self._ends] = matcher.is_accepting()
        if opening is not None:
            tokens[opening] = True
        if not tokens.any():
            raise ConstraintRefused("the grammar allows no token that the model has")
        return Allowed(tokens)

    def _foreign_ends(self) -> list[int]:
        """What llguidance takes for the end of a text and this model does not."""
        return [t for t in self._grammars.vocabulary.eos_tokens if t < self._vocab_size]

    def _failed(self, reason: str) -> Allowed:
        return Allowed(np.ones(self._vocab_size, np.bool_), reason)


class Masks:
    """The masks of a fixed list of rows, some of them constrained."""

    def __init__(self, matchers: Sequence[Matcher | None], vocab_size: int) -> None:
        self._rows = [(row, m) for row, m in enumerate(matchers) if m is not None]
        shape = (len(matchers), vocab_size) if self._rows else (0, 0)
        self._allowed = np.ones(shape, np.bool_)  # reused at each step: MLX copies it

    def __call__(self, logits: mx.array) -> tuple[mx.array, dict[int, str]]:
        """Mask logits, float32 [B, V]; with them, by row, why a sequence can't go on."""
        failures = {}
        for row, matcher in self._rows:
            allowed = matcher.allowed()
            self._allowed[row] = allowed.tokens
            if allowed.failure:
                failures[row] = allowed.failure
        if not self._rows:
            return logits, failures
        return mx.where(mx.array(self._allowed), logits, FORBIDDEN), failures
