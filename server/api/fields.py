"""What request bodies are made of: bounded values, parts, and fields that are known but not served."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr
from pydantic_core import PydanticCustomError

# Limits of what validation may cost, far beyond any real request.
MAX_ITEMS = 10_000
MAX_BIASES = 1_000
MAX_STOP_CHARS = 1000  # scanning for a stop string costs its length at each token

INT64 = Field(ge=-(1 << 63), lt=1 << 63)


class Unserved:
    """Validator of a known field that is not served: accepts `harmless` values only."""

    def __init__(self, *harmless: Any) -> None:
        self._harmless = harmless

    def __call__(self, value: Any) -> Any:
        # 1 == True, so the types are compared too.
        if value is None or any(type(value) is type(h) and value == h for h in self._harmless):
            return value
        raise PydanticCustomError("unsupported", "this server does not support it")


def only(*harmless: Any) -> AfterValidator:
    """Annotation of a known field that is not served."""
    return AfterValidator(Unserved(*harmless))


Positive = Annotated[StrictInt, Field(ge=1, lt=1 << 63)]
Natural = Annotated[StrictInt, Field(ge=0, lt=1 << 63)]
Fraction = Annotated[StrictFloat, Field(ge=0, le=1)]
Penalty = Annotated[StrictFloat, Field(ge=-2, le=2)]
Bias = Annotated[StrictFloat, Field(ge=-100, le=100)]
# `fail_fast`: the first bad item is the answer; errors for millions of them would fill the memory.
AT_MOST_4 = Field(max_length=4, fail_fast=True)
AT_MOST_MANY = Field(max_length=MAX_ITEMS, fail_fast=True)
SOME = Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)
StopString = Annotated[StrictStr, Field(min_length=1, max_length=MAX_STOP_CHARS)]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    def unknown_fields(self) -> Iterator[str]:
        yield from self.model_extra or ()
