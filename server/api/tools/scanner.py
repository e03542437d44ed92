"""From the text of a model to its tool calls, fragment by fragment.

Where a grammar guarantees the form of a call, its arguments are passed on as they come.  Elsewhere a call is
held back until it is whole: a text that only looks like a call is a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from server.api.text import overlap
from server.api.tools.families import Syntax
from server.api.tools.schemas import Tool
from server.api.turn_parts import CallArguments, CallBegin, Content, TurnPart

BLANK = " \t\r\n"

CallId = Callable[[int], str]
"""The id of call number n."""


class JsonObject:
    """Finds the end of a JSON object that is known to be well formed."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False

    def end_in(self, text: str) -> int | None:
        """The length of what `text` holds of it; None if it goes on."""
        for place, char in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return place + 1
        return None


class CallScanner:
    """Text in; content and calls out.  White space before a call belongs to nobody."""

    def __init__(
        self,
        syntax: Syntax,
        tools: Sequence[Tool],
        call_id: CallId,
        *,
        guaranteed: bool,
        most: int | None = None,
    ) -> None:
        """`guaranteed`: a constraint keeps the calls well formed.  `most`: calls; what follows is content."""
        self._syntax, self._call_id, self._most = syntax, call_id, most
        self._names = {tool.function.name for tool in tools}
        self._tools = [tool.as_template_sees() for tool in tools]
        streams = guaranteed and syntax.header is not None
        self._header = syntax.header_of(sorted(self._names)) if streams else None
        self._state: Callable[[], list[TurnPart] | None] = self._text
        self._held = ""
        self._before = ""  # the mark of the call at hand, and the white space in front of it
        self._arguments = JsonObject()
        self._count = 0

    def push(self, text: str) -> list[TurnPart]:
        """What became certain with `text`."""
        self._held += text
        parts: list[TurnPart] = []
        while (more := self._state()) is not None:
            parts += more
        return parts

    def flush(self) -> list[TurnPart]:
        """What is left when no text follows."""
        held, self._held = self._held, ""
        state, self._state = self._state, self._text
        if state == self._text:
            return _content(held if not self._count else held.rstrip(BLANK))
        if state == self._whole_call:
            calls = self._calls(held) if not self._syntax.end else []
            return calls or _content(self._before + held)
        if state == self._call_header:
            return _content(self._before + held)
        return (
            [CallArguments(self._count - 1, held)] if state == self._call_arguments and held else []
        )

    # States: each gives what it found and may have changed the state, or None if it needs more text.

    def _text(self) -> list[TurnPart] | None:
        text, start = self._held, self._syntax.start
        full = self._most is not None and self._count >= self._most
        begin = -1 if full else text.find(start)
        if begin >= 0:
            end, said = begin + len(start), text[:begin].rstrip(BLANK)
            self._before, self._held = text[len(said) : end], text[end:]
            self._state = self._whole_call if self._header is None else self._call_header
            return _content(said)
        safe = text[: len(text) - (0 if full else overlap(text, start))].rstrip(BLANK)
        self._held = text[len(safe) :]
        return _content(safe) or None

    def _whole_call(self) -> list[TurnPart] | None:
        end = self._syntax.end
        if not end or end not in self._held:
            return None
        body, self._held = self._held.split(end, 1)
        self._state = self._text
        return self._calls(body) or _content(self._before + body + end)

    def _call_header(self) -> list[TurnPart] | None:
        assert self._header is not None
        if found := self._header.match(self._held):
            return self._begin(found)
        end = self._syntax.end
        if not end or end not in self._held:
            return None
        body, self._held = self._held.split(end, 1)
        self._state = self._text
        return _content(self._before + body + end)

    def _begin(self, header: re.Match[str]) -> list[TurnPart]:
        self._held = self._held[header.end() :]
        self._state, self._arguments = self._call_arguments, JsonObject()
        index = self._count
        self._count += 1
        return [CallBegin(index, self._call_id(index), header["name"])]

    def _call_arguments(self) -> list[TurnPart] | None:
        if not self._held:
            return None
        end = self._arguments.end_in(self._held)
        text = self._held[:end]
        self._held = self._held[len(text) :]
        if end is not None:
            self._state = self._call_end
        return [CallArguments(self._count - 1, text)]

    def _call_end(self) -> list[TurnPart] | None:
        """After the arguments: the end of the call, or the next one of several between two marks."""
        assert self._header is not None
        end = self._syntax.end
        ends = self._held.find(end) if end else -1
        following = self._header.search(self._held)
        if following and (ends < 0 or following.start() < ends):
            return self._begin(following)
        if ends < 0:
            return None
        self._held = self._held[ends + len(end) :]
        self._state = self._text
        return []

    def _calls(self, body: str) -> list[TurnPart]:
        """The calls in what stands between two marks; none unless all are calls of tools there are."""
        found = self._syntax.calls(body, self._tools)
        if self._most is not None and len(found) > self._most - self._count:
            return []
        if not all(_is_call(call, self._names) for call in found):
            return []
        parts: list[TurnPart] = []
        for call in found:
            arguments = _as_json(call["arguments"])
            begin = CallBegin(self._count, self._call_id(self._count), call["name"])
            parts += [begin, CallArguments(self._count, arguments)]
            self._count += 1
        return parts


def _is_call(call: Any, names: Iterable[str]) -> bool:
    return (
        isinstance(call, dict)
        and isinstance(call.get("name"), str)
        and call["name"] in names
        and isinstance(call.get("arguments"), dict)
        and bool(_as_json(call["arguments"]))
    )


def _as_json(arguments: dict[str, Any]) -> str:
    """Empty for what JSON has no form for: infinities, halves of characters."""
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        text.encode()
    except ValueError:
        return ""
    return text


def _content(text: str) -> list[TurnPart]:
    return [Content(text)] if text else []
