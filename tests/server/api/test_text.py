from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from pipeline.request import TokenEvent
from server.api.text import (
    CONTEXT_TOKENS,
    HELD_TOKENS,
    WINDOW_TOKENS,
    Detokenizer,
    StopScanner,
    TextStream,
)
from tests.server.api.fakes import TOKENIZER, ids

few_letters = st.text("abé", max_size=30)
stop_strings = st.lists(st.text("abé", min_size=1, max_size=4), max_size=4)
cut_points = st.lists(st.integers(0, 30), max_size=8)


def chunks(text: str, cuts: Sequence[int]) -> list[str]:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    return [text[a:b] for a, b in pairwise(places)]


def cut_by_definition(text: str, stops: Sequence[str], armed_from: int = 0) -> tuple[str, bool]:
    """Read character by character; at the first that completes a stop string, cut before the longest."""
    for end in range(armed_from + 1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@given(few_letters, stop_strings, cut_points)
def test_stop_strings_however_the_text_arrives(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    expected, stopped = cut_by_definition(text, stops)
    scanner, shown = StopScanner(stops), ""
    for chunk in chunks(text, cuts):
        shown += scanner.push(chunk)
        assert expected.startswith(shown), "a part of a stop string was shown"
        if scanner.matched is not None:
            break
    assert (scanner.matched is not None) == stopped
    assert (shown if stopped else shown + scanner.flush()) == expected


@given(few_letters, few_letters, stop_strings, cut_points)
def test_stop_strings_count_once_armed(
    before: str, after: str, stops: list[str], cuts: list[int]
) -> None:
    expected, stopped = cut_by_definition(before + after, stops, armed_from=len(before))
    scanner = StopScanner(stops)
    shown = "".join(scanner.push(chunk, armed=False) for chunk in chunks(before, cuts))
    for chunk in chunks(after, cuts):
        shown += scanner.push(chunk)
        if scanner.matched is not None:
            break
    shown += scanner.flush()
    assert (scanner.matched is not None) == stopped
    assert shown == expected


def test_text_is_held_back_only_while_it_may_begin_a_stop_string() -> None:
    scanner = StopScanner(["END"])
    assert [scanner.push(char) for char in "aEbEN."] == ["a", "", "Eb", "", "", "EN."]


def byte_level(tokens: Sequence[int]) -> str:
    return TOKENIZER.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def run(detokenizer: Detokenizer, tokens: Sequence[int]) -> str:
    return "".join([*map(detokenizer.push, tokens), detokenizer.flush()])


any_text = st.text(st.characters(codec="utf-8"), max_size=40)


@given(any_text)
def test_text_survives_tokenization(text: str) -> None:
    assert run(Detokenizer(byte_level), ids(text)) == text


@given(st.lists(st.integers(0, len(TOKENIZER.get_vocab()) - 1), max_size=80))
def test_any_tokens_give_what_decoding_them_together_gives(tokens: list[int]) -> None:
    """Invalid UTF-8 and special tokens included."""
    assert run(Detokenizer(byte_level), tokens) == byte_level(tokens)


@given(any_text)
def test_no_character_is_shown_before_it_is_complete(text: str) -> None:
    detokenizer, shown = Detokenizer(byte_level), ""
    for token in ids(text):
        shown += detokenizer.push(token)
        assert text.startswith(shown)


@given(any_text, any_text)
def test_continuation_of_a_prompt(prompt: str, output: str) -> None:
    assert run(Detokenizer(byte_level, ids(prompt)), ids(output)) == output


def test_character_begun_in_the_prompt() -> None:
    tokens = ids("ab你")
    for cut in range(3, 5):
        assert run(Detokenizer(byte_level, tokens[:cut]), tokens[cut:]) == "你"


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """As Llama 2's: spaces as U+2581, a leading space stripped when decoding, bytes for the rest."""
    words = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *"\u2581abcdefgh",
        "\u2581a",
        "\u2581b",
    ]
    merges = [("\u2581", "a"), ("\u2581", "b")]
    vocabulary = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


SENTENCEPIECE = sentencepiece_like()
letters = st.text("ab é你🙂", min_size=1, max_size=40)


@given(letters)
def test_sentencepiece(text: str) -> None:
    tokens = SENTENCEPIECE.encode(text)
    assert run(Detokenizer(SENTENCEPIECE.decode), tokens) == SENTENCEPIECE.decode(tokens) == text


@given(letters, letters)
def test_sentencepiece_continuation_of_a_prompt(prompt: str, output: str) -> None:
    tokens, cut = SENTENCEPIECE.encode(prompt + output), len(SENTENCEPIECE.encode(prompt))
    whole, before = SENTENCEPIECE.decode(tokens), SENTENCEPIECE.decode(tokens[:cut])
    expected = whole[len(before) :]
    assert run(Detokenizer(SENTENCEPIECE.decode, tokens[:cut]), tokens[cut:]) == expected


def test_sentencepiece_keeps_the_space_after_a_prompt() -> None:
    prompt, output = SENTENCEPIECE.encode("a"), SENTENCEPIECE.encode("b")
    assert run(Detokenizer(SENTENCEPIECE.decode, prompt), output) == " b"
    assert run(Detokenizer(SENTENCEPIECE.decode), output) == "b"


@pytest.mark.parametrize("token", [ids("a")[0], ids("é")[0], ids("é")[1]])
def test_cost_of_a_token_is_bounded(token: int) -> None:
    longest = 0

    def decode(tokens: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return byte_level(tokens)

    detokenizer = Detokenizer(decode, [token] * 100)
    shown = sum(len(detokenizer.push(token)) for _ in range(500))
    assert longest <= WINDOW_TOKENS + HELD_TOKENS
    assert shown >= 500 - HELD_TOKENS
    assert CONTEXT_TOKENS < WINDOW_TOKENS


def test_a_character_that_is_never_completed() -> None:
    first, *rest = ids("a你")
    stream = TextStream(Detokenizer(byte_level))
    assert stream.push(TokenEvent(first)).text == "a"
    assert stream.push(TokenEvent(rest[0])).text == ""
    assert stream.push(TokenEvent(rest[1], "length")).text == "\ufffd"


@given(any_text, st.lists(st.text(min_size=1, max_size=3), max_size=3), st.integers(0, 10))
def test_spans_cover_the_text(text: str, stops: list[str], min_tokens: int) -> None:
    tokens = ids(text) or ids("x")
    events = [TokenEvent(token) for token in tokens[:-1]] + [TokenEvent(tokens[-1], "length")]
    stream = TextStream(Detokenizer(byte_level), stops, min_tokens)
    shown, spans, finish = "", [], None
    for event in events:
        delta = stream.push(event)
        shown, finish = shown + delta.text, delta.finish
        spans += delta.spans
        if finish is not None:
            break
    assert [span.event for span in spans] == events[: len(spans)]
    assert all(a.end == b.start for a, b in pairwise(spans))
    if finish == "length":
        assert len(spans) == len(events)
        assert shown == byte_level(tokens)
    else:
        assert finish == "stop"
        assert stream.tokens >= min_tokens
        assert any(byte_level(tokens).startswith(shown + stop) for stop in stops)
        assert all(span.start < len(shown) for span in spans)
        assert (spans[-1].end if spans else 0) >= len(shown)
