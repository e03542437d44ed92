"""How many tokens a text has at least, known without making them: a prompt that can't fit is refused at once.

Each class of bytes (letters, digits, white space, other ASCII, the rest) gets a weight, such that no token of
the vocabulary weighs more than 1.  Then a text has at least as many tokens as it weighs, however it is cut.
That holds where each byte of a text ends up in a token: byte-level BPE, but for bytes that it does not know,
and BPE with byte tokens, if nothing is dropped or rewritten before.  Of other tokenizers nothing is said.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from server.api.vocabulary import BYTE_LETTERS, WORD_START, Tokenizer, Vocabulary

_LETTERS, _DIGITS, _SPACE, _OTHER, _HIGH, _DROPPED = range(6)
CLASSES = 6


def _class_of(byte: int) -> int:
    char = chr(byte)
    if byte >= 0x80:
        return _HIGH
    if char.isalpha():
        return _LETTERS
    if char.isdigit():
        return _DIGITS
    return _SPACE if char.isspace() else _OTHER


ALL_KNOWN = bytes(_class_of(byte) for byte in range(256))


def counts_of(data: bytes, table: bytes = ALL_KNOWN) -> list[int]:
    """How many bytes of each class; `table`: the class of each byte."""
    classes = data.translate(table)
    return [classes.count(number) for number in range(CLASSES)]


@dataclass(frozen=True)
class TokenBound:
    """weights: of a byte of each class.  composed, marked: the tokenizer first composes characters (NFC), or
    writes spaces with a mark of its own.
    """

    weights: tuple[float, ...]
    table: bytes = ALL_KNOWN
    composed: bool = False
    marked: bool = False

    def least(self, text: str) -> int:
        """Tokens that the text has at least."""
        if self.composed and not text.isascii():
            text = unicodedata.normalize("NFC", text)
        if self.marked:
            text = text.replace(WORD_START, " ")
        counts = counts_of(text.encode("utf-8", "replace"), self.table)
        return math.floor(_weight(self.weights, counts))


NO_BOUND = TokenBound((0.0,) * CLASSES)


def _weight(weights: Sequence[float], counts: Sequence[int]) -> float:
    return math.fsum(weight * count for weight, count in zip(weights, counts, strict=True))


def weights_for(tokens: Iterable[Sequence[int]], stretchable: bool) -> tuple[float, ...]:
    """The weights for a vocabulary, given as counts of its tokens' bytes.

    stretchable: there are tokens that take in any amount of white space around them, which weighs nothing then.
    """
    found = [tuple(counts) for counts in tokens]
    most = [max((counts[number] for counts in found), default=0) for number in range(CLASSES)]
    weights = [1 / length if length else 0.0 for length in most]
    weights[_DROPPED] = 0.0
    if stretchable:
        weights[_SPACE] = 0.0
    # Alone each class is right; tokens of several classes may still weigh more than 1.
    heaviest = max((_weight(weights, counts) for counts in set(found)), default=1.0)
    return tuple(weight / max(1.0, heaviest) for weight in weights)


# What of a tokenizer.json decides whether bytes can get lost; other fields are skipped.


class _Part(msgspec.Struct):
    type: str | None = None
    pretokenizers: list[_Part] = []
    normalizers: list[_Part] = []
    behavior: str | None = None
    pattern: dict[str, str] | None = None
    content: str | None = None

    def flat(self) -> list[_Part]:
        """Itself, or the parts of a sequence."""
        inside = [*self.pretokenizers, *self.normalizers]
        return [part for each in inside for part in each.flat()] if inside else [self]

    @property
    def keeps_all(self) -> bool:
        """Whether every character is in what it makes of a text, or a mark that stands for it."""
        if self.type in ("Split", "Punctuation"):
            return self.behavior is not None and self.behavior.lower() != "removed"
        if self.type == "Replace":
            return self.pattern == {"String": " "} and self.content == WORD_START
        return self.type in ("ByteLevel", "Digits", "Metaspace", "Prepend", "NFC")


class _Model(msgspec.Struct):
    type: str | None = None
    byte_fallback: bool | None = None


class _Added(msgspec.Struct):
    lstrip: bool = False
    rstrip: bool = False


class _File(msgspec.Struct):
    model: _Model
    normalizer: _Part | None = None
    pre_tokenizer: _Part | None = None
    added_tokens: list[_Added] = []


def bound_of(tokenizer: Tokenizer) -> TokenBound:
    """The bound for a tokenizer; NO_BOUND for one that may lose bytes, or that is not known well enough."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return NO_BOUND
    try:
        file = msgspec.json.decode(backend.to_str(), type=_File)
    except msgspec.ValidationError:
        return NO_BOUND
    parts = [part for each in (file.normalizer, file.pre_tokenizer) if each for part in each.flat()]
    kinds = {part.type for part in parts}
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    if byte_level := "ByteLevel" in kinds:
        known = {byte for letter, byte in BYTE_LETTERS.items() if letter in vocabulary}
    else:
        known = {byte for byte in range(256) if f"<0x{byte:02X}>" in vocabulary}
    # What of a character is dropped can be told of byte-level BPE only.
    complete = byte_level or (file.model.byte_fallback is True and len(known) == 256)
    if file.model.type != "BPE" or not complete or not all(part.keeps_all for part in parts):
        return NO_BOUND
    words = Vocabulary(tokenizer)
    weights = weights_for(
        (counts_of(words.bytes_of_piece(*item)) for item in vocabulary.items()),
        stretchable=any(added.lstrip or added.rstrip for added in file.added_tokens),
    )
    table = bytes(ALL_KNOWN[byte] if byte in known else _DROPPED for byte in range(256))
    return TokenBound(weights, table, composed="NFC" in kinds, marked=not byte_level)
