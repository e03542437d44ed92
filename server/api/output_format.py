"""What the output has to look like, as it stands in a request: response_format and the guided fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StrictBool, StrictStr
from pydantic_core import PydanticCustomError

from server.api.fields import Part, only
from server.api.tools.schemas import JsonSchema, bounded_schema

MAX_PATTERN_CHARS = 16 << 10
MAX_CHOICES = 1_000
MAX_CHOICE_CHARS = 10_000


class TextFormat(Part):
    type: Literal["text"]


class JsonObjectFormat(Part):
    type: Literal["json_object"]


class NamedSchema(Part):
    name: Annotated[StrictStr, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: StrictStr | None = None
    # `schema` is a method of every pydantic model.
    json_schema: Annotated[JsonSchema | None, Field(alias="schema")] = None
    strict: StrictBool | None = None


class JsonSchemaFormat(Part):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


def _schema_or_text(value: Any) -> Any:
    if isinstance(value, dict):
        return bounded_schema(value)
    if isinstance(value, str):
        return value
    raise PydanticCustomError("bad_value", "must be a JSON schema, as an object or as a text")


GuidedJson = Annotated[Any, AfterValidator(_schema_or_text)]
Pattern = Annotated[StrictStr, Field(min_length=1, max_length=MAX_PATTERN_CHARS)]
Choices = Annotated[
    list[Annotated[StrictStr, Field(min_length=1, max_length=MAX_CHOICE_CHARS)]],
    Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True),
]


class StructuredOutputs(Part):
    """The guided fields in one object."""

    json_: Annotated[GuidedJson | None, Field(alias="json")] = None
    regex: Pattern | None = None
    choice: Choices | None = None
    grammar: Pattern | None = None
    json_object: StrictBool | None = None
    structural_tag: Annotated[Any, only()] = None
    whitespace_pattern: Annotated[Any, only()] = None
    disable_fallback: Annotated[Any, only(True, False)] = None  # there is one backend
    disable_any_whitespace: Annotated[Any, only(False)] = None
    disable_additional_properties: Annotated[Any, only(False)] = None
