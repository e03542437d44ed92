"""Output items of a response while they grow: each tells the events of its beginning, progress and end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Event = dict[str, Any]
Events = Iterator[Event]


class Item:
    """One output item; `shown` is what the response lists once it has ended."""

    kind: str

    def __init__(self, item_id: str, index: int) -> None:
        self.id, self.index = item_id, index
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def begin(self) -> Events:
        yield self._event("response.output_item.added", item=self.shown("in_progress", empty=True))

    def end(self, status: str) -> Events:
        yield self._event("response.output_item.done", item=self.shown(status))

    def shown(self, status: str, *, empty: bool = False) -> dict[str, Any]:
        """The item as JSON; `empty`: before it has any content."""
        raise NotImplementedError

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "output_index": self.index, **fields}

    def _part_event(self, kind: str, **fields: Any) -> Event:
        return self._event(kind, item_id=self.id, content_index=0, **fields)


class MessageItem(Item):
    kind = "message"

    def __init__(self, item_id: str, index: int) -> None:
        super().__init__(item_id, index)
        self._logprobs: list[dict[str, Any]] = []

    def begin(self) -> Events:
        yield from super().begin()
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield self._part_event("response.content_part.added", part=part)

    def add(self, text: str, logprobs: list[dict[str, Any]]) -> Events:
        self._texts.append(text)
        self._logprobs += logprobs
        yield self._part_event("response.output_text.delta", delta=text, logprobs=logprobs)

    def end(self, status: str) -> Events:
        text = self.text
        yield self._part_event("response.output_text.done", text=text, logprobs=self._logprobs)
        yield self._part_event("response.content_part.done", part=self._part())
        yield from super().end(status)

    def shown(self, status: str, *, empty: bool = False) -> dict[str, Any]:
        content = [] if empty else [self._part()]
        head = {"id": self.id, "type": "message", "status": status, "role": "assistant"}
        return {**head, "content": content}

    def _part(self) -> dict[str, Any]:
        part: dict[str, Any] = {"type": "output_text", "text": self.text, "annotations": []}
        return {**part, "logprobs": self._logprobs}


class ReasoningItem(Item):
    kind = "reasoning"

    def add(self, text: str) -> Events:
        self._texts.append(text)
        yield self._part_event("response.reasoning_text.delta", delta=text)

    def end(self, status: str) -> Events:
        yield self._part_event("response.reasoning_text.done", text=self.text)
        yield from super().end(status)

    def shown(self, status: str, *, empty: bool = False) -> dict[str, Any]:
        content = [] if empty else [{"type": "reasoning_text", "text": self.text}]
        head = {"id": self.id, "type": "reasoning", "status": status}
        return {**head, "summary": [], "content": content}


class CallItem(Item):
    kind = "function_call"

    def __init__(self, item_id: str, index: int, call_id: str, name: str) -> None:
        super().__init__(item_id, index)
        self._call_id, self._name = call_id, name

    def add(self, arguments: str) -> Events:
        self._texts.append(arguments)
        yield self._event(
            "response.function_call_arguments.delta", item_id=self.id, delta=arguments
        )

    def end(self, status: str) -> Events:
        yield self._event(
            "response.function_call_arguments.done",
            item_id=self.id,
            name=self._name,
            arguments=self.text,
        )
        yield from super().end(status)

    def shown(self, status: str, *, empty: bool = False) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "function_call",
            "status": status,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": "" if empty else self.text,
        }
