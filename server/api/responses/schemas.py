"""Body of POST /v1/responses, as it stands on the wire."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictFloat, StrictInt, StrictStr
from pydantic_core import PydanticCustomError

from server.api.fields import (
    A_STRING,
    INT64,
    SOME,
    Also,
    Fraction,
    Natural,
    Part,
    Penalty,
    Positive,
    only,
)

REFUSED_PARTS = ("input_image", "input_file", "input_audio", "input_video", "image_url")
# Their content comes back in plain text in `content`, so there is nothing to encrypt.
INCLUDABLE = ("message.output_text.logprobs", "reasoning.encrypted_content")


def _text_only(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind in REFUSED_PARTS:
        message = "content parts of type {kind} are not supported, only text"
        raise PydanticCustomError("bad_value", message, {"kind": repr(kind)})
    return value


class TextPart(Part):
    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"]
    text: StrictStr


class RefusalPart(Part):
    type: Literal["refusal"]
    refusal: StrictStr

    @property
    def text(self) -> str:
        return self.refusal


def _as_parts(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "input_text", "text": value}]
    if isinstance(value, list):
        return value
    raise PydanticCustomError("bad_value", "must be a string or a list of text parts")


ContentPart = Annotated[
    Annotated[TextPart | RefusalPart, Field(discriminator="type")], BeforeValidator(_text_only)
]
Content = Annotated[list[ContentPart], SOME, Also(_as_parts, A_STRING)]


class Item(Part):
    """What all items have: an id and a status from when they were output."""

    id: StrictStr | None = None
    status: StrictStr | None = None


class MessageItem(Item):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    phase: Literal["commentary", "final_answer"] | None = None  # of GPT-5's; a label for the client

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content)


class FunctionCallItem(Item):
    type: Literal["function_call"]
    call_id: StrictStr
    name: StrictStr
    arguments: StrictStr


class FunctionOutputItem(Item):
    type: Literal["function_call_output"]
    call_id: StrictStr
    output: Content

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.output)


class ReasoningItem(Item):
    type: Literal["reasoning"]
    summary: list[TextPart] | None = None
    content: list[TextPart] | None = None
    encrypted_content: StrictStr | None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content or ())


SERVED_ITEMS = ("message", "function_call", "function_call_output", "reasoning")


def _typed(value: Any) -> Any:
    """A message may leave out its type."""
    if not isinstance(value, dict):
        return value
    kind = value.get("type", "message")
    if isinstance(kind, str) and kind not in SERVED_ITEMS:
        message = "items of type {kind} are not supported"
        raise PydanticCustomError("unsupported", message, {"kind": repr(kind[:40])})
    return {**value, "type": kind}


InputItem = Annotated[
    Annotated[
        MessageItem | FunctionCallItem | FunctionOutputItem | ReasoningItem,
        Field(discriminator="type"),
    ],
    BeforeValidator(_typed),
]


def _as_items(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if isinstance(value, list):
        return value
    raise PydanticCustomError("bad_value", "must be a string or a list of items")


def _function_tool(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != "function":
        message = "tools of type {kind} are not supported, only functions"
        raise PydanticCustomError("unsupported", message, {"kind": repr(kind[:40])})
    return value


class FunctionTool(Part):
    type: Literal["function"]
    name: StrictStr
    description: StrictStr | None = None
    parameters: dict[str, Any] | None = None
    strict: StrictBool | None = None


class NamedTool(Part):
    type: Literal["function"]
    name: StrictStr


class TextFormat(Part):
    """`text`, `json_object`, or `json_schema` with the fields of a named schema beside the type."""

    type: Literal["text", "json_object", "json_schema"]
    name: StrictStr | None = None
    description: StrictStr | None = None
    json_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: StrictBool | None = None


class TextOptions(Part):
    format: TextFormat | None = None
    verbosity: Annotated[Any, only("medium")] = None


class Reasoning(Part):
    effort: StrictStr | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class StreamOptions(Part):
    include_obfuscation: Annotated[Any, only(False)] = None


def _tool_choice(value: Any) -> Any:
    if isinstance(value, dict) and value.get("type") not in ("function", None):
        raise PydanticCustomError("unsupported", "only a function can be chosen by name")
    return value


class ResponsesBody(Part):
    model: Annotated[StrictStr, Field(min_length=1)]
    input: Annotated[list[InputItem], SOME, Also(_as_items, A_STRING)]
    instructions: StrictStr | None = None
    previous_response_id: StrictStr | None = None
    store: StrictBool | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: Positive | None = None
    temperature: Annotated[StrictFloat, Field(ge=0, le=2)] | None = None
    top_p: Fraction | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    include: list[Literal[INCLUDABLE]] | None = None  # type: ignore[valid-type]
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    tools: (
        Annotated[
            list[Annotated[FunctionTool, BeforeValidator(_function_tool)]],
            Field(max_length=128, fail_fast=True),
        ]
        | None
    ) = None
    tool_choice: (
        Annotated[Literal["none", "auto", "required"] | NamedTool, BeforeValidator(_tool_choice)]
        | None
    ) = None
    parallel_tool_calls: StrictBool | None = None
    metadata: Annotated[dict[str, StrictStr], Field(max_length=16)] | None = None

    # For the provider's accounts and caches: they change no answer.
    user: StrictStr | None = None
    safety_identifier: StrictStr | None = None
    prompt_cache_key: StrictStr | None = None
    prompt_cache_retention: StrictStr | None = None
    service_tier: Annotated[Any, only("auto", "default")] = None

    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[StrictInt, INT64] | None = None
    top_k: Annotated[StrictInt, Field(ge=-1, lt=1 << 63)] | None = None
    min_p: Fraction | None = None
    repetition_penalty: Annotated[StrictFloat, Field(ge=0.01, le=100)] | None = None
    min_tokens: Natural | None = None
    ignore_eos: StrictBool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    truncation: Annotated[Any, only("disabled")] = None
    background: Annotated[Any, only(False)] = None
    conversation: Annotated[Any, only()] = None
    prompt: Annotated[Any, only()] = None
    max_tool_calls: Annotated[Any, only()] = None
    context_management: Annotated[Any, only()] = None
    moderation: Annotated[Any, only()] = None

    @property
    def stored(self) -> bool:
        """Whether the response is kept for later; OpenAI's default is that it is."""
        return self.store is not False

    @property
    def wants_logprobs(self) -> bool:
        return INCLUDABLE[0] in (self.include or ())

    def unknown_fields(self) -> Iterator[str]:
        yield from super().unknown_fields()
        parts: list[tuple[str, Part]] = [("input[]", item) for item in self.input]
        parts += [("tools[]", tool) for tool in self.tools or ()]
        parts += [("text", self.text)] if self.text else []
        parts += [("reasoning", self.reasoning)] if self.reasoning else []
        for name, part in parts:
            yield from (f"{name}.{field}" for field in part.unknown_fields())
