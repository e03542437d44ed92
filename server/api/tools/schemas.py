"""Tools and tool calls as they stand in a request."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, StrictStr
from pydantic_core import PydanticCustomError

from server.api.fields import Part

MAX_TOOLS = 128
MAX_CALLS = 128  # of one assistant message
MAX_SCHEMA_CHARS = 64 << 10
MAX_SCHEMA_DEPTH = 32
MAX_STATES = 10_000  # compiled in tenths of a second; the engine's own limits don't count them
COMBINING = frozenset(("allOf", "anyOf", "oneOf", "$ref"))


def bounded_schema(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema within the limits on its size and depth."""
    if _depth_exceeds(value, MAX_SCHEMA_DEPTH):
        raise PydanticCustomError(
            "bad_value", f"the schema has more than {MAX_SCHEMA_DEPTH} levels"
        )
    if len(json.dumps(value, ensure_ascii=False)) > MAX_SCHEMA_CHARS:
        raise PydanticCustomError(
            "bad_value", f"the schema has more than {MAX_SCHEMA_CHARS} characters"
        )
    if most_states(value) > MAX_STATES:
        raise PydanticCustomError(
            "bad_value",
            f"multipleOf: numbers with more than {MAX_STATES} remainders can't be enforced, one by one or "
            "combined",
        )
    return value


def most_states(schema: dict[str, Any]) -> int:
    """How many remainders a number can have by the keyword multipleOf, each a state of its automaton.

    Where schemas are combined, all of it may hold for one number.
    """
    found = list(_keywords(schema))
    values = [v for k, v in found if k == "multipleOf" and type(v) in (int, float)]
    numbers = [Decimal(str(v)).normalize() for v in values if math.isfinite(v) and v > 0]
    if not numbers:
        return 0
    if COMBINING.isdisjoint(key for key, _ in found):
        return max(_whole([number])[0] for number in numbers)
    return math.lcm(*_whole(numbers))


def _whole(numbers: list[Decimal]) -> list[int]:
    """As multiples of the finest decimal place of any."""
    places = max(-int(number.as_tuple().exponent) for number in numbers)
    return [int(Fraction(number) * 10 ** max(0, places)) for number in numbers]


def _keywords(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from value.items()
        value = list(value.values())
    for each in value if isinstance(value, list) else ():
        yield from _keywords(each)


def _depth_exceeds(value: Any, levels: int) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return False
    return levels == 0 or any(_depth_exceeds(each, levels - 1) for each in value)


JsonSchema = Annotated[dict[str, Any], AfterValidator(bounded_schema)]
FunctionName = Annotated[StrictStr, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class Function(Part):
    name: FunctionName
    description: StrictStr | None = None
    parameters: JsonSchema | None = None
    strict: StrictBool | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The schema of its arguments; a function without parameters takes an empty object."""
        if self.parameters:
            return self.parameters
        return {"type": "object", "properties": {}, "additionalProperties": False}


class Tool(Part):
    type: Literal["function"]
    function: Function

    def unknown_fields(self) -> Iterator[str]:
        yield from (f"tools[].{name}" for name in super().unknown_fields())
        yield from (f"tools[].function.{name}" for name in self.function.unknown_fields())

    def as_template_sees(self) -> dict[str, Any]:
        """As chat templates expect it; they write it into the prompt."""
        function: dict[str, Any] = {
            "name": self.function.name,
            "description": self.function.description or "",
            "parameters": self.function.arguments,
        }
        return {"type": "function", "function": function}


class FunctionRef(Part):
    name: StrictStr


class NamedToolChoice(Part):
    type: Literal["function"]
    function: FunctionRef


def _one_choice(value: Any) -> Any:
    if isinstance(value, str) and value not in ("none", "auto", "required"):
        raise PydanticCustomError("bad_value", 'must be "none", "auto", "required" or a function')
    return value


ToolChoice = Annotated[
    Literal["none", "auto", "required"] | NamedToolChoice, BeforeValidator(_one_choice)
]


def _few_tools(tools: list[Tool]) -> list[Tool]:
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise PydanticCustomError("bad_value", f"the function {twice!r} is declared twice")
    return tools


Tools = Annotated[
    list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True), AfterValidator(_few_tools)
]


class CalledFunction(Part):
    name: StrictStr
    arguments: StrictStr

    @property
    def values(self) -> Any:
        """What the arguments say; the text itself if they are no JSON, as a model may have written them."""
        try:
            return json.loads(self.arguments or "{}")
        except ValueError:
            return self.arguments


class ToolCall(Part):
    """A call in the history, as an assistant message has it."""

    id: StrictStr
    type: Literal["function"] = "function"
    function: CalledFunction

    def as_template_sees(self) -> dict[str, Any]:
        """Templates write arguments as JSON themselves, so they get values."""
        function = {"name": self.function.name, "arguments": self.function.values}
        return {"id": self.id, "type": self.type, "function": function}


ToolCalls = Annotated[list[ToolCall], Field(max_length=MAX_CALLS, fail_fast=True)]
