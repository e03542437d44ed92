"""What `tools`, `tool_choice` and `parallel_tool_calls` of a request say together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from server.api.errors import InvalidRequest
from server.api.schemas import ChatBody
from server.api.tools.families import Syntax, syntax_of
from server.api.tools.schemas import NamedToolChoice, Tool


@dataclass(frozen=True)
class ToolUse:
    """Which tools the model may call, and whether it has to."""

    tools: tuple[Tool, ...]
    forced: bool
    single: bool
    syntax: Syntax


def tool_use(body: ChatBody, tokenizer: Any) -> ToolUse | None:
    """What `tools` and `tool_choice` say together; None where nothing may be called."""
    tools, choice = tuple(body.tools or ()), body.tool_choice
    if not tools:
        if choice not in (None, "none", "auto"):
            raise InvalidRequest("tool_choice needs tools.", param="tool_choice")
        return None
    if choice == "none":
        return None
    named = isinstance(choice, NamedToolChoice)
    if isinstance(choice, NamedToolChoice):
        name = choice.function.name
        tools = tuple(tool for tool in tools if tool.function.name == name)
        if not tools:
            message = f"tool_choice: there is no function {name[:80]!r} among the tools."
            raise InvalidRequest(message, param="tool_choice")
    single = named or body.parallel_tool_calls is False
    return ToolUse(tools, named or choice == "required", single, syntax_of(tokenizer))
