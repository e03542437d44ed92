"""What is used of a tokenizer, and the bytes that its tokens stand for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
WORD_START = "\u2581"  # sentencepiece writes a space so


def _byte_alphabet() -> Mapping[str, int]:
    """The printable stand-ins of byte-level BPE: itself where printable in Latin-1, else from U+0100 on.

    Source: the encoder of GPT-2 (Radford et al., 2019).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + place): byte for place, byte in enumerate(others)}


BYTE_LETTERS = _byte_alphabet()
_BYTE_LEVEL_SPACE = "\u0120"


class Tokenizer(Protocol):
    """The part of mlx-lm's TokenizerWrapper (and so of a Hugging Face tokenizer) that is used."""

    has_chat_template: bool
    all_special_ids: list[int]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(
        self,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str: ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool = True, **kwargs: Any
    ) -> list[int] | str: ...

    def convert_ids_to_tokens(self, ids: int) -> str | None: ...

    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...

    def get_added_vocab(self) -> dict[str, int]: ...


class Vocabulary:
    """Token id -> bytes.  A token of byte-level BPE or a byte token may be a part of a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = frozenset(tokenizer.get_added_vocab().values())
        space = tokenizer.convert_tokens_to_ids(_BYTE_LEVEL_SPACE)  # the unknown token's id, if any
        self._byte_level = (
            space is not None and tokenizer.convert_ids_to_tokens(space) == _BYTE_LEVEL_SPACE
        )

    def bytes_of(self, token: int) -> bytes:
        """UTF-8 of the token; empty for an id that the tokenizer does not know."""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        return b"" if piece is None else self.bytes_of_piece(piece, token)

    def bytes_of_piece(self, piece: str, token: int) -> bytes:
        """UTF-8 of the token whose text in the vocabulary is `piece`."""
        if token in self._added:
            return piece.encode()
        if self._byte_level:
            return b"".join(
                bytes([BYTE_LETTERS[char]]) if char in BYTE_LETTERS else char.encode()
                for char in piece
            )
        if match := _BYTE_TOKEN.fullmatch(piece):
            return bytes.fromhex(match[1])
        return piece.replace(WORD_START, " ").encode()


def readable(token: bytes) -> str:
    """The token as a string; an incomplete character is written as OpenAI does: `bytes:\\xe4\\xbd`."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
