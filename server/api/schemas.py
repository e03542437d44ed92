"""Request bodies of Chat Completions and Completions, as they stand on the wire.

Every optional field takes null for absent, as OpenAI has it.  A field that is known but not served is
annotated with `only`: just the values that change nothing are accepted.  Fields not declared are unknown.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticCustomError

from server.api.errors import invalid_field
from server.api.fields import (
    A_STRING,
    AT_MOST_4,
    AT_MOST_MANY,
    INT64,
    MAX_BIASES,
    SOME,
    Also,
    Bias,
    Fraction,
    Natural,
    Part,
    Penalty,
    Positive,
    StopString,
    only,
)
from server.api.output_format import (
    Choices,
    GuidedJson,
    Pattern,
    ResponseFormat,
    StructuredOutputs,
)
from server.api.strict_json import json_object
from server.api.tools.schemas import ToolCalls, ToolChoice, Tools

MAX_CHOICES = 128
MAX_CANDIDATES = 128


def _one_or_many(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return value
    raise PydanticCustomError("bad_value", "must be a string or a list of strings")


def _few_biases(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise PydanticCustomError("bad_value", f"at most {MAX_BIASES} tokens can be biased")
    return value


class StreamOptions(Part):
    include_usage: StrictBool | None = None
    include_obfuscation: Annotated[Any, only(False)] = None
    continuous_usage_stats: Annotated[Any, only(False)] = None


class GenerationBody(Part):
    """The fields that both endpoints have."""

    model: Annotated[StrictStr, Field(min_length=1)]
    max_tokens: Positive | None = None
    temperature: Annotated[StrictFloat, Field(ge=0, le=2)] | None = None
    top_p: Fraction | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Bias], BeforeValidator(_few_biases)] | None = None
    seed: Annotated[StrictInt, INT64] | None = None
    stop: Annotated[list[StopString], AT_MOST_4, Also(_one_or_many, A_STRING)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[StrictInt, Field(ge=1, le=MAX_CHOICES)] | None = None

    # For the provider's accounts and caches: they change no answer.
    user: StrictStr | None = None
    metadata: Annotated[dict[str, StrictStr], Field(max_length=16)] | None = None
    safety_identifier: StrictStr | None = None
    prompt_cache_key: StrictStr | None = None
    prompt_cache_retention: StrictStr | None = None
    service_tier: Annotated[Any, only("auto", "default")] = None

    top_k: Annotated[StrictInt, Field(ge=-1, lt=1 << 63)] | None = None
    min_p: Fraction | None = None
    # Within what float32 logits survive: 1e-300 would make them infinite.
    repetition_penalty: Annotated[StrictFloat, Field(ge=0.01, le=100)] | None = None
    stop_token_ids: Annotated[list[Natural], AT_MOST_MANY] | None = None
    ignore_eos: StrictBool | None = None
    min_tokens: Natural | None = None

    # vLLM's names for what is not served, or always so.
    add_special_tokens: Annotated[Any, only()] = None
    allowed_token_ids: Annotated[Any, only()] = None
    bad_words: Annotated[Any, only([])] = None
    include_stop_str_in_output: Annotated[Any, only(False)] = None
    length_penalty: Annotated[Any, only(1.0)] = None
    priority: Annotated[Any, only(0)] = None
    prompt_logprobs: Annotated[Any, only()] = None
    return_token_ids: Annotated[Any, only(False)] = None
    return_tokens_as_token_ids: Annotated[Any, only(False)] = None
    skip_special_tokens: Annotated[Any, only(True)] = None
    spaces_between_special_tokens: Annotated[Any, only(True)] = None
    truncate_prompt_tokens: Annotated[Any, only()] = None
    use_beam_search: Annotated[Any, only(False)] = None
    guided_json: GuidedJson | None = None
    guided_regex: Pattern | None = None
    guided_choice: Choices | None = None
    guided_grammar: Pattern | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def unknown_fields(self) -> Iterator[str]:
        yield from super().unknown_fields()
        if self.stream_options:
            yield from (f"stream_options.{name}" for name in self.stream_options.unknown_fields())
        if self.structured_outputs:
            names = self.structured_outputs.unknown_fields()
            yield from (f"structured_outputs.{name}" for name in names)


def _text_only(value: Any) -> Any:
    if isinstance(value, dict) and isinstance(kind := value.get("type"), str) and kind != "text":
        raise PydanticCustomError(
            "bad_value",
            "content parts of type {kind} are not supported, only text",
            {"kind": repr(kind[:40])},
        )
    return value


class TextPart(Part):
    type: Literal["text"]
    text: StrictStr


def _as_parts(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if isinstance(value, list):
        return value
    raise PydanticCustomError("bad_value", "must be a string or a list of text parts")


def _served_role(value: Any) -> Any:
    if value == "function":
        raise PydanticCustomError("unsupported", "this server has tools instead")
    return value


class Message(Part):
    role: Annotated[
        Literal["system", "developer", "user", "assistant", "tool"], BeforeValidator(_served_role)
    ]
    name: StrictStr | None = None
    tool_calls: ToolCalls | None = None
    tool_call_id: Annotated[StrictStr | None, Field(validate_default=True)] = None
    reasoning_content: StrictStr | None = None
    content: (
        Annotated[
            list[Annotated[TextPart, BeforeValidator(_text_only)]],
            SOME,
            Also(_as_parts, A_STRING),
        ]
        | None
    ) = Field(default=None, validate_default=True)
    function_call: Annotated[Any, only()] = None
    audio: Annotated[Any, only()] = None
    refusal: Annotated[Any, only()] = None
    annotations: Annotated[Any, only([])] = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content or ())

    @field_validator("tool_calls")
    @classmethod
    def _calls_of_the_assistant(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.data.get("role") != "assistant":
            raise PydanticCustomError("bad_value", "only the assistant calls tools")
        return value

    @field_validator("tool_call_id")
    @classmethod
    def _call_of_a_result(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.data.get("role") == "tool":
            raise PydanticCustomError("missing", "missing")
        if value is not None and info.data.get("role", "tool") != "tool":
            raise PydanticCustomError("bad_value", "only messages of a tool have one")
        return value

    @field_validator("content")
    @classmethod
    def _content_or_calls(cls, value: Any, info: ValidationInfo) -> Any:
        said = info.data.get("role") == "assistant" and info.data.get("tool_calls")
        if value is None and not said:
            raise PydanticCustomError("missing", "missing")
        return value

    def unknown_fields(self) -> Iterator[str]:
        yield from (f"messages[].{name}" for name in super().unknown_fields())
        for part in self.content or ():
            yield from (f"messages[].content[].{name}" for name in part.unknown_fields())


class ChatBody(GenerationBody):
    messages: Annotated[list[Message], SOME]
    max_completion_tokens: Positive | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: StrictBool | None = None
    functions: Annotated[Any, only([])] = None
    function_call: Annotated[Any, only("none", "auto")] = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    modalities: Annotated[Any, only(["text"])] = None
    audio: Annotated[Any, only()] = None
    prediction: Annotated[Any, only()] = None
    web_search_options: Annotated[Any, only()] = None
    store: Annotated[Any, only(False)] = None
    documents: Annotated[Any, only([])] = None
    chat_template: Annotated[Any, only()] = None
    add_generation_prompt: Annotated[Any, only(True)] = None
    continue_final_message: Annotated[Any, only(False)] = None
    echo: Annotated[Any, only(False)] = None
    moderation: Annotated[Any, only()] = None
    verbosity: Annotated[Any, only("medium")] = None

    def unknown_fields(self) -> Iterator[str]:
        yield from super().unknown_fields()
        for message in self.messages:
            yield from message.unknown_fields()
        for tool in self.tools or ():
            yield from tool.unknown_fields()


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _prompts(value: Any) -> list[str | list[int]]:
    """All four forms of a prompt as a list of prompts."""
    if isinstance(value, str):
        return [value]
    if _is_token_ids(value):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return value
        if all(_is_token_ids(item) for item in value):
            return value
    raise PydanticCustomError(
        "bad_value",
        "must be a string, a list of strings, a list of token ids or a list of such lists, not empty",
    )


TOKEN_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
PROMPT_FORMS = {
    "anyOf": [
        A_STRING,
        {"type": "array", "items": A_STRING, "minItems": 1},
        TOKEN_IDS,
        {"type": "array", "items": TOKEN_IDS, "minItems": 1},
    ]
}


class CompletionBody(GenerationBody):
    prompt: Annotated[Any, AfterValidator(_prompts), WithJsonSchema(PROMPT_FORMS)]
    logprobs: Annotated[StrictInt, Field(ge=0, le=5)] | None = None

    best_of: Annotated[StrictInt, Field(ge=1, le=MAX_CANDIDATES)] | None = None
    echo: StrictBool | None = None
    # What comes after the output; needs a model that knows how to fill in.
    suffix: StrictStr | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        prompts: list[str | list[int]] = self.prompt
        return prompts


B = TypeVar("B", bound=Part)


def parse(kind: type[B], body: bytes) -> B:
    """The validated request in `body`; raises InvalidRequest naming the field."""
    return parse_value(kind, json_object(body))


def parse_value(kind: type[B], value: dict[str, Any]) -> B:
    """The validated request in an object; raises InvalidRequest naming the field."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise invalid_field(error, value) from error
