"""A vocabulary as small as the tiny models': one token for each printable ASCII character."""

from __future__ import annotations

from collections.abc import Sequence

from llguidance import LLParserLimits
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.sampling.grammar import Grammars, vocabulary_of

SIZE = 97
END = 2


def ascii_tokenizer() -> PreTrainedTokenizerFast:
    """Token 0 begins thinking, 1 ends it, 2 ends a text; the characters follow, 95 of them, less the tilde."""
    special = ["<think>", "</think>", "</s>"]
    letters = ["Ġ" if code == 32 else chr(code) for code in range(32, 126)]
    vocabulary = {word: token for token, word in enumerate([*special, *letters])}
    assert len(vocabulary) == SIZE
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(word, special=True) for word in special])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


TOKENIZER = ascii_tokenizer()


def grammars(**limits: int) -> Grammars:
    return Grammars(lambda: vocabulary_of(TOKENIZER, SIZE), LLParserLimits(**limits))  # type: ignore[arg-type]


def text_of(tokens: Sequence[int]) -> str:
    """What a text says, without special tokens."""
    text: str = TOKENIZER.decode(tokens, skip_special_tokens=True)
    return text
