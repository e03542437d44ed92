"""Filling in the middle: the prompt that asks a model for what stands between a prefix and a suffix.

Which tokens mark the parts, and in which order the model expects them, differs by family; the vocabulary says
whose it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.api.errors import InvalidRequest
from server.api.service import ServedModel
from server.api.templates import check_length
from server.api.vocabulary import Tokenizer


@dataclass(frozen=True)
class Marks:
    """Tokens before the prefix, before the suffix, and before the middle, which the model writes."""

    prefix: str
    suffix: str
    middle: str | None  # None: the suffix comes first, and the middle simply follows the prefix


FAMILIES = (
    Marks("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma
    Marks("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    Marks("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    # DeepSeek: begin, prefix, hole, suffix, end.
    Marks(
        "<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"
    ),
    Marks("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),  # Code Llama
    Marks("[PREFIX]", "[SUFFIX]", None),  # Codestral
)


def infill_prompt(prefix: list[int], suffix: str, model: ServedModel) -> list[int]:
    """Token ids that ask for the text between `prefix` and `suffix`.

    prefix: with the tokens that the model wants at the beginning of a text.  Raises InvalidRequest for a model
    without tokens for this.
    """
    tokenizer = model.tokenizer
    found = next((ids for marks in FAMILIES if (ids := _ids(marks, tokenizer)) is not None), None)
    if found is None:
        message = f"suffix: the model {model.id!r} has no tokens for filling in the middle."
        raise InvalidRequest(message, param="suffix", code="unsupported_parameter")
    before, between, end = found
    check_length(suffix, model, "suffix")
    after = list(tokenizer.encode(suffix, add_special_tokens=False))
    start, text = _split_start(prefix, tokenizer)
    if end is None:
        return [*start, between, *after, before, *text]
    return [*start, before, *text, between, *after, end]


def _ids(marks: Marks, tokenizer: Tokenizer) -> tuple[int, int, int | None] | None:
    known = [_id(word, tokenizer) for word in (marks.prefix, marks.suffix)]
    last = None if marks.middle is None else _id(marks.middle, tokenizer)
    if known[0] is None or known[1] is None or (marks.middle is not None and last is None):
        return None
    return known[0], known[1], last


def _id(word: str, tokenizer: Tokenizer) -> int | None:
    token = tokenizer.convert_tokens_to_ids(word)
    # The unknown token stands for every word that is not there.
    known = token is not None and tokenizer.convert_ids_to_tokens(token) == word
    return token if known else None


def _split_start(prefix: list[int], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The tokens that begin every text of this model, and the rest."""
    start = list(tokenizer.encode("", add_special_tokens=True))
    count = len(start) if start and prefix[: len(start)] == start else 0
    return prefix[:count], prefix[count:]
