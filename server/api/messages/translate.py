"""From a Messages body to the chat request that is run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from server.api.messages.schemas import (
    CountBody,
    InputMessage,
    MessagesBody,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    joined,
)

# Fields of the chat request, and what they are called here; for errors.
NAMES = {
    "stop": "stop_sequences",
    "reasoning_effort": "thinking",
    "chat_template_kwargs": "thinking",
}

# adaptive: as the model does by itself, which may be not at all
EFFORTS = {"enabled": "medium", "disabled": "none", "adaptive": None}
CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def as_chat(body: CountBody) -> dict[str, Any]:
    """The chat body that `body` comes to."""
    fields: dict[str, Any] = {
        "model": body.model,
        "messages": list(_messages(body)),
        "tools": [_tool(tool.model_dump()) for tool in body.tools] if body.tools else None,
        "tool_choice": _choice(body),
    }
    if body.tool_choice is not None and body.tool_choice.disable_parallel_tool_use:
        fields["parallel_tool_calls"] = False
    if body.thinking is not None:
        fields["reasoning_effort"] = EFFORTS[body.thinking.type]
    if isinstance(body, MessagesBody):
        fields |= {
            "max_completion_tokens": body.max_tokens,
            "stop": body.stop_sequences,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
        }
    return {name: value for name, value in fields.items() if value is not None}


def _messages(body: CountBody) -> Iterator[dict[str, Any]]:
    if body.system:
        yield {"role": "system", "content": joined(body.system)}
    for message in body.messages:
        yield from _assistant(message) if message.role == "assistant" else _user(message)


def _user(message: InputMessage) -> Iterator[dict[str, Any]]:
    """Results of tools are messages of their own, before what else the user says."""
    for block in message.content:
        if isinstance(block, ToolResultBlock):
            text = f"Error: {block.text}" if block.is_error else block.text
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}
    texts = [block for block in message.content if isinstance(block, TextBlock)]
    if texts:
        yield {"role": "user", "content": joined(texts)}


def _assistant(message: InputMessage) -> Iterator[dict[str, Any]]:
    told: dict[str, Any] = {"role": "assistant"}
    texts = [block for block in message.content if isinstance(block, TextBlock)]
    thoughts = [block.thinking for block in message.content if isinstance(block, ThinkingBlock)]
    calls = [_call(block) for block in message.content if isinstance(block, ToolUseBlock)]
    if texts:
        told["content"] = joined(texts)
    if thoughts:
        told["reasoning_content"] = "".join(thoughts)
    if calls:
        told["tool_calls"] = calls
    if texts or calls:
        yield told


def _call(block: ToolUseBlock) -> dict[str, Any]:
    arguments = json.dumps(block.input, ensure_ascii=False)
    function = {"name": block.name, "arguments": arguments}
    return {"id": block.id, "type": "function", "function": function}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = {
        "name": tool["name"],
        "description": tool["description"],
        "parameters": tool["input_schema"],
        "strict": tool["strict"],
    }
    shown = {name: value for name, value in function.items() if value is not None}
    return {"type": "function", "function": shown}


def _choice(body: CountBody) -> Any:
    choice = body.tool_choice
    if choice is None:
        return None
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name or ""}}
    return CHOICES[choice.type]
