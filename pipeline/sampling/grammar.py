"""Grammars over the tokens of one vocabulary: compiled by llguidance, bounded in size and in work.

A compiled grammar is kept, and each sequence gets a copy of it, which shares what was found out so far.  Any
thread may use a `Grammars`; a matcher belongs to one sequence.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from transformers import AutoTokenizer

from pipeline.errors import ConstraintRefused
from pipeline.request import Constraint

KEPT = 64  # compiled grammars
MAX_REASON_CHARS = 300

# Tenths of a second at most for a grammar, and tens of milliseconds for a token, on a slow core: what takes
# longer is the error of its request.  They count work, not time, so that all ranks and all runs agree.
LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)

LoadVocabulary = Callable[[], LLTokenizer]


class Grammars:
    """Compiles constraints.  The vocabulary is read when the first one is there."""

    def __init__(self, load: LoadVocabulary, limits: LLParserLimits = LIMITS) -> None:
        """`load`: raises ConstraintRefused where the model's tokenizer can't be used."""
        self._load, self._limits = load, limits
        self._vocabulary: LLTokenizer | None = None
        self._compiled: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()
        self._loading, self._lock = threading.Lock(), threading.Lock()

    @property
    def vocabulary(self) -> LLTokenizer:
        """The tokens that masks are about.  Raises ConstraintRefused."""
        with self._loading:
            if self._vocabulary is None:
                self._vocabulary = self._load()
            return self._vocabulary

    def matcher(self, constraint: Constraint) -> LLMatcher:
        """A matcher at the beginning of `constraint`.

        Raises ConstraintRefused, with what is wrong, for a grammar that is broken or too large.
        """
        key = (constraint.kind, constraint.text)
        with self._lock:
            known = self._compiled.get(key)
            if known is not None:
                self._compiled.move_to_end(key)
                return known.deep_copy()
        fresh = self._compile(constraint)
        with self._lock:
            self._compiled[key] = fresh
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
            return fresh.deep_copy()

    def _compile(self, constraint: Constraint) -> LLMatcher:
        matcher = LLMatcher(self.vocabulary, _source(constraint), log_level=0, limits=self._limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # a grammar that allows nothing, or too much, shows here
        if matcher.is_error():
            raise ConstraintRefused(reason_of(matcher))
        return matcher


def _source(constraint: Constraint) -> str:
    """The grammar in the form that llguidance reads."""
    try:
        if constraint.kind == "json_schema":
            return LLMatcher.grammar_from_json_schema(constraint.text)
        if constraint.kind == "regex":
            return LLMatcher.grammar_from_regex(constraint.text)
        return LLMatcher.grammar_from_lark(constraint.text)
    except ValueError as error:
        raise ConstraintRefused(_one_line(str(error))) from error


def reason_of(matcher: LLMatcher) -> str:
    """Why a matcher is in its error state, in one line."""
    return _one_line(matcher.get_error())


def _one_line(text: str) -> str:
    line = " ".join(text.replace("<non-verbose/>", "").split())
    return line[:MAX_REASON_CHARS].rstrip(". ") or "unknown reason"


def vocabulary_of(tokenizer: Any, size: int) -> LLTokenizer:
    """The vocabulary of a Hugging Face tokenizer, or of mlx-lm's wrapper of one.

    `size`: entries in a row of logits.  Raises ConstraintRefused for a tokenizer that is not one of the
    tokenizers library.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConstraintRefused("the model's tokenizer has no vocabulary that grammars can use")
    backend = copy(backend)
    backend.no_padding()
    backend.no_truncation()
    most = max(size, backend.get_vocab_size(with_added_tokens=True))
    return LLTokenizer(backend.to_str(), n_vocab=most, eos_token=tokenizer.eos_token_id)


def read_vocabulary(folder: Path, size: int, trust_remote_code: bool) -> LLTokenizer:
    """The vocabulary of the model in `folder`, from its tokenizer's files alone.  Raises ConstraintRefused."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers library raises the base class itself
        raise ConstraintRefused(f"{folder}: the tokenizer can't be loaded: {error}") from error
    return vocabulary_of(tokenizer, size)
