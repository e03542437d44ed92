"""Turns of models that write several messages on channels (gpt-oss): thinking, calls, and the answer.

A turn goes on from `<|start|>assistant` as `<|channel|>NAME to=RECIPIENT<|message|>TEXT<|end|>`, any number of
times, the last message ending with `<|return|>`, or with `<|call|>` if it is for a function.  The channel says
what a message is: analysis, commentary (calls, and what introduces them) or final.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from typing import Any

from server.api.text import overlap
from server.api.turn_parts import CallArguments, CallBegin, Content, Reasoning, TurnPart

START, MESSAGE = "<|start|>", "<|message|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>", START)  # of a message; START begins the next one
TURN_ENDS = ("<|call|>", "<|return|>")
MARKS = (START, MESSAGE, "<|channel|>", "<|constrain|>", *ENDS[:3])

ANALYSIS = "analysis"
FUNCTIONS = "functions."

_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
TO = "to="  # a recipient may come before the channel
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")


def is_harmony(tokenizer: Any) -> bool:
    """Whether the vocabulary has all marks of such turns."""
    added: dict[str, int] = tokenizer.get_added_vocab()
    return added.keys() >= set(MARKS)


class HarmonyReader:
    """A state machine over fragments, as server.api.reading.Reader.

    A call is told when it is whole: one for a function that there is, with a JSON object as its arguments.
    Anything else that is said to somebody is content.
    """

    def __init__(
        self,
        names: Collection[str] = (),
        call_id: Callable[[int], str] = str,
        most: int | None = None,
    ) -> None:
        """`names`: of the functions that may be called.  `most`: calls; what follows is content."""
        self._names, self._call_id, self._most = names, call_id, most
        self._held = ""
        self._state: Callable[[], list[TurnPart] | None] = self._header
        self._channel = ""
        self._function: str | None = None  # that the message at hand is for
        self._count = 0
        self._first = True

    @property
    def thinking(self) -> bool:
        """Whether what comes next may still be thinking."""
        return self._first or (self._state == self._text and self._channel == ANALYSIS)

    def push(self, text: str) -> tuple[TurnPart, ...]:
        """What became certain with `text`."""
        self._held += text
        parts: list[TurnPart] = []
        while (more := self._state()) is not None:
            parts += more
        return tuple(parts)

    def flush(self) -> tuple[TurnPart, ...]:
        """What is left when no text follows: the token that ends a turn is none of it."""
        held, self._held = self._held, ""
        if self._state == self._text:
            return tuple(self._said(held))
        if self._state == self._call:
            return tuple(self._called(held))
        # Of a header that is cut off nothing is shown; a text without one is an answer all the same.
        return () if _has_mark(held) else tuple(_content(held))

    # States: each gives what it found and may have changed the state, or None if it needs more text.

    def _header(self) -> list[TurnPart] | None:
        if self._first and not self._may_begin():
            self._first, self._state = False, self._text
            return []
        head, mark, rest = self._held.partition(MESSAGE)
        if not mark:
            return None
        self._held, self._first = rest, False
        channel, recipient = _CHANNEL.search(head), _RECIPIENT.search(head)
        self._channel = channel[1] if channel else ""
        self._function = self._known(recipient[1]) if recipient else None
        self._state = self._text if self._function is None else self._call
        return []

    def _may_begin(self) -> bool:
        """Whether the turn begins with a header, as far as it is here.

        One without is a single answer: so it is where a grammar holds the output.
        """
        text = self._held.lstrip()
        return any(sign.startswith(text[: len(sign)]) for sign in (*MARKS, TO))

    def _text(self) -> list[TurnPart] | None:
        said, ended = self._until_end()
        if ended:
            self._state = self._header
            return self._said(said)
        safe = len(said) - max(overlap(said, mark) for mark in ENDS)
        self._held = said[safe:]
        return self._said(said[:safe]) or None

    def _call(self) -> list[TurnPart] | None:
        said, ended = self._until_end()
        if not ended:
            return None
        self._state = self._header
        return self._called(said)

    def _until_end(self) -> tuple[str, bool]:
        """What is held of the message at hand, and whether it ends there."""
        places = [(place, mark) for mark in ENDS if (place := self._held.find(mark)) >= 0]
        if not places:
            return self._held, False
        place, mark = min(places)
        said, self._held = self._held[:place], self._held[place + len(mark) :]
        return said, True

    def _known(self, recipient: str) -> str | None:
        name = recipient.removeprefix(FUNCTIONS)
        full = self._most is not None and self._count >= self._most
        return (
            name if recipient.startswith(FUNCTIONS) and name in self._names and not full else None
        )

    def _said(self, text: str) -> list[TurnPart]:
        if self._channel != ANALYSIS:
            return _content(text)
        return [Reasoning(text)] if text else []

    def _called(self, text: str) -> list[TurnPart]:
        if self._function is None or not _is_object(text):
            return _content(text)
        index = self._count
        self._count += 1
        begin = CallBegin(index, self._call_id(index), self._function)
        return [begin, CallArguments(index, text.strip())]


def _has_mark(text: str) -> bool:
    return any(mark in text for mark in MARKS)


def _content(text: str) -> list[TurnPart]:
    return [Content(text)] if text else []


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
