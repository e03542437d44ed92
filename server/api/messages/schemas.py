"""Bodies of POST /v1/messages and /v1/messages/count_tokens, as they stand on the wire."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictFloat, StrictInt, StrictStr
from pydantic_core import PydanticCustomError

from server.api.fields import A_STRING, SOME, Also, Fraction, Part, Positive, StopString, only

SERVED_BLOCKS = ("text", "tool_use", "tool_result", "thinking", "redacted_thinking")
MAX_STOPS = 16


def _served_block(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in SERVED_BLOCKS:
        message = "content blocks of type {kind} are not supported"
        raise PydanticCustomError("unsupported", message, {"kind": repr(kind[:40])})
    return value


class CacheControl(Part):
    """Where a prompt may be cached.  Prefixes are found without it, so it changes nothing."""

    type: Literal["ephemeral"]


class Block(Part):
    cache_control: CacheControl | None = None


class TextBlock(Block):
    type: Literal["text"]
    text: StrictStr
    citations: Annotated[Any, only([])] = None


class ToolUseBlock(Block):
    type: Literal["tool_use"]
    id: StrictStr
    name: StrictStr
    input: dict[str, Any]
    caller: Annotated[Any, only({"type": "direct"})] = None


def _as_blocks(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if isinstance(value, list):
        return value
    raise PydanticCustomError("bad_value", "must be a string or a list of content blocks")


def _text_only(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != "text":
        message = "content blocks of type {kind} are not supported here, only text"
        raise PydanticCustomError("unsupported", message, {"kind": repr(kind[:40])})
    return value


Texts = Annotated[
    list[Annotated[TextBlock, BeforeValidator(_text_only)]],
    Field(max_length=10_000, fail_fast=True),
    Also(_as_blocks, A_STRING),
]


class ToolResultBlock(Block):
    type: Literal["tool_result"]
    tool_use_id: StrictStr
    content: Texts | None = None
    is_error: StrictBool | None = None

    @property
    def text(self) -> str:
        return joined(self.content or ())


class ThinkingBlock(Block):
    """What the model thought in an earlier turn; the signature is Anthropic's."""

    type: Literal["thinking"]
    thinking: StrictStr
    signature: StrictStr | None = None


class RedactedThinkingBlock(Block):
    """Encrypted by another server: nothing of it can be read here."""

    type: Literal["redacted_thinking"]
    data: StrictStr


ContentBlock = Annotated[
    Annotated[
        TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock,
        Field(discriminator="type"),
    ],
    BeforeValidator(_served_block),
]


class InputMessage(Part):
    role: Literal["user", "assistant"]
    content: Annotated[list[ContentBlock], SOME, Also(_as_blocks, A_STRING)]


def _own_tool(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != "custom":
        message = "tools of type {kind} are not supported, only custom ones"
        raise PydanticCustomError("unsupported", message, {"kind": repr(kind[:40])})
    return value


class Tool(Part):
    type: Literal["custom"] | None = None
    name: StrictStr
    description: StrictStr | None = None
    input_schema: dict[str, Any]
    strict: StrictBool | None = None
    cache_control: CacheControl | None = None


class ToolChoice(Part):
    type: Literal["auto", "any", "tool", "none"]
    name: StrictStr | None = None
    disable_parallel_tool_use: StrictBool | None = None


class Thinking(Part):
    """budget_tokens is a target, as Anthropic has it; the bound is max_tokens."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Positive | None = None
    display: Annotated[Any, only("summarized")] = None


class Metadata(Part):
    user_id: StrictStr | None = None


class CountBody(Part):
    """What makes the prompt."""

    model: Annotated[StrictStr, Field(min_length=1)]
    messages: Annotated[list[InputMessage], SOME]
    system: Texts | None = None
    tools: (
        Annotated[
            list[Annotated[Tool, BeforeValidator(_own_tool)]],
            Field(max_length=128, fail_fast=True),
        ]
        | None
    ) = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    mcp_servers: Annotated[Any, only([])] = None
    context_management: Annotated[Any, only()] = None
    output_config: Annotated[Any, only()] = None
    output_format: Annotated[Any, only()] = None

    def unknown_fields(self) -> Iterator[str]:
        yield from super().unknown_fields()
        for message in self.messages:
            yield from (f"messages[].{name}" for name in message.unknown_fields())
            for block in message.content:
                yield from (f"messages[].content[].{name}" for name in block.unknown_fields())
        for tool in self.tools or ():
            yield from (f"tools[].{name}" for name in tool.unknown_fields())


class MessagesBody(CountBody):
    max_tokens: Positive
    stop_sequences: (
        Annotated[list[StopString], Field(max_length=MAX_STOPS, fail_fast=True)] | None
    ) = None
    stream: StrictBool | None = None
    temperature: Annotated[StrictFloat, Field(ge=0, le=1)] | None = None
    top_p: Fraction | None = None
    top_k: Annotated[StrictInt, Field(ge=0, lt=1 << 63)] | None = None
    metadata: Metadata | None = None  # for the provider's accounts
    service_tier: Annotated[Any, only("auto", "standard_only")] = None
    container: Annotated[Any, only()] = None
    inference_geo: Annotated[Any, only()] = None
    speed: Annotated[Any, only("standard")] = None


def joined(blocks: Any) -> str:
    """The text of text blocks."""
    return "".join(block.text for block in blocks)
