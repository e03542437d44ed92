"""The content blocks of a message, made from the deltas of a chat choice: a state machine without HTTP.

At most one block is open: what a delta holds of another kind closes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

Events = Iterator[dict[str, Any]]

EMPTY: dict[str, dict[str, Any]] = {
    "text": {"type": "text", "text": "", "citations": None},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}
DELTAS = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking")}


class Blocks:
    """See the module's text; `shown` are the blocks that have ended."""

    def __init__(self) -> None:
        self.shown: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._parts: list[str] = []
        self._call = -1  # index of the call that is open, as the chat deltas count

    def take(self, delta: dict[str, Any]) -> Events:
        """What a chat delta, or a whole message, adds."""
        if reasoning := delta.get("reasoning_content"):
            yield from self._add_text("thinking", reasoning)
        if text := delta.get("content"):
            yield from self._add_text("text", text)
        for call in delta.get("tool_calls") or ():
            yield from self._add_call(call)

    def end(self) -> Events:
        """Nothing follows.  A message always has a block, if only an empty text."""
        if self._open is None and not self.shown:
            yield from self._begin(EMPTY["text"])
        yield from self._close()

    def _add_text(self, kind: str, text: str) -> Events:
        if self._open is None or self._open["type"] != kind:
            yield from self._begin(EMPTY[kind])
        name, field = DELTAS[kind]
        yield self._delta({"type": name, field: text}, text)

    def _add_call(self, call: dict[str, Any]) -> Events:
        function = call.get("function") or {}
        number = call.get("index", self._call + 1)  # whole messages don't number their calls
        if self._open is None or self._open["type"] != "tool_use" or number != self._call:
            named = {"id": call["id"], "name": function["name"]}
            block = {"type": "tool_use", **named, "input": {}, "caller": {"type": "direct"}}
            yield from self._begin(block)
            self._call = number
        if arguments := function.get("arguments"):
            yield self._delta({"type": "input_json_delta", "partial_json": arguments}, arguments)

    def _begin(self, block: dict[str, Any]) -> Events:
        yield from self._close()
        self._open, self._parts = block, []
        yield {
            "type": "content_block_start",
            "index": len(self.shown),
            "content_block": block,
        }

    def _delta(self, delta: dict[str, Any], part: str) -> dict[str, Any]:
        self._parts.append(part)
        return {"type": "content_block_delta", "index": len(self.shown), "delta": delta}

    def _close(self) -> Events:
        if self._open is None:
            return
        yield {"type": "content_block_stop", "index": len(self.shown)}
        self.shown.append(_whole(self._open, "".join(self._parts)))
        self._open = None


def _whole(block: dict[str, Any], content: str) -> dict[str, Any]:
    if block["type"] == "tool_use":
        return {**block, "input": _object(content)}
    return {**block, DELTAS[block["type"]][1]: content}


def _object(arguments: str) -> dict[str, Any]:
    """The arguments of a call; a model that is not held to a grammar may write what is no JSON object."""
    try:
        value = json.loads(arguments or "{}")
    except ValueError:
        value = arguments
    return value if isinstance(value, dict) else {"arguments": value}
