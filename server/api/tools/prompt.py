"""Tools, calls and results in the conversation, for templates that know of them and for those that don't."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from server.api.schemas import Message
from server.api.tools.schemas import Tool

Conversation = list[dict[str, Any]]

# For models whose template has no place for tools.  Results come back as a message of the user.
INSTRUCTIONS = """You can call these functions; each line describes one as JSON:
{functions}
To call one, write exactly this, with the function's name and its arguments as a JSON object:
<tool_call>
{{"name": "...", "arguments": {{...}}}}
</tool_call>
What it returns follows in <tool_response>. Call a function only if it helps; otherwise just answer."""


def conversation(
    messages: Sequence[Message], tools: Sequence[Tool], template_knows: bool
) -> Conversation:
    """The messages as a chat template gets them.  `template_knows`: it has a place for tools."""
    if template_knows:
        names = {call.id: call.function.name for m in messages for call in m.tool_calls or ()}
        return [_as_template_sees(message, names) for message in messages]
    plain = [_as_plain_text(message) for message in messages]
    return _with_instructions(plain, tools) if tools else plain


def _head(message: Message) -> dict[str, Any]:
    # "developer" is OpenAI's newer word for what templates call "system".
    role = "system" if message.role == "developer" else message.role
    named = {} if message.name is None else {"name": message.name}
    thought = message.reasoning_content
    reasoning = {} if thought is None else {"reasoning_content": thought}
    return {"role": role, "content": message.text, **named, **reasoning}


def _as_template_sees(message: Message, names: dict[str, str]) -> dict[str, Any]:
    seen = _head(message)
    if message.tool_calls:
        seen["tool_calls"] = [call.as_template_sees() for call in message.tool_calls]
    if message.role == "tool":
        seen["tool_call_id"] = message.tool_call_id
        if (name := names.get(message.tool_call_id or "")) is not None:
            seen.setdefault("name", name)
    return seen


def _as_plain_text(message: Message) -> dict[str, Any]:
    if message.role == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message.text}\n</tool_response>"}
    seen = _head(message)
    calls = [
        json.dumps({"name": c.function.name, "arguments": c.function.values}, ensure_ascii=False)
        for c in message.tool_calls or ()
    ]
    written = [f"<tool_call>\n{call}\n</tool_call>" for call in calls]
    seen["content"] = "\n".join([text for text in (seen["content"], *written) if text])
    return seen


def _with_instructions(messages: Conversation, tools: Sequence[Tool]) -> Conversation:
    functions = [json.dumps(t.as_template_sees()["function"], ensure_ascii=False) for t in tools]
    text = INSTRUCTIONS.format(functions="\n".join(functions))
    first = messages[0]
    if first["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    return [{**first, "content": f"{first['content']}\n\n{text}"}, *messages[1:]]
