"""Requests whose answers are known, and what an answer that differs has wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

STORIES = (
    "The ship had been at sea for nine days when",
    "To bake bread at home, first",
    "Question: why is the sky blue? Answer:",
    "def fibonacci(n):",
    "The capital of France is",
    "Once upon a time there was a clockmaker who",
    "List three uses of copper.",
    "In the year 1850 the railway",
    "Dear Sir, I am writing to you about",
    "The quick brown fox",
    "A good way to learn a language is",
    "When the lights went out,",
)
RANDOM_PROMPT = 24  # tokens of a prompt for a model of random weights
RANDOM_VOCABULARY = range(5, 90)


@dataclass(frozen=True)
class Task:
    """One request. Its answer is always the same: greedy, or sampled with a seed."""

    name: str
    body: dict[str, Any]

    @property
    def stream(self) -> bool:
        return bool(self.body["stream"])


@dataclass
class Answer:
    """What came back, and when; `arrivals` are of time.monotonic, for each piece of text."""

    text: str = ""
    tokens: list[str] = field(default_factory=list)
    finish: str | None = None
    usage: tuple[int, int] | None = None  # prompt and completion tokens
    ids: set[str] = field(default_factory=set)
    error: str | None = None
    retry_after: float | None = (
        None  # with an error: the request was not taken on, and may be sent again
    )
    arrivals: list[float] = field(default_factory=list)


def tasks(
    model: str, streams: int, plain: int, length: int, words: bool, seeded: bool
) -> list[Task]:
    """`streams` streaming and `plain` other requests for `length` tokens each.

    `words`: prompts are texts; else tokens, for a model that knows no words. All ask for the tokens of the
    answer, so that it can be compared token by token.
    """
    made = []
    for number in range(streams + plain):
        stream = number < streams
        body = {
            "model": model,
            "prompt": _prompt(number, words),
            "max_tokens": length,
            "ignore_eos": True,
            "logprobs": 0,
            "stream": stream,
            **({"temperature": 1.0, "seed": 1000 + number} if seeded else {"temperature": 0.0}),
            **({"stream_options": {"include_usage": True}} if stream else {}),
        }
        made.append(Task(f"{'stream' if stream else 'plain'} {number}", body))
    return made


def _prompt(number: int, words: bool) -> str | list[int]:
    if words:
        return STORIES[number % len(STORIES)]
    choose = random.Random(number)
    return [choose.choice(RANDOM_VOCABULARY) for _ in range(RANDOM_PROMPT)]


def differences(expected: Answer, got: Answer) -> list[str]:
    """What `got` has otherwise; empty for the same answer."""
    if got.error is not None:
        return [got.error]
    found = []
    if got.tokens != expected.tokens:
        found.append(_first_difference(expected.tokens, got.tokens))
    elif got.text != expected.text:
        found.append(f"the text is {got.text!r}, not {expected.text!r}")
    found += [
        f"{name} is {getattr(got, name)}, not {getattr(expected, name)}"
        for name in ("finish", "usage")
        if getattr(got, name) != getattr(expected, name)
    ]
    if len(got.ids) != 1:
        found.append(f"the answer has {len(got.ids)} ids")
    return found


def _first_difference(expected: Sequence[str], got: Sequence[str]) -> str:
    same = next(
        (i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b),
        min(len(expected), len(got)),
    )
    return (
        f"token {same} of {len(expected)} is {got[same : same + 3]}, not {expected[same : same + 3]}"
        f" ({len(got)} tokens came)"
    )
