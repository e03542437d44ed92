"""The output of a response, made from the deltas of a chat choice: a state machine without HTTP.

At most one item is open: what a delta holds of another kind closes it.  A whole message is one large delta, so
that documents and streams say the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from server.api.responses.items import CallItem, Events, Item, MessageItem, ReasoningItem

PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}


class Output:
    """See the module's text."""

    def __init__(self, make_id: Callable[[str, int], str]) -> None:
        """`make_id(prefix, number)` names the items."""
        self._make_id = make_id
        self._open: Item | None = None
        self._call = -1  # index of the call that is open, as the chat deltas count
        self.items: list[dict[str, Any]] = []  # those that have ended

    def take(self, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> Events:
        """What a chat delta, or a whole message, adds."""
        if reasoning := delta.get("reasoning_content"):
            if not isinstance(self._open, ReasoningItem):
                yield from self._begin(ReasoningItem(*self._next("reasoning")))
            assert isinstance(self._open, ReasoningItem)
            yield from self._open.add(reasoning)
        entries = (logprobs or {}).get("content") or []
        if (text := delta.get("content")) or entries:
            yield from self._add_text(text or "", entries)
        for call in delta.get("tool_calls") or ():
            yield from self._add_call(call)

    def end(self, status: str) -> Events:
        """Nothing follows.  A response always says something, if only an empty text."""
        if self._open is None:
            yield from self._begin(MessageItem(*self._next("message")))
        yield from self._close(status)

    def _add_text(self, text: str, entries: list[dict[str, Any]]) -> Events:
        if not isinstance(self._open, MessageItem):
            yield from self._begin(MessageItem(*self._next("message")))
        assert isinstance(self._open, MessageItem)
        yield from self._open.add(text, entries)

    def _add_call(self, call: dict[str, Any]) -> Events:
        function = call.get("function") or {}
        number = call.get("index", self._call + 1)  # whole messages don't number their calls
        if not isinstance(self._open, CallItem) or number != self._call:
            item_id, index = self._next("function_call")
            yield from self._begin(CallItem(item_id, index, call["id"], function["name"]))
            self._call = number
        assert isinstance(self._open, CallItem)
        if arguments := function.get("arguments"):
            yield from self._open.add(arguments)

    def _next(self, kind: str) -> tuple[str, int]:
        """Id and index of the next item."""
        index = len(self.items) + (self._open is not None)
        return self._make_id(PREFIXES[kind], index), index

    def _begin(self, item: Item) -> Events:
        yield from self._close("completed")
        self._open = item
        yield from item.begin()

    def _close(self, status: str) -> Events:
        if self._open is not None:
            yield from self._open.end(status)
            self.items.append(self._open.shown(status))
            self._open = None
