"""What waiting ranks are told, in one line of JSON, and the lines by which they and mlx.launch answer."""

from __future__ import annotations

import re
from enum import Enum
from typing import Annotated

import msgspec

VERSION = 1
KEEP_ALIVE = 30.0  # seconds between two empty lines for those who wait
LEASE = 5 * KEEP_ALIVE  # seconds without any line after which nobody is there who would need them

Text = Annotated[str, msgspec.Meta(min_length=1)]
Number = Annotated[int, msgspec.Meta(ge=0)]


class AssignmentError(Exception):
    """A line that is no assignment; the message names the key."""


class Assignment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who becomes which rank.  Those who wait know their place: the rank in the hostfile they were started by.

    `places` and `ring` are in rank order: where the rank waits, and the addresses of MLX's ring on which it
    listens.  `arguments` follow those with which the ranks were started.
    """

    version: int
    epoch: Number
    places: Annotated[tuple[Number, ...], msgspec.Meta(min_length=1)]
    ring: tuple[Annotated[tuple[Text, ...], msgspec.Meta(min_length=1)], ...]
    arguments: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"version is {self.version}, and should be {VERSION}")
        if len(set(self.places)) < len(self.places):
            raise ValueError(f"places names one twice: {list(self.places)}")
        if len(self.ring) != len(self.places):
            raise ValueError(f"ring is for {len(self.ring)} ranks, places for {len(self.places)}")

    def rank_at(self, place: int) -> int | None:
        """The rank of who waits at `place`; None: it is not needed."""
        return self.places.index(place) if place in self.places else None

    @property
    def hostfile(self) -> str:
        """As mlx.launch would write it for these ranks: empty for a single one."""
        return msgspec.json.encode(self.ring).decode() if len(self.ring) > 1 else ""

    def line(self) -> bytes:
        return msgspec.json.encode(self) + b"\n"


def read_assignment(line: bytes) -> Assignment:
    """Raises AssignmentError for anything but what `Assignment.line` makes."""
    try:
        return msgspec.json.decode(line, type=Assignment)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AssignmentError(f"the assignment on standard input is not valid: {error}") from error


class Word(Enum):
    """What is said of one who waits."""

    WARM = "is warm"  # by itself
    TAKEN = "has its rank"  # by itself: it has understood
    GONE = "has ended"  # by whoever started it


_SAID = re.compile(rf"standby: (\d+) ({'|'.join(word.value for word in Word)})")


def said(place: int, word: Word) -> str:
    return f"standby: {place} {word.value}"


def heard(line: str) -> tuple[int, Word] | None:
    """Place and word; None for any other line."""
    match = _SAID.fullmatch(line.strip())
    return None if match is None else (int(match[1]), Word(match[2]))
