"""What request bodies are made of: bounded values, parts, and fields that are known but not served."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StrictFloat,
    StrictInt,
    StrictStr,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import PydanticCustomError, core_schema

# Limits of what validation may cost, far beyond any real request.
MAX_ITEMS = 10_000
MAX_BIASES = 1_000
MAX_STOP_CHARS = 1000  # scanning for a stop string costs its length at each token

INT64 = Field(ge=-(1 << 63), lt=1 << 63)


class Unserved:
    """Annotation of a known field that is not served: accepts `harmless` values only."""

    def __init__(self, *harmless: Any) -> None:
        self._harmless = harmless

    def __call__(self, value: Any) -> Any:
        # 1 == True, so the types are compared too.
        if value is None or any(type(value) is type(h) and value == h for h in self._harmless):
            return value
        raise PydanticCustomError("unsupported", "this server does not support it")

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {
            "enum": [*self._harmless, None],
            "description": "Not served: only values that change nothing are accepted.",
        }


def only(*harmless: Any) -> Unserved:
    """Annotation of a known field that is not served."""
    return Unserved(*harmless)


class Also:
    """Annotation of a field that takes more forms than its type says; `widen` turns them into it.

    The other forms are described by JSON schemas, for the API's document.
    """

    def __init__(self, widen: Callable[[Any], Any], *forms: JsonSchemaValue) -> None:
        self._widen, self._forms = widen, forms

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self._widen, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        inner = handler(schema["schema"])
        return {"anyOf": [*self._forms, inner]}


A_STRING: JsonSchemaValue = {"type": "string"}


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
