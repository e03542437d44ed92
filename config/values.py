"""Types of single values.

YAML already tells numbers, strings and booleans apart, so nothing is coerced: `port: yes` is not port 1.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import (
    BeforeValidator,
    ByteSize,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    Strict,
    WrapSerializer,
)

T = TypeVar("T")

Flag = Annotated[bool, Strict()]
# No number of anything here comes near to 32 bits, and the coordinator's messages have no more.
Count = Annotated[int, Strict(), Field(ge=1, le=2**31 - 1)]
Index = Annotated[int, Strict(), Field(ge=0, le=2**31 - 1)]
Port = Annotated[int, Strict(), Field(ge=1, le=65535)]
# From a millisecond, below which a loop would only spin, to some thirty years.
Seconds = Annotated[float, Strict(), Field(ge=0.001, le=1e9)]
Moment = Annotated[float, Strict(), Field(ge=0, le=1)]  # seconds
Share = Annotated[float, Strict(), Field(gt=0, le=1)]
Part = Annotated[float, Strict(), Field(ge=0, le=1)]  # a share that may be nothing
Factor = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
Text = Annotated[str, Strict(), Field(min_length=1)]
Name = Annotated[str, Strict(), Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]

SIZE_EXPECTED = 'should be a number of bytes, or a size such as "16GB" or "512MiB"'
_UNITS = {"TB": 10**12, "TiB": 2**40, "GB": 10**9, "GiB": 2**30, "MB": 10**6, "MiB": 2**20}


def format_size(size: int) -> int | str:
    """Bytes in the largest unit that keeps the value exact: 16000000000 -> "16GB", 123 -> 123."""
    for unit, factor in _UNITS.items():
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return int(size)


def _only_int_or_text(value: object) -> object:
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 1e9
    if isinstance(value, (bool, float)) or not isinstance(value, (int, str)):
        raise ValueError(SIZE_EXPECTED)
    return value


def _auto_to_none(value: object) -> object:
    return None if value == "auto" else value


def _none_to_auto(value: object, inner: SerializerFunctionWrapHandler) -> object:
    return "auto" if value is None else inner(value)


# Bytes.  In text GB is 10**9 and GiB is 2**30.
Size = Annotated[
    ByteSize, BeforeValidator(_only_int_or_text), Field(gt=0), PlainSerializer(format_size)
]

# `auto` in YAML, None in Python: the program chooses.
ALLOWS_AUTO = BeforeValidator(_auto_to_none)
Auto = Annotated[T | None, ALLOWS_AUTO, WrapSerializer(_none_to_auto)]
