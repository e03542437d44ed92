"""Prompts of exact lengths, always the same."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

from mlx_lm.tokenizer_utils import TokenizerWrapper

from server.api.tokenizer import load_tokenizer
from server.api.vocabulary import Vocabulary, readable

PEOPLE = ("Ada", "Grace", "Alan", "Emmy", "Niels", "Marie", "Srinivasa", "Hypatia")
PLACES = ("Lisbon", "Kyoto", "Cairo", "Oslo", "Quito", "Hanoi", "Accra", "Dublin")
CARGO = ("tea", "copper wire", "old maps", "violins", "wheat", "glass lenses")


@cache
def tokenizer(folder: Path) -> TokenizerWrapper:
    return load_tokenizer(folder, {}, trust_remote_code=False)


def prompt(folder: Path, tokens: int, seed: int = 0) -> list[int]:
    """The first `tokens` token ids of a story; another seed tells another one."""
    choose = random.Random(seed)
    story = ""
    while True:
        ids = list(tokenizer(folder).encode(story, add_special_tokens=False))
        if len(ids) > tokens:  # the last token of a text may be cut in two by what follows
            return ids[:tokens]
        for _ in range(1 + tokens // 40):
            story += _sentence(choose)


def _sentence(choose: random.Random) -> str:
    who, cargo = choose.choice(PEOPLE), choose.choice(CARGO)
    here, there = choose.sample(PLACES, 2)
    year, boxes = choose.randint(1700, 1950), choose.randint(2, 90)
    return f"In {year}, {who} sailed from {here} to {there} with {boxes} boxes of {cargo}. "


def names(folder: Path, tokens: list[int]) -> list[str]:
    """Tokens as the API's logprobs show them."""
    vocabulary = Vocabulary(tokenizer(folder))
    return [readable(vocabulary.bytes_of(token)) for token in tokens]
