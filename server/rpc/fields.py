"""Checks of single fields of messages.  All raise InvalidMessage, naming the field."""

from __future__ import annotations

import math
from typing import Any

from server.rpc.errors import InvalidMessage

MAX_TEXT = 1024  # characters of any text field


def text_from(value: str, field: str, *, empty: bool = False) -> str:
    """The value, unless it is blank or longer than MAX_TEXT."""
    require(empty or bool(value.strip()), field, "must not be empty")
    require(len(value) <= MAX_TEXT, field, f"longer than {MAX_TEXT} characters")
    return value


def number_from(value: float, field: str, high: float = math.inf) -> float:
    """The value, if it is from 0 to `high`."""
    require(math.isfinite(value) and value >= 0, field, f"{value:g} is not a number from 0 up")
    require(value <= high, field, f"{value:g} is above {high:g}")
    return float(value)


def optional(message: Any, field: str, high: float = math.inf) -> float | None:
    """The number in an optional field, None where it is absent."""
    if not message.HasField(field):
        return None
    return number_from(getattr(message, field), field, high)


def require(condition: bool, field: str, problem: str) -> None:
    if not condition:
        raise InvalidMessage(f"{field}: {problem}")
