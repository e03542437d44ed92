"""From a Responses body to the chat request that is run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from server.api.responses.schemas import (
    FunctionCallItem,
    FunctionOutputItem,
    MessageItem,
    ReasoningItem,
    ResponsesBody,
)

Messages = list[dict[str, Any]]

# Fields of the chat request, and what they are called here; for errors.
NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}

# Passed on as they are.
SAME = (
    "model", "temperature", "top_p", "parallel_tool_calls", "presence_penalty", "frequency_penalty", "seed",
    "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "chat_template_kwargs",
)  # fmt: skip


def as_chat(body: ResponsesBody, messages: Messages) -> dict[str, Any]:
    """The chat body that `body` comes to, over a whole conversation."""
    first = (
        [{"role": "system", "content": body.instructions}] if body.instructions is not None else []
    )
    fields: dict[str, Any] = {name: getattr(body, name) for name in SAME}
    fields |= {
        "messages": first + messages,
        "max_completion_tokens": body.max_output_tokens,
        "tools": [_tool(tool.model_dump()) for tool in body.tools] if body.tools else None,
        "tool_choice": _choice(body),
        "response_format": _format(body),
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
    }
    if body.wants_logprobs:
        fields |= {"logprobs": True, "top_logprobs": body.top_logprobs or 0}
    return {name: value for name, value in fields.items() if value is not None}


def as_messages(items: Iterable[Any]) -> Messages:
    """Input items as chat messages; calls and reasoning join the assistant's message that they belong to."""
    messages: Messages = []
    for item in items:
        if isinstance(item, MessageItem):
            _add_message(messages, item)
        elif isinstance(item, FunctionCallItem):
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            _assistants(messages).setdefault("tool_calls", []).append(call)
        elif isinstance(item, FunctionOutputItem):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": item.text})
        elif isinstance(item, ReasoningItem) and item.text:
            messages.append({"role": "assistant", "reasoning_content": item.text})
    return [message for message in messages if set(message) - {"role", "reasoning_content"}]


def _add_message(messages: Messages, item: MessageItem) -> None:
    """A message of its own, or the text that follows the reasoning before it."""
    if item.role == "assistant" and messages and set(messages[-1]) == {"role", "reasoning_content"}:
        messages[-1]["content"] = item.text
    else:
        messages.append({"role": item.role, "content": item.text})


def _assistants(messages: Messages) -> dict[str, Any]:
    """The assistant's message at the end, which is begun if there is none."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant"})
    return messages[-1]


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    names: Sequence[str] = ("name", "description", "parameters", "strict")
    function = {name: tool[name] for name in names if tool[name] is not None}
    return {"type": "function", "function": function}


def _choice(body: ResponsesBody) -> Any:
    choice = body.tool_choice
    if choice is None or isinstance(choice, str):
        return choice
    return {"type": "function", "function": {"name": choice.name}}


def _format(body: ResponsesBody) -> dict[str, Any] | None:
    asked = body.text.format if body.text else None
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return {"type": "json_object"}
    named = {
        "name": asked.name or "answer",
        "description": asked.description,
        "schema": asked.json_schema,
        "strict": asked.strict,
    }
    schema = {name: value for name, value in named.items() if value is not None}
    return {"type": "json_schema", "json_schema": schema}
