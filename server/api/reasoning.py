"""Models that think before they answer: what marks it, and how it is told apart from the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from server.api.harmony import is_harmony
from server.api.text import overlap

BLANK = " \t\r\n"


@dataclass(frozen=True)
class ThinkingMarks:
    """What stands before and after a model's thinking, as text and as tokens."""

    start: str
    end: str
    start_tokens: tuple[int, ...]
    end_tokens: tuple[int, ...]


def thinking_marks(tokenizer: Any) -> ThinkingMarks | None:
    """As mlx-lm knows them from the vocabulary; None for a model that does not think."""
    if not getattr(tokenizer, "has_thinking", False):
        return None
    return ThinkingMarks(
        tokenizer.think_start,
        tokenizer.think_end,
        tuple(tokenizer.think_start_tokens),
        tuple(tokenizer.think_end_tokens),
    )


def reasons(tokenizer: Any) -> bool:
    """Whether the model thinks before it answers, however it marks that."""
    return thinking_marks(tokenizer) is not None or is_harmony(tokenizer)


def is_open(prompt: list[int], marks: ThinkingMarks) -> bool:
    """Whether a prompt ends within thinking: its template has begun it for the model."""
    return _last(prompt, marks.start_tokens) > _last(prompt, marks.end_tokens)


CLOSING_TOKENS = 8
"""At the end of a prompt, for the mark and white space where a template has closed the thinking at once."""


def is_closed(prompt: list[int], marks: ThinkingMarks) -> bool:
    """Whether a prompt ends with a thinking that is over: the model is to answer at once."""
    return _last(prompt[-CLOSING_TOKENS - len(marks.end_tokens) :], marks.end_tokens) >= 0


def _last(prompt: list[int], tokens: tuple[int, ...]) -> int:
    size = len(tokens)
    places = range(len(prompt) - size, -1, -1)
    return next((at for at in places if tuple(prompt[at : at + size]) == tokens), -1)


class ThinkingSplitter:
    """Splits a text into thinking and answer.  White space around the marks belongs to neither."""

    def __init__(self, marks: ThinkingMarks, *, begun: bool) -> None:
        """`begun`: the prompt ends within thinking; if not, the text has to begin with the start mark."""
        self._marks = marks
        self._state = "inside" if begun else "before"
        self._fresh = True  # nothing of this state was shown
        self._held = ""

    @property
    def thinking(self) -> bool:
        """Whether the answer has not begun."""
        return self._state != "answer"

    def push(self, text: str) -> tuple[str, str]:
        """More of the thinking and more of the answer that became certain with `text`."""
        self._held += text
        thought = ""
        if self._state == "before":
            self._begin()
        if self._state == "inside":
            thought = self._think()
        return thought, self._answer() if self._state == "answer" else ""

    def flush(self) -> tuple[str, str]:
        """What is left when no text follows."""
        held, self._held = self._held, ""
        return (held.rstrip(BLANK), "") if self._state == "inside" else ("", held)

    def _begin(self) -> None:
        text = self._held.lstrip(BLANK)
        if text.startswith(self._marks.start):
            self._held = text[len(self._marks.start) :]
            self._state = "inside"
        elif not self._marks.start.startswith(text):
            self._state, self._fresh = "answer", False  # its white space is its own

    def _think(self) -> str:
        if self._fresh:
            self._held = self._held.lstrip(BLANK)
            self._fresh = not self._held
        text = self._held
        end = text.find(self._marks.end)
        if end >= 0:
            self._held = text[end + len(self._marks.end) :]
            self._state, self._fresh = "answer", True
            return text[:end].rstrip(BLANK)
        safe = text[: len(text) - overlap(text, self._marks.end)].rstrip(BLANK)
        self._held = text[len(safe) :]
        return safe

    def _answer(self) -> str:
        text = self._held.lstrip(BLANK) if self._fresh else self._held
        self._fresh = self._fresh and not text
        self._held = ""
        return text
