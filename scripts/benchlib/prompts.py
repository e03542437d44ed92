"""Prompts: always the same for the same seed, and with nothing in common for different ones.

A prompt that shares its beginning with an earlier one would measure a server's prefix cache.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

PEOPLE = ("Ada", "Grace", "Alan", "Emmy", "Niels", "Marie", "Srinivasa", "Hypatia")
PLACES = ("Lisbon", "Kyoto", "Cairo", "Oslo", "Quito", "Hanoi", "Accra", "Dublin")
CARGO = ("tea", "copper wire", "old maps", "violins", "wheat", "glass lenses")
WORDS_PER_SENTENCE = 14


def story(seed: int, sentences: int) -> str:
    """Text without an end, so that a model goes on with it instead of ending the sequence."""
    choose = random.Random(seed)
    return f"Log {seed}. " + " ".join(_sentence(choose) for _ in range(sentences))


def _sentence(choose: random.Random) -> str:
    who, cargo = choose.choice(PEOPLE), choose.choice(CARGO)
    here, there = choose.sample(PLACES, 2)
    year, boxes = choose.randint(1700, 1950), choose.randint(2, 90)
    return f"In {year}, {who} sailed from {here} to {there} with {boxes} boxes of {cargo}."


@dataclass(frozen=True)
class PromptMaker:
    """Makes prompts of a wanted length in tokens; without a tokenizer, of about that length."""

    tokenizer: Tokenizer | None = None

    @classmethod
    def of_model(cls, folder: Path) -> PromptMaker:
        """With the tokenizer of a model folder."""
        return cls(Tokenizer.from_file(str(folder / "tokenizer.json")))

    def prompt(self, seed: int, tokens: int) -> str:
        """The beginning of the story `seed`: what the first `tokens` tokens say."""
        text = story(seed, 1 + tokens // WORDS_PER_SENTENCE)
        if self.tokenizer is None:
            return " ".join(text.split()[: max(1, tokens * 2 // 3)])  # English: 1.5 tokens a word
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return str(self.tokenizer.decode(ids[:tokens], skip_special_tokens=False))
