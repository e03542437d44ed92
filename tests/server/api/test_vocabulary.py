from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.api.vocabulary import Vocabulary, readable
from tests.server.api.fakes import END, SPECIAL, TOKENIZER, ids
from tests.server.api.test_text import SENTENCEPIECE, letters


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_bytes_of_byte_level_tokens_add_up(text: str) -> None:
    vocabulary = Vocabulary(TOKENIZER)
    assert b"".join(map(vocabulary.bytes_of, ids(text))) == text.encode()


@given(letters)
def test_bytes_of_sentencepiece_tokens_add_up(text: str) -> None:
    vocabulary = Vocabulary(SENTENCEPIECE)
    tokens = SENTENCEPIECE.encode(text)
    assert b"".join(map(vocabulary.bytes_of, tokens)) == b" " + text.encode()


def test_special_and_unknown_tokens() -> None:
    vocabulary = Vocabulary(TOKENIZER)
    assert vocabulary.bytes_of(TOKENIZER.eos_token_id) == END.encode()
    name = SPECIAL[-1]  # its é is a letter, not the byte that é stands for in other tokens
    assert vocabulary.bytes_of(TOKENIZER.convert_tokens_to_ids(name)) == name.encode()
    assert vocabulary.bytes_of(len(TOKENIZER.get_vocab()) + 5) == b""


def test_readable() -> None:
    assert readable("é".encode()) == "é"
    assert readable(b"\xc3") == "bytes:\\xc3"
