"""The bound on a text's tokens is never above what the tokenizer makes of it, and near enough to be of use."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from server.api.token_bound import NO_BOUND, bound_of
from server.api.vocabulary import BYTE_LETTERS
from tests.server.api.conftest import Client
from tests.server.api.fakes import FakeEngine, make_service, make_tokenizer


def letter_of(byte: int) -> str:
    return next(letter for letter, stands_for in BYTE_LETTERS.items() if stands_for == byte)


LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
SPACE = "\u0120"
FIRST, SECOND, THIRD = (letter_of(byte) for byte in "\u1ed1".encode())  # o with two accents, in one
MERGES = [
    (FIRST, SECOND),
    (FIRST + SECOND, THIRD),
    (SPACE, SPACE),
    (SPACE * 2, SPACE * 2),
    ("a", "b"),
    ("ab", "ab"),
    ("1", "2"),
    ("a", SPACE),
    ("!", "!"),
]
MARK = "\u2581"


def wrapped(backend: Tokenizer) -> TokenizerWrapper:
    return TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))


def byte_level(letters: list[str] = LETTERS, **parts: Any) -> Tokenizer:
    merges = [pair for pair in MERGES if set("".join(pair)) <= set(letters)]
    words = ["</s>", *letters, *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE(vocab={w: n for n, w in enumerate(words)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    for name, part in parts.items():
        setattr(backend, name, part)
    return backend


def byte_fallback(**parts: Any) -> Tokenizer:
    merges = [(MARK, MARK), (MARK * 2, MARK * 2), ("a", "b")]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["</s>", "<unk>", *bytes_, MARK, "a", "b", *("".join(pair) for pair in merges)]
    vocabulary = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)]
    )
    for name, part in parts.items():
        setattr(backend, name, part)
    return backend


def stretching() -> Tokenizer:
    backend = byte_level()
    backend.add_tokens([AddedToken("<mask>", lstrip=True, rstrip=True)])
    return backend


BOUNDED = {
    "byte level": byte_level(),
    "with digits": byte_level(
        pre_tokenizer=pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    ),
    "some bytes": byte_level([letter for letter in LETTERS if letter not in "bcz1"]),
    "composing": byte_level(normalizer=normalizers.NFC()),
    "stretching": stretching(),
    "byte tokens": byte_fallback(),
    "metaspace": byte_fallback(normalizer=None, pre_tokenizer=pre_tokenizers.Metaspace()),
}
UNKNOWN = {
    "words": Tokenizer(models.WordLevel({"</s>": 0, "<unk>": 1}, unk_token="<unk>")),
    "unigram": Tokenizer(models.Unigram([("</s>", 0.0), ("a", -1.0)], unk_id=0)),
    "rewriting": byte_level(normalizer=normalizers.NFKC()),
    "dropping": byte_level(
        pre_tokenizer=pre_tokenizers.Sequence(
            [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel()]
        )
    ),
    "no bytes": byte_fallback(model=models.BPE(vocab={"</s>": 0, "a": 1}, merges=[])),
}
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(
            ["  ", " " * 9, "ab", "abab", "12", "!!", "<mask>", "</s>", "e\u0301", MARK * 5]
        ),
        st.text(max_size=5),
        st.text("ab 1!\u0301", max_size=20),
    ),
    max_size=30,
).map("".join)


@pytest.mark.parametrize("name", BOUNDED)
@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(text=TEXTS)
@hypothesis.example(text=" " * 400 + "<mask>" + " " * 400)
@hypothesis.example(text="o\u0302\u0301" * 400)
def test_no_text_has_fewer_tokens(name: str, text: str) -> None:
    tokenizer = wrapped(BOUNDED[name])
    bound = KNOWN.setdefault(name, bound_of(tokenizer))
    assert bound != NO_BOUND
    assert bound.least(text) <= len(tokenizer.encode(text, add_special_tokens=False))


KNOWN: dict[str, Any] = {}


@pytest.mark.parametrize("name", UNKNOWN)
def test_nothing_is_said_of_what_may_lose_text(name: str) -> None:
    assert bound_of(wrapped(UNKNOWN[name])) == NO_BOUND


def test_it_is_near_enough_to_be_of_use() -> None:
    bound = bound_of(make_tokenizer())
    assert bound.least("x" * 1000) >= 40
    assert bound.least("hello world " * 100) >= 40


class Unread:
    """A tokenizer that makes no tokens."""

    def __init__(self, inner: TokenizerWrapper) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def encode(self, text: str, **options: Any) -> list[int]:
        raise AssertionError(f"{len(text)} characters are read")


LONG = "x" * 100_000
ASKED: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/completions", {"prompt": LONG}, "prompt"),
    ("/v1/completions", {"prompt": ["x", LONG]}, "prompt"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}, "messages"),
    ("/v1/responses", {"input": LONG}, "input"),
    (
        "/v1/messages",
        {"messages": [{"role": "user", "content": LONG}], "max_tokens": 5},
        "messages",
    ),
]


@pytest.mark.parametrize(("path", "body", "param"), ASKED)
def test_a_prompt_that_can_not_fit_is_not_read(
    engine: FakeEngine, path: str, body: dict[str, Any], param: str
) -> None:
    class OneAtLeast(Unread):
        def encode(self, text: str, **options: Any) -> list[int]:
            return super().encode(text, **options) if len(text) > 200 else [1]

    service = make_service(engine, tokenizer=OneAtLeast(make_tokenizer()))
    response = Client(service).post(path, {"model": "tiny", **body})
    assert response.status_code == 400
    error = response.json()["error"]
    assert "maximum context length is 200 tokens" in error["message"]
    assert "at least" in error["message"]
    if path != "/v1/messages":  # Anthropic's errors have neither
        assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    assert engine.requests == []


def test_counting_reads_it_all_the_same(engine: FakeEngine) -> None:
    client = Client(make_service(engine))
    body = {"model": "tiny", "messages": [{"role": "user", "content": LONG}]}
    assert client.post("/v1/messages/count_tokens", body).json()["input_tokens"] > len(LONG)
    assert client.post("/tokenize", {"prompt": LONG}).json()["count"] == len(LONG)
