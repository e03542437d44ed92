"""The shapes of answers, for the API's document and for tests that hold real answers to them.

Answers themselves are built as plain dictionaries: validating each chunk of each stream would cost more than
making it.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class Document(BaseModel):
    """Answers may have more fields than are listed."""


class ErrorDetails(Document):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorDocument(Document):
    error: ErrorDetails


class AnthropicError(Document):
    type: Literal["error"]
    error: ErrorDetails
    request_id: str


class PromptTokens(Document):
    cached_tokens: int


class Usage(Document):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens


class TopLogprob(Document):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Document):
    content: list[TokenLogprob] | None
    refusal: list[TokenLogprob] | None


class CalledFunction(Document):
    name: str
    arguments: str


class ToolCall(Document):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Document):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(Document):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(Document):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatChunkChoice(Document):
    index: int
    delta: dict[str, Any]
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatChunk(Document):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionLogprobs(Document):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class TextChoice(Document):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class TextCompletion(Document):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None


class OutputItem(Document):
    id: str
    type: Literal["message", "reasoning", "function_call"]
    status: Literal["in_progress", "completed", "incomplete"]


class InputTokens(Document):
    cached_tokens: int


class OutputTokens(Document):
    reasoning_tokens: int


class ResponseUsage(Document):
    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    output_tokens_details: OutputTokens
    total_tokens: int


class ResponseDocument(Document):
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[OutputItem]
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    instructions: str | None
    previous_response_id: str | None
    metadata: dict[str, str]
    store: bool
    temperature: float
    top_p: float
    tools: list[dict[str, Any]]
    usage: ResponseUsage | None


class ResponseEvent(Document):
    type: str
    sequence_number: int


class DeletedResponse(Document):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputItems(Document):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ResponseInputTokens(Document):
    object: Literal["response.input_tokens"]
    input_tokens: int


class MessageUsage(Document):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: dict[str, int] | None
    service_tier: str


class ContentBlock(Document):
    type: Literal["text", "thinking", "tool_use"]


class MessageDocument(Document):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ContentBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: MessageUsage


class MessageEvent(Document):
    type: str


class MessageTokens(Document):
    input_tokens: int


class ModelDocument(Document):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None
    loaded: bool


class ModelList(Document):
    object: Literal["list"]
    data: list[ModelDocument]


class Tokens(Document):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str | None] | None


class Text(Document):
    prompt: str


class Health(Document):
    status: str
    reason: str
    model: str
    version: str
    uptime_s: float


class Cluster(Document):
    object: Literal["cluster"]
    name: str
    model: str
    ready: bool
    reason: str
    ranks: list[dict[str, Any]]
