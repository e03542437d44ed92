"""What an assistant turn consists of, in the order in which it is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reasoning:
    """More of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class Content:
    """More of the answer."""

    text: str


@dataclass(frozen=True)
class CallBegin:
    """Tool call number `index` of this turn begins."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of the arguments of tool call `index`, which are JSON together."""

    index: int
    text: str


TurnPart = Reasoning | Content | CallBegin | CallArguments
