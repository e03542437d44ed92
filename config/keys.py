"""Dotted keys: `api_gateway.port`, `models."qwen2.5-7b".source`.

A part that is not made of letters, digits, `_` and `-` alone stands in double quotes, as in TOML.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

Path = tuple[str, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_PART = re.compile(r'(?:([A-Za-z0-9_-]+)|"([^"]+)")(\.|$)')


def parse_key(text: str) -> Path:
    """Split a dotted key.  Raises ValueError with a sentence for the user."""
    parts: list[str] = []
    position, separator = 0, "."
    while separator == ".":
        match = _PART.match(text, position)
        if match is None:
            raise ValueError(f"{text!r} is not a dotted key such as api_gateway.port")
        bare, quoted, separator = match.groups()
        parts.append(bare or quoted)
        position = match.end()
    return tuple(parts)


def format_key(path: Iterable[str | int]) -> str:
    """The dotted form; an int is an index into a list: `cluster.ranks[1]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _BARE.fullmatch(part) else f'"{part}"')
    return text


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be."""
    matches = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None
