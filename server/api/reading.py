"""Reading the text of one assistant turn: what of it is thinking, what are tool calls, what is content.

A state machine over fragments: however the text is cut, the concatenated output is the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from server.api.reasoning import ThinkingSplitter
from server.api.tools.scanner import CallScanner
from server.api.turn_parts import CallArguments, CallBegin, Content, Reasoning, TurnPart


class Reader(Protocol):
    """Reads one turn."""

    @property
    def thinking(self) -> bool:
        """Whether what comes next may still be thinking."""
        ...

    def push(self, text: str) -> tuple[TurnPart, ...]:
        """What became certain with `text`."""
        ...

    def flush(self) -> tuple[TurnPart, ...]:
        """What is left when no text follows."""
        ...


class TurnReader:
    """Thinking first, then content and calls."""

    def __init__(
        self, splitter: ThinkingSplitter | None = None, scanner: CallScanner | None = None
    ) -> None:
        """None: there is no thinking to be expected, no call."""
        self._splitter, self._scanner = splitter, scanner

    @property
    def thinking(self) -> bool:
        """Whether what comes next may still be thinking."""
        return self._splitter is not None and self._splitter.thinking

    def push(self, text: str) -> tuple[TurnPart, ...]:
        """What became certain with `text`."""
        if self._splitter is None:
            return tuple(self._scan(text))
        thought, text = self._splitter.push(text)
        return (*_reasoning(thought), *self._scan(text))

    def flush(self) -> tuple[TurnPart, ...]:
        """What is left when no text follows."""
        parts: list[TurnPart] = []
        if self._splitter is not None:
            thought, text = self._splitter.flush()
            parts += [*_reasoning(thought), *self._scan(text)]
        if self._scanner is not None:
            parts += self._scanner.flush()
        return tuple(parts)

    def _scan(self, text: str) -> Iterable[TurnPart]:
        if not text:
            return ()
        return (Content(text),) if self._scanner is None else self._scanner.push(text)


def _reasoning(thought: str) -> Iterable[TurnPart]:
    return (Reasoning(thought),) if thought else ()


@dataclass(frozen=True)
class Call:
    """A whole tool call; `arguments` is JSON, unless the output was cut off in it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class WholeTurn:
    """A whole assistant turn."""

    content: str
    reasoning: str
    calls: tuple[Call, ...]


def whole_turn(parts: Iterable[TurnPart]) -> WholeTurn:
    """All parts of a turn, put together."""
    content, reasoning = [], []
    begun: list[CallBegin] = []
    arguments: list[list[str]] = []
    for part in parts:
        if isinstance(part, Content):
            content.append(part.text)
        elif isinstance(part, Reasoning):
            reasoning.append(part.text)
        elif isinstance(part, CallBegin):
            begun.append(part)
            arguments.append([])
        else:
            assert isinstance(part, CallArguments)
            arguments[part.index].append(part.text)
    calls = zip(begun, arguments, strict=True)
    return WholeTurn(
        "".join(content),
        "".join(reasoning),
        tuple(Call(begin.id, begin.name, "".join(text)) for begin, text in calls),
    )
